//! A pair of queues over a backend that a test fills: buffers of all shapes, merging, backpressure, and what a guest
//! can do wrong.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::bus::lock;
use crate::virtio::queue::tests::{memories, shared};
use crate::virtio::window::tests::{BASE, SIZE};

const RX_BUFFERS: u64 = BASE + 0x1_0000;
const TX_BUFFER: u64 = BASE + 0x8_0000;
const ENTRIES: u16 = 16;
const MERGE: u64 = feature(VIRTIO_NET_F_MRG_RXBUF);

type Mock<'a> = MockSplitQueue<'a, GuestMemoryMmap>;

/// What the backend has, and has taken.
#[derive(Default)]
struct Wire {
    /// Frames for the guest.
    coming: VecDeque<Vec<u8>>,
    /// Tells their length beforehand, as a stream does, or not.
    knows_length: bool,
    gone: Vec<Vec<u8>>,
    /// Frames that it still takes.
    room: usize,
    flushes: usize,
}

struct Fake(Arc<Mutex<Wire>>);

impl Backend for Fake {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn watched(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn event(&mut self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &Header, frame: &[Slice<'_>]) -> std::io::Result<Sent> {
        let mut wire = lock(&self.0);
        if wire.room == 0 {
            return Ok(Sent::Full);
        }
        wire.room -= 1;
        let mut bytes = Vec::new();
        for part in frame {
            let start = bytes.len();
            bytes.resize(start + part.len(), 0);
            part.copy_to(&mut bytes[start..]);
        }
        wire.gone.push(bytes);
        Ok(Sent::Done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        lock(&self.0).flushes += 1;
        Ok(())
    }

    fn expect(&mut self) -> std::io::Result<Option<usize>> {
        let wire = lock(&self.0);
        let known = |frame: &Vec<u8>| {
            if wire.knows_length {
                HEADER_SIZE + frame.len()
            } else {
                HEADER_SIZE + 4096
            }
        };
        Ok(wire.coming.front().map(known))
    }

    fn receive(&mut self, room: &[Slice<'_>]) -> std::io::Result<Received> {
        let Some(frame) = lock(&self.0).coming.pop_front() else {
            return Ok(Received::Nothing);
        };
        let all = [&Header::default().0[..], &frame].concat();
        if room.iter().map(|part| part.len()).sum::<usize>() < all.len() {
            return Ok(Received::Dropped);
        }
        let mut left = &all[..];
        for part in room {
            let count = part.len().min(left.len());
            part.copy_from(&left[..count]);
            left = &left[count..];
        }
        Ok(Received::Frame(all.len()))
    }
}

struct Guest<'a> {
    driver: &'a GuestMemoryMmap,
    rx: Mock<'a>,
    tx: Mock<'a>,
    pair: Pair,
    wire: Arc<Mutex<Wire>>,
    shared: Arc<Shared>,
    /// Receive buffers by the head of their chain.
    posted: Vec<(u16, Vec<(u64, usize)>)>,
    next_buffer: u64,
    seen: u16,
}

fn with_guest(features: u64, test: impl FnOnce(Guest<'_>)) {
    let (driver, memory) = memories();
    let shared = shared();
    // The mock's rings overlap from half their length on, so that they are made twice as long.
    let rx = MockSplitQueue::create(&driver, GuestAddress(BASE), 2 * ENTRIES);
    let tx = MockSplitQueue::create(&driver, GuestAddress(BASE + 0x4000), 2 * ENTRIES);
    let queue = |mock: &Mock<'_>, index| {
        let mut rings: Queue = mock.create_queue().unwrap();
        rings.set_size(ENTRIES);
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        DeviceQueue::new(rings, index, memory.clone(), shared.clone(), doorbell, true)
    };
    let queues = vec![queue(&rx, 0), queue(&tx, 1)];
    let wire = Arc::new(Mutex::new(Wire {
        room: usize::MAX,
        knows_length: true,
        ..Wire::default()
    }));
    let backend = Box::new(Fake(wire.clone()));
    let pair = Pair::new(queues, 0, backend, None, features, &shared);
    test(Guest {
        driver: &driver,
        rx,
        tx,
        pair,
        wire,
        shared,
        posted: Vec::new(),
        next_buffer: RX_BUFFERS,
        seen: 0,
    });
}

fn descriptor(address: u64, length: usize, writable: bool) -> RawDescriptor {
    let flags = if writable {
        VRING_DESC_F_WRITE as u16
    } else {
        0
    };
    RawDescriptor::from(Descriptor::new(address, length as u32, flags, 0))
}

fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 3 + seed) as u8).collect()
}

