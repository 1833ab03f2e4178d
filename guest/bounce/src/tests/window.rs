//! Copies at every alignment, and the limits of windows and apertures.

use core::ptr::NonNull;
use std::vec;
use std::vec::Vec;

use super::BUS;
use crate::raw::fake::HostView;
use crate::{BusAddr, Error, SlotGroup};

#[test]
fn copies_are_exact_at_every_offset_length_and_alignment() {
    let (host, window) = HostView::new(BUS, 1);
    let source: Vec<u8> = (0..128).map(|i| i as u8 ^ 0x5a).collect();
    for offset in 0..20 {
        for skew in [0, 1, 3, 8, 15] {
            for len in (0..70).chain([100]) {
                host.write(BUS, &[0xa5; 256]);
                let data = &source[skew..skew + len];
                window.write(offset, data).unwrap();
                let mut expected = vec![0xa5; 256];
                expected[offset..offset + len].copy_from_slice(data);
                assert_eq!(host.read(BUS, 256), expected);

                let mut back = [0; 128];
                window.read(offset, &mut back[skew..skew + len]).unwrap();
                assert_eq!(&back[skew..skew + len], data);
                assert!(back[..skew].iter().all(|&b| b == 0));
                assert!(back[skew + len..].iter().all(|&b| b == 0));

                window.zero(offset, len).unwrap();
                expected[offset..offset + len].fill(0);
                assert_eq!(host.read(BUS, 256), expected);
            }
        }
    }
}

#[test]
fn accesses_past_the_end_change_nothing() {
    let (host, window) = HostView::new(BUS, 1);
    let mut target = [7; 16];
    for offset in [4081, 4096, 4097, usize::MAX - 3, usize::MAX] {
        assert_eq!(window.write(offset, &[1; 16]), Err(Error::OutsideWindow));
        assert_eq!(window.read(offset, &mut target), Err(Error::OutsideWindow));
        assert_eq!(window.zero(offset, 16), Err(Error::OutsideWindow));
    }
    assert_eq!(target, [7; 16]);
    assert_eq!(host.read(BUS, 4096), [0xa5; 4096]);
    assert_eq!(window.write(4096, &[]), Ok(()));
}

#[test]
fn offsets_are_refused_outside_the_window() {
    let (_, window) = HostView::new(BUS, 2);
    assert_eq!(window.offset_of(BusAddr::new(BUS)), Ok(0));
    assert_eq!(window.offset_of(BusAddr::new(BUS + 8191)), Ok(8191));
    for addr in [0, BUS - 1, BUS + 8192, u64::MAX] {
        let refused = window.offset_of(BusAddr::new(addr));
        assert_eq!(refused, Err(Error::OutsideWindow));
    }
}

#[test]
fn bookkeeping_size_is_one_group_per_128_kib() {
    assert_eq!(SlotGroup::needed_for(4096), 1);
    assert_eq!(SlotGroup::needed_for(128 << 10), 1);
    assert_eq!(SlotGroup::needed_for((128 << 10) + 4096), 2);
    assert_eq!(SlotGroup::needed_for(2 << 20), 16);
    assert_eq!(size_of::<SlotGroup>(), 520);
}

#[test]
fn impossible_windows_are_refused() {
    use crate::SetupError::*;
    use crate::raw::fake::window_at;
    let page = NonNull::new(0x1000 as *mut u8).unwrap();
    let odd = NonNull::new(0x1001 as *mut u8).unwrap();
    let refused = |base, bus, len| window_at(base, bus, len).err();
    assert_eq!(refused(page, 0x1000, 0), Some(Empty));
    assert_eq!(refused(odd, 0x1000, 0x1000), Some(Unaligned));
    assert_eq!(refused(page, 0x1800, 0x1000), Some(Unaligned));
    assert_eq!(refused(page, 0x1000, 0x800), Some(Unaligned));
    assert_eq!(refused(page, 0, 0x1000), Some(BadAddress));
    assert_eq!(refused(page, u64::MAX - 0xfff, 0x1000), Some(BadAddress));
    let half = isize::MAX as usize + 1;
    assert_eq!(refused(page, 0x1000, half), Some(BadAddress));
}

#[test]
fn apertures_translate_only_what_lies_wholly_inside() {
    use crate::raw::fake::aperture_at;
    let virt = NonNull::new(0x9000_0000 as *mut u8).unwrap();
    let aperture = aperture_at(0x4000_0000, virt, 0x1000);
    let at = |phys, size| aperture.translate(phys, size).map(|p| p.as_ptr().addr());
    assert_eq!(at(0x4000_0000, 0x1000), Some(0x9000_0000));
    assert_eq!(at(0x4000_0ffc, 4), Some(0x9000_0ffc));
    assert_eq!(at(0x4000_0ffc, 5), None);
    assert_eq!(at(0x3fff_ffff, 4), None);
    assert_eq!(at(0x4000_0000, usize::MAX), None);
    assert_eq!(at(u64::MAX, 4), None);
}
