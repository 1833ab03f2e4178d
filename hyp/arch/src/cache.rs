//! Data and instruction cache maintenance by address (Arm ARM D7.5.9).
//! All of it is by virtual address, which EL2's identity map makes the physical one.

use core::arch::asm;

use porthole_core::addr::PhysAddr;

use crate::sysreg::read_sysreg;

/// Bytes of the smallest data cache line on this CPU (CTR_EL0.DminLine).
fn line() -> u64 {
    4 << ((read_sysreg!("ctr_el0") >> 16) & 0xf)
}

/// Cleans and invalidates `bytes` from `start` on to the point of coherency: whoever reads with caches off, or a
/// device that does not snoop, sees what was written before.
///
/// The range must be mapped at EL2; an unmapped one would fault.
pub fn clean_invalidate(start: PhysAddr, bytes: u64) {
    let step = line();
    let end = start.raw().saturating_add(bytes);
    let mut at = start.raw() & !(step - 1);
    while at < end {
        // SAFETY: cleaning and invalidating writes back what memory logically holds already.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += step;
    }
    barrier();
}

/// Orders all accesses before it, of any kind of memory, before all after it, for devices too.
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Drops all instruction cache entries of the inner shareable domain: memory was given new code. Whatever CTR_EL0.DIC of this
/// CPU says, since another one may differ.
pub fn invalidate_instructions() {
    // SAFETY: the caches are filled again from memory.
    unsafe {
        asm!(
            "ic ialluis",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        )
    };
}
