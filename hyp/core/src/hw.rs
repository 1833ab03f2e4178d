//! The hardware that core needs, as traits. `porthole-hyp` implements them on the real machine
//! (memory with `mem`, TLB and CPU with `arch`, interrupts with `dev`); tests with fakes.
//! An implementation keeps no policy: it does what it is told.

use core::ops::DerefMut;

use porthole_abi::{Error, FunctionId};

use crate::addr::{Ipa, PhysAddr};
use crate::context::VcpuContext;
use crate::stage2::Geometry;

/// Identifies a translation regime in the TLB. The host is 0; VM slot `n` is `n + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vmid(pub u16);

impl Vmid {
    /// The host's.
    pub const HOST: Self = Self(0);
}

/// Index of a physical CPU, dense from 0 in the order of the device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u8);

/// RAM that EL2 reaches. Every address handed in is page-aligned RAM that core has checked.
pub trait Memory {
    /// A value that lives in donated pages; dropping it leaves the pages to their owner, unscrubbed.
    type Boxed<T: Send>: DerefMut<Target = T> + Send;

    /// Reads the 64-bit word `index` (0 to 511) of a page that EL2 owns. Used for table entries, whose
    /// hardware walkers may read at any time: single-copy atomic.
    fn read_word(&self, page: PhysAddr, index: usize) -> u64;

    /// Writes that word, single-copy atomic and ordered before later TLB maintenance.
    fn write_word(&self, page: PhysAddr, index: usize, value: u64);

    /// Zeroes a page that no one else can reach any more and cleans it to the point of coherency.
    fn scrub(&self, page: PhysAddr);

    /// Shows the content of a page that no one else can reach, after cleaning and invalidating the caches
    /// so that what is shown is what a guest with caches off will read.
    fn read_page(&self, page: PhysAddr, show: &mut dyn FnMut(&[u8]));

    /// What any CPU holds as instructions of pages that were scrubbed or shown before is gone.
    fn forget_instructions(&self);

    /// Copies `to.len()` bytes out of host RAM, once; the host may be writing them meanwhile.
    /// `from` is 8-byte aligned and the bytes lie in one page.
    fn copy_from_host(&self, from: PhysAddr, to: &mut [u8]);

    /// Takes a page of the hypervisor's own pool, zeroed.
    fn alloc_page(&self) -> Option<PhysAddr>;

    /// Returns a page to that pool.
    fn free_page(&self, page: PhysAddr);

    /// Pages left in that pool.
    fn free_pages(&self) -> usize;

    /// Moves `value` into `page`, one page that EL2 owns. `T` is at most a page and aligned to at most one.
    fn place<T: Send>(&self, page: PhysAddr, value: T) -> Self::Boxed<T>;
}

/// Stage-2 translation caches. Each call returns when no CPU (and no device that walks the same tables)
/// can use what it invalidates, all earlier table writes being visible before it.
pub trait Tlb {
    /// One address of a regime, any size of entry that covers it, and all combined stage-1 entries.
    fn flush_ipa(&self, vmid: Vmid, ipa: Ipa);

    /// `pages` pages from `ipa` on; an implementation may invalidate more.
    fn flush_range(&self, vmid: Vmid, ipa: Ipa, pages: u64);

    /// All of a regime, instruction caches included.
    fn flush_vmid(&self, vmid: Vmid);

    /// All of a regime on this CPU only, with its instruction cache: another vCPU ran here before.
    fn flush_vmid_local(&self, vmid: Vmid);

    /// Makes table entries that were made valid visible to walkers (DSB ISHST, ISB).
    fn sync(&self);
}

/// What a device's accesses are translated by: stage 2 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaRegime {
    /// Tag of its cached translations. VMIDs of the SMMUs are EL2's own: no CPU invalidates them.
    pub vmid: Vmid,
    /// Root table, at level 1 as [`Geometry`] says: one page, or two that are contiguous and 8 KiB aligned.
    pub root: PhysAddr,
    /// Size of the input address space.
    pub geometry: Geometry,
}

/// An access of a device that an SMMU refused, or another record of its event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaEvent {
    /// Which SMMU, in the order of the device tree.
    pub smmu: u8,
    /// StreamID.
    pub stream: u32,
    /// The PCI function that the StreamID stands for, if it is one.
    pub function: Option<FunctionId>,
    /// Number of the event (Arm IHI 0070, 7.3). 0: the queue was full and records were lost; no other field counts.
    pub kind: u8,
    /// Input address, `NO_ADDRESS` if the event has none.
    pub address: u64,
    /// Whether it was a write.
    pub write: bool,
}

/// DMA of the host's devices, behind SMMUs that EL2 alone reaches. Until [`Self::dma_start`] every stream aborts, and
/// streams that are no PCI function's always do. Without an SMMU all of it does nothing and knows no function.
///
/// Each method returns when the SMMUs have done what it says. They are called under locks and from any CPU.
pub trait Dma {
    /// Whether every SMMU takes another block size for the same mapping without a break and without a fault
    /// (SMMU_IDR3.BBML 2).
    fn dma_in_place(&self) -> bool;

    /// Puts every PCI function on the host's map. Once, when its tables stand; nothing is cached before.
    fn dma_start(&self, host: DmaRegime);

    /// Puts a function that is on the host's map on one of its own: no access by the host's map follows.
    ///
    /// # Errors
    /// `BadStream` for a function that no SMMU knows; `NoMemory`. Nothing has changed then.
    fn dma_attach(&self, function: FunctionId, regime: DmaRegime) -> Result<(), Error>;

    /// Puts a function back on the host's map: no access by its own map follows, though its translations may still be
    /// cached under its VMID.
    fn dma_detach(&self, function: FunctionId);

