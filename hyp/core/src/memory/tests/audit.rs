//! The share audit finds what it is for: each kind of difference between tables and tracker, made by hand.

use porthole_abi::Error;

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::guest::GuestMemory;
use crate::stage2::plan::MapPlan;
use crate::stage2::{MemoryType, PoolSource, Reserve};
use crate::tracker::PageState;

/// A VM with a page, a window and metadata.
fn guest(world: &World<'_>) -> GuestMemory {
    let mut guest = world.guest(3, FREE + BLOCK, 16);
    let to = Ipa::new(GUEST_RAM);
    world
        .memory
        .donate(
            &world.machine,
            &mut guest,
            pages(FREE, 1),
            to,
            Content::Zeroed,
        )
        .unwrap();
    world
        .memory
        .register_window(
            &world.machine,
            &mut guest,
            &window(APERTURE, &[(FREE + 4096, 2)]),
        )
        .unwrap();
    guest
}

/// Maps a page into the guest behind the tracker's back.
fn sneak(world: &World<'_>, guest: &mut GuestMemory, at: u64, ipa: u64, kind: MemoryType) {
    let mut plan = MapPlan::default();
    plan.add(&world.machine, &guest.stage2, Ipa::new(ipa), pa(at), 1)
        .unwrap();
    let mut reserve = guest.reserve(&world.machine, &plan).unwrap();
    guest.stage2.map(
        &world.machine,
        Ipa::new(ipa),
        pa(at),
        1,
        Some(kind),
        &mut reserve,
    );
    reserve.release(&mut guest.source(&world.machine));
}

#[test]
fn a_sound_state_has_no_offender() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let guest = guest(&world);
    assert_eq!(world.audit(&[&guest]), (2, 2, None));
}

#[test]
fn a_page_that_the_guest_should_not_reach_is_found() {
    for (at, shared) in [
        (FREE + 5 * 4096, 3),
        (RAM, 2),
        (FREE + BLOCK + 4096, 2),
        (FREE + 3 * BLOCK, 2),
        (UART + 4096, 3),
        (0x7000_0000, 3),
    ] {
        let mut t = tracker();
        let world = World::new(&mut t);
        let mut guest = guest(&world);
        let mut other = world.guest(4, FREE + 2 * BLOCK, 8);
        if at == FREE + 3 * BLOCK {
            other = world.guest(5, at, 1);
        }
        sneak(&world, &mut guest, at, GUEST_RAM + BLOCK, MemoryType::Ram);
        assert_eq!(world.audit(&[&guest, &other]), (shared, 2, Some(pa(at))));
    }
}

#[test]
fn a_window_page_outside_its_window_or_executable_is_found() {
    for (ipa, kind) in [
        (APERTURE + BLOCK, MemoryType::Window),
        (APERTURE + BLOCK, MemoryType::Ram),
        (GUEST_RAM + 4096, MemoryType::Window),
    ] {
        let mut t = tracker();
        let world = World::new(&mut t);
        let mut guest = guest(&world);
        sneak(&world, &mut guest, FREE + 4096, ipa, kind);
        assert_eq!(world.audit(&[&guest]), (3, 2, Some(pa(FREE + 4096))));
    }
}

#[test]
fn a_page_that_the_host_should_not_reach_is_found() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let guest = guest(&world);
    let mut inner = world.memory.inner.lock();
    inner.prepare(&world.machine, &pages(FREE, 1)).unwrap();
    inner.map(&world.machine, &pages(FREE, 1), MemoryType::Ram);
    drop(inner);
    assert_eq!(world.audit(&[&guest]), (3, 2, Some(pa(FREE))));
}

