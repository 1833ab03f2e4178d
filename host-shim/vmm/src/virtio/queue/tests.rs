//! Queues under a friendly and an unfriendly driver, and what tests of devices drive queues with.

use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegion};

use super::*;
use crate::pci::msix::{MsiLines, Msix};
use crate::virtio::window::tests::{BASE, SIZE};

/// Shared state of a device with two queues and no MSI-X vectors.
pub(crate) fn shared() -> Arc<Shared> {
    let lines = Arc::new(MsiLines::new(64, Vec::new()));
    Arc::new(Shared::new(
        "test",
        2,
        Arc::new(Msix::new("test", 0, lines)),
    ))
}

/// The same window twice: as the guest's memory and as the device's.
pub(crate) fn memories() -> (GuestMemoryMmap, Arc<WindowMemory>) {
    let pages = Arc::new(MmapRegion::new(SIZE as usize).unwrap());
    let map = || {
        let region = GuestRegionMmap::with_arc(pages.clone(), GuestAddress(BASE)).unwrap();
        GuestMemoryMmap::from_regions(vec![region]).unwrap()
    };
    (map(), Arc::new(map()))
}

/// Chains in a flood.
const FLOOD: u16 = 8192;

/// The driver's side of a queue: table, available and used ring, each in pages of its own.
pub(crate) struct Driver<'a> {
    pub(crate) memory: &'a GuestMemoryMmap,
    base: u64,
    size: u16,
    posted: std::cell::Cell<u16>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(memory: &'a GuestMemoryMmap, base: u64, size: u16) -> Self {
        Self {
            memory,
            base,
            size,
            posted: std::cell::Cell::new(0),
        }
    }

    fn available(&self) -> u64 {
        self.base + (16 * u64::from(self.size)).max(0x1000)
    }

    fn used_ring(&self) -> u64 {
        self.available() + 0x1000
    }

    /// Starts anew, with rings that are zero again.
    pub(crate) fn forget(&self) {
        self.posted.set(0);
    }

    /// Makes a chain of these buffers (address, length, flags) available, at the start of the table.
    pub(crate) fn post(&self, buffers: &[(u64, u32, u16)]) {
        self.post_at(0, buffers);
    }

    /// The same, from descriptor `first` on.
    pub(crate) fn post_at(&self, first: u16, buffers: &[(u64, u32, u16)]) {
        let end = first + buffers.len() as u16;
        for (i, (address, length, flags)) in (first..).zip(buffers) {
            let more = i + 1 < end;
            let flags = flags | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            let descriptor = Descriptor::new(*address, *length, flags, i + 1);
            let at = GuestAddress(self.base + 16 * u64::from(i));
            self.memory.write_obj(descriptor, at).unwrap();
        }
        self.post_head(first);
    }

    /// Makes the chain from `head` available.
    pub(crate) fn post_head(&self, head: u16) {
        let posted = self.posted.get();
        let ring = self.available();
        let slot = ring + 4 + 2 * u64::from(posted % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.posted.set(posted.wrapping_add(1));
        let index = GuestAddress(ring + 2);
        self.memory.write_obj(self.posted.get(), index).unwrap();
    }

    /// Chains given back so far.
    pub(crate) fn used(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap()
    }

    /// Calls `serve` while another thread makes the first chain of the table available again and again, as fast as
    /// it comes back. No call may take more than `turn` chains.
    pub(crate) fn flood(&self, turn: u16, mut serve: impl FnMut()) {
        let (available, heads) = (self.available() + 2, vec![0; 2 * usize::from(self.size)]);
        self.memory
            .write_slice(&heads, GuestAddress(available + 2))
            .unwrap();
        let (memory, used, size) = (self.memory, self.used_ring() + 2, self.size);
        std::thread::scope(|threads| {
            threads.spawn(move || {
                loop {
                    let used: u16 = memory.read_obj(GuestAddress(used)).unwrap();
                    if used >= FLOOD {
                        return;
                    }
                    memory
                        .write_obj(used + size, GuestAddress(available))
                        .unwrap();
                }
            });
            let mut most = 0;
            while self.used() < FLOOD {
                let before = self.used();
                serve();
                most = most.max(self.used() - before);
            }
            assert!(most <= turn, "{most} in one turn, which is {turn} long");
        });
    }

    /// Bytes written to the chain that was given back last.
    pub(crate) fn used_len(&self) -> u32 {
        let slot = u64::from(self.used().wrapping_sub(1) % self.size);
        let at = GuestAddress(self.used_ring() + 4 + 8 * slot + 4);
        self.memory.read_obj(at).unwrap()
    }

    /// The device's side of it.
    pub(crate) fn device(
        &self,
        index: u16,
        memory: Arc<WindowMemory>,
        shared: Arc<Shared>,
    ) -> DeviceQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        check_rings(&memory, index, &queue).unwrap();
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        DeviceQueue::new(queue, index, memory, shared, doorbell, true)
    }
}

