//! a06: every operation with every number of table pages that is too small. The state must stay as it was, to
//! the last word of memory, and the same call must work once there are pages.

use porthole_abi::Error;

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::guest::GuestMemory;
use crate::hw::Memory;

type Op<'a> = dyn Fn(&World<'_>, &mut GuestMemory) -> Result<(), Error> + 'a;

/// Runs `op` with 0, 1, 2, ... allocations from the pool until it works. Returns how many it took.
fn with_short_pool(world: &World<'_>, guest: &mut GuestMemory, op: &Op<'_>) -> usize {
    for limit in 0.. {
        world.machine.warm();
        let (before, guest_before) = (world.machine.snapshot(), guest.clone());
        world.machine.limit_pool(Some(limit));
        let result = op(world, guest);
        world.machine.limit_pool(None);
        if result.is_ok() {
            world.check(&[guest]);
            return limit;
        }
        assert_eq!(result, Err(Error::NoMemory), "with {limit}");
        assert!(world.machine.snapshot() == before, "with {limit}");
        assert!(*guest == guest_before);
        world.check(&[guest]);
    }
    unreachable!()
}

#[test]
fn a06_donation_without_host_tables() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE, 16);
    // Across the edge of two blocks in the middle of the 1 GiB block: all that a donation can need.
    let across = HIGH + 9 * BLOCK - 4096;
    let took = with_short_pool(&world, &mut guest, &|w, g| {
        let to = Ipa::new(GUEST_RAM);
        w.memory
            .donate(&w.machine, g, pages(across, 2), to, Content::Zeroed)
    });
    assert_eq!(took, 4);
    let took = with_short_pool(&world, &mut guest, &|w, g| {
        w.memory
            .donate_metadata(&w.machine, g, pages(HIGH + 20 * BLOCK + 4096, 3))
    });
    assert_eq!(took, 1);
}

#[test]
fn a06_hardware_tables_without_host_tables() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE, 16);
    let across = pages(HIGH + 9 * BLOCK - 4096, 2);
    let took = with_short_pool(&world, &mut guest, &|w, _| {
        w.memory.take_table(&w.machine, across)
    });
    assert_eq!(took, 4);
    // Their tables are there already: the way back takes none.
    let took = with_short_pool(&world, &mut guest, &|w, _| {
        w.memory.give_table(&w.machine, across)
    });
    assert_eq!(took, 0);
    // Halves of a block, whose table went with the second: the first to come back takes one.
    for half in [0, 256] {
        let half = pages(HIGH + 12 * BLOCK + half * 4096, 256);
        world.memory.take_table(&world.machine, half).unwrap();
    }
    let took = with_short_pool(&world, &mut guest, &|w, _| {
        w.memory
            .give_table(&w.machine, pages(HIGH + 12 * BLOCK, 256))
    });
    assert_eq!(took, 1);
}

#[test]
fn a06_reclaim_without_host_tables() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE, 16);
    for i in 0..512 {
        let from = pages(HIGH + i * BLOCK, 512);
        // 1 GiB of guest RAM does not fit its region: metadata takes any amount.
        world
            .memory
            .donate_metadata(&world.machine, &mut guest, from)
            .unwrap();
    }
    world.retire(&mut guest);
    let content = pages(HIGH + 7 * BLOCK + 4096, 1).start();
    world.machine.poke(content, 7, 0x5ec2e7);
    // The second range's tables are all gone: a page in the middle needs two, and devices one.
    let took = with_short_pool(&world, &mut guest, &|w, g| {
        w.memory
            .reclaim(&w.machine, g, pages(HIGH + 7 * BLOCK + 4096, 1))
    });
    assert_eq!(took, 3);
    assert!(world.machine.is_zero(content));
    let took = with_short_pool(&world, &mut guest, &|w, g| {
        w.memory
            .reclaim(&w.machine, g, pages(HIGH + 30 * BLOCK - 4096, 2))
    });
    assert_eq!(took, 2);
    let took = with_short_pool(&world, &mut guest, &|w, g| {
        w.memory.reclaim(&w.machine, g, pages(HIGH, 512))
    });
    assert_eq!(took, 0);
}

