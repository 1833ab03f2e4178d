//! Donation and reclaim: who gets what, what is refused, and that blocks split and join again.

use porthole_abi::{Error, PageOwner};

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::hw::{Memory, Vmid};
use crate::tracker::PageState;

fn host_span(world: &World<'_>, at: u64) -> Option<u64> {
    let access = world.machine.walk(Vmid::HOST, Ipa::new(at));
    access.map(|a| a.span)
}

#[test]
fn boot_gives_the_host_all_but_the_hypervisor_in_large_blocks() {
    let mut t = tracker();
    let world = World::new(&mut t);
    world.check(&[]);
    assert_eq!(host_span(&world, HIGH), Some(1 << 30));
    assert_eq!(host_span(&world, FREE), Some(BLOCK));
    assert_eq!(host_span(&world, RAM), None);
    assert_eq!(host_span(&world, RAM + HYP_PAGES * 4096), Some(4096));
    assert_eq!(world.memory.pages_by_owner(PageOwner::Hyp), HYP_PAGES);
    let mmio = world
        .machine
        .walk(Vmid::HOST, Ipa::new(UART + 4096))
        .unwrap();
    assert!(!mmio.normal && mmio.write && !mmio.execute);
    assert_eq!(host_span(&world, 5 << 30), Some(1 << 30));
    assert_eq!(host_span(&world, (1 << 40) - 1), Some(1 << 30));
    assert!(!world.memory.host_reaches(&world.machine, pa(UART)));
    assert!(!world.memory.host_reaches(&world.machine, pa(1 << 40)));
    assert!(world.memory.host_reaches(&world.machine, pa(FREE + 8)));
}

#[test]
fn donated_pages_leave_the_host_and_arrive_zeroed() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    world.machine.poke(pa(FREE + 4096), 7, 0xdead);
    world.machine.warm();
    world
        .memory
        .donate(
            &world.machine,
            &mut guest,
            pages(FREE + 4096, 3),
            Ipa::new(GUEST_RAM + 4096),
            Content::Zeroed,
        )
        .unwrap();
    world.check(&[&guest]);
    assert!(world.machine.is_zero(pa(FREE + 4096)));
    assert_eq!(world.state(FREE + 4096), PageState::VmMemory(slot(0)));
    assert!(
        world
            .machine
            .access(Vmid::HOST, Ipa::new(FREE + 4096))
            .is_none()
    );
    assert!(world.machine.access(Vmid::HOST, Ipa::new(FREE)).is_some());
    // A walk by the guest, which may execute there: nothing is left of what the host had there.
    let seen = world
        .machine
        .access(slot(0).vmid(), Ipa::new(GUEST_RAM + 0x2008));
    assert_eq!(seen.unwrap().pa, FREE + 0x2008);
    world.machine.assert_sound();
    assert!(guest.is_mapped(&world.machine, Ipa::new(GUEST_RAM + 4096)));
    assert!(!guest.is_mapped(&world.machine, Ipa::new(GUEST_RAM)));
}

#[test]
fn a47_content_is_shown_in_order_after_the_host_lost_it() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    for i in 0..3 {
        world.machine.poke(pa(FREE + i * 4096), 511, i + 1);
    }
    world.machine.warm();
    let mut shown = Vec::new();
    let machine = &world.machine;
    let mut show = |ipa: Ipa, bytes: &[u8]| {
        assert_eq!(bytes.len(), 4096);
        let at = FREE + (ipa.raw() - GUEST_RAM);
        assert!(machine.access(Vmid::HOST, Ipa::new(at)).is_none());
        shown.push((ipa.raw(), bytes[4088]));
    };
    world
        .memory
        .donate(
            machine,
            &mut guest,
            pages(FREE, 3),
            Ipa::new(GUEST_RAM),
            Content::Keep(&mut show),
        )
        .unwrap();
    let expected: Vec<_> = (0..3)
        .map(|i| (GUEST_RAM + i * 4096, i as u8 + 1))
        .collect();
    assert_eq!(shown, expected);
    assert_eq!(machine.read_word(pa(FREE + 4096), 511), 2);
    world.check(&[&guest]);
}

