//! Which CPU this is, and one slot per CPU for data of its own.
//! TPIDR_EL2 holds the dense CPU index from the entry code on; nothing else uses it.

use aarch64_cpu::registers::{MPIDR_EL1, Readable, TPIDR_EL2, Writeable};
use porthole_core::hw::CpuId;

/// Most physical CPUs that the hypervisor runs on.
pub const CPUS_MAX: usize = 8;

/// Affinity fields of MPIDR_EL1 (Arm ARM D24.2: Aff3 in 39:32, Aff2 to Aff0 in 23:0), as in a device tree's `reg`.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// The CPU that runs this code.
pub fn id() -> CpuId {
    CpuId((TPIDR_EL2.get() as usize % CPUS_MAX) as u8)
}

/// Affinity bits of the CPU that runs this code.
pub fn affinity() -> u64 {
    MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// Names this CPU. Called once on each CPU's way up, before anything per-CPU is used.
pub fn set_id(cpu: CpuId) {
    TPIDR_EL2.set(u64::from(cpu.0));
}

/// One `T` per CPU.
pub struct PerCpu<T>([T; CPUS_MAX]);

impl<T> PerCpu<T> {
    /// Wraps the slots, in order of the CPU index.
    pub const fn new(slots: [T; CPUS_MAX]) -> Self {
        Self(slots)
    }

    /// This CPU's slot.
    pub fn this(&self) -> &T {
        self.of(id())
    }

    /// Another CPU's slot.
    pub fn of(&self, cpu: CpuId) -> &T {
        &self.0[usize::from(cpu.0) % CPUS_MAX]
    }
}

/// Between two looks at what another CPU is to change: lets that one run where both share a real CPU.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}
