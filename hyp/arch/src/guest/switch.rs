//! The world switch of one physical CPU: what is saved and loaded, and in which order.
//! What each group of registers holds stands in its own module. EL2 masks interrupts throughout and never leaves a
//! CPU in the middle, so one CPU's [`GuestCpu`] has one user at a time.

use core::cell::{Cell, RefCell};

use aarch64_cpu::asm::barrier::{SY, isb};
use aarch64_cpu::registers::{
    ESR_EL2, FAR_EL2, HPFAR_EL2, Readable, SCTLR_EL1, TCR_EL1, Writeable,
};
use porthole_core::context::{El1Regs, PauthKeys, TimerRegs, VcpuContext};
use porthole_core::hw::{CpuId, GuestException, GuestExit, IrqSource, SysReg};

use super::debug::HostDebug;
use super::enter::{self, RawExit};
use super::features::CpuFeatures;
use super::fp::HostFp;
use super::gic_cpu::{self, GicCpu, Redistributor};
use super::gic_virtual::VirtualInterface;
use super::profiling::HostProfiling;
use super::traps::{GuestControls, HostControls};
use super::{el1, id_regs, inject, timer};

/// TCR_EL1.EPD0 and EPD1: no table walk for either half.
const TCR_NO_WALKS: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1.M.
const SCTLR_MMU: u64 = 1;
/// ESR_EL2.EC of a trapped SIMD or floating-point instruction.
const EC_FP: u64 = 0x07;
/// ESR_EL2.EC of a trapped MSR, MRS or system instruction.
const EC_SYSTEM_REGISTER: u64 = 0x18;
/// Op0 of the debug registers, in the syndrome's bits 21:20.
const DEBUG_OP0: u64 = 2;

/// What the CPU has, and the host's state while a vCPU is loaded.
struct Host {
    features: CpuFeatures,
    el1: El1Regs,
    pauth: PauthKeys,
    timer: TimerRegs,
    controls: HostControls,
    /// What the controls become for a guest.
    for_guest: GuestControls,
    profiling: HostProfiling,
    debug: HostDebug,
    fp: HostFp,
}

/// One physical CPU's share in running guests.
pub struct GuestCpu {
    id: Cell<CpuId>,
    gic: GicCpu,
    virtual_gic: VirtualInterface,
    loaded: Cell<bool>,
    host: RefCell<Host>,
}

impl GuestCpu {
    /// Not yet initialised: it must not run guests.
    pub const fn new() -> Self {
        Self {
            id: Cell::new(CpuId(0)),
            gic: GicCpu::new(),
            virtual_gic: VirtualInterface::new(),
            loaded: Cell::new(false),
            host: RefCell::new(Host {
                features: CpuFeatures::NONE,
                el1: ZERO_EL1,
                pauth: PauthKeys([0; 10]),
                timer: TimerRegs {
                    cntv_ctl: 0,
                    cntv_cval: 0,
                    cntvoff: 0,
                },
                controls: HostControls::new(),
                for_guest: GuestControls::new(),
                profiling: HostProfiling::new(),
                debug: HostDebug::new(),
                fp: HostFp::new(),
            }),
        }
    }

    /// Reads this CPU's features and resets its virtual CPU interface. Call it on the CPU itself, once on each way
    /// up (also after CPU_OFF), with EL2's own controls and ZCR_EL2 set for the host.
    pub fn init(&self, id: CpuId, redistributor: Redistributor) {
        let features = CpuFeatures::read();
        let host = &mut *self.host.borrow_mut();
        host.for_guest = GuestControls::of(&features);
        host.features = features;
        self.id.set(id);
        self.gic.init(redistributor);
        self.virtual_gic.reset(&features);
        self.loaded.set(false);
    }

    /// Which CPU this is.
    pub fn id(&self) -> CpuId {
        self.id.get()
    }

    /// What the CPU has.
    pub fn features(&self) -> CpuFeatures {
        self.host.borrow().features
    }

