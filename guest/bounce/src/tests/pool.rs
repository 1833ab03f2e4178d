//! The pool: what the device sees, what comes back, what is counted.

use std::vec;

use super::{BUS, pool};
use crate::Direction::{Bidirectional, FromDevice, ToDevice};
use crate::{BusAddr, Error, SLOT_SIZE};

#[test]
fn the_device_sees_the_buffer_and_zeroes_after_it() {
    let (host, pool) = pool(4);
    for direction in [ToDevice, Bidirectional] {
        let addr = pool.map(&[0x11; 3000], direction).unwrap();
        let shown = host.read(addr.get(), 2 * SLOT_SIZE);
        assert_eq!(shown[..3000], [0x11; 3000]);
        assert!(shown[3000..].iter().all(|&b| b == 0));
    }
}

#[test]
fn a_buffer_for_the_device_to_fill_is_never_shown() {
    let (host, pool) = pool(4);
    let secret = [0x77; 3000];
    let addr = pool.map(&secret, FromDevice).unwrap();
    assert_eq!(host.read(addr.get(), 2 * SLOT_SIZE), vec![0; 2 * SLOT_SIZE]);
    assert!(!host.read(BUS, host.len).contains(&0x77));
}

#[test]
fn unmap_copies_back_by_direction() {
    let (host, pool) = pool(4);
    for (direction, expected) in [(ToDevice, 1), (FromDevice, 9), (Bidirectional, 9)] {
        let mut buffer = [1; 100];
        let addr = pool.map(&buffer, direction).unwrap();
        host.write(addr.get(), &[9; 100]);
        pool.unmap(addr, &mut buffer, direction).unwrap();
        assert_eq!(buffer, [expected; 100]);
    }
    assert_eq!(pool.stats().slots_used, 0);
}

#[test]
fn a_short_write_of_the_device_leaves_zeroes() {
    let (host, pool) = pool(1);
    let mut buffer = [0x77; 64];
    let addr = pool.map(&buffer, FromDevice).unwrap();
    host.write(addr.get(), &[5; 10]);
    pool.unmap(addr, &mut buffer, FromDevice).unwrap();
    assert_eq!(buffer[..10], [5; 10]);
    assert_eq!(buffer[10..], [0; 54]);
}

#[test]
fn release_gives_slots_back_without_a_copy() {
    let (host, pool) = pool(1);
    let addr = pool.map(&[0; 64], FromDevice).unwrap();
    host.write(addr.get(), &[5; 64]);
    pool.release(addr, 64, FromDevice).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.unmaps, stats.bytes_from_device), (1, 0));
    assert_eq!(stats.slots_used, 0);
}

#[test]
fn failed_unmaps_leave_buffer_and_pool_alone() {
    let (host, pool) = pool(4);
    let mut buffer = [1; 100];
    let addr = pool.map(&buffer, FromDevice).unwrap();
    host.write(addr.get(), &[9; 100]);
    let cases = [
        (addr.get() + 1, FromDevice, Error::NotMapped),
        (addr.get() + 2048, FromDevice, Error::NotMapped),
        (addr.get(), ToDevice, Error::WrongDirection),
        (BUS - 2048, FromDevice, Error::OutsideWindow),
        (BUS + 4 * 4096, FromDevice, Error::OutsideWindow),
        (0, FromDevice, Error::OutsideWindow),
        (u64::MAX, FromDevice, Error::OutsideWindow),
    ];
    for (addr, direction, error) in cases {
        let refused = pool.unmap(BusAddr::new(addr), &mut buffer, direction);
        assert_eq!(refused, Err(error), "{addr:#x}");
    }
    let refused = pool.unmap(addr, &mut buffer[..99], FromDevice);
    assert_eq!(refused, Err(Error::WrongSize));
    assert_eq!(buffer, [1; 100]);

    assert_eq!(pool.unmap(addr, &mut buffer, FromDevice), Ok(()));
    host.write(addr.get(), &[3; 100]);
    let twice = pool.unmap(addr, &mut buffer, FromDevice);
    assert_eq!((twice, buffer), (Err(Error::NotMapped), [9; 100]));
    let stats = pool.stats();
    assert_eq!((stats.outside_window, stats.invalid), (4, 5));
    assert_eq!(stats.slots_used, 0);
}

#[test]
fn sync_moves_parts_and_keeps_the_mapping() {
    let (host, pool) = pool(4);
    let mut buffer = [1; 5000];
    let addr = pool.map(&buffer, Bidirectional).unwrap();
    pool.sync_for_device(addr, 2040, &[7; 20]).unwrap();
    assert_eq!(host.read(addr.get() + 2039, 22)[..2], [1, 7]);
    host.write(addr.get() + 4990, &[8; 10]);
    let mut part = [0; 12];
    pool.sync_for_cpu(addr, 4988, &mut part).unwrap();
    assert_eq!(part, [1, 1, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]);
    pool.unmap(addr, &mut buffer, Bidirectional).unwrap();
    assert_eq!((buffer[2039], buffer[2040], buffer[2060]), (1, 7, 1));
    let stats = pool.stats();
    assert_eq!(stats.bytes_to_device, 5020);
    assert_eq!(stats.bytes_from_device, 5012);
}

