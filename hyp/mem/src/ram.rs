//! Implements core's `Memory` on real RAM, which EL2 maps by identity, never executable.

use core::alloc::Layout;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use buddy_system_allocator::Heap;
use core::ptr::NonNull;
use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::hw::Memory;
use porthole_core::lock::Mutex;

use crate::boxed::PageBox;

const WORDS: usize = PAGE_SIZE as usize / 8;
/// Orders of the pool: blocks up to 2^31 bytes.
const ORDERS: usize = 32;

/// Cache maintenance, which `arch` provides.
pub trait CacheMaintenance: Send + Sync {
    /// Cleans and invalidates data to the point of coherency.
    fn clean_invalidate(&self, start: PhysAddr, bytes: u64);

    /// Invalidates instructions on all CPUs.
    fn invalidate_instructions(&self);
}

/// All RAM, and the pool of pages for the hypervisor's own tables.
pub struct Ram<C> {
    /// A leaf lock.
    pool: Mutex<Heap<ORDERS>>,
    cache: C,
}

impl<C: CacheMaintenance> Ram<C> {
    /// RAM with this pool.
    ///
    /// # Safety
    /// All RAM is mapped at EL2 by identity as writable normal memory, but for the image's own constants and code;
    /// `pool` is RAM that nothing else uses.
    pub unsafe fn new(pool: PhysPages, cache: C) -> Self {
        let mut heap = Heap::empty();
        // SAFETY: the caller's promise about `pool`.
        unsafe { heap.init(pool.start().raw() as usize, pool.bytes() as usize) };
        Self {
            pool: Mutex::new(heap),
            cache,
        }
    }

    fn words(page: PhysAddr) -> &'static [AtomicU64; WORDS] {
        let at = page.page().raw() as *const [AtomicU64; WORDS];
        // SAFETY: core hands in RAM only, `new`'s contract has it mapped; atomics allow for anyone else who reads
        // or writes it, hardware walkers and the host among them.
        unsafe { &*at }
    }

    fn zero(page: PhysAddr) {
        for word in Self::words(page) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn page_layout() -> Layout {
        const { assert!(PAGE_SIZE.is_power_of_two()) };
        Layout::new::<Page>()
    }
}

#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; PAGE_SIZE as usize]);

impl<C: CacheMaintenance> Memory for Ram<C> {
    type Boxed<T: Send> = PageBox<T>;

    fn read_word(&self, page: PhysAddr, index: usize) -> u64 {
        Self::words(page)[index % WORDS].load(Ordering::Relaxed)
    }

    fn write_word(&self, page: PhysAddr, index: usize, value: u64) {
        // Ordered before TLB maintenance by the barrier that starts it (`arch::tlb`), and after what the new entry
        // leads to by the release.
        Self::words(page)[index % WORDS].store(value, Ordering::Release);
    }

    fn scrub(&self, page: PhysAddr) {
        Self::zero(page);
        self.cache.clean_invalidate(page, PAGE_SIZE);
    }

    fn read_page(&self, page: PhysAddr, show: &mut dyn FnMut(&[u8])) {
        self.cache.clean_invalidate(page, PAGE_SIZE);
        // SAFETY: RAM, and by core's promise no one else can reach it now.
        show(unsafe {
            core::slice::from_raw_parts(page.page().raw() as *const u8, PAGE_SIZE as usize)
        });
    }

    fn forget_instructions(&self) {
        self.cache.invalidate_instructions();
    }

    fn copy_from_host(&self, from: PhysAddr, to: &mut [u8]) {
        let words = Self::words(from);
        let mut index = (from.raw() % PAGE_SIZE / 8) as usize;
        let mut chunks = to.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&words[index % WORDS].load(Ordering::Relaxed).to_ne_bytes());
            index += 1;
        }
        let rest = chunks.into_remainder();
        let last = words[index % WORDS].as_ptr().cast::<AtomicU8>();
        for (offset, byte) in rest.iter_mut().enumerate() {
            // SAFETY: `offset` is below 8, so the byte lies in the word.
            *byte = unsafe { &*last.add(offset) }.load(Ordering::Relaxed);
        }
    }

    fn alloc_page(&self) -> Option<PhysAddr> {
        let page = self.pool.lock().alloc(Self::page_layout()).ok()?;
        let page = PhysAddr::new(page.as_ptr() as u64);
        Self::zero(page);
        Some(page)
    }

    fn free_page(&self, page: PhysAddr) {
        if let Some(at) = NonNull::new(page.page().raw() as *mut u8) {
            // SAFETY: core returns pages that it took, and does not use them again.
            unsafe { self.pool.lock().dealloc(at, Self::page_layout()) };
        }
    }

    fn free_pages(&self) -> usize {
        let pool = self.pool.lock();
        (pool.stats_total_bytes() - pool.stats_alloc_actual()) / PAGE_SIZE as usize
    }

    fn place<T: Send>(&self, page: PhysAddr, value: T) -> PageBox<T> {
        // SAFETY: core hands in a page that EL2 owns and uses for this value only.
        unsafe { PageBox::new(page, value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoCache;

    impl CacheMaintenance for NoCache {
        fn clean_invalidate(&self, _: PhysAddr, _: u64) {}

        fn invalidate_instructions(&self) {}
    }

    /// RAM of the test process: eight pages and their addresses.
    fn ram() -> (Ram<NoCache>, PhysPages) {
        let memory = Box::leak(Box::new([const { Page([0xa5; 4096]) }; 8]));
        let pages = PhysPages::new(PhysAddr::new(memory.as_ptr() as u64), 8).unwrap();
        // SAFETY: leaked, and used by this test only.
        (unsafe { Ram::new(pages, NoCache) }, pages)
    }

    #[test]
    fn the_pool_gives_each_page_once_and_zeroed() {
        let (ram, pages) = ram();
        assert_eq!(ram.free_pages(), 8);
        let mut taken = Vec::new();
        while let Some(page) = ram.alloc_page() {
            assert!(pages.contains(page) && page.is_aligned(PAGE_SIZE));
            assert!((0..WORDS).all(|i| ram.read_word(page, i) == 0));
            ram.write_word(page, 511, 7);
            taken.push(page);
        }
        taken.sort();
        taken.dedup();
        assert_eq!((taken.len(), ram.free_pages()), (8, 0));
        taken.iter().for_each(|p| ram.free_page(*p));
        assert_eq!(ram.free_pages(), 8);
    }

    #[test]
    fn copies_end_where_the_caller_says() {
        let (ram, _) = ram();
        let page = ram.alloc_page().unwrap();
        ram.write_word(page, 1, u64::from_le_bytes(*b"porthole"));
        ram.write_word(page, 2, u64::from_le_bytes(*b"guestHOS"));
        let mut to = [0; 13];
        ram.copy_from_host(page.checked_add(8).unwrap(), &mut to);
        assert_eq!(&to, b"portholeguest");
    }

    #[test]
    fn a_box_drops_its_value_and_leaves_the_page() {
        let (ram, _) = ram();
        let page = ram.alloc_page().unwrap();
        let value = std::sync::Arc::new(1);
        let placed = ram.place(page, value.clone());
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        drop(placed);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
        ram.scrub(page);
        ram.read_page(page, &mut |bytes| assert!(bytes.iter().all(|b| *b == 0)));
    }
}