impl Guest<'_> {
    /// Posts a receive buffer of these parts.
    fn post(&mut self, sizes: &[usize]) {
        let mut parts = Vec::new();
        for size in sizes {
            parts.push((self.next_buffer, *size));
            self.next_buffer += 0x1000;
        }
        // Free descriptors follow those of the chains before.
        let head: usize = self.posted.iter().map(|(_, parts)| parts.len()).sum();
        let head = head as u16 % ENTRIES;
        let chain: Vec<_> = parts
            .iter()
            .map(|(a, l)| descriptor(*a, *l, true))
            .collect();
        self.rx
            .add_desc_chains(&chained(chain, head), head)
            .unwrap();
        self.posted.push((head, parts));
    }

    /// The frames that arrived since, from used entries and headers.
    fn arrived(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while self.seen != self.rx.used().idx().load() {
            let mut bytes = Vec::new();
            let mut buffers = 1;
            let mut taken = 0;
            while taken < buffers {
                let place = usize::from(self.seen % ENTRIES);
                let entry = self.rx.used().ring().ref_at(place).unwrap().load();
                let (_, parts) = self
                    .posted
                    .iter()
                    .find(|(head, _)| u32::from(*head) == entry.id())
                    .unwrap()
                    .clone();
                let mut left = entry.len() as usize;
                for (address, size) in parts {
                    let start = bytes.len();
                    let count = left.min(size);
                    bytes.resize(start + count, 0);
                    self.driver
                        .read_slice(&mut bytes[start..], GuestAddress(address))
                        .unwrap();
                    left -= count;
                }
                assert_eq!(left, 0, "more is used than the buffer has");
                self.seen = self.seen.wrapping_add(1);
                taken += 1;
                if taken == 1 {
                    buffers = u16::from_le_bytes([bytes[NUM_BUFFERS], bytes[NUM_BUFFERS + 1]]);
                }
            }
            assert!(buffers >= 1);
            frames.push(bytes[HEADER_SIZE..].to_vec());
        }
        frames
    }

    fn come(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        lock(&self.wire).coming.extend(frames);
    }

    fn send(&mut self, parts: &[(u64, usize)], head: u16) {
        let chain: Vec<_> = parts
            .iter()
            .map(|(a, l)| descriptor(*a, *l, false))
            .collect();
        self.tx
            .add_desc_chains(&chained(chain, head), head)
            .unwrap();
    }

    fn lost(&self) -> u64 {
        self.shared.stats().snapshot().lost
    }
}

/// `add_desc_chains` wants the links.
fn chained(chain: Vec<RawDescriptor>, head: u16) -> Vec<RawDescriptor> {
    let last = chain.len() - 1;
    (0..)
        .zip(chain)
        .map(|(i, descriptor)| {
            let d = Descriptor::from(descriptor);
            let next = if i == last { 0 } else { 1 };
            RawDescriptor::from(Descriptor::new(
                d.addr().0,
                d.len(),
                d.flags() | next,
                head + i as u16 + 1,
            ))
        })
        .collect()
}

#[test]
fn a_frame_waits_for_a_buffer_and_fills_it() {
    with_guest(0, |mut g| {
        g.come([frame(60, 1)]);
        g.pair.event(0).unwrap();
        assert!(g.arrived().is_empty());
        g.post(&[1526]);
        g.pair.doorbell(0).unwrap();
        assert_eq!(g.arrived(), [frame(60, 1)]);
        assert_eq!(g.shared.take_isr(), 1);
    });
}

#[test]
fn without_merging_each_frame_has_one_buffer_or_is_lost() {
    with_guest(0, |mut g| {
        g.post(&[10, 90]);
        g.post(&[100]);
        g.come([frame(200, 1), frame(88, 2), frame(60, 3)]);
        g.pair.event(0).unwrap();
        assert_eq!(g.arrived(), [frame(88, 2), frame(60, 3)]);
        assert_eq!(g.lost(), 1);
    });
}

#[test]
fn a_merged_frame_takes_as_many_buffers_as_it_needs_and_all_appear_at_once() {
    with_guest(MERGE, |mut g| {
        for _ in 0..5 {
            g.post(&[64, 36]);
        }
        g.come([frame(250, 1), frame(50, 2), frame(88, 3)]);
        g.pair.event(0).unwrap();
        assert_eq!(g.arrived(), [frame(250, 1), frame(50, 2), frame(88, 3)]);
        assert_eq!(g.lost(), 0);
    });
}