#[test]
fn sync_refuses_what_does_not_fit_mapping_or_direction() {
    let (_, pool) = pool(4);
    let tx = pool.map(&[1; 100], ToDevice).unwrap();
    let rx = pool.map(&[1; 100], FromDevice).unwrap();
    let ring = pool.alloc_coherent(1).unwrap();
    let mut part = [0; 10];
    let mut cpu = |addr, offset| pool.sync_for_cpu(addr, offset, &mut part);
    assert_eq!(cpu(tx, 0), Err(Error::WrongDirection));
    assert_eq!(cpu(rx, 91), Err(Error::OutsideMapping));
    assert_eq!(cpu(rx, usize::MAX), Err(Error::OutsideMapping));
    assert_eq!(cpu(ring.bus, 0), Err(Error::WrongKind));
    assert_eq!(cpu(BusAddr::new(1), 0), Err(Error::OutsideWindow));
    assert_eq!(cpu(rx, 90), Ok(()));
    let device = |addr, offset| pool.sync_for_device(addr, offset, &[2; 10]);
    assert_eq!(device(rx, 0), Err(Error::WrongDirection));
    assert_eq!(device(tx, 91), Err(Error::OutsideMapping));
    assert_eq!(device(tx, 90), Ok(()));
}

#[test]
fn coherent_pages_are_zeroed_aligned_and_shared() {
    let (host, pool) = pool(8);
    let ring = pool.alloc_coherent(3).unwrap();
    assert!(ring.bus.get().is_multiple_of(4096));
    assert!(ring.ptr.as_ptr().addr().is_multiple_of(4096));
    assert!(pool.contains(ring.bus, 3 * 4096));
    assert_eq!(host.read(ring.bus.get(), 3 * 4096), vec![0; 3 * 4096]);

    pool.write_coherent(ring.bus, 4090, &[6; 12]).unwrap();
    assert_eq!(host.read(ring.bus.get() + 4090, 12), [6; 12]);
    host.write(ring.bus.get() + 12287, &[9]);
    let mut last = [0];
    pool.read_coherent(ring.bus, 12287, &mut last).unwrap();
    assert_eq!(last, [9]);
    let past = pool.read_coherent(ring.bus, 12288, &mut last);
    assert_eq!(past, Err(Error::OutsideMapping));

    assert_eq!(pool.free_coherent(ring.bus, 2), Err(Error::WrongSize));
    assert_eq!(pool.free_coherent(ring.bus, 3), Ok(()));
    assert_eq!(pool.free_coherent(ring.bus, 3), Err(Error::NotMapped));
    assert_eq!(pool.stats().slots_used, 0);
}

#[test]
fn refusals_are_counted_by_cause() {
    let (_, pool) = pool(2);
    let taken = [0; 4].map(|_| pool.map(&[1; 10], ToDevice).unwrap());
    assert_eq!(pool.map(&[1; 10], ToDevice), Err(Error::Full));
    assert_eq!(pool.alloc_coherent(1), Err(Error::Full));
    pool.release(taken[0], 10, ToDevice).unwrap();
    pool.release(taken[2], 10, ToDevice).unwrap();
    assert_eq!(pool.largest_free_run(), SLOT_SIZE);
    assert_eq!(pool.map(&[1; 2049], ToDevice), Err(Error::Full));
    assert_eq!(pool.map(&[1; 8193], ToDevice), Err(Error::TooLarge));
    assert_eq!(pool.alloc_coherent(usize::MAX), Err(Error::TooLarge));
    assert_eq!(pool.map(&[], ToDevice), Err(Error::Empty));
    let stats = pool.stats();
    assert_eq!((stats.full, stats.full_fragmented), (3, 1));
    assert_eq!((stats.too_large, stats.invalid), (2, 1));
    assert_eq!((stats.slots_used, stats.slots_high_water), (2, 4));
    assert_eq!((stats.maps, stats.unmaps, stats.slots_total), (4, 2, 4));
}

#[test]
fn overlap_and_containment_know_the_edges() {
    let (_, pool) = pool(2);
    let at = BusAddr::new;
    assert!(pool.contains(at(BUS), 8192) && !pool.contains(at(BUS), 8193));
    assert!(!pool.contains(at(BUS - 1), 2) && !pool.contains(at(BUS + 8192), 0));
    assert!(!pool.contains(at(BUS + 1), usize::MAX));
    assert!(pool.overlaps(at(BUS - 1), 2) && !pool.overlaps(at(BUS - 1), 1));
    assert!(pool.overlaps(at(BUS + 8191), 1) && !pool.overlaps(at(BUS + 8192), 1));
    assert!(pool.overlaps(at(u64::MAX), 2), "wrapping counts as overlap");
}