    /// Number of list registers, 1 to 16.
    pub fn list_registers(&self) -> usize {
        usize::from(self.host.borrow().features.list_registers)
    }

    /// Saves the host's state and loads the vCPU's: EL1 registers, keys, timer, virtual CPU interface, debug,
    /// traps, stage 2 and the guest vectors. The vCPU's `vttbr` and `vtcr` must describe its VM's stage 2.
    ///
    /// Between the first and the last step EL1's stage 1 is switched on with both table walks disabled: nothing
    /// that speculates (AT instructions included, Arm errata 1319367 and 1530923) can combine stage 1 of one world
    /// with stage 2 of the other.
    pub fn load(&self, vcpu: &mut VcpuContext) {
        debug_assert!(!self.loaded.get());
        let host = &mut *self.host.borrow_mut();
        let features = &host.features;

        host.controls.save(features);
        host.el1.sctlr = SCTLR_EL1.get();
        host.el1.tcr = TCR_EL1.get();
        el1::save(&mut host.el1);
        timer::save(&mut host.timer);
        if features.pauth {
            el1::save_pauth(&mut host.pauth);
            el1::load_pauth(&vcpu.pauth);
        }
        host.profiling.stop(features);

        stop_walks(host.el1.sctlr, host.el1.tcr);
        el1::load(&vcpu.el1);
        host.controls
            .load_guest(vcpu, features, &host.for_guest, enter::vectors());
        isb(SY);
        resume_walks(vcpu.el1.sctlr, vcpu.el1.tcr);

        if features.ras {
            super::regs::VDISR_EL2.set(0);
            super::regs::VSESR_EL2.set(0);
        }
        host.debug.load(&mut vcpu.debug, features);
        timer::load(&vcpu.timer);
        self.virtual_gic.load(&vcpu.gic, features);
        self.gic.load();
        isb(SY);
        vcpu.fp_live = false;
        self.loaded.set(true);
    }

    /// Runs the loaded vCPU until it exits to EL2 for something that core must see. List registers go to hardware
    /// before and come back after; lazy FP and debug registers are dealt with here.
    pub fn enter(&self, vcpu: &mut VcpuContext) -> GuestExit {
        assert!(self.loaded.get(), "enter without load");
        self.virtual_gic.enter(&vcpu.gic);
        let exit = loop {
            // SAFETY: `loaded` says that `load` was called and `put` was not; core runs one vCPU at a time here.
            match unsafe { enter::enter(vcpu) } {
                RawExit::Irq => break GuestExit::Irq,
                RawExit::SError => {
                    break GuestExit::SError { esr: ESR_EL2.get() };
                }
                RawExit::Sync => {
                    let esr = ESR_EL2.get();
                    if !self.handle_inside(vcpu, esr) {
                        break GuestExit::Sync {
                            esr,
                            far: FAR_EL2.get(),
                            hpfar: HPFAR_EL2.get(),
                        };
                    }
                }
            }
        };
        self.virtual_gic.exit(&mut vcpu.gic);
        exit
    }

    /// Whether the exit was a matter of the world switch, and is done.
    #[inline]
    fn handle_inside(&self, vcpu: &mut VcpuContext, esr: u64) -> bool {
        match (esr >> 26) & 0x3f {
            EC_FP if !vcpu.fp_live => {
                let host = &mut *self.host.borrow_mut();
                host.fp
                    .give_to_guest(&vcpu.fp, host.for_guest.cptr(), host.features.sve);
                vcpu.fp_live = true;
                true
            }
            EC_SYSTEM_REGISTER if (esr >> 20) & 3 == DEBUG_OP0 => {
                let host = &mut *self.host.borrow_mut();
                host.debug.access(vcpu, esr, &host.features)
            }
            _ => false,
        }
    }

