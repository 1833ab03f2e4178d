//! Counters for `STATS`: plain atomics, for each CPU where the event happens often.
//! What is counted is decided where it happens; pages by owner are the tracker's.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_abi::NO_ADDRESS;

use crate::hw::CpuId;
use crate::hypervisor::CPUS_MAX;

/// Counters of one CPU, on a cache line of their own.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct CpuCounters {
    /// Hypercalls of the host.
    pub(crate) host_calls: AtomicU64,
    /// Guest exits handled at EL2.
    pub(crate) exits_inside: AtomicU64,
    /// Guest exits that went to the host.
    pub(crate) exits_to_host: AtomicU64,
}

/// All counters.
pub(crate) struct Stats {
    cpus: [CpuCounters; CPUS_MAX],
    /// Host accesses to protected memory that were refused.
    pub(crate) host_aborts: AtomicU64,
    /// Address of the last of them.
    pub(crate) last_abort: AtomicU64,
    /// SMCs of the host that were refused.
    pub(crate) smcs_refused: AtomicU64,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            cpus: core::array::from_fn(|_| CpuCounters::default()),
            host_aborts: AtomicU64::new(0),
            last_abort: AtomicU64::new(NO_ADDRESS),
            smcs_refused: AtomicU64::new(0),
        }
    }

    /// Counters of a CPU, if there is such a CPU.
    pub(crate) fn cpu(&self, cpu: CpuId) -> Option<&CpuCounters> {
        self.cpus.get(usize::from(cpu.0))
    }
}

/// Adds one to a counter of the calling CPU, which nobody else writes.
#[inline]
pub(crate) fn count_own(counter: &AtomicU64) {
    let next = counter.load(Ordering::Relaxed).wrapping_add(1);
    counter.store(next, Ordering::Relaxed);
}

/// Adds one to a counter of all CPUs.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
