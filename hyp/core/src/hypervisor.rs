//! `Hypervisor`: all state of Porthole and the entry points that the binary's trap handlers call.
//! Each entry point is implemented beside its subject: host calls in `host`, the host's PSCI in `host::psci`,
//! the run loop in `run`. Nothing here touches hardware but through [`Machine`].

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use porthole_abi::Features;
use spin::Mutex;
use thiserror::Error;

use crate::addr::{PhysAddr, PhysPages};
use crate::host::psci::{HostCpu, Workarounds};
use crate::hw::{CpuId, Machine};
use crate::log_ring::LogRing;
use crate::stats::Stats;
use crate::tracker::PageEntry;

/// Most physical CPUs.
pub const CPUS_MAX: usize = 64;

/// A physical CPU, as the device tree names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInfo {
    /// Affinity fields of MPIDR_EL1 (Aff3 in 39:32, Aff2 to Aff0 in 23:0), as in the node's `reg`.
    pub mpidr: u64,
}

/// What the binary found out about the machine.
pub struct BootConfig<'a> {
    /// All RAM, ascending, without overlap.
    pub ram: &'a [PhysPages],
    /// The hypervisor's own: image, pool, tracker; one range of RAM.
    pub hyp: PhysPages,
    /// MMIO that the host does not see.
    pub hidden: &'a [PhysPages],
    /// All CPUs; the index is the [`CpuId`]. The calling CPU runs, the others are off.
    pub cpus: &'a [CpuInfo],
    /// One entry for each page of `ram`.
    pub tracker: &'static mut [PageEntry],
    /// Root of the host's stage 2: two pages of `hyp`, 8 KiB aligned, zeroed.
    pub host_root: PhysAddr,
    /// What the machine offers.
    pub features: Features,
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
}

/// Registers that turn a translation regime on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regime {
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
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
    /// Deliver a synchronous external abort to EL1, with the fault's FAR.
    ExternalAbort,
    /// Deliver a stage-1 translation fault (level 3) to EL1, with the fault's FAR.
    TranslationFault,
}