    /// Saves the vCPU's state and loads the host's, in the reverse order of [`Self::load`].
    pub fn put(&self, vcpu: &mut VcpuContext) {
        debug_assert!(self.loaded.get());
        let host = &mut *self.host.borrow_mut();
        let features = &host.features;

        timer::save(&mut vcpu.timer);
        timer::load(&host.timer);
        self.gic.put();
        self.virtual_gic.put(&mut vcpu.gic, features);
        host.debug.put(features);
        if vcpu.fp_live {
            host.fp.take_back(&mut vcpu.fp, features.sve);
            vcpu.fp_live = false;
        }

        vcpu.el1.sctlr = SCTLR_EL1.get();
        vcpu.el1.tcr = TCR_EL1.get();
        el1::save(&mut vcpu.el1);
        if features.pauth {
            el1::save_pauth(&mut vcpu.pauth);
            el1::load_pauth(&host.pauth);
        }

        stop_walks(vcpu.el1.sctlr, vcpu.el1.tcr);
        el1::load(&host.el1);
        host.controls.load(features);
        isb(SY);
        resume_walks(host.el1.sctlr, host.el1.tcr);
        host.profiling.restart(features);
        isb(SY);
        self.loaded.set(false);
    }

    /// Delivers an exception to the loaded vCPU's EL1.
    pub fn inject(&self, vcpu: &mut VcpuContext, exception: GuestException) {
        inject::inject(vcpu, exception);
    }

    /// CNTV_CTL_EL0 and CNTV_CVAL_EL0 of the loaded vCPU.
    pub fn guest_timer(&self) -> (u64, u64) {
        timer::current()
    }

    /// Ends the active state of the virtual timer's PPI on this CPU. A vCPU is loaded.
    pub fn deactivate_timer(&self) {
        self.gic.deactivate_timer();
    }

    /// Marks the virtual timer's PPI active on this CPU.
    pub fn activate_timer(&self) {
        self.gic.activate_timer();
    }

    /// Looks at the pending physical interrupt and acknowledges it if it is EL2's. A vCPU is loaded.
    pub fn take_irq(&self) -> IrqSource {
        gic_cpu::take_irq()
    }

    /// An identification register of this CPU, zero if `encoding` names none that every CPU has.
    pub fn id_register(&self, encoding: SysReg) -> u64 {
        id_regs::read(encoding)
    }

    /// 64 random bits from RNDR, `None` if the CPU has none (now).
    pub fn random(&self) -> Option<u64> {
        self.has_random().then(id_regs::rndr).flatten()
    }

    /// Whether the CPU has RNDR.
    pub fn has_random(&self) -> bool {
        self.host.borrow().features.rng
    }
}

impl Default for GuestCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// No walk of EL1's stage 1 from here on: stage 1 is on and both halves fault. First the walks are forbidden, then a
/// stage 1 that was off is switched on, since with it off every address would walk stage 2.
fn stop_walks(sctlr: u64, tcr: u64) {
    TCR_EL1.set(tcr | TCR_NO_WALKS);
    isb(SY);
    if sctlr & SCTLR_MMU == 0 {
        SCTLR_EL1.set(sctlr | SCTLR_MMU);
        isb(SY);
    }
}

/// Loads SCTLR_EL1, and TCR_EL1 last, with everything that they walk already in place.
fn resume_walks(sctlr: u64, tcr: u64) {
    SCTLR_EL1.set(sctlr);
    isb(SY);
    TCR_EL1.set(tcr);
}

/// All registers zero, in a constant.
const ZERO_EL1: El1Regs = El1Regs {
    sctlr: 0,
    actlr: 0,
    cpacr: 0,
    ttbr0: 0,
    ttbr1: 0,
    tcr: 0,
    mair: 0,
    amair: 0,
    esr: 0,
    far: 0,
    afsr0: 0,
    afsr1: 0,
    vbar: 0,
    contextidr: 0,
    tpidr_el0: 0,
    tpidrro_el0: 0,
    tpidr_el1: 0,
    cntkctl: 0,
    par: 0,
    sp_el0: 0,
    sp_el1: 0,
    elr: 0,
    spsr: 0,
    csselr: 0,
};