/// Lets the host reach the guest's page at an address that is not its own.
fn alias(world: &World<'_>, ipa: u64) {
    let mut inner = world.memory.inner.lock();
    let super::super::Inner { stage2, tables, .. } = &mut *inner;
    let mut pool = PoolSource {
        machine: &world.machine,
        used: tables,
    };
    let at = Ipa::new(ipa);
    let mut reserve = Reserve::fill(3, &mut pool).unwrap();
    stage2.unmap(&world.machine, at, 1, &mut reserve, &mut pool);
    reserve.release(&mut pool);
    let mut plan = MapPlan::default();
    plan.add(&world.machine, stage2, at, pa(FREE), 1).unwrap();
    let mut reserve = Reserve::fill(plan.tables(), &mut pool).unwrap();
    stage2.map(
        &world.machine,
        at,
        pa(FREE),
        1,
        Some(MemoryType::Device),
        &mut reserve,
    );
    reserve.release(&mut pool);
}

#[test]
fn a_page_that_the_host_reaches_at_another_address_is_found() {
    // MMIO, the last page of all, a page of metadata, a page of its own.
    for at in [
        UART + 4096,
        (1 << 40) - 4096,
        FREE + BLOCK,
        FREE + 3 * BLOCK,
    ] {
        let mut t = tracker();
        let world = World::new(&mut t);
        let guest = guest(&world);
        alias(&world, at);
        let (_, _, offender) = world.audit(&[&guest]);
        assert!(offender.is_some(), "{at:#x}");
    }
}

#[test]
fn a_page_that_the_host_lost_is_found() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let guest = guest(&world);
    let mut inner = world.memory.inner.lock();
    let super::super::Inner { stage2, tables, .. } = &mut *inner;
    let mut pool = PoolSource {
        machine: &world.machine,
        used: tables,
    };
    let at = FREE + 2 * 4096;
    stage2.unmap(
        &world.machine,
        Ipa::new(at),
        1,
        &mut Reserve::default(),
        &mut pool,
    );
    drop(inner);
    assert_eq!(world.audit(&[&guest]), (1, 2, Some(pa(at))));
}

#[test]
fn a_window_that_the_guest_lost_shows_in_the_sums() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let guest = guest(&world);
    world.memory.inner.lock().tracker.set_range(
        &pages(FREE + 6 * 4096, 1),
        PageState::Window(slot(3), crate::tracker::WindowSlot::new(0).unwrap()),
    );
    let (shared, windows, _) = world.audit(&[&guest]);
    assert_eq!((shared, windows), (2, 3));
}

#[test]
fn cursors_of_the_host_are_checked() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let guest = guest(&world);
    let audit = |cursor| {
        world
            .memory
            .audit(&world.machine, cursor, &mut |slot, look| {
                if slot == guest.slot() {
                    look(&guest);
                }
            })
    };
    for cursor in [
        1 << 32,
        u64::MAX,
        1 << 63 | 64 << 32,
        1 << 63 | 1 << 24,
        1 << 63 | 1 << 62,
        1 << 62 | 1 << 28,
        1 << 62 | 1 << 61,
        1 << 61 | 16,
        1 << 61 | 1 << 32,
    ] {
        assert_eq!(audit(cursor), Err(Error::InvalidParameter), "{cursor:#x}");
    }
    // Legal ones in the middle of nowhere end.
    for cursor in [
        u64::from(u32::MAX),
        1 << 62 | 0x123_4567,
        1 << 62 | 0xfff_ffff,
        1 << 63 | 3 << 32 | 0xff_ffff,
        1 << 63 | 63 << 32,
    ] {
        assert_eq!(audit(cursor).unwrap().offender, None);
    }
    assert_eq!(audit(1 << 63 | 63 << 32).unwrap().next, 0);
}

#[test]
fn steps_are_bounded() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let step = world
        .memory
        .audit(&world.machine, 0, &mut |_, _| ())
        .unwrap();
    assert_eq!(step.next, 16384);
    let ended = world
        .memory
        .audit(&world.machine, RAM_PAGES + HIGH_PAGES, &mut |_, _| ())
        .unwrap();
    assert_eq!(ended.next, 1 << 61);
    let ended = world
        .memory
        .audit(&world.machine, 1 << 61 | 15, &mut |_, _| ())
        .unwrap();
    assert_eq!(ended.next, 1 << 62);
    let ended = world
        .memory
        .audit(&world.machine, 1 << 62 | 0xfff_ffff, &mut |_, _| ())
        .unwrap();
    assert_eq!(ended.next, 1 << 63);
}
