//! Windows: every refusal with its own error and nothing changed, sharing among functions, and their end.

use porthole_abi::{Error, Extent, FunctionId, WINDOWS_MAX, WindowConfig, WindowFlags};

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::hw::{Memory, Vmid};
use crate::tracker::{PageState, WindowSlot};

/// Name, expected error, what is changed in a good configuration.
type Case = (&'static str, Error, fn(&mut WindowConfig));

/// Tries changed copies of a good configuration; each must be refused and leave everything as it was.
fn refused(cases: &[Case]) {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let mut other = world.guest(1, FREE + BLOCK + 16 * 4096, 16);
    memory
        .register_window(m, &mut guest, &window(APERTURE, &[(FREE, 4)]))
        .unwrap();
    memory
        .register_window(m, &mut other, &window(APERTURE, &[(FREE + 4 * 4096, 4)]))
        .unwrap();
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(
            m,
            &mut guest,
            pages(FREE + 8 * 4096, 4),
            to,
            Content::Zeroed,
        )
        .unwrap();
    memory.pin(&pages(FREE + 12 * 4096, 4)).unwrap();
    world.machine.warm();
    let (before, guest_before) = (m.snapshot(), guest.clone());
    let good = window(
        APERTURE + BLOCK,
        &[(FREE + 16 * 4096, 2), (FREE + 20 * 4096, 2)],
    );
    for (name, error, change) in cases {
        let mut config = good;
        change(&mut config);
        let result = memory.register_window(m, &mut guest, &config);
        assert_eq!(result, Err(*error), "{name}");
        assert!(m.snapshot() == before && guest == guest_before, "{name}");
    }
    world.check(&[&guest, &other]);
    memory.register_window(m, &mut guest, &good).unwrap();
    world.check(&[&guest, &other]);
}

#[test]
fn a08_window_blocks_of_another_form_are_refused() {
    refused(&[
        ("version", Error::BadVersion, |c| c.version += 1),
        ("major version", Error::BadVersion, |c| c.version += 1 << 16),
        ("no version", Error::BadVersion, |c| c.version = 0),
        ("flag", Error::ReservedNonZero, |c| c.flags = 2),
        ("reserved", Error::ReservedNonZero, |c| c.reserved = 1),
        ("unused extent", Error::ReservedNonZero, |c| {
            c.extents[239].pages = 1;
        }),
        ("extent behind the count", Error::ReservedNonZero, |c| {
            c.extent_count = 1;
        }),
    ]);
}

#[test]
fn a02_window_ranges_are_checked() {
    refused(&[
        ("no length", Error::Empty, |c| c.length = 0),
        ("odd length", Error::Unaligned, |c| c.length += 1),
        ("odd offset", Error::Unaligned, |c| c.bar_offset = 8),
        ("odd address", Error::Unaligned, |c| c.ipa += 0x10),
        ("length wraps", Error::Overflow, |c| c.length = !0xfff),
        ("address wraps", Error::Overflow, |c| c.ipa = !0xfff),
        ("offset wraps", Error::Overflow, |c| c.bar_offset = !0xfff),
        ("no extent", Error::Empty, |c| {
            c.extent_count = 0;
            c.extents = [Extent::default(); 240];
        }),
        ("extents", Error::TooLarge, |c| c.extent_count = 241),
        ("extents by far", Error::TooLarge, |c| {
            c.extent_count = u32::MAX;
        }),
        ("pages", Error::TooLarge, |c| {
            c.bar_size = 64 * MIB;
            c.length = 16 * MIB + 4096;
            c.extents[0].pages = 4095;
        }),
        ("empty extent", Error::Empty, |c| c.extents[1].pages = 0),
        ("odd extent", Error::Unaligned, |c| c.extents[1].pa += 1),
        ("extent wraps", Error::Overflow, |c| {
            c.extents[1].pa = !0xfff
        }),
        ("extent of 2^52 pages", Error::Overflow, |c| {
            c.extents[1].pages = 1 << 52;
        }),
        ("sum wraps", Error::Overflow, |c| {
            c.extents[0] = Extent {
                pa: 0,
                pages: (1 << 52) - 1,
            };
            c.extents[1] = Extent {
                pa: 0,
                pages: (1 << 52) - 1,
            };
        }),
        ("too short", Error::InvalidParameter, |c| c.length -= 4096),
        ("too long", Error::InvalidParameter, |c| c.length += 4096),
    ]);
}

#[test]
fn a20_windows_overlap_nothing() {
    refused(&[
        ("same page twice", Error::DuplicatePage, |c| {
            c.extents[1].pa = c.extents[0].pa;
        }),
        ("pages overlap", Error::DuplicatePage, |c| {
            c.extents[1].pa = c.extents[0].pa + 4096;
        }),
        ("page of a window", Error::PageIsWindow, |c| {
            c.extents[1].pa = FREE + 3 * 4096;
        }),
        ("page of another VM's window", Error::PageIsWindow, |c| {
            c.extents[1].pa = FREE + 3 * 4096 + 4096;
        }),
        (
            "page of another device's window",
            Error::WindowForeign,
            |c| {
                c.function = FunctionId::new(0, 0, 2, 0).0;
                c.extents[1].pa = FREE + 2 * 4096;
            },
        ),
        ("private page", Error::NotHostOwned, |c| {
            c.extents[1].pa = FREE + 7 * 4096;
            c.extents[1].pages = 1;
            c.extents[0].pa = FREE + 8 * 4096;
            c.extents[0].pages = 3;
        }),
        ("metadata", Error::NotHostOwned, |c| {
            c.extents[0].pa = FREE + BLOCK;
        }),
        ("pinned", Error::PagePinned, |c| {
            c.extents[1].pa = FREE + 15 * 4096;
            c.extents[0].pa = FREE + 17 * 4096;
        }),
        ("hypervisor", Error::NotHostOwned, |c| c.extents[0].pa = RAM),
        ("MMIO", Error::NotRam, |c| c.extents[1].pa = UART),
        ("last page MMIO", Error::NotRam, |c| {
            c.extents[1].pa = RAM + RAM_PAGES * 4096 - 4096;
        }),
        (
            "same address, other place in the BAR",
            Error::WindowOverlap,
            |c| {
                c.ipa = APERTURE;
                c.function += 1;
                c.bar_offset = 4096;
            },
        ),
        ("same address, other pages", Error::WindowOverlap, |c| {
            c.ipa = APERTURE;
            c.function += 1;
        }),
        ("same address, same function", Error::WindowOverlap, |c| {
            c.ipa = APERTURE;
        }),
        ("starts inside", Error::WindowOverlap, |c| {
            c.ipa = APERTURE + 3 * 4096;
        }),
        ("over RAM", Error::OutsideRegion, |c| {
            c.ipa = GUEST_RAM + BLOCK
        }),
        ("before the aperture", Error::OutsideRegion, |c| {
            c.ipa = APERTURE - 4096;
        }),
        ("past the aperture", Error::OutsideRegion, |c| {
            c.ipa = APERTURE + APERTURE_BYTES - 3 * 4096;
        }),
        ("past the address size", Error::OutsideRegion, |c| {
            c.ipa = 1 << 36
        }),
    ]);
}

#[test]
fn a21_bar_limits() {
    refused(&[
        ("BAR 6", Error::BadBar, |c| c.bar = 6),
        ("BAR 2^32-1", Error::BadBar, |c| c.bar = u32::MAX),
        ("64-bit BAR 5", Error::BadBar, |c| {
            c.bar = 5;
            c.flags = WindowFlags::BAR_64.bits();
        }),
        ("BAR size 0", Error::InvalidParameter, |c| c.bar_size = 0),
        ("BAR size odd", Error::InvalidParameter, |c| {
            c.bar_size = 0x3000
        }),
        ("BAR below a page", Error::InvalidParameter, |c| {
            c.bar_size = 2048;
        }),
        ("BAR of 4 GiB in 32 bits", Error::InvalidParameter, |c| {
            c.bar_size = 1 << 32;
        }),
        ("behind the BAR", Error::OutsideBar, |c| {
            c.bar_offset = 16 * MIB - 0x3000;
        }),
        ("BAR smaller than the window", Error::OutsideBar, |c| {
            c.bar_size = 0x2000;
        }),
        (
            "another device at the same address",
            Error::WindowForeign,
            |c| {
                *c = window(APERTURE, &[(FREE, 4)]);
                c.function = FunctionId::new(0, 0, 2, 0).0;
            },
        ),
        (
            "another segment at the same address",
            Error::WindowForeign,
            |c| {
                *c = window(APERTURE, &[(FREE, 4)]);
                c.function = FunctionId::new(1, 0, 1, 1).0;
            },
        ),
    ]);
}

#[test]
fn wide_bars_and_the_last_bytes_of_a_bar_are_fine() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let mut config = window(APERTURE + APERTURE_BYTES - 4 * 4096, &[(FREE, 4)]);
    config.flags = WindowFlags::BAR_64.bits();
    config.bar = 4;
    config.bar_size = 1 << 40;
    config.bar_offset = (1 << 40) - 4 * 4096;
    world
        .memory
        .register_window(&world.machine, &mut guest, &config)
        .unwrap();
    world.check(&[&guest]);
}