/// A device queue over the mock that a test drives.
pub(crate) fn device_queue(
    mock: &MockSplitQueue<GuestMemoryMmap>,
    index: u16,
    memory: Arc<WindowMemory>,
    shared: Arc<Shared>,
) -> DeviceQueue {
    let queue: Queue = mock.create_queue().unwrap();
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    check_rings(&memory, index, &queue).unwrap();
    DeviceQueue::new(queue, index, memory, shared, doorbell, true)
}

fn set_avail_index(driver: &GuestMemoryMmap, queue: &Queue, index: u16) {
    driver
        .write_obj(index.to_le(), GuestAddress(queue.avail_ring() + 2))
        .unwrap();
}

#[test]
fn chains_go_out_and_come_back_with_an_interrupt() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let shared = shared();
    let mut queue = device_queue(&mock, 1, memory, shared.clone());
    assert!(queue.pop().unwrap().is_none());
    let descriptor = Descriptor::new(BASE + 0x8000, 16, 0, 0);
    mock.build_desc_chain(&[RawDescriptor::from(descriptor)])
        .unwrap();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.readable_len(), 16);
    assert_eq!(shared.stats().snapshot().slots_in_flight, 1);
    queue.complete(chain, 0).unwrap();
    assert_eq!(mock.used().idx().load(), 1);
    let stats = shared.stats().snapshot();
    assert_eq!((stats.slots_in_flight, stats.slots_high_water), (0, 1));
    assert_eq!((stats.buffers, stats.bytes_to_device), (1, 16));
    queue.notify().unwrap();
    assert_eq!(shared.take_isr(), 1);
    assert!(queue.pop().unwrap().is_none());
}

#[test]
fn a_chain_put_back_comes_again_and_a_dropped_queue_holds_no_slots() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let shared = shared();
    let mut queue = device_queue(&mock, 1, memory, shared.clone());
    for at in [0x8000, 0x9000] {
        let descriptor = Descriptor::new(BASE + at, 16, 0, 0);
        mock.add_desc_chains(&[RawDescriptor::from(descriptor)], (at >> 12) as u16 - 8)
            .unwrap();
    }
    let chain = queue.pop().unwrap().unwrap();
    let head = chain.head();
    queue.undo_pop(chain);
    assert_eq!(shared.stats().snapshot().buffers, 0);
    assert_eq!(queue.pop().unwrap().unwrap().head(), head);
    queue.pop().unwrap();
    assert_eq!(shared.stats().snapshot().slots_in_flight, 2);
    drop(queue);
    assert_eq!(shared.stats().snapshot().slots_in_flight, 0);
}

#[test]
fn no_interrupt_comes_when_the_driver_asked_for_none() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let shared = shared();
    let mut queue = device_queue(&mock, 0, memory, shared.clone());
    let avail = GuestAddress(queue.queue.avail_ring());
    let give_back = |queue: &mut DeviceQueue| {
        let descriptor = Descriptor::new(BASE + 0x8000, 16, 0, 0);
        mock.build_desc_chain(&[RawDescriptor::from(descriptor)])
            .unwrap();
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify().unwrap();
    };
    driver.write_obj(1u16, avail).unwrap();
    give_back(&mut queue);
    assert_eq!(shared.take_isr(), 0);
    driver.write_obj(0u16, avail).unwrap();
    queue.notify().unwrap();
    assert_eq!(shared.take_isr(), 0, "nothing new");
    give_back(&mut queue);
    assert_eq!(shared.take_isr(), 1);
}

#[test]
fn with_the_event_index_an_interrupt_comes_for_the_chain_that_the_driver_named() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let shared = shared();
    let mut queue = device_queue(&mock, 0, memory, shared.clone());
    queue.queue.set_event_idx(true);
    let used_event = GuestAddress(queue.queue.avail_ring() + 4 + 2 * 8);
    for (event, interrupts) in [(0u16, 1), (2, 0), (2, 1), (8, 0), (2, 0)] {
        driver.write_obj(event.to_le(), used_event).unwrap();
        let descriptor = Descriptor::new(BASE + 0x8000, 16, 0, 0);
        mock.build_desc_chain(&[RawDescriptor::from(descriptor)])
            .unwrap();
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify().unwrap();
        let used = queue.queue.next_used();
        assert_eq!(shared.take_isr(), interrupts, "event {event}, used {used}");
    }
}

