//! The virtual timer (Arm ARM, D12): one deadline for this CPU. Its interrupt is a PPI that the program enables
//! and handles itself.

use crate::{read_reg, reg, write_reg};

/// INTID of the virtual timer's PPI (Arm BSA).
pub const INTID: u32 = 27;

/// Counter ticks in a second.
pub fn frequency() -> u64 {
    read_reg!("cntfrq_el0")
}

/// Ticks in `micros` microseconds, at least one.
pub fn ticks(micros: u64) -> u64 {
    let ticks = u128::from(micros) * u128::from(frequency()) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

/// Raises the interrupt in `ticks` ticks from now. It stays raised until [`disarm`] or the next [`arm`].
pub fn arm(ticks: u64) {
    write_reg!("cntv_cval_el0", reg::counter().saturating_add(ticks));
    write_reg!("cntv_ctl_el0", 1);
}

/// Takes the deadline back.
pub fn disarm() {
    write_reg!("cntv_ctl_el0", 0);
}

/// Whether the deadline has passed.
pub fn expired() -> bool {
    read_reg!("cntv_ctl_el0") & 5 == 5
}