#[test]
fn a24_host_and_guest_reach_a_window_and_the_guest_cannot_execute_it() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let tables = world.memory.host_tables();
    let config = window(APERTURE, &[(FREE + 4096, 1), (HIGH, 512), (FREE, 1)]);
    let id = world
        .memory
        .register_window(&world.machine, &mut guest, &config)
        .unwrap();
    assert_eq!(id.index(), 0);
    world.check(&[&guest]);
    assert_eq!(
        world.memory.host_tables(),
        tables,
        "the host's map is untouched"
    );
    for (ipa, at) in [(0, FREE + 4096), (4096, HIGH), (513 * 4096, FREE)] {
        let seen = world
            .machine
            .access(slot(0).vmid(), Ipa::new(APERTURE + ipa))
            .unwrap();
        assert_eq!((seen.pa, seen.write, seen.execute), (at, true, false));
        assert!(world.machine.access(Vmid::HOST, Ipa::new(at)).is_some());
        assert_eq!(world.state(at), PageState::Window(slot(0), id));
    }
}

#[test]
fn a21_functions_of_one_device_share_a_window_until_the_last_leaves() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let mut config = window(APERTURE, &[(FREE + 4096, 2), (FREE + 4 * 4096, 1)]);
    config.function = FunctionId::new(0, 0, 1, 3).0;
    let id = memory.register_window(m, &mut guest, &config).unwrap();
    let before = m.snapshot();
    config.function = FunctionId::new(0, 0, 1, 5).0;
    assert_eq!(memory.register_window(m, &mut guest, &config), Ok(id));
    // The same bytes in another order are other pages.
    let mut other = window(APERTURE, &[(FREE + 4 * 4096, 1), (FREE + 4096, 2)]);
    other.function = FunctionId::new(0, 0, 1, 6).0;
    assert_eq!(
        memory.register_window(m, &mut guest, &other),
        Err(Error::WindowOverlap)
    );
    let record = guest.windows().get(id).unwrap();
    assert_eq!(record.functions(), 1 << 3 | 1 << 5);
    assert_eq!(record.function(), FunctionId::new(0, 0, 1, 3));
    let index = id.index() as u64;
    for (window, function, error) in [
        (index, 4, Error::BadFunction),
        (index, 8, Error::BadFunction),
        (index, u64::MAX, Error::BadFunction),
        (1, 3, Error::NoWindow),
        (32, 3, Error::NoWindow),
        (u64::MAX, 3, Error::NoWindow),
    ] {
        let result = memory.unregister_window(m, &mut guest, window, function);
        assert_eq!(result, Err(error));
    }
    memory.unregister_window(m, &mut guest, index, 3).unwrap();
    assert_eq!(
        memory.unregister_window(m, &mut guest, index, 3),
        Err(Error::BadFunction)
    );
    assert!(m.snapshot() == before);
    assert_eq!(
        guest.windows().get(id).unwrap().function(),
        FunctionId::new(0, 0, 1, 5)
    );
    world.machine.warm();
    memory.unregister_window(m, &mut guest, index, 5).unwrap();
    assert!(guest.windows().is_empty());
    world.check(&[&guest]);
    // Its metadata came back: two tables.
    assert_eq!(guest.metadata_free(), 15);
}

