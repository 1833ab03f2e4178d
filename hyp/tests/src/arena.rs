//! Host memory that tests hand out and take back: everything behind the Image, in 4 KiB pages.
//! Reset after each test, so a test that loses pages is seen by the tracker's counts, not by this.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_abi::PAGE_SIZE;
use porthole_runtime::entry;

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// RAM starts here on QEMU `virt`.
pub const RAM_BASE: u64 = 0x4000_0000;

/// First address behind RAM.
pub fn ram_end() -> u64 {
    RAM_BASE + crate::hyp::call(porthole_abi::HostFunction::Features, &[]).expect("FEATURES")[6]
}

fn base() -> u64 {
    // A 2 MiB boundary behind the Image.
    (entry::image_range().end + 0x1f_ffff) & !0x1f_ffff
}

/// A page before all that is handed out, which stays as it is.
pub fn note() -> u64 {
    base()
}

/// Starts over. Every page handed out before is free again.
pub fn reset() {
    NEXT.store(base() + PAGE_SIZE, Ordering::Relaxed);
    END.store(ram_end(), Ordering::Relaxed);
}

/// `pages` contiguous pages, `align` bytes aligned, zeroed.
///
/// # Panics
/// When a test asks for more than there is.
pub fn pages(pages: u64, align: u64) -> u64 {
    let start = raw(pages, align);
    // SAFETY: the arena is RAM behind the Image that nothing else uses, mapped read-write.
    unsafe { core::ptr::write_bytes(start as *mut u8, 0, (pages * PAGE_SIZE) as usize) };
    start
}

/// A page of the hypervisor.
///
/// # Panics
/// When there is none.
pub fn hyp_page() -> u64 {
    (RAM_BASE..ram_end())
        .step_by(PAGE_SIZE as usize)
        .find(|p| crate::hyp::owner(*p) == porthole_abi::PageOwner::Hyp)
        .expect("the hypervisor has pages")
}

/// Whole 2 MiB blocks that can still be handed out.
pub fn blocks_left() -> u64 {
    let next = (NEXT.load(Ordering::Relaxed) + 0x1f_ffff) >> 21;
    (END.load(Ordering::Relaxed) >> 21).saturating_sub(next)
}

/// As [`pages`], content left as it is.
pub fn raw(pages: u64, align: u64) -> u64 {
    let mut old = NEXT.load(Ordering::Relaxed);
    loop {
        let start = (old + align - 1) & !(align - 1);
        let end = start + pages * PAGE_SIZE;
        assert!(end <= END.load(Ordering::Relaxed), "arena used up");
        match NEXT.compare_exchange(old, end, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return start,
            Err(now) => old = now,
        }
    }
}

/// One page.
pub fn page() -> u64 {
    pages(1, PAGE_SIZE)
}

/// Writes a value (a parameter block) at the start of a page of the arena.
pub fn put<T: Copy>(page: u64, value: &T) {
    // SAFETY: as in `pages`; parameter blocks are at most a page.
    unsafe { (page as *mut T).write_volatile(*value) };
}

/// Reads a 64-bit word that the host may read.
pub fn peek(addr: u64) -> u64 {
    // SAFETY: the caller names memory of its own.
    unsafe { (addr as *const u64).read_volatile() }
}

/// Writes a 64-bit word that the host may write.
pub fn poke(addr: u64, value: u64) {
    // SAFETY: the caller names memory of its own.
    unsafe { (addr as *mut u64).write_volatile(value) };
}
