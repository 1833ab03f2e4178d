//! `Hypervisor`: all state of Porthole and the entry points that the binary's trap handlers call.
//! Each entry point is implemented beside its subject: host calls in `host`, the host's PSCI in `host::psci`,
//! the run loop in `run`. Nothing here touches hardware but through [`Machine`].

use core::sync::atomic::AtomicBool;

use arrayvec::ArrayVec;
use porthole_abi::Features;
use thiserror::Error;

use crate::addr::{PhysAddr, PhysPages};
use crate::gic_guard::{Frames, GicConfig, GicGuard};
use crate::host::dma::Faults;
use crate::host::psci::{ArchCalls, HostCpu};
use crate::hw::{Machine, SysReg};
use crate::lock::Mutex;
use crate::log_ring::LogRing;
use crate::memory::{HostMemory, MemoryConfig};
use crate::stage2::Regime;
use crate::stats::Stats;
use crate::tracker::{PageEntry, RAM_RANGES_MAX};
use crate::vm::Slots;

/// Most physical CPUs.
pub const CPUS_MAX: usize = 16;
/// Most runs of MMIO that the host does not reach.
const HIDDEN_MAX: usize = 96;

/// A physical CPU, as the device tree names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInfo {
    /// Affinity fields of MPIDR_EL1 (Aff3 in 39:32, Aff2 to Aff0 in 23:0), as in the node's `reg`.
    pub mpidr: u64,
}

/// What the binary found out about the machine.
pub struct BootConfig<'a, M: Machine> {
    /// All RAM, ascending, without overlap.
    pub ram: &'a [PhysPages],
    /// The hypervisor's own: image, pool, tracker; one range of RAM.
    pub hyp: PhysPages,
    /// MMIO that the host does not see.
    pub hidden: &'a [PhysPages],
    /// All CPUs; the index is the `CpuId`. The calling CPU runs, the others are off.
    pub cpus: &'a [CpuInfo],
    /// One entry for each page of `ram`.
    pub tracker: &'static mut [PageEntry],
    /// Root of the host's stage 2: two pages of `hyp`, 8 KiB aligned, zeroed.
    pub host_root: PhysAddr,
    /// Root of the map that the host's devices have, if there is an SMMU: as `host_root`.
    pub dma_root: Option<PhysAddr>,
    /// Pages outside RAM that devices write message-signalled interrupts to (GITS_TRANSLATER), ascending, at most
    /// [`DOORBELLS_MAX`](crate::memory::DOORBELLS_MAX): a confined device reaches them beside its region.
    pub doorbells: &'a [PhysAddr],
    /// The interrupt controller's frames that the host reaches through EL2 only; outside RAM.
    pub gic: GicConfig<'a>,
    /// What the machine offers. DMA is isolated only with a `dma_root`, and only otherwise is it unsafe.
    pub features: Features,
    /// Where VMs are kept: a static of the binary, since it is too large for a boot stack.
    pub slots: &'static Slots<M>,
    /// The ring that `LOG_READ` shows.
    pub log: &'static LogRing,
}

/// Why the hypervisor cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BootError {
    /// The device tree names no CPU, or more than [`CPUS_MAX`].
    #[error("the device tree names no CPU or more than {CPUS_MAX}")]
    Cpus,
    /// The tracker or the host's tables cannot be built from this description of memory.
    #[error("cannot set up the host's memory: {0}")]
    Memory(porthole_abi::Error),
    /// The interrupt controller's tables cannot be kept apart from the hypervisor's memory.
    #[error(
        "cannot take over the interrupt controller: {0} (Busy: a part that firmware left on does not stop; reset the machine)"
    )]
    Gic(porthole_abi::Error),
}

/// Where a CPU enters the host, at EL1h with exceptions masked and the MMU off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// First instruction.
    pub pc: u64,
    /// Its x0.
    pub x0: u64,
}

/// What to do about a host's stage-2 fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFaultAction {
    /// The page is the host's now: return to the same instruction.
    Retry,
    /// The access has been made, its result is in the registers: go on behind the instruction.
    Skip,
    /// Deliver a synchronous external abort to EL1, with the fault's FAR.
    ExternalAbort,
    /// Deliver a stage-1 translation fault (level 3) to EL1, with the fault's FAR.
    TranslationFault,
}

