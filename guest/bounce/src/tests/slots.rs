//! The allocator by itself: placement, limits, refusals.

use std::vec;
use std::vec::Vec;

use super::BUS;
use crate::Direction::{FromDevice, ToDevice};
use crate::{
    BusAddr, Error, MAX_MAPPING_SIZE, SLOT_SIZE, SetupError, SlotAllocator, SlotGroup, SlotIndex,
};

fn groups(bytes: usize) -> Vec<SlotGroup> {
    vec![SlotGroup::NEW; SlotGroup::needed_for(bytes)]
}

fn allocator(groups: &mut [SlotGroup], bytes: usize) -> SlotAllocator<'_> {
    SlotAllocator::new(groups, BusAddr::new(BUS), bytes).unwrap()
}

fn release(slots: &mut SlotAllocator<'_>, at: SlotIndex, len: usize) {
    let run = slots.begin_release_streaming(at, len, ToDevice).unwrap();
    slots.finish_release(run);
}

#[test]
fn streaming_goes_low_and_coherent_goes_high() {
    let mut groups = groups(16 * 4096);
    let mut slots = allocator(&mut groups, 16 * 4096);
    assert_eq!(slots.alloc_streaming(1, ToDevice, 1).unwrap().get(), 0);
    assert_eq!(slots.alloc_streaming(2049, ToDevice, 1).unwrap().get(), 1);
    assert_eq!(slots.alloc_coherent(1).unwrap().get(), 30);
    assert_eq!(slots.alloc_coherent(2).unwrap().get(), 26);
    assert_eq!(slots.alloc_streaming(2048, ToDevice, 1).unwrap().get(), 3);
    assert_eq!(slots.used(), 10);
    assert!(slots.check());
}

#[test]
fn freed_slots_are_used_again_lowest_first() {
    let mut groups = groups(4 * 4096);
    let mut slots = allocator(&mut groups, 4 * 4096);
    let taken: Vec<_> = (0..8)
        .map(|_| slots.alloc_streaming(100, ToDevice, 1).unwrap())
        .collect();
    assert_eq!(slots.alloc_streaming(1, ToDevice, 1), Err(Error::Full));
    for i in [5, 2, 6] {
        release(&mut slots, taken[i], 100);
    }
    assert_eq!(slots.alloc_streaming(4096, ToDevice, 1).unwrap().get(), 5);
    assert_eq!(slots.alloc_streaming(1, ToDevice, 1).unwrap().get(), 2);
    assert_eq!(slots.high_water(), 8);
    assert!(slots.check());
}

#[test]
fn runs_cross_groups() {
    let bytes = 192 * SLOT_SIZE;
    let mut groups = groups(bytes);
    let mut slots = allocator(&mut groups, bytes);
    slots.alloc_streaming(60 * SLOT_SIZE, ToDevice, 1).unwrap();
    let long = slots
        .alloc_streaming(MAX_MAPPING_SIZE, ToDevice, 1)
        .unwrap();
    assert_eq!(long.get(), 60);
    assert_eq!(slots.largest_free_run(), 4);
    assert!(slots.check());
    release(&mut slots, long, MAX_MAPPING_SIZE);
    assert_eq!(slots.largest_free_run(), 132);
    assert!(slots.check());
}

#[test]
fn alignment_is_that_of_the_bus() {
    let bytes = 64 * 4096;
    let mut groups = groups(bytes);
    let mut slots = allocator(&mut groups, bytes);
    for align in [1, 2048, 4096, 8192, 16384, 65536] {
        let at = slots.alloc_streaming(10, ToDevice, align).unwrap();
        assert_eq!((BUS + at.offset() as u64) % align.max(2048) as u64, 0);
    }
    for align in [0, 3, 4097] {
        let refused = slots.alloc_streaming(10, ToDevice, align);
        assert_eq!(refused, Err(Error::BadAlignment));
    }
    let refused = slots.alloc_streaming(10, ToDevice, 1 << 63);
    assert_eq!(refused, Err(Error::Full));
    assert!(slots.check());
}