#[test]
fn a_frame_longer_than_what_is_posted_waits_for_more() {
    with_guest(MERGE, |mut g| {
        g.post(&[100]);
        g.come([frame(150, 1)]);
        g.pair.event(0).unwrap();
        assert!(g.arrived().is_empty());
        assert_eq!(lock(&g.wire).coming.len(), 1, "it stays where it is");
        g.post(&[100]);
        g.pair.doorbell(0).unwrap();
        assert_eq!(g.arrived(), [frame(150, 1)]);
    });
}

#[test]
fn a_frame_that_a_full_queue_cannot_hold_is_lost() {
    with_guest(MERGE, |mut g| {
        for _ in 0..ENTRIES {
            g.post(&[20]);
        }
        g.come([frame(16 * 20, 1), frame(100, 2)]);
        g.pair.event(0).unwrap();
        assert_eq!(g.arrived(), [frame(100, 2)]);
        assert_eq!(g.lost(), 1);
    });
}

#[test]
fn a_backend_that_does_not_know_lengths_gets_room_for_the_longest() {
    with_guest(MERGE, |mut g| {
        lock(&g.wire).knows_length = false;
        g.post(&[2048]);
        g.come([frame(60, 1)]);
        g.pair.event(0).unwrap();
        assert!(g.arrived().is_empty());
        g.post(&[2048]);
        g.post(&[2048]);
        g.pair.doorbell(0).unwrap();
        assert_eq!(g.arrived(), [frame(60, 1)]);
        // What was held for it serves the next frames.
        g.come([frame(70, 2)]);
        g.post(&[2048]);
        g.pair.event(0).unwrap();
        assert_eq!(g.arrived(), [frame(70, 2)]);
    });
}

#[test]
fn frames_of_the_guest_go_out_in_order_with_one_flush() {
    with_guest(0, |mut g| {
        let bytes = [&[0; 12][..], &frame(100, 1)].concat();
        g.driver
            .write_slice(&bytes, GuestAddress(TX_BUFFER))
            .unwrap();
        g.send(&[(TX_BUFFER, 12), (TX_BUFFER + 12, 100)], 0);
        g.send(&[(TX_BUFFER, 112)], 2);
        g.send(
            &[(TX_BUFFER, 5), (TX_BUFFER + 5, 30), (TX_BUFFER + 35, 77)],
            3,
        );
        g.pair.doorbell(1).unwrap();
        assert_eq!(lock(&g.wire).gone, vec![frame(100, 1); 3]);
        assert_eq!(lock(&g.wire).flushes, 1);
        assert_eq!(g.tx.used().idx().load(), 3);
        assert_eq!(g.shared.take_isr(), 1);
    });
}

#[test]
fn frames_wait_while_the_backend_is_full() {
    with_guest(0, |mut g| {
        lock(&g.wire).room = 1;
        g.send(&[(TX_BUFFER, 80)], 0);
        g.send(&[(TX_BUFFER, 90)], 1);
        g.pair.doorbell(1).unwrap();
        assert_eq!(g.tx.used().idx().load(), 1);
        lock(&g.wire).room = 1;
        g.pair.event(0).unwrap();
        assert_eq!(g.tx.used().idx().load(), 2);
        let lengths: Vec<_> = lock(&g.wire).gone.iter().map(Vec::len).collect();
        assert_eq!(lengths, [68, 78]);
    });
}

#[test]
fn frames_that_ask_for_what_was_not_negotiated_are_lost() {
    with_guest(0, |mut g| {
        let mut header = [0; 12];
        header[0] = 1;
        g.driver
            .write_slice(&header, GuestAddress(TX_BUFFER))
            .unwrap();
        g.send(&[(TX_BUFFER, 100)], 0);
        // And one without an Ethernet header.
        g.send(&[(TX_BUFFER + 12, 12 + FRAME_MIN - 1)], 1);
        g.pair.doorbell(1).unwrap();
        assert!(lock(&g.wire).gone.is_empty());
        assert_eq!((g.tx.used().idx().load(), g.lost()), (2, 2));
    });
}

