//! Stage-2 TLB maintenance (Arm ARM D8.16): what core asks through `hw::Tlb`, for the inner shareable domain.
//! EL2's own stage 1 is the business of [`crate::stage1`].

use core::arch::asm;

use aarch64_cpu::registers::{Readable, VTTBR_EL2, Writeable};
use porthole_abi::PAGE_SIZE;
use porthole_core::addr::Ipa;
use porthole_core::hw::{Tlb, Vmid};

/// Above this many pages a range is invalidated by dropping the whole regime.
const RANGE_MAX: u64 = 64;

/// Two concatenated level-1 tables without an entry. While another VMID stands in VTTBR_EL2 for an invalidation,
/// a speculative walk finds nothing here, so that no entry of one VM is filled under another VM's number.
#[repr(C, align(8192))]
struct EmptyRoot([u64; 1024]);

static EMPTY_ROOT: EmptyRoot = EmptyRoot([0; 1024]);

/// The TLBs of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageTwoTlb;

/// Runs `invalidate` with `vmid` in VTTBR_EL2, all earlier table writes being visible to walkers.
fn with_vmid(vmid: Vmid, invalidate: impl FnOnce()) {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    let old = VTTBR_EL2.get();
    let switch = (old >> 48) != u64::from(vmid.0);
    if switch {
        VTTBR_EL2.set(u64::from(vmid.0) << 48 | (&raw const EMPTY_ROOT) as u64);
        isb();
    }
    invalidate();
    if switch {
        VTTBR_EL2.set(old);
    }
    isb();
}

fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Drops the stage-2 entry of one address; the combined entries need [`drop_combined`] afterwards.
fn drop_ipa(ipa: u64) {
    // SAFETY: invalidation only makes walkers read the tables again.
    unsafe {
        asm!("tlbi ipas2e1is, {}", in(reg) ipa >> 12 & 0xf_ffff_ffff, options(nostack, preserves_flags))
    };
}

/// Drops all stage-1 and combined entries of the current VMID, stage-2 ones being gone already (D8.16.4).
fn drop_combined() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "dsb ish",
            "tlbi vmalle1is",
            "dsb ish",
            options(nostack, preserves_flags)
        );
    }
}

impl Tlb for StageTwoTlb {
    fn flush_ipa(&self, vmid: Vmid, ipa: Ipa) {
        with_vmid(vmid, || {
            drop_ipa(ipa.raw());
            drop_combined();
        });
    }

    fn flush_range(&self, vmid: Vmid, ipa: Ipa, pages: u64) {
        if pages > RANGE_MAX {
            return self.flush_vmid(vmid);
        }
        with_vmid(vmid, || {
            for page in 0..pages {
                drop_ipa(ipa.raw().wrapping_add(page * PAGE_SIZE));
            }
            drop_combined();
        });
    }

    fn flush_vmid(&self, vmid: Vmid) {
        with_vmid(vmid, || {
            // SAFETY: invalidation only makes walkers read the tables, and fetches the memory, again.
            unsafe {
                asm!(
                    "tlbi vmalls12e1is",
                    "dsb ish",
                    "ic ialluis",
                    "dsb ish",
                    options(nostack, preserves_flags)
                );
            }
        });
    }

    fn flush_vmid_local(&self, vmid: Vmid) {
        with_vmid(vmid, || {
            // SAFETY: as above, on this CPU.
            unsafe {
                asm!(
                    "tlbi vmalle1",
                    "dsb nsh",
                    "ic iallu",
                    "dsb nsh",
                    options(nostack, preserves_flags)
                );
            }
        });
    }

    fn sync(&self) {
        // SAFETY: barriers.
        unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
    }
}