#[test]
fn limits_are_those_of_swiotlb() {
    let bytes = 1 << 20;
    let mut groups = groups(bytes);
    let mut slots = allocator(&mut groups, bytes);
    assert_eq!(slots.max_mapping_size(), 256 << 10);
    assert!(slots.alloc_streaming(256 << 10, ToDevice, 1).is_ok());
    for len in [(256 << 10) + 1, usize::MAX] {
        let refused = slots.alloc_streaming(len, ToDevice, 1);
        assert_eq!(refused, Err(Error::TooLarge));
    }
    assert_eq!(slots.alloc_streaming(0, ToDevice, 1), Err(Error::Empty));
    assert_eq!(slots.alloc_coherent(0), Err(Error::Empty));
    assert_eq!(slots.alloc_coherent(257), Err(Error::TooLarge));
    assert_eq!(slots.alloc_coherent(usize::MAX), Err(Error::TooLarge));
    assert_eq!(slots.alloc_coherent(256), Err(Error::Full));
    assert!(slots.alloc_coherent(192).is_ok(), "more than a mapping may");
    assert_eq!(slots.used(), 512);
}

#[test]
fn a_small_window_lowers_the_limit() {
    let mut groups = groups(8192);
    let mut slots = allocator(&mut groups, 8192);
    assert_eq!(slots.max_mapping_size(), 8192);
    let refused = slots.alloc_streaming(8193, ToDevice, 1);
    assert_eq!(refused, Err(Error::TooLarge));
}

#[test]
fn wrong_releases_are_refused_and_change_nothing() {
    let mut groups = groups(8 * 4096);
    let mut slots = allocator(&mut groups, 8 * 4096);
    let at = slots.alloc_streaming(5000, ToDevice, 1).unwrap();
    let ring = slots.alloc_coherent(2).unwrap();
    let inside = SlotIndex::new(at.get() + 1);
    let mut refuse = |at, len, direction| {
        slots
            .begin_release_streaming(at, len, direction)
            .map(drop)
            .unwrap_err()
    };
    assert_eq!(refuse(at, 4999, ToDevice), Error::WrongSize);
    assert_eq!(refuse(at, 5000, FromDevice), Error::WrongDirection);
    assert_eq!(refuse(inside, 5000, ToDevice), Error::NotMapped);
    assert_eq!(refuse(ring, 8192, ToDevice), Error::WrongKind);
    for outside in [16, 64, 1000, usize::MAX] {
        let outside = SlotIndex::new(outside);
        assert_eq!(refuse(outside, 1, ToDevice), Error::OutsideWindow);
    }
    let mut refuse = |at, pages| {
        slots
            .begin_release_coherent(at, pages)
            .map(drop)
            .unwrap_err()
    };
    assert_eq!(refuse(ring, 1), Error::WrongSize);
    assert_eq!(refuse(at, 2), Error::WrongKind);
    assert_eq!(slots.used(), 7);
    assert!(slots.check());

    release(&mut slots, at, 5000);
    let again = slots.begin_release_streaming(at, 5000, ToDevice);
    assert_eq!(again.map(drop), Err(Error::NotMapped));
}

#[test]
fn slots_on_their_way_back_are_neither_mapped_nor_free() {
    let mut groups = groups(4096);
    let mut slots = allocator(&mut groups, 4096);
    let at = slots.alloc_streaming(4096, ToDevice, 1).unwrap();
    let run = slots.begin_release_streaming(at, 4096, ToDevice).unwrap();
    assert_eq!(slots.streaming_at(at), Err(Error::NotMapped));
    assert_eq!(slots.alloc_streaming(1, ToDevice, 1), Err(Error::Full));
    assert!(slots.check());
    slots.finish_release(run);
    assert!(slots.alloc_streaming(4096, ToDevice, 1).is_ok());
}

#[test]
fn setup_refuses_what_it_cannot_track() {
    let mut short = vec![SlotGroup::NEW; 1];
    let mut setup = |bus, bytes| SlotAllocator::new(&mut short, BusAddr::new(bus), bytes).err();
    assert_eq!(
        setup(BUS, 132 << 10),
        Some(SetupError::TooLittleBookkeeping)
    );
    assert_eq!(setup(BUS, 0), Some(SetupError::Empty));
    assert_eq!(setup(BUS, 2048), Some(SetupError::Unaligned));
    assert_eq!(setup(BUS + 2048, 4096), Some(SetupError::Unaligned));
    assert_eq!(setup(BUS, 128 << 10), None);
}
