//! The heap that virtio-drivers needs, over a fixed piece of the image's BSS.
//! Nothing here is shared with the host: buffers on this heap reach a device through a bounce pool only.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use spin::mutex::TicketMutex;

/// Bytes of the heap: two virtio queues, a receive buffer of one page and the largest ping message, with room.
const SIZE: usize = 512 << 10;
/// Blocks of up to 2^(ORDERS - 1) bytes.
const ORDERS: usize = 20;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: only the allocator below takes this memory's address, and hands out each byte to one owner at a time.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));

struct Allocator(TicketMutex<(Heap<ORDERS>, bool)>);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(TicketMutex::new((Heap::empty(), false)));

// SAFETY: `Heap` returns blocks that do not overlap and fit their layout; the lock keeps it consistent.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (heap, ready) = &mut *self.0.lock();
        if !*ready {
            // SAFETY: this memory is the heap's alone, and is given to it once.
            unsafe { heap.init(MEMORY.0.get().addr(), SIZE) };
            *ready = true;
        }
        heap.alloc(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got the block from `alloc` with this layout.
            unsafe { self.0.lock().0.dealloc(block, layout) };
        }
    }
}