#[test]
fn a_block_moves_whole_with_one_flush() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    world.machine.warm();
    let (flushes, tables) = (world.machine.flushes(), world.memory.host_tables());
    world
        .memory
        .donate(
            &world.machine,
            &mut guest,
            pages(FREE, 512),
            Ipa::new(GUEST_RAM),
            Content::Zeroed,
        )
        .unwrap();
    assert_eq!(world.machine.flushes(), flushes + 1);
    assert_eq!(world.memory.host_tables(), tables);
    let seen = world
        .machine
        .walk(slot(0).vmid(), Ipa::new(GUEST_RAM))
        .unwrap();
    assert_eq!(seen.span, BLOCK);
    world.check(&[&guest]);
}

#[test]
fn a07_blocks_split_and_join_again() {
    for (smmu, twins) in [(None, 0), (Some(false), 1), (Some(true), 1)] {
        let mut t = tracker();
        let world = World::with(&mut t, smmu);
        let tables = world.memory.host_tables();
        let mut guest = world.guest(0, FREE, 8);
        let at = HIGH + 5 * BLOCK + 9 * 4096;
        world.machine.warm();
        world
            .memory
            .donate(
                &world.machine,
                &mut guest,
                pages(at, 512),
                Ipa::new(GUEST_RAM),
                Content::Zeroed,
            )
            .unwrap();
        world.check(&[&guest]);
        // One for the metadata's block; 1 GiB into 2 MiB, for CPUs and devices, and two of those into pages.
        assert_eq!(world.memory.host_tables(), tables + 4 + twins);
        assert_eq!(host_span(&world, HIGH), Some(BLOCK));
        assert_eq!(host_span(&world, at - 4096), Some(4096));
        world.retire(&mut guest);
        world.machine.warm();
        // Not in the order in which they came.
        for part in [pages(at + 256 * 4096, 256), pages(at, 256), pages(FREE, 8)] {
            world
                .memory
                .reclaim(&world.machine, &mut guest, part)
                .unwrap();
            world.check(&[&guest]);
            world.machine.warm();
        }
        assert_eq!(world.memory.host_tables(), tables);
        assert_eq!(host_span(&world, HIGH), Some(1 << 30));
        assert_eq!(host_span(&world, FREE), Some(BLOCK));
        assert_eq!(world.memory.pages_donated(), 520);
        assert_eq!(world.memory.pages_reclaimed(), 520);
    }
}

#[test]
fn a02_ranges_are_checked_whole() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    let end = RAM + RAM_PAGES * 4096;
    let last = (1 << 36) - 4096;
    let cases = [
        (FREE, 513, GUEST_RAM, Error::TooLarge),
        (FREE, 1 << 51, GUEST_RAM, Error::TooLarge),
        (end - 4096, 2, GUEST_RAM, Error::NotRam),
        (end, 1, GUEST_RAM, Error::NotRam),
        (UART, 1, GUEST_RAM, Error::NotRam),
        (RAM - 4096, 2, GUEST_RAM, Error::NotRam),
        (HIGH + (1 << 30) - 4096, 2, GUEST_RAM, Error::NotRam),
        (u64::MAX - 0x1fff, 1, GUEST_RAM, Error::NotRam),
        (FREE + BLOCK - 4096, 2, GUEST_RAM, Error::NotHostOwned),
        (RAM, 1, GUEST_RAM, Error::NotHostOwned),
        (
            RAM + (HYP_PAGES - 1) * 4096,
            2,
            GUEST_RAM,
            Error::NotHostOwned,
        ),
        (FREE, 1, GUEST_RAM + 1, Error::Unaligned),
        (FREE, 2, u64::MAX - 0xfff, Error::Overflow),
        (FREE, 1, GUEST_RAM - 4096, Error::OutsideRegion),
        (
            FREE,
            2,
            GUEST_RAM + GUEST_RAM_BYTES - 4096,
            Error::OutsideRegion,
        ),
        (FREE, 1, APERTURE, Error::OutsideRegion),
        (FREE, 1, last, Error::OutsideRegion),
        (FREE, 1, 1 << 36, Error::OutsideRegion),
        (FREE, 1, 1 << 52, Error::OutsideRegion),
    ];
    let before = world.machine.snapshot();
    for (at, count, ipa, error) in cases {
        let pages = pages(at, count);
        let result = world.memory.donate(
            &world.machine,
            &mut guest,
            pages,
            Ipa::new(ipa),
            Content::Zeroed,
        );
        assert_eq!(result, Err(error), "{pages:?} at {ipa:#x}");
        assert!(world.machine.snapshot() == before);
    }
    world.check(&[&guest]);
}