#[test]
fn a07_unregister_forgets_every_translation_of_the_guest() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let scattered: Vec<_> = (0..240).map(|i| (HIGH + i * 8192, 1)).collect();
    for config in [
        window(APERTURE + BLOCK - 100 * 4096, &scattered),
        window(APERTURE + 4096, &[(HIGH + 4096, 4096)]),
        window(APERTURE, &[(HIGH, 4096)]),
    ] {
        memory.register_window(m, &mut guest, &config).unwrap();
        world.check(&[&guest]);
        world.machine.warm();
        memory.unregister_window(m, &mut guest, 0, 0).unwrap();
        world.check(&[&guest]);
        assert_eq!(guest.metadata_free(), 15);
        assert!(m.access(Vmid::HOST, Ipa::new(HIGH)).is_some());
    }
}

#[test]
fn a22_window_pages_are_neither_donated_nor_reclaimed_and_end_with_the_vm() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    for i in 0..3 {
        let config = window(APERTURE + i * BLOCK, &[(FREE + i * 0x4000, 4)]);
        memory.register_window(m, &mut guest, &config).unwrap();
    }
    let to = Ipa::new(GUEST_RAM);
    let given = memory.donate(m, &mut guest, pages(FREE, 1), to, Content::Zeroed);
    assert_eq!(given, Err(Error::PageIsWindow));
    world.machine.warm();
    for left in [2, 1, 0, 0] {
        assert_eq!(memory.retire_step(m, &mut guest), left);
        world.check(&[&guest]);
    }
    assert!(guest.is_retired());
    let late = window(APERTURE, &[(FREE, 4)]);
    assert_eq!(
        memory.register_window(m, &mut guest, &late),
        Err(Error::BadState)
    );
    assert_eq!(
        memory.reclaim(m, &mut guest, pages(FREE, 1)),
        Err(Error::NotVmOwned)
    );
    assert_eq!(
        memory.unregister_window(m, &mut guest, 0, 0),
        Err(Error::BadState)
    );
}

