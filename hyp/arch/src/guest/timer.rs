//! The virtual timer (CNTV), which only guests use, and the physical counter.
//! The physical timer is the host's and stays untouched; a guest's access to it traps.

use aarch64_cpu::asm::barrier::{SY, isb};
use aarch64_cpu::registers::*;
use porthole_core::context::TimerRegs;

/// CNTV_CTL_EL0.ENABLE and IMASK; ISTATUS is read-only.
const CTL_WRITABLE: u64 = 0b11;

/// Moves the timer between `from` and hardware: off first, so that no compare with a foreign offset or value fires.
pub(super) fn load(from: &TimerRegs) {
    CNTV_CTL_EL0.set(0);
    CNTVOFF_EL2.set(from.cntvoff);
    CNTV_CVAL_EL0.set(from.cntv_cval);
    isb(SY);
    CNTV_CTL_EL0.set(from.cntv_ctl & CTL_WRITABLE);
}

/// Saves what hardware holds; the timer runs on until the next [`load`].
pub(super) fn save(to: &mut TimerRegs) {
    to.cntv_ctl = CNTV_CTL_EL0.get() & CTL_WRITABLE;
    to.cntv_cval = CNTV_CVAL_EL0.get();
    to.cntvoff = CNTVOFF_EL2.get();
}

/// CNTV_CTL_EL0 (with ISTATUS) and CNTV_CVAL_EL0.
pub(super) fn current() -> (u64, u64) {
    isb(SY);
    (CNTV_CTL_EL0.get(), CNTV_CVAL_EL0.get())
}

/// CNTPCT_EL0, not read ahead of earlier instructions.
pub fn counter() -> u64 {
    isb(SY);
    CNTPCT_EL0.get()
}