#[test]
fn a25_malformed_buffers_are_faults() {
    for parts in [
        vec![(TX_BUFFER, 11)],
        vec![(0x8000_0000, 100)],
        vec![(TX_BUFFER, 12), (BASE + SIZE - 1, 2)],
    ] {
        with_guest(0, |mut g| {
            g.send(&parts, 0);
            assert!(g.pair.doorbell(1).is_err(), "{parts:x?}");
        });
    }
    for sizes in [&[11][..], &[4, 4]] {
        with_guest(MERGE, |mut g| {
            g.post(sizes);
            g.come([frame(60, 1)]);
            assert!(g.pair.event(0).is_err());
        });
    }
    with_guest(MERGE, |mut g| {
        g.next_buffer = BASE + SIZE - 0x1000;
        g.post(&[0x1001]);
        g.come([frame(60, 1)]);
        assert!(g.pair.event(0).is_err());
    });
    // A loop: its second descriptor leads back to the first.
    with_guest(0, |mut g| {
        let looped = [(TX_BUFFER, 12, 1), (TX_BUFFER + 12, 60, 0)];
        let chain = looped.map(|(a, l, next)| RawDescriptor::from(Descriptor::new(a, l, 1, next)));
        g.tx.add_desc_chains(&chain, 0).unwrap();
        assert!(g.pair.doorbell(1).is_err());
    });
}

#[test]
fn after_many_frames_the_thread_looks_for_its_end() {
    with_guest(MERGE, |mut g| {
        // No buffer is large enough, so that all of them are looked at in one go.
        for _ in 0..ENTRIES {
            g.post(&[20]);
        }
        g.come((0..TURN + 5).map(|n| frame(1000, n)));
        g.pair.event(0).unwrap();
        assert_eq!(g.lost(), TURN as u64);
        let doorbell = g.pair.queues()[0].doorbell();
        assert_eq!(doorbell.read().unwrap(), 1, "it comes back by itself");
        g.pair.doorbell(0).unwrap();
        assert_eq!(g.lost(), TURN as u64 + 5);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Frames and buffers of any length in any order: what arrives is a subsequence of what was sent, byte for byte,
    /// and what is missing was counted.
    #[test]
    fn frames_arrive_whole_or_are_counted(
        merge in any::<bool>(),
        knows_length in any::<bool>(),
        steps in prop::collection::vec((any::<bool>(), 14usize..4000), 1..60),
    ) {
        with_guest(if merge { MERGE } else { 0 }, |mut g| {
            lock(&g.wire).knows_length = knows_length;
            let mut posted = 0;
            let mut sent = Vec::new();
            let mut arrived = Vec::new();
            for (seed, (buffer, length)) in steps.into_iter().enumerate() {
                if buffer && posted < ENTRIES {
                    g.post(&[length]);
                    posted += 1;
                    g.pair.doorbell(0).unwrap();
                } else {
                    sent.push(frame(length, seed));
                    g.come([frame(length, seed)]);
                    g.pair.event(0).unwrap();
                }
                arrived.extend(g.arrived());
            }
            let waiting = lock(&g.wire).coming.len();
            assert_eq!(arrived.len() + waiting + g.lost() as usize, sent.len());
            let mut sent = sent.into_iter();
            for frame in arrived {
                assert!(sent.any(|s| s == frame), "a frame that nobody sent, or out of order");
            }
        });
    }

    /// Rings and buffers of random bytes: an error or nothing, never a panic, and the worker comes to an end.
    #[test]
    fn fuzz_a_guest_that_writes_anything_anywhere(
        features in prop_oneof![Just(0), Just(MERGE), Just(u64::MAX)],
        rings in prop::collection::vec((0u64..0x8000, any::<u64>()), 0..200),
        table in prop::collection::vec((0u64..32, 0u64..0x10_0000, 0u32..5000, 0u16..8, 0u16..20), 0..32),
        avail in (0u16..40, 0u16..40),
    ) {
        with_guest(features, |mut g| {
            for (at, value) in rings {
                let _ = g.driver.write_obj(value, GuestAddress(BASE + at));
            }
            for (entry, offset, length, flags, next) in table {
                let ring = if entry < 16 { BASE } else { BASE + 0x4000 };
                let descriptor = Descriptor::new(BASE + offset, length, flags, next);
                let place = GuestAddress(ring + entry % 16 * 16);
                g.driver.write_obj(RawDescriptor::from(descriptor), place).unwrap();
            }
            g.rx.avail().idx().store(u16::to_le(avail.0));
            g.tx.avail().idx().store(u16::to_le(avail.1));
            g.come((0..5).map(|n| frame(100 * (n + 1), n)));
            let _ = g.pair.doorbell(1);
            let _ = g.pair.doorbell(0);
            let _ = g.pair.event(0);
        });
    }
}