#[test]
fn a06_donation_and_window_without_metadata() {
    let donation: &Op<'_> = &|w, g| {
        let to = Ipa::new(GUEST_RAM + BLOCK - 4096);
        w.memory
            .donate(&w.machine, g, pages(HIGH, 2), to, Content::Zeroed)
    };
    // 240 pages, scattered, across the edge of two level-3 tables; then one that needs nine of them.
    let scattered: Vec<_> = (0..240).map(|i| (HIGH + i * 8192, 1)).collect();
    let small = window(APERTURE + BLOCK - 100 * 4096, &scattered);
    let mut large = window(APERTURE + 4096, &[(HIGH + 4096 * 3, 4096)]);
    large.bar_size = 64 * MIB;
    for (op, needs) in [
        (donation, 3),
        (
            &|w: &World<'_>, g: &mut GuestMemory| {
                w.memory.register_window(&w.machine, g, &small).map(drop)
            },
            3,
        ),
        (
            &|w: &World<'_>, g: &mut GuestMemory| {
                w.memory.register_window(&w.machine, g, &large).map(drop)
            },
            10,
        ),
    ] {
        for free in 0..=needs {
            let mut t = tracker();
            let world = World::new(&mut t);
            let mut guest = world.guest(0, FREE, free + 1);
            world.machine.warm();
            let (before, guest_before) = (world.machine.snapshot(), guest.clone());
            let result = op(&world, &mut guest);
            world.check(&[&guest]);
            if free < needs {
                assert_eq!(result, Err(Error::NoMetadata), "{free} of {needs}");
                assert!(world.machine.snapshot() == before);
                assert!(guest == guest_before);
            } else {
                assert_eq!((result, guest.metadata_free()), (Ok(()), 0));
            }
        }
    }
}

#[test]
fn a06_a_refused_donation_gives_its_tables_back() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE, 4);
    let before = (world.machine.snapshot(), guest.clone());
    // The guest's side is planned and taken before the host's side refuses.
    let to = Ipa::new(GUEST_RAM);
    let refused = world.memory.donate(
        &world.machine,
        &mut guest,
        pages(RAM, 1),
        to,
        Content::Zeroed,
    );
    assert_eq!(refused, Err(Error::NotHostOwned));
    assert!((world.machine.snapshot(), guest) == before);
}

#[test]
fn a81_creation_without_memory_changes_nothing() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let before = world.machine.snapshot();
    for limit in 0..3 {
        world.machine.limit_pool(Some(limit));
        let made =
            world
                .memory
                .create_guest(&world.machine, slot(0), regions(), pages(HIGH + 4096, 1));
        assert_eq!(made.err(), Some(Error::NoMemory));
        world.machine.limit_pool(None);
        assert!(world.machine.snapshot() == before);
    }
    let guest = world.guest(0, HIGH + 4096, 1);
    assert_eq!(guest.metadata_free(), 0);
    assert_eq!(
        world.machine.free_pages() as u64 + world.memory.host_tables(),
        POOL_PAGES
    );
    world.check(&[&guest]);
}

#[test]
fn tables_made_for_a_reclaim_outlast_what_other_calls_do_around_them() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut dead = world.guest(0, FREE, 512);
    let mut other = world.guest(1, HIGH, 8);
    world.retire(&mut dead);
    let page = pages(FREE + 4096, 1);
    memory.inner.lock().prepare(m, &page).unwrap();
    // Another CPU, while the page is scrubbed: the table that it will stand in gets its only page, and loses it.
    memory.reclaim(m, &mut dead, pages(FREE, 1)).unwrap();
    memory
        .donate_metadata(m, &mut other, pages(FREE, 1))
        .unwrap();
    m.limit_pool(Some(0));
    memory.reclaim(m, &mut dead, page).unwrap();
    m.limit_pool(None);
    world.check(&[&dead, &other]);
}
