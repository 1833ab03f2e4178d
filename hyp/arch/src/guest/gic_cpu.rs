//! The physical GIC CPU interface and this CPU's redistributor, as far as a loaded guest needs them: EL2's own
//! interrupts (kick, virtual timer, maintenance) and what the host had configured. The distributor, LPIs and every
//! other interrupt are the host's. Source: GICv3, Arm IHI 0069.

use core::cell::Cell;
use core::ptr::NonNull;

use aarch64_cpu::asm::barrier::{SY, dsb, isb};
use aarch64_cpu::registers::{ReadWriteable, Readable, Writeable};
use porthole_core::hw::IrqSource;

use super::regs::*;

/// SGI by which one CPU makes another leave its guest.
pub const KICK_SGI: u32 = 15;
/// PPI of the virtual CPU interface's maintenance interrupt (Arm BSA).
pub const MAINTENANCE_PPI: u32 = 25;
/// PPI of the virtual timer (Arm BSA).
pub const VIRTUAL_TIMER_PPI: u32 = 27;

/// EL2's own interrupts as bits of the redistributor's SGI and PPI registers.
const OWN: u32 = 1 << KICK_SGI | 1 << MAINTENANCE_PPI | 1 << VIRTUAL_TIMER_PPI;
/// Their priority: the highest, so that an acknowledge cannot meet a host's interrupt that came in between.
const OWN_PRIORITY: u8 = 0;
/// Lets every priority through.
const PMR_ALL: u64 = 0xff;
/// INTIDs from here to 1023 mean "none" (IHI 0069, 2.2.1).
const SPECIAL_FIRST: u32 = 1020;
const SPECIAL_LAST: u32 = 1023;
/// INTID field of ICC_IAR1_EL1 and ICC_HPPIR1_EL1.
const INTID_MASK: u64 = 0xff_ffff;
/// Polls of GICR_CTLR.RWP before we go on: a disable takes effect within few bus cycles.
const RWP_POLLS: u32 = 10_000;

/// Offset of the SGI and PPI frame in a redistributor.
const SGI_FRAME: usize = 0x1_0000;
const GICR_CTLR: usize = 0;
const GICR_CTLR_RWP: u32 = 1 << 3;
const GICR_ISENABLER0: usize = SGI_FRAME + 0x100;
const GICR_ICENABLER0: usize = SGI_FRAME + 0x180;
const GICR_ISACTIVER0: usize = SGI_FRAME + 0x300;
const GICR_IPRIORITYR: usize = SGI_FRAME + 0x400;

/// One CPU's redistributor: RD_base and SGI_base frames, 128 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Redistributor(NonNull<u8>);

impl Redistributor {
    /// Wraps the redistributor whose RD_base frame EL2 sees at `base`.
    ///
    /// # Safety
    /// The 128 KiB from `base` on are a GICv3 redistributor, mapped at EL2 as Device memory for good.
    pub const unsafe fn new(base: NonNull<u8>) -> Self {
        Self(base)
    }

    fn read(&self, offset: usize) -> u32 {
        // SAFETY: the offset is one of the constants above, inside the frames that `new` was promised; MMIO.
        unsafe { self.0.add(offset).cast::<u32>().read_volatile() }
    }

    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as for `read`. The registers written govern EL2's own interrupts only.
        unsafe { self.0.add(offset).cast::<u32>().write_volatile(value) }
    }

    fn set_priority(&self, intid: u32, priority: u8) {
        // SAFETY: as for `read`; GICR_IPRIORITYR is byte-accessible and `intid` is below 32.
        unsafe {
            self.0
                .add(GICR_IPRIORITYR + (intid as usize & 31))
                .write_volatile(priority);
        }
    }

    /// Enables EL2's own interrupts, with the highest priority. The host may have set another one.
    fn enable_own(&self) {
        for intid in [KICK_SGI, MAINTENANCE_PPI, VIRTUAL_TIMER_PPI] {
            self.set_priority(intid, OWN_PRIORITY);
        }
        self.write(GICR_ISENABLER0, OWN);
    }

    /// Disables them and waits until none can be signalled to the host.
    fn disable_own(&self) {
        self.write(GICR_ICENABLER0, OWN);
        for _ in 0..RWP_POLLS {
            if self.read(GICR_CTLR) & GICR_CTLR_RWP == 0 {
                break;
            }
        }
    }

    fn activate_timer(&self) {
        self.write(GICR_ISACTIVER0, 1 << VIRTUAL_TIMER_PPI);
        dsb(SY);
    }
}

/// The host's settings of the physical CPU interface while a guest is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostInterface {
    ctlr: u64,
    pmr: u64,
    igrpen1: u64,
    sre: u64,
}

/// Physical side of the GIC on one CPU.
#[derive(Debug)]
pub struct GicCpu {
    redistributor: Cell<Option<Redistributor>>,
    host: Cell<HostInterface>,
}

