//! Starting other CPUs through PSCI and giving each one function to run.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::{CPUS_MAX, runtime_secondary};
use crate::{mmu, psci};

#[repr(C, align(64))]
struct Start([AtomicU64; 8]);

static STARTS: [Start; CPUS_MAX] = [const { Start([const { AtomicU64::new(0) }; 8]) }; CPUS_MAX];

/// Physical address at which a secondary CPU of this program starts.
pub fn entry_point() -> u64 {
    runtime_secondary as *const () as u64
}

/// Prepares the start record of CPU `index`: what CPU_ON passes as context.
///
/// # Panics
/// When `index` is not below [`CPUS_MAX`].
pub fn prepare(index: usize, function: extern "C" fn(u64) -> !, argument: u64) -> u64 {
    let [ttbr, tcr, mair, sctlr] = mmu::registers();
    let record = &STARTS[index].0;
    let values = [
        index as u64,
        ttbr,
        tcr,
        mair,
        sctlr,
        function as *const () as u64,
        argument,
    ];
    for (to, value) in record.iter().zip(values) {
        to.store(value, Ordering::Relaxed);
    }
    let at = core::ptr::from_ref(&STARTS[index]) as u64;
    // The new CPU reads it with its caches off.
    // SAFETY: cleaning a line of our own data.
    unsafe {
        core::arch::asm!("dc civac, {}", "dsb sy", in(reg) at, options(nostack));
    }
    at
}

/// Starts the CPU with this MPIDR on `function(argument)`; `index` is its stack and `cpu_index`.
/// Returns the PSCI result.
pub fn start(mpidr: u64, index: usize, function: extern "C" fn(u64) -> !, argument: u64) -> i64 {
    let context = prepare(index, function, argument);
    psci::psci(psci::CPU_ON, mpidr, entry_point(), context)
}
