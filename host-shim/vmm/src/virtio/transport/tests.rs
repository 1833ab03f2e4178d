//! A driver's way through a virtio-pci function, friendly and not: the transport as a guest sees it.

mod rig;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::cli::SwiotlbMode;
use crate::virtio::window::tests::{BASE, SIZE};
use rig::*;

#[test]
fn the_capabilities_name_registers_and_window() {
    let r = rig(SwiotlbMode::Require);
    assert_eq!(r.config(0), 0x1043_1af4);
    let place = |t| {
        r.capability(t)
            .map(|(_, bar, offset, length)| (bar, offset, length))
    };
    assert_eq!(place(1), Some((0, 0, 0x3c)));
    assert_eq!(place(2), Some((0, 0x3000, 8)));
    assert_eq!(place(3), Some((0, 0x1000, 1)));
    assert_eq!(place(4), Some((0, 0x2000, 12)));
    assert!(place(5).is_some());
    assert_eq!(place(10), Some((4, 0, SIZE as u32)));
    assert_eq!(place(11), None);
    let notify = r.capability(2).unwrap().0;
    assert_eq!(r.config(notify + 16), 4, "notify_off_multiplier");
}

#[test]
fn bytes_go_through_the_window_and_back() {
    let r = rig(SwiotlbMode::Require);
    let [receive, transmit] = r.start();
    let (to, from) = (BASE + 0x1_0000, BASE + 0x2_0000);
    r.guest
        .write_slice(b"porthole", GuestAddress(from))
        .unwrap();
    receive.build_desc_chain(&[descriptor(to, 64, 2)]).unwrap();
    r.ring(0);
    transmit
        .build_desc_chain(&[descriptor(from, 8, 0)])
        .unwrap();
    r.ring(1);
    let start = Instant::now();
    while receive.used().idx().load() == 0 {
        assert!(start.elapsed() < Duration::from_secs(300));
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut data = [0; 8];
    r.guest.read_slice(&mut data, GuestAddress(to)).unwrap();
    assert_eq!(&data, b"porthole");
    assert_eq!(r.status(), 0xf);
}

#[test]
fn a25_a_buffer_in_guest_ram_stops_the_device_until_reset() {
    let r = rig(SwiotlbMode::Require);
    let [_, transmit] = r.start();
    transmit
        .build_desc_chain(&[descriptor(0x8000_0000, 64, 0)])
        .unwrap();
    r.ring(1);
    r.wait_for_status(NEEDS_RESET);
    assert_eq!(r.faults(), 1);
    r.write(0x14, &[0]);
    assert_eq!(r.status(), 0);
    r.start();
    assert_eq!(r.status(), 0xf);
}

#[test]
fn a25_rings_in_guest_ram_are_a_fault_when_enabled() {
    let r = rig(SwiotlbMode::Require);
    assert!(r.negotiate(VERSION_1 | SWIOTLB));
    r.enable_queue(0, [0x8000_0000, BASE + 0x1000, BASE + 0x2000]);
    assert_ne!(r.status() & NEEDS_RESET, 0);
    assert_eq!(r.faults(), 1);
}

#[test]
fn a23_the_window_follows_its_bar() {
    let r = rig(SwiotlbMode::Require);
    let to = BASE + 16 * SIZE;
    // As Linux does it: decode off, size, new address, decode on.
    r.set_command(0);
    r.set_config(0x20, u32::MAX);
    assert_eq!(r.config(0x20), !(SIZE as u32 - 1) | 0xc);
    r.set_config(0x24, 0);
    r.set_config(0x20, to as u32);
    r.set_command(2);
    assert_eq!(*lock(&r.moves.0), [None, Some(to)]);
    assert!(r.negotiate(VERSION_1 | SWIOTLB));
    r.enable_queue(0, [BASE, BASE + 0x1000, BASE + 0x2000]);
    assert_ne!(r.status() & NEEDS_RESET, 0, "the old place is outside now");
    assert!(r.negotiate(VERSION_1 | SWIOTLB));
    r.enable_queue(0, [to, to + 0x1000, to + 0x2000]);
    assert_eq!(r.status() & NEEDS_RESET, 0);
}

#[test]
fn a23_moving_the_window_under_a_running_device_is_a_fault() {
    for decode_off in [true, false] {
        let r = rig(SwiotlbMode::Require);
        r.start();
        if decode_off {
            r.set_command(0);
            r.set_command(2);
        } else {
            r.set_config(0x20, (BASE + SIZE) as u32);
        }
        assert_eq!(r.status(), 0xf | NEEDS_RESET);
        r.write(0x14, &[0]);
        assert_eq!(r.status(), 0);
    }
}

#[test]
fn functions_share_the_window_in_the_bar_of_one() {
    let [first, second] = pair();
    for r in [&first, &second] {
        assert_eq!(r.config8(0x0e), 0x80, "multi-function");
        let (at, bar, offset, length) = r.capability(10).unwrap();
        assert_eq!((bar, offset, length), (4, 0, SIZE as u32));
        let other = std::ptr::eq(r, &second);
        assert_eq!(r.config8(at + 6), if other { 0x80 } else { 0 });
        assert_eq!(r.config(0x20) == 0, other, "the BAR is the first's");
    }
    assert_eq!(rig(SwiotlbMode::Hint).config8(0x0e), 0);
    let [_, transmit] = second.start();
    transmit
        .build_desc_chain(&[descriptor(BASE + 0x2_0000, 8, 0)])
        .unwrap();
    second.ring(1);
    let start = Instant::now();
    while second.function.status().stats.buffers == 0 {
        assert!(start.elapsed() < Duration::from_secs(300));
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = second.function.status();
    assert_eq!(
        (status.window_ipa, status.window_of_function),
        (Some(BASE), Some(0))
    );
}

#[test]
fn a23_moving_a_shared_window_stops_every_function_that_runs() {
    let [first, second] = pair();
    second.start();
    second.set_command(0);
    second.set_command(2);
    assert_eq!(second.status(), 0xf, "its own BARs do not place the window");
    first.set_config(0x20, (BASE + SIZE) as u32);
    assert_eq!(second.status(), 0xf | NEEDS_RESET);
    assert_eq!(first.status(), 0, "it was not running");
    assert!(second.negotiate(VERSION_1 | SWIOTLB));
    second.enable_queue(0, [BASE, BASE + 0x1000, BASE + 0x2000]);
    assert_ne!(second.status() & NEEDS_RESET, 0, "the old place is outside");
}

#[test]
fn a_changed_configuration_has_another_generation_and_interrupts() {
    let r = rig(SwiotlbMode::Require);
    let generation = || {
        let mut data = [0];
        assert!(r.function.memory_read(REGISTERS + 0x15, &mut data));
        data[0]
    };
    let before = generation();
    r.function.shared().config_changed();
    assert_ne!(generation(), before);
    let mut isr = [0];
    r.function.memory_read(REGISTERS + ISR as u64, &mut isr);
    assert_eq!(isr, [2]);
}

#[test]
fn status_tells_what_a_driver_does() {
    let r = rig(SwiotlbMode::Require);
    assert!(!r.function.status().running);
    r.start();
    let status = r.function.status();
    assert!(status.running && !status.needs_reset);
    assert_eq!((status.queues, status.window_size), (2, SIZE));
    assert_eq!(status.features, VERSION_1 | SWIOTLB);
    r.write(0x14, &[0]);
    assert!(!r.function.status().running);
}

#[test]
fn a23_a_refused_place_leaves_the_device_without_memory() {
    let r = rig(SwiotlbMode::Require);
    r.set_config(0x20, 0xc000_0000);
    assert!(r.negotiate(VERSION_1 | SWIOTLB));
    r.write(0x14, &[0xf]);
    assert_ne!(r.status() & NEEDS_RESET, 0);
}

#[test]
fn doorbells_follow_the_registers_bar() {
    let r = rig(SwiotlbMode::Require);
    let at = |base: u64, q: u64| base + 0x3000 + 4 * q;
    let to = REGISTERS + 0x10_0000;
    r.set_config(0x10, to as u32);
    let all = lock(&r.notify.0).clone();
    let old = [(at(REGISTERS, 0), true), (at(REGISTERS, 1), true)];
    let gone = [(at(REGISTERS, 0), false), (at(REGISTERS, 1), false)];
    let new = [(at(to, 0), true), (at(to, 1), true)];
    assert_eq!(all, [old, gone, new].concat());
    let mut data = [0; 4];
    assert!(!r.function.memory_read(REGISTERS, &mut data));
    assert!(r.function.memory_read(to, &mut data));
}

#[test]
fn the_configuration_access_capability_reaches_the_registers() {
    let r = rig(SwiotlbMode::Require);
    let (at, ..) = r.capability(5).unwrap();
    r.function.config_write(at + 4, &[0]);
    r.set_config(at + 8, 0x12);
    r.set_config(at + 12, 2);
    let mut data = [0; 2];
    r.function.config_read(at + 16, &mut data);
    assert_eq!(u16::from_le_bytes(data), 2, "num_queues");
    r.set_config(at + 8, 0x14);
    r.set_config(at + 12, 1);
    r.function.config_write(at + 16, &[3]);
    assert_eq!(r.status(), 3);
    for (bar, offset, length) in [(4u8, 0, 4), (0, 0x8000, 4), (0, u32::MAX, 4), (0, 2, 4)] {
        r.function.config_write(at + 4, &[bar]);
        r.set_config(at + 8, offset);
        r.set_config(at + 12, length);
        let state = lock(&r.function.state);
        let reached = r.function.through_config(&state, at + 16, length as usize);
        assert_eq!(reached, None, "BAR {bar}, {length} bytes at {offset:#x}");
        drop(state);
        r.set_config(at + 16, u32::MAX);
        r.config(at + 16);
    }
    assert_eq!(r.status(), 3);
}

#[test]
fn notifications_before_the_driver_is_ready_are_harmless() {
    let r = rig(SwiotlbMode::Require);
    r.ring(0);
    r.ring(1);
    r.write(NOTIFY + 0xffc, &[0; 4]);
    r.start();
    assert_eq!(r.status(), 0xf);
}

#[test]
fn registers_end_with_their_bar() {
    let r = rig(SwiotlbMode::Require);
    let mut data = [0; 8];
    let end = REGISTERS + REGISTERS_SIZE;
    assert!(!r.function.memory_read(end - 4, &mut data));
    assert!(r.function.memory_read(end - 8, &mut data));
    assert!(!r.function.memory_write(REGISTERS - 1, &data));
    assert!(!r.function.memory_write(u64::MAX, &data));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest writes where, the function answers, and its window is where its BAR is or nowhere.
    #[test]
    fn any_sequence_of_accesses_leaves_the_function_consistent(
        accesses in prop::collection::vec(
            (any::<bool>(), prop_oneof![0usize..0x100, 0x2ff0usize..0x3010, any::<usize>()],
             prop_oneof![Just(0u64), Just(u64::MAX), BASE..BASE + SIZE, any::<u64>()], 0usize..4), 1..60),
    ) {
        let r = rig(SwiotlbMode::Offer);
        for (config, at, value, width) in accesses {
            let bytes = value.to_le_bytes();
            let data = &bytes[..1 << width];
            let mut back = [0; 8];
            if config {
                r.function.config_write(at % 0x1000, data);
                r.function.config_read(at % 0x1000, &mut back[..1 << width]);
            } else {
                let at = REGISTERS + (at as u64 % 0x8000);
                r.function.memory_write(at, data);
                r.function.memory_read(at, &mut back[..1 << width]);
            }
        }
        let state = lock(&r.function.state);
        let bar = state.config.bar_address(WINDOW_BAR);
        let place = lock(&state.window.window).place();
        prop_assert!(place.is_none() || place == bar);
        prop_assert!(state.workers.is_none() || place.is_some());
    }
}

#[test]
fn a_device_without_a_window_has_neither_bar_nor_capability() {
    let r = rig(SwiotlbMode::Off);
    assert!(r.capability(10).is_none());
    let bar = 0x10 + 4 * WINDOW_BAR;
    r.set_config(bar, u32::MAX);
    assert_eq!((r.config(bar), r.config(bar + 4)), (0, 0));
    r.set_command(0);
    r.set_command(6);
    assert!(lock(&r.moves.0).is_empty(), "what is in no BAR moves never");
    let status = r.function.status();
    assert_eq!((status.window_bar, status.window_ipa), (None, Some(BASE)));
}

#[test]
fn the_bit_of_swiotlb_is_no_other_features() {
    for bit in [28, 29, 32, 33, 34, 40, 41] {
        let refused = rig_with_bit(SwiotlbMode::Require, bit)
            .err()
            .map(|e| e.to_string());
        assert!(
            refused.is_some_and(|e| e.contains(&format!("feature bit {bit} means"))),
            "{bit}"
        );
        assert!(rig_with_bit(SwiotlbMode::Offer, bit).is_err());
        // Nobody offers it.
        assert!(rig_with_bit(SwiotlbMode::Hint, bit).is_ok());
    }
    for bit in [24, 27, 31, 42, 63] {
        assert!(rig_with_bit(SwiotlbMode::Require, bit).is_ok(), "{bit}");
    }
}