impl GicCpu {
    /// Before the redistributor is known.
    pub const fn new() -> Self {
        Self {
            redistributor: Cell::new(None),
            host: Cell::new(HostInterface {
                ctlr: 0,
                pmr: 0,
                igrpen1: 0,
                sre: 0,
            }),
        }
    }

    /// Names the redistributor of the CPU that runs this, and switches the System register interface of EL2 on.
    pub fn init(&self, redistributor: Redistributor) {
        ICC_SRE_EL2.write(
            ICC_SRE::SRE::SET + ICC_SRE::DFB::SET + ICC_SRE::DIB::SET + ICC_SRE::ENABLE::SET,
        );
        isb(SY);
        self.redistributor.set(Some(redistributor));
    }

    /// Takes the CPU interface over for a guest: EL2's own interrupts can come, an end of interrupt does not
    /// deactivate, and the guest cannot reach ICC_SRE_EL1 (where the GIC lets EL2 say so).
    pub fn load(&self) {
        let host = HostInterface {
            ctlr: ICC_CTLR_EL1.get(),
            pmr: ICC_PMR_EL1.get(),
            igrpen1: ICC_IGRPEN1_EL1.get(),
            sre: ICC_SRE_EL2.get(),
        };
        self.host.set(host);
        ICC_SRE_EL2.modify(ICC_SRE::ENABLE::CLEAR);
        ICC_CTLR_EL1.modify(ICC_CTLR::EOI_MODE::SET);
        ICC_PMR_EL1.set(PMR_ALL);
        ICC_IGRPEN1_EL1.set(1);
        if let Some(redistributor) = self.redistributor.get() {
            redistributor.enable_own();
        }
    }

    /// Gives it back to the host.
    pub fn put(&self) {
        if let Some(redistributor) = self.redistributor.get() {
            redistributor.disable_own();
        }
        let host = self.host.get();
        ICC_IGRPEN1_EL1.set(host.igrpen1);
        ICC_PMR_EL1.set(host.pmr);
        ICC_CTLR_EL1.set(host.ctlr);
        ICC_SRE_EL2.set(host.sre);
    }

    /// Marks the virtual timer's PPI active.
    pub fn activate_timer(&self) {
        if let Some(redistributor) = self.redistributor.get() {
            redistributor.activate_timer();
        }
    }

    /// Ends the active state of the virtual timer's PPI. A guest must be loaded.
    pub fn deactivate_timer(&self) {
        ICC_DIR_EL1.set(u64::from(VIRTUAL_TIMER_PPI));
        isb(SY);
    }
}

/// Acknowledges the highest pending interrupt if it is EL2's own. A guest must be loaded.
pub fn take_irq() -> IrqSource {
    match intid(ICC_HPPIR1_EL1.get()) {
        KICK_SGI | MAINTENANCE_PPI | VIRTUAL_TIMER_PPI => {}
        // Nothing in Group 1; Group 0 (FIQ) and what the CPU interface holds back are the host's.
        SPECIAL_FIRST..=SPECIAL_LAST if ISR_EL1.get() == 0 => return IrqSource::Spurious,
        _ => return IrqSource::Host,
    }
    let iar = ICC_IAR1_EL1.get();
    dsb(SY);
    let source = match intid(iar) {
        KICK_SGI => IrqSource::Kick,
        MAINTENANCE_PPI => IrqSource::Maintenance,
        VIRTUAL_TIMER_PPI => IrqSource::VirtualTimer,
        SPECIAL_FIRST..=SPECIAL_LAST => return IrqSource::Spurious,
        // Only a host that gave its interrupt EL2's priority gets here. A level comes back by itself.
        _ => IrqSource::Host,
    };
    ICC_EOIR1_EL1.set(iar);
    if source != IrqSource::VirtualTimer {
        ICC_DIR_EL1.set(iar);
    }
    isb(SY);
    source
}

fn intid(register: u64) -> u32 {
    (register & INTID_MASK) as u32
}

/// Sends the kick to the CPU with these affinity bits (as in MPIDR_EL1; IHI 0069, ICC_SGI1R_EL1). Memory written
/// before is visible to it when it sees the interrupt.
pub fn kick(mpidr: u64) {
    let aff = |shift: u32| (mpidr >> shift) & 0xff;
    let (aff0, aff1, aff2, aff3) = (aff(0), aff(8), aff(16), aff(32));
    let value = aff3 << 48
        | (aff0 >> 4) << 44
        | aff2 << 32
        | u64::from(KICK_SGI) << 24
        | aff1 << 16
        | 1 << (aff0 & 0xf);
    dsb(SY);
    ICC_SGI1R_EL1.set(value);
    isb(SY);
    // A guest that waits for an event (WFE) goes on even if the host keeps the interrupt from its CPU.
    aarch64_cpu::asm::sev();
}