    /// Forgets `pages` pages from `ipa` on (or more), with the tables on the way to them; accesses that used them
    /// are over. All earlier table writes are visible before it.
    fn dma_flush(&self, vmid: Vmid, ipa: Ipa, pages: u64);

    /// Takes the oldest event, if there is one.
    fn dma_event(&self) -> Option<DmaEvent>;
}

/// Why the guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// A synchronous exception to EL2 with its syndromes (ESR_EL2, FAR_EL2, HPFAR_EL2).
    Sync {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2.
        far: u64,
        /// HPFAR_EL2.
        hpfar: u64,
    },
    /// A physical IRQ (or FIQ) is pending; see [`Cpu::take_irq`].
    Irq,
    /// A physical SError.
    SError {
        /// ESR_EL2.
        esr: u64,
    },
}

/// What a pending physical interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqSource {
    /// The host's; left pending for it.
    Host,
    /// Another CPU's kick; acknowledged and done.
    Kick,
    /// PPI of the virtual timer; acknowledged, priority dropped, still active.
    VirtualTimer,
    /// Maintenance interrupt of the virtual CPU interface; acknowledged and done.
    Maintenance,
    /// Nothing (any more).
    Spurious,
}

/// An exception to deliver to a guest's EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestException {
    /// Undefined instruction (EC 0).
    Undefined,
    /// Synchronous external abort on data access at this address.
    DataAbort {
        /// Virtual address, for FAR_EL1.
        far: u64,
    },
    /// Synchronous external abort on instruction fetch at this address.
    InstructionAbort {
        /// Virtual address, for FAR_EL1.
        far: u64,
    },
}

/// The physical CPU that runs this code.
pub trait Cpu {
    /// Which one it is.
    fn id(&self) -> CpuId;

    /// Number of list registers, 1 to 16.
    fn list_registers(&self) -> usize;

    /// The physical counter (CNTPCT_EL0).
    fn counter(&self) -> u64;

    /// Saves the host's EL1 state and loads this vCPU's: EL1 registers, keys, timer, ICH_*, traps, stage 2.
    fn load(&self, vcpu: &mut VcpuContext);

    /// Runs a loaded vCPU until it exits to EL2. Handles lazy FP and debug itself (never seen as exits).
    /// Writes `gic.hcr` and `gic.lr[..used]` before and reads `lr` back after (and `hcr`, see [`GicRegs`]).
    ///
    /// [`GicRegs`]: crate::context::GicRegs
    fn enter(&self, vcpu: &mut VcpuContext) -> GuestExit;

    /// Saves this vCPU's state and loads the host's.
    fn put(&self, vcpu: &mut VcpuContext);

    /// Delivers an exception to a loaded vCPU's EL1.
    fn inject(&self, vcpu: &mut VcpuContext, exception: GuestException);

    /// Current CNTV_CTL_EL0 and CNTV_CVAL_EL0 of the loaded vCPU.
    fn guest_timer(&self) -> (u64, u64);

    /// Ends the active state of the virtual timer's PPI on this CPU.
    fn deactivate_timer(&self);

    /// Marks the virtual timer's PPI active on this CPU (a loaded vCPU has it active in a list register).
    fn activate_timer(&self);

    /// Looks at the pending physical interrupt; acknowledges it if it is EL2's.
    fn take_irq(&self) -> IrqSource;

    /// Makes another physical CPU leave its guest.
    fn kick(&self, cpu: CpuId);

    /// An ID register's value on this machine, by its encoding (Op0, Op1, CRn, CRm, Op2).
    fn id_register(&self, encoding: SysReg) -> u64;

    /// 64 random bits from RNDR, `None` if the CPU has none (now).
    fn random(&self) -> Option<u64>;

    /// Whether the CPU has RNDR at all.
    fn has_random(&self) -> bool;
}

/// Encoding of a system register, packed as `Op0[15:14] Op1[13:11] CRn[10:7] CRm[6:3] Op2[2:0]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(pub u16);

impl SysReg {
    /// Packs an encoding; each field is masked to its width.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | (op2 as u16 & 7),
        )
    }
}

impl core::fmt::Debug for SysReg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let r = self.0;
        write!(
            f,
            "S{}_{}_C{}_C{}_{}",
            r >> 14,
            (r >> 11) & 7,
            (r >> 7) & 15,
            (r >> 3) & 15,
            r & 7
        )
    }
}

/// The secure firmware behind SMC.
pub trait Firmware {
    /// Relays one call that core's list allows; x0 to x3 of the answer.
    fn call(&self, function: u32, args: [u64; 3]) -> [u64; 4];

    /// PSCI CPU_ON for a CPU of this machine: it starts in the hypervisor and then calls
    /// `Hypervisor::cpu_started`. Returns the PSCI result.
    fn cpu_on(&self, cpu: CpuId) -> i64;
}

/// Device registers that EL2 uses in the host's place, in the frames that `BootConfig::gic` names.
pub trait Mmio {
    /// Reads a 32-bit register at a multiple of 4.
    fn read32(&self, at: PhysAddr) -> u32;

    /// Writes it.
    fn write32(&self, at: PhysAddr, value: u32);

    /// Reads a 64-bit register at a multiple of 8.
    fn read64(&self, at: PhysAddr) -> u64;

    /// Writes it.
    fn write64(&self, at: PhysAddr, value: u64);

    /// Makes bytes that EL2 wrote to RAM visible to devices that do not look into caches, before any register is
    /// written after it.
    fn clean(&self, from: PhysAddr, bytes: u64);
}

/// The whole machine.
pub trait Machine:
    Memory + Tlb + Dma + Mmio + Cpu + Firmware + Send + Sync + Sized + 'static
{
}

impl<T: Memory + Tlb + Dma + Mmio + Cpu + Firmware + Send + Sync + Sized + 'static> Machine for T {}
