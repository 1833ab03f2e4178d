//! Stops what the host could watch a guest with: counters, statistical profiling, trace and branch records, and
//! starts it again afterwards. Guests have none of it. External debug and memory-mapped trace units are outside: the
//! platform's authentication signals must keep them closed.

use core::arch::asm;

use aarch64_cpu::asm::barrier::{NSH, SY, dsb, isb};
use aarch64_cpu::registers::{Readable, Writeable};

use super::features::CpuFeatures;
use super::regs::*;

/// The host's settings while a guest is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostProfiling {
    pmcr: u64,
    pmscr: u64,
    trfcr: u64,
    brbcr: u64,
}

impl HostProfiling {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            pmcr: 0,
            pmscr: 0,
            trfcr: 0,
            brbcr: 0,
        }
    }

    /// Stops all of it, and has what was collected of the host written out while the host's tables are loaded.
    pub fn stop(&mut self, features: &CpuFeatures) {
        if features.pmu {
            self.pmcr = PMCR_EL0.get();
            PMCR_EL0.set(self.pmcr & !PMCR::E::SET.value);
        }
        if features.brbe {
            self.brbcr = BRBCR_EL1.get();
            BRBCR_EL1.set(0);
        }
        if features.spe {
            self.pmscr = PMSCR_EL1.get();
            PMSCR_EL1.set(0);
            if PMBLIMITR_EL1.is_set(LIMITR::E) {
                isb(SY);
                // SAFETY: PSB CSYNC, a hint: waits until profiling data has been written.
                unsafe { asm!("hint #17", options(nostack, preserves_flags)) };
                dsb(NSH);
            }
        }
        if features.trace_filter {
            self.trfcr = TRFCR_EL1.get();
            TRFCR_EL1.set(0);
            if features.trace_buffer && TRBLIMITR_EL1.is_set(LIMITR::E) {
                isb(SY);
                // SAFETY: TSB CSYNC, a hint: waits until trace data has been written.
                unsafe { asm!("hint #18", options(nostack, preserves_flags)) };
                dsb(NSH);
            }
        }
    }

    /// Gives it back to the host.
    pub fn restart(&self, features: &CpuFeatures) {
        if features.trace_filter {
            TRFCR_EL1.set(self.trfcr);
        }
        if features.spe {
            PMSCR_EL1.set(self.pmscr);
        }
        if features.brbe {
            BRBCR_EL1.set(self.brbcr);
        }
        if features.pmu {
            PMCR_EL0.set(self.pmcr);
        }
    }
}