#[test]
fn a03_a_page_is_given_once_and_only_by_its_owner() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut a = world.guest(0, FREE + BLOCK, 8);
    let mut b = world.guest(1, FREE + BLOCK + 8 * 4096, 8);
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(m, &mut a, pages(FREE, 2), to, Content::Zeroed)
        .unwrap();
    memory
        .register_window(m, &mut a, &window(APERTURE, &[(FREE + 0x4000, 1)]))
        .unwrap();
    memory.pin(&pages(FREE + 0x5000, 1)).unwrap();
    world.machine.warm();
    let before = m.snapshot();
    for (at, error) in [
        (FREE + 4096, Error::NotHostOwned),
        (FREE + BLOCK, Error::NotHostOwned),
        (FREE + 0x4000, Error::PageIsWindow),
        (FREE + 0x5000, Error::PagePinned),
        (RAM, Error::NotHostOwned),
        (UART, Error::NotRam),
    ] {
        for guest in [&mut a, &mut b] {
            let to = Ipa::new(GUEST_RAM + BLOCK);
            let given = memory.donate(m, guest, pages(at, 1), to, Content::Zeroed);
            assert_eq!(given, Err(error));
            assert_eq!(memory.donate_metadata(m, guest, pages(at, 1)), Err(error));
        }
        let made = memory.create_guest(m, slot(2), regions(), pages(at, 1));
        assert_eq!(made.err(), Some(error));
        assert_eq!(memory.take_table(m, pages(at, 1)), Err(error));
        if error != Error::PagePinned {
            assert_eq!(memory.pin(&pages(at, 1)), Err(error));
        }
        assert!(m.snapshot() == before);
    }
    memory.unpin(&pages(FREE + 0x5000, 1)).unwrap();
    assert_eq!(memory.unpin(&pages(FREE, 1)), Err(Error::NotHostOwned));
    world.check(&[&a, &b]);
}

#[test]
fn a04_an_address_is_mapped_once() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    let one = Ipa::new(GUEST_RAM + 4096);
    memory
        .donate(m, &mut guest, pages(FREE, 1), one, Content::Zeroed)
        .unwrap();
    let block = Ipa::new(GUEST_RAM + BLOCK);
    memory
        .donate(
            m,
            &mut guest,
            pages(FREE + 2 * BLOCK, 512),
            block,
            Content::Zeroed,
        )
        .unwrap();
    let before = m.snapshot();
    for (count, ipa) in [
        (1, one),
        (2, Ipa::new(GUEST_RAM)),
        (1, block),
        (1, Ipa::new(GUEST_RAM + BLOCK + 0x5000)),
    ] {
        let from = pages(FREE + 8 * 4096, count);
        let again = memory.donate(m, &mut guest, from, ipa, Content::Zeroed);
        assert_eq!(again, Err(Error::AlreadyMapped));
    }
    // A whole block over one page that is there.
    let over = memory.donate(
        m,
        &mut guest,
        pages(FREE - BLOCK, 512),
        Ipa::new(GUEST_RAM),
        Content::Zeroed,
    );
    assert_eq!(over, Err(Error::AlreadyMapped));
    assert!(m.snapshot() == before);
    world.check(&[&guest]);
}

#[test]
fn a05_reclaim_takes_only_from_the_dead_and_gives_zeros() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut dead = world.guest(0, FREE + BLOCK, 8);
    let mut alive = world.guest(1, FREE + BLOCK + 8 * 4096, 8);
    memory
        .donate(
            m,
            &mut dead,
            pages(FREE, 4),
            Ipa::new(GUEST_RAM),
            Content::Zeroed,
        )
        .unwrap();
    for i in 0..4 {
        m.poke(pa(FREE + i * 4096), 3, 0x5ec2e7);
    }
    assert_eq!(
        memory.reclaim(m, &mut dead, pages(FREE, 1)),
        Err(Error::BadState)
    );
    world.retire(&mut dead);
    world.check(&[&dead, &alive]);
    for (at, count, error) in [
        (FREE + 4 * 4096, 1, Error::NotVmOwned),
        (FREE + 3 * 4096, 2, Error::NotVmOwned),
        (FREE + BLOCK + 8 * 4096, 1, Error::NotVmOwned),
        (FREE + BLOCK + 7 * 4096, 2, Error::NotVmOwned),
        (RAM, 1, Error::NotVmOwned),
        (UART, 1, Error::NotRam),
        (FREE, 513, Error::TooLarge),
    ] {
        assert_eq!(memory.reclaim(m, &mut dead, pages(at, count)), Err(error));
    }
    world.machine.warm();
    memory.reclaim(m, &mut dead, pages(FREE, 3)).unwrap();
    assert_eq!(
        memory.reclaim(m, &mut dead, pages(FREE, 1)),
        Err(Error::NotVmOwned)
    );
    assert_eq!((dead.memory_pages(), dead.metadata_pages()), (1, 8));
    memory
        .reclaim(m, &mut dead, pages(FREE + 3 * 4096, 1))
        .unwrap();
    memory
        .reclaim(m, &mut dead, pages(FREE + BLOCK, 8))
        .unwrap();
    assert_eq!((dead.memory_pages(), dead.metadata_pages()), (0, 0));
    for at in (0..4)
        .map(|i| FREE + i * 4096)
        .chain((0..8).map(|i| FREE + BLOCK + i * 4096))
    {
        assert!(m.is_zero(pa(at)));
    }
    world.check(&[&dead, &alive]);
    // A dead VM takes nothing.
    let to = Ipa::new(GUEST_RAM);
    let one = pages(FREE, 1);
    assert_eq!(
        memory.donate(m, &mut dead, one, to, Content::Zeroed),
        Err(Error::BadState)
    );
    assert_eq!(
        memory.donate_metadata(m, &mut dead, one),
        Err(Error::BadState)
    );
    assert_eq!(dead.take_metadata(m), Err(Error::BadState));
    assert_eq!(memory.reclaim(m, &mut alive, one), Err(Error::BadState));
}