/// Porthole. One lives in a static of the binary; every CPU calls it.
///
/// Lock order: VM slot, vCPU, the VM's tables, `HostMemory::confined`, then the memory lock. The GIC guard's lock is taken
/// with no other held, and the memory lock inside it. Inside any of these, and inside that of the DMA faults, come the
/// machine's own: an SMMU's, the log's. The lock of a VM's interrupt controller, that of its launch, that of a host
/// CPU's power and that of a vCPU's power are leaves.
pub struct Hypervisor<M: Machine> {
    pub(crate) machine: M,
    pub(crate) memory: HostMemory<'static>,
    pub(crate) gic: GicGuard<M>,
    pub(crate) slots: &'static Slots<M>,
    pub(crate) cpus: ArrayVec<HostCpu, CPUS_MAX>,
    pub(crate) arch_calls: ArchCalls,
    pub(crate) features: Features,
    pub(crate) hyp: PhysPages,
    pub(crate) ram: ArrayVec<PhysPages, RAM_RANGES_MAX>,
    /// The machine goes down: no guest is entered and no call is served any more.
    pub(crate) halting: AtomicBool,
    pub(crate) log: &'static LogRing,
    pub(crate) stats: Stats,
    pub(crate) dma_faults: Mutex<Faults>,
}

impl<M: Machine> Hypervisor<M> {
    /// Takes the machine over: builds tracker and host stage 2. Runs once, on the boot CPU.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn new(machine: M, mut config: BootConfig<'_, M>) -> Result<Self, BootError> {
        if config.cpus.is_empty() {
            return Err(BootError::Cpus);
        }
        let boot_cpu = usize::from(machine.id().0);
        let mut cpus = ArrayVec::new();
        for (index, info) in config.cpus.iter().enumerate() {
            cpus.try_push(HostCpu::new(info.mpidr, index == boot_cpu))
                .map_err(|_| BootError::Cpus)?;
        }
        let mut features = config.features;
        if config.dma_root.is_none() {
            features.remove(Features::DMA_ISOLATED);
        }
        if features.contains(Features::DMA_ISOLATED) {
            features.remove(Features::UNSAFE_DMA);
        }
        let frames = Frames::find(&machine, &config.gic).map_err(BootError::Gic)?;
        let memory = host_memory(&machine, &mut config, &frames)?;
        let gic = GicGuard::new(&machine, &memory, frames, &config.gic).map_err(BootError::Gic)?;
        Ok(Self {
            gic,
            arch_calls: ArchCalls::probe(&machine),
            machine,
            memory,
            slots: config.slots,
            cpus,
            features,
            hyp: config.hyp,
            ram: config.ram.iter().copied().take(RAM_RANGES_MAX).collect(),
            halting: AtomicBool::new(false),
            log: config.log,
            stats: Stats::new(),
            dma_faults: Mutex::default(),
        })
    }

    /// The host's translation regime, the same on every CPU.
    pub fn host_regime(&self) -> Regime {
        self.memory.regime()
    }

    /// The machine that was handed in.
    pub fn machine(&self) -> &M {
        &self.machine
    }
}

/// Builds tracker and host stage 2. Not inlined: its list of frames does not stay on boot's stack.
#[inline(never)]
fn host_memory<M: Machine>(
    machine: &M,
    config: &mut BootConfig<'_, M>,
    frames: &Frames,
) -> Result<HostMemory<'static>, BootError> {
    let mut hidden = ArrayVec::<PhysPages, HIDDEN_MAX>::new();
    for pages in config.hidden.iter().copied().chain(frames.pages()) {
        hidden
            .try_push(pages)
            .map_err(|_| BootError::Memory(porthole_abi::Error::TooLarge))?;
    }
    HostMemory::new(
        machine,
        &MemoryConfig {
            ram: config.ram,
            hyp: config.hyp,
            hidden: &hidden,
            host_root: config.host_root,
            pa_range: (machine.id_register(ID_AA64MMFR0) & 15) as u8,
            dma_root: config.dma_root,
            doorbells: config.doorbells,
        },
        core::mem::take(&mut config.tracker),
    )
    .map_err(BootError::Memory)
}

const ID_AA64MMFR0: SysReg = SysReg::new(3, 0, 0, 7, 0);
