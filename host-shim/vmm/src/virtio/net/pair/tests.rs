//! A pair of queues over a backend that a test fills: buffers of all shapes, merging, backpressure, and what a guest
//! can do wrong.

mod guest;

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::lock;
use crate::virtio::queue::tests::{Driver, memories, shared};
use crate::virtio::window::tests::{BASE, SIZE};
use guest::*;

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

#[test]
fn a_driver_that_never_stops_sending_keeps_no_thread() {
    let (memory, window) = memories();
    let (driver, shared) = (Driver::new(&memory, BASE, ENTRIES), shared());
    let wire = Arc::new(Mutex::new(Wire {
        room: usize::MAX,
        ..Wire::default()
    }));
    let queues = vec![driver.device(1, window, shared.clone())];
    let mut pair = Pair::new(queues, 0, Box::new(Fake(wire)), None, 0, &shared);
    driver.post(&[(TX_BUFFER, HEADER_SIZE as u32 + 60, 0)]);
    driver.flood(TURN as u16, || pair.doorbell(1).unwrap());
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