#[test]
fn a09_metadata_runs_out_and_is_replenished() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 3);
    assert_eq!(guest.metadata_free(), 2);
    let vcpu = guest.take_metadata(m).unwrap();
    assert!(m.is_zero(vcpu));
    assert_eq!(world.state(vcpu.raw()), PageState::VmMetadata(slot(0)));
    let to = Ipa::new(GUEST_RAM);
    let before = m.snapshot();
    let given = memory.donate(m, &mut guest, pages(FREE, 1), to, Content::Zeroed);
    assert_eq!(given, Err(Error::NoMetadata));
    assert!(m.snapshot() == before);
    memory
        .donate_metadata(m, &mut guest, pages(FREE + 4096, 2))
        .unwrap();
    memory
        .donate(m, &mut guest, pages(FREE, 1), to, Content::Zeroed)
        .unwrap();
    assert_eq!((guest.metadata_pages(), guest.metadata_free()), (5, 1));
    guest.take_metadata(m).unwrap();
    assert_eq!(guest.take_metadata(m), Err(Error::NoMetadata));
    world.check(&[&guest]);
}

#[test]
fn a08_parameter_blocks_are_copied_from_the_hosts_own_pages_only() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    memory
        .register_window(m, &mut guest, &window(APERTURE, &[(FREE + 4096, 1)]))
        .unwrap();
    m.poke(pa(FREE), 1, 0x0807_0605_0403_0201);
    let mut to = [0u8; 12];
    memory.copy_from_host(m, pa(FREE + 8), &mut to).unwrap();
    assert_eq!(to, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]);
    for (at, error) in [
        (FREE + 4, Error::Unaligned),
        (FREE + 4096 - 8, Error::Unaligned),
        (FREE + BLOCK, Error::NotHostOwned),
        (FREE + 4096, Error::PageIsWindow),
        (RAM, Error::NotHostOwned),
        (UART, Error::NotRam),
        (u64::MAX - 15, Error::NotRam),
        (u64::MAX - 7, Error::Unaligned),
    ] {
        assert_eq!(
            memory.copy_from_host(m, pa(at), &mut to),
            Err(error),
            "{at:#x}"
        );
    }
}

#[test]
fn a09_tables_of_a_dead_vm_are_never_read_again() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE, 8);
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(m, &mut guest, pages(HIGH, 1), to, Content::Zeroed)
        .unwrap();
    world.retire(&mut guest);
    m.unwatch(slot(0).vmid());
    memory.reclaim(m, &mut guest, pages(FREE, 8)).unwrap();
    // The host writes into what was the root: a block over all of a GiB.
    m.poke(pa(FREE), (GUEST_RAM >> 30) as usize, HIGH | 0x7fd);
    assert!(!guest.is_mapped(m, to));
    assert_eq!(world.audit(&[&guest]), (0, 0, None));
    let again = memory.donate(m, &mut guest, pages(FREE, 1), to, Content::Zeroed);
    assert_eq!(again, Err(Error::BadState));
    memory.reclaim(m, &mut guest, pages(HIGH, 1)).unwrap();
    world.check(&[]);
}