#[test]
fn a82_a_window_that_a_reset_unmapped_is_not_taken_down_once_more() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let config = window(APERTURE, &[(FREE, 4)]);
    memory.register_window(m, &mut guest, &config).unwrap();
    // Another CPU resets the machine while this one's call waits for the VM's tables.
    guest.stage2.clear(m);
    assert_eq!(
        memory.unregister_window(m, &mut guest, 0, 0),
        Err(Error::BadState)
    );
}

#[test]
fn a81_window_slots_run_out_and_come_back() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let nth = |i: usize| {
        let at = i as u64 * 4096;
        window(APERTURE + at, &[(FREE + at, 1)])
    };
    for i in 0..WINDOWS_MAX {
        let id = memory.register_window(m, &mut guest, &nth(i)).unwrap();
        assert_eq!(Some(id), WindowSlot::new(i));
    }
    let one_more = nth(WINDOWS_MAX);
    assert_eq!(
        memory.register_window(m, &mut guest, &one_more),
        Err(Error::NoSlot)
    );
    world.check(&[&guest]);
    memory.unregister_window(m, &mut guest, 7, 0).unwrap();
    let id = memory.register_window(m, &mut guest, &one_more).unwrap();
    assert_eq!(id.index(), 7);
    world.check(&[&guest]);
    world.retire(&mut guest);
    world.check(&[&guest]);
    assert_eq!(memory.pages_by_owner(porthole_abi::PageOwner::Window), 0);
    assert_eq!(m.free_pages() as u64 + memory.host_tables(), POOL_PAGES);
}