#[test]
fn chains_given_back_together_appear_at_once_across_the_end_of_the_ring() {
    const ENTRIES: u16 = 8;
    let (avail, used) = (BASE + 0x1000, BASE + 0x2000);
    let (driver, memory) = memories();
    let shared = shared();
    let mut rings = Queue::new(ENTRIES).unwrap();
    rings.set_desc_table_address(Some(BASE as u32), None);
    rings.set_avail_ring_address(Some(avail as u32), None);
    rings.set_used_ring_address(Some(used as u32), None);
    rings.set_event_idx(true);
    rings.set_ready(true);
    let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let mut queue = DeviceQueue::new(rings, 0, memory, shared.clone(), doorbell, true);
    let half = |at| u16::from_le(driver.read_obj::<u16>(GuestAddress(at)).unwrap());
    let set = |at, value: u16| {
        driver.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    };
    for head in 0..ENTRIES {
        let descriptor = Descriptor::new(BASE + 0x8000, 16, 2, 0);
        let place = GuestAddress(BASE + 16 * u64::from(head));
        driver
            .write_obj(RawDescriptor::from(descriptor), place)
            .unwrap();
    }
    for start in (0u16..24).step_by(3) {
        for head in 0..3 {
            set(avail + 4 + 2 * u64::from((start + head) % ENTRIES), head);
        }
        set(avail + 2, start + 3);
        // The driver waits for the first of the three.
        set(avail + 4 + 2 * u64::from(ENTRIES), start);
        let chains: Vec<_> = (0..3).map(|_| queue.pop().unwrap().unwrap()).collect();
        assert_eq!(half(used + 2), start);
        queue
            .complete_together(chains.into_iter().zip(10..))
            .unwrap();
        assert_eq!(half(used + 2), start + 3);
        for i in 0..3 {
            let place = used + 4 + 8 * u64::from((start + i) % ENTRIES);
            assert_eq!((half(place), half(place + 4)), (i, 10 + i));
        }
        queue.notify().unwrap();
        assert_eq!(shared.take_isr(), 1);
    }
    assert_eq!(shared.stats().snapshot().slots_in_flight, 0);
    queue.complete_together([]).unwrap();
}

#[test]
fn a25_an_available_index_beyond_the_ring_is_a_fault() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let mut queue = device_queue(&mock, 0, memory, shared());
    set_avail_index(&driver, &queue.queue, 9);
    assert!(matches!(queue.pop(), Err(Fault::Ring { queue: 0, .. })));
    set_avail_index(&driver, &queue.queue, u16::MAX);
    assert!(matches!(queue.pop(), Err(Fault::Ring { .. })));
}

#[test]
fn a25_a_head_beyond_the_table_is_a_fault() {
    let (driver, memory) = memories();
    let mock = MockSplitQueue::create(&driver, GuestAddress(BASE), 8);
    let mut queue = device_queue(&mock, 0, memory, shared());
    let first = GuestAddress(queue.queue.avail_ring() + 4);
    driver.write_obj(8u16.to_le(), first).unwrap();
    set_avail_index(&driver, &queue.queue, 1);
    let got = queue.pop();
    assert!(matches!(
        got,
        Err(Fault::Chain {
            error: ChainError::Index { index: 8, size: 8 },
            ..
        })
    ));
}

#[test]
fn a25_rings_outside_the_window_are_faults() {
    let (_, memory) = memories();
    let good = (BASE, BASE + 0x1000, BASE + 0x2000);
    let end = BASE + SIZE;
    for (desc, avail, used, what) in [
        (end - 16, good.1, good.2, "descriptor table"),
        (good.0, end - 8, good.2, "available ring"),
        (good.0, good.1, end - 8, "used ring"),
        (0x8000_0000, good.1, good.2, "descriptor table"),
        (0, good.1, good.2, "descriptor table"),
        (good.0, good.1, !3, "used ring"),
    ] {
        let mut queue = Queue::new(8).unwrap();
        let halves = |a: u64| (Some(a as u32), Some((a >> 32) as u32));
        let (low, high) = halves(desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(avail);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(used);
        queue.set_used_ring_address(low, high);
        let message = check_rings(&memory, 0, &queue).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn a_fault_sets_needs_reset_once_and_counts_each() {
    let shared = shared();
    for _ in 0..3 {
        shared.fault(&Fault::Setup("test"));
    }
    assert_eq!(shared.stats().snapshot().faults, 3);
    assert_eq!(shared.status(), 0x40);
    assert_eq!(shared.take_isr(), 2);
    shared.reset();
    assert_eq!(shared.status(), 0);
    assert_eq!(shared.stats().snapshot().faults, 3);
}
