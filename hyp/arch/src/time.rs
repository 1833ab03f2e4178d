//! The physical counter, for time stamps.

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};

/// The counter, in ticks of [`frequency`].
pub fn counter() -> u64 {
    CNTPCT_EL0.get()
}

/// Ticks per second.
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}
