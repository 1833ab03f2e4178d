//! Devices: what they reach through the mirror and through maps of their own, and what the SMMU still remembers.

use porthole_abi::{DMA_CONFINED_MAX, DMA_PAGES_MAX, Error, FunctionId, PageOwner};

use super::super::{Content, HostMemory, MemoryConfig};
use super::support::*;
use crate::addr::{Ipa, PhysAddr};
use crate::hw::Memory;
use crate::testing::FakeMachine;
use crate::tracker::PageState;

/// Pages that a device reaches in the first range of RAM and around it.
fn reached(world: &World<'_>, device: FunctionId) -> Vec<u64> {
    let around = (RAM - BLOCK)..(RAM + RAM_PAGES * 4096 + BLOCK);
    let places = [DOORBELL - 4096, DOORBELL, DOORBELL + 4096, HIGH, UART];
    let all = places.into_iter().chain(around.step_by(4096));
    let walk = |at: &u64| world.machine.dma_walk(device, Ipa::new(*at));
    all.filter(|at| walk(at).inspect(|a| assert_eq!(a.pa, *at)).is_some())
        .collect()
}

#[test]
fn a60_a_page_that_leaves_the_host_leaves_its_devices() {
    for in_place in [false, true] {
        let mut t = tracker();
        let world = World::with(&mut t, Some(in_place));
        let (m, memory) = (&world.machine, &world.memory);
        let touch = |at| m.dma_access(DEVICE, Ipa::new(at)).is_some();
        let (page, meta, table) = (FREE + 4096, FREE + BLOCK, HIGH + 4096);
        for at in [page, meta, table] {
            assert!(touch(at));
        }
        assert!(!touch(RAM) && !touch(UART));
        let mut guest = world.guest(0, meta, 8);
        let to = Ipa::new(GUEST_RAM);
        memory
            .donate(m, &mut guest, pages(page, 1), to, Content::Zeroed)
            .unwrap();
        memory.take_table(m, pages(table, 1)).unwrap();
        for at in [page, meta, table] {
            assert!(!touch(at), "{at:#x}");
            assert!(touch(at - 4096));
        }
        world.check(&[&guest]);
        world.retire(&mut guest);
        memory.reclaim(m, &mut guest, pages(page, 1)).unwrap();
        memory.reclaim(m, &mut guest, pages(meta, 8)).unwrap();
        memory.give_table(m, pages(table, 1)).unwrap();
        for at in [page, meta, table] {
            assert!(touch(at));
        }
        world.check(&[&guest]);
    }
}

#[test]
fn a_confined_device_reaches_its_region_and_the_doorbell_only() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let before = m.snapshot();
    let all = reached(&world, DEVICE);
    // A page; pages on both sides of a block's edge; a block; everything that is free.
    for (first, count) in [
        (FREE, 1),
        (FREE + BLOCK - 8192, 5),
        (FREE, 512),
        (FREE, 2048),
    ] {
        m.warm();
        let region = pages(first, count);
        memory.confine(m, DEVICE, region).unwrap();
        let expected: Vec<_> = [DOORBELL]
            .into_iter()
            .chain(region.iter().map(PhysAddr::raw))
            .collect();
        assert_eq!(reached(&world, DEVICE), expected);
        assert!(m.dma_access(DEVICE, Ipa::new(FREE - 4096)).is_none());
        assert_eq!(reached(&world, OTHER_DEVICE), all);
        assert_eq!(memory.confinement(0), Some((DEVICE, region)));
        assert_eq!(memory.pages_by_owner(PageOwner::Pinned), count);
        world.check(&[]);
        m.warm();
        memory.release(m, DEVICE).unwrap();
        assert_eq!(reached(&world, DEVICE), all);
        assert_eq!(memory.confinement(0), None);
        world.check(&[]);
    }
    assert!(m.snapshot().without_tlb() == before.without_tlb());
}

#[test]
fn a_region_is_neither_donated_nor_shared_nor_confined_twice() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    memory.confine(m, DEVICE, pages(FREE, 2)).unwrap();
    let before = (m.snapshot(), guest.clone());
    for at in [FREE, FREE + 4096] {
        let to = Ipa::new(GUEST_RAM);
        let donated = memory.donate(m, &mut guest, pages(at, 1), to, Content::Zeroed);
        assert_eq!(donated, Err(Error::PagePinned));
        let donated = memory.donate_metadata(m, &mut guest, pages(at, 1));
        assert_eq!(donated, Err(Error::PagePinned));
        let shared = memory.register_window(m, &mut guest, &window(APERTURE, &[(at, 1)]));
        assert_eq!(shared, Err(Error::PagePinned));
        let confined = memory.confine(m, OTHER_DEVICE, pages(at, 1));
        assert_eq!(confined, Err(Error::PagePinned));
        assert_eq!(memory.pin(&pages(at, 1)), Err(Error::PagePinned));
        assert_eq!(memory.unpin(&pages(at, 1)), Err(Error::NotHostOwned));
        let table = memory.take_table(m, pages(at, 1));
        assert_eq!(table, Err(Error::PagePinned));
    }
    let again = memory.confine(m, DEVICE, pages(FREE + 8192, 1));
    assert_eq!(again, Err(Error::AlreadyConfined));
    assert!((m.snapshot(), guest.clone()) == before);
    world.check(&[&guest]);
    memory.release(m, DEVICE).unwrap();
    assert_eq!(memory.release(m, DEVICE), Err(Error::NotConfined));
    memory.confine(m, OTHER_DEVICE, pages(FREE, 1)).unwrap();
    world.check(&[&guest]);
}

#[test]
fn regions_that_are_not_the_hosts_own_are_refused() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(m, &mut guest, pages(FREE, 1), to, Content::Zeroed)
        .unwrap();
    memory
        .register_window(m, &mut guest, &window(APERTURE, &[(FREE + 8192, 1)]))
        .unwrap();
    memory.pin(&pages(FREE + 16384, 1)).unwrap();
    memory.take_table(m, pages(FREE + 0x1_0000, 16)).unwrap();
    let before = m.snapshot();
    for (device, at, count, error) in [
        (DEVICE, FREE, 1, Error::NotHostOwned),
        (DEVICE, FREE - 4096, 2, Error::NotHostOwned),
        (DEVICE, FREE + BLOCK, 1, Error::NotHostOwned),
        (DEVICE, RAM, 1, Error::NotHostOwned),
        (DEVICE, FREE + 4096, 2, Error::PageIsWindow),
        (DEVICE, FREE + 12288, 2, Error::PagePinned),
        (DEVICE, FREE + 0x1_0000, 1, Error::NotHostOwned),
        (DEVICE, FREE + 0x1_f000, 2, Error::NotHostOwned),
        (DEVICE, UART, 1, Error::NotRam),
        (DEVICE, 1 << 39, 1, Error::NotRam),
        (DEVICE, RAM + RAM_PAGES * 4096 - 4096, 2, Error::NotRam),
        (FunctionId::new(0, 9, 0, 0), HIGH, 1, Error::BadStream),
        (FunctionId(u32::MAX), HIGH, 1, Error::BadStream),
    ] {
        let result = memory.confine(m, device, pages(at, count));
        assert_eq!(result, Err(error), "{device} {at:#x}");
    }
    assert!(m.snapshot() == before);
    world.check(&[&guest]);
}

#[test]
fn without_an_smmu_nothing_is_confined() {
    let mut t = tracker();
    let world = World::with(&mut t, None);
    let before = world.machine.snapshot();
    let result = world.memory.confine(&world.machine, DEVICE, pages(FREE, 1));
    assert_eq!(result, Err(Error::BadStream));
    assert!(world.machine.snapshot() == before);
    world.check(&[]);
}

#[test]
fn a06_confinement_without_tables_or_streams_changes_nothing() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    // Across the edge of a GiB, in pages on both sides: the most that a region takes.
    let region = pages(HIGH + 100 * BLOCK - 4096, DMA_PAGES_MAX);
    m.warm();
    let before = m.snapshot();
    let epoch = memory.epoch();
    let mut took = 0;
    loop {
        m.limit_pool(Some(took));
        let result = memory.confine(m, DEVICE, region);
        m.limit_pool(None);
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(Error::NoMemory), "with {took}");
        assert!(m.snapshot() == before, "with {took}");
        took += 1;
    }
    // Root; one level-2 and two level-3 tables of the region; one of each for the doorbell.
    assert_eq!(took, 6);
    assert_eq!(memory.epoch(), epoch + 1);
    world.check(&[]);
    memory.release(m, DEVICE).unwrap();
    for error in [Error::NoMemory, Error::BadStream] {
        m.refuse_attach(Some(error));
        let before = (m.snapshot(), memory.epoch());
        assert_eq!(memory.confine(m, DEVICE, region), Err(error));
        assert!((m.snapshot(), memory.epoch()) == before);
    }
    m.refuse_attach(None);
    memory.confine(m, DEVICE, region).unwrap();
    world.check(&[]);
}

#[test]
fn a81_every_slot_can_be_used_and_comes_back() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let tables = memory.host_tables();
    let device = |n: usize| FunctionId::new(0, 8, n as u8, 0);
    for n in 0..=DMA_CONFINED_MAX {
        m.add_stream(device(n));
    }
    for n in 0..DMA_CONFINED_MAX {
        let region = pages(FREE + n as u64 * 4096, 1);
        memory.confine(m, device(n), region).unwrap();
    }
    let refused = memory.confine(m, device(DMA_CONFINED_MAX), pages(HIGH, 1));
    assert_eq!(refused, Err(Error::NoSlot));
    assert_eq!(memory.confinement(DMA_CONFINED_MAX), None);
    world.check(&[]);
    m.warm();
    memory.release(m, device(7)).unwrap();
    memory
        .confine(m, device(DMA_CONFINED_MAX), pages(HIGH, 1))
        .unwrap();
    assert_eq!(memory.confinement(7).unwrap().0, device(DMA_CONFINED_MAX));
    world.check(&[]);
    for n in (0..=DMA_CONFINED_MAX).filter(|n| *n != 7) {
        memory.release(m, device(n)).unwrap();
    }
    assert_eq!(memory.host_tables(), tables);
    world.check(&[]);
}

/// Page and index of the entry at the end of a device's walk, down to `level` (1 to 3).
fn entry(world: &World<'_>, root: u64, at: u64, level: u32) -> (PhysAddr, usize) {
    let mut table = root;
    for shift in [30, 21].into_iter().take(level as usize - 1) {
        let index = (at >> shift) as usize % 512;
        table = world.machine.read_word(pa(table), index) & 0xffff_ffff_f000;
    }
    let shift = 39 - 9 * level;
    (pa(table), (at >> shift) as usize % 512)
}

const PAGE_LEAF: u64 = 0x7ff;

#[test]
fn a60_an_audit_finds_every_difference_between_devices_and_host() {
    let mirror = RAM + 2 * 4096;
    // In the mirror alone: what the host lost, what it has, at another address; a block instead of a table.
    for (at, level, value) in [
        (FREE, 2, FREE | 0x7fd),
        (FREE + BLOCK, 2, 0),
        (FREE + BLOCK, 2, FREE | 0x7fd),
        (FREE + BLOCK, 2, (FREE + BLOCK) | 0x73d),
        (HIGH, 1, 0),
        (UART, 2, (UART & !(BLOCK - 1)) | 0x4c5),
        (0x3_0000_0000, 1, HIGH | 0x7fd),
    ] {
        let mut t = tracker();
        let world = World::new(&mut t);
        let guest = world.guest(0, FREE, 8);
        assert_eq!(world.audit(&[&guest]), (0, 0, None));
        let (page, index) = entry(&world, mirror, at, level);
        world.machine.poke(page, index, value);
        let (_, _, offender) = world.audit(&[&guest]);
        let span = 1u64 << (39 - 9 * level);
        assert_eq!(offender, Some(pa(at & !(span - 1))), "{at:#x}");
    }
}

#[test]
fn an_audit_finds_every_flaw_of_a_confined_map() {
    let region = pages(FREE, 4);
    let last = region.end().raw() - 4096;
    // A page behind the region, the guest's, the hypervisor's, a page lost, one at another's place, a large block, an
    // MMIO page beside the doorbell.
    for (at, level, value, offender) in [
        (last + 4096, 3, (last + 4096) | PAGE_LEAF, last + 4096),
        (
            FREE + 100 * 4096,
            3,
            (FREE + BLOCK) | PAGE_LEAF,
            FREE + BLOCK,
        ),
        (FREE + 100 * 4096, 3, RAM | PAGE_LEAF, RAM),
        (FREE, 3, 0, FREE),
        (FREE, 3, (FREE + 4096) | PAGE_LEAF, FREE + 4096),
        (HIGH, 1, HIGH | 0x7fd, HIGH),
        (FREE + BLOCK, 2, (FREE + BLOCK) | 0x7fd, FREE + BLOCK),
        (
            DOORBELL + 4096,
            3,
            (DOORBELL + 4096) | 0x4c7,
            DOORBELL + 4096,
        ),
        (DOORBELL, 3, FREE | PAGE_LEAF, FREE),
    ] {
        let mut t = tracker();
        let world = World::new(&mut t);
        let guest = world.guest(0, FREE + BLOCK, 8);
        world
            .memory
            .confine(&world.machine, DEVICE, region)
            .unwrap();
        assert_eq!(world.audit(&[&guest]), (0, 0, None));
        let root = world.machine.dma_root(DEVICE);
        let (page, index) = entry(&world, root, at, level);
        world.machine.poke(page, index, value);
        let (_, _, found) = world.audit(&[&guest]);
        assert_eq!(found, Some(pa(offender)), "{at:#x}");
    }
    // The tables are right and the tracker is not.
    let mut t = tracker();
    let world = World::new(&mut t);
    world
        .memory
        .confine(&world.machine, DEVICE, region)
        .unwrap();
    let mut inner = world.memory.inner.lock();
    inner.tracker.set_range(&pages(last, 1), PageState::Host);
    drop(inner);
    assert_eq!(world.audit(&[]).2, Some(pa(FREE)));
}

#[test]
fn devices_never_miss_a_page_that_stays_the_hosts() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE, 8);
    // The 1 GiB block is split down to pages and joined again, around its neighbours.
    let at = HIGH + 5 * BLOCK + 9 * 4096;
    let gib = HIGH + (1 << 30);
    m.keep(vec![
        HIGH,
        at - 4096,
        at + 512 * 4096,
        gib - 4096,
        FREE + BLOCK,
    ]);
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(m, &mut guest, pages(at, 512), to, Content::Zeroed)
        .unwrap();
    memory.confine(m, DEVICE, pages(at - 4096, 1)).unwrap();
    memory.release(m, DEVICE).unwrap();
    world.retire(&mut guest);
    for part in [pages(at + 4096, 511), pages(at, 1), pages(FREE, 8)] {
        memory.reclaim(m, &mut guest, part).unwrap();
        world.check(&[&guest]);
    }
    let seen = m.dma_walk(BYSTANDER, Ipa::new(HIGH)).unwrap();
    assert_eq!(seen.span, 1 << 30);
}

#[test]
fn descriptions_of_the_machine_that_contradict_themselves_are_refused() {
    let ram = [pages(RAM, RAM_PAGES)];
    let bells = |at: &[u64]| at.iter().map(|at| pa(*at)).collect::<Vec<_>>();
    let root = RAM + 8192;
    let start = |dma_root, doorbells: &[PhysAddr]| {
        let machine = FakeMachine::new(pages(RAM + 64 * 4096, POOL_PAGES));
        let config = MemoryConfig {
            ram: &ram,
            hyp: pages(RAM, HYP_PAGES),
            hidden: &[],
            host_root: pa(RAM),
            dma_root: Some(pa(dma_root)),
            doorbells,
            pa_range: 4,
        };
        HostMemory::new(&machine, &config, &mut tracker()).err()
    };
    let wrong = Some(Error::InvalidParameter);
    assert_eq!(start(root, &bells(&[DOORBELL, DOORBELL + 4096])), None);
    for bad in [RAM, RAM + 4096, RAM + 3 * 4096, FREE, UART] {
        assert_eq!(start(bad, &[]), wrong, "root {bad:#x}");
    }
    for bad in [
        &[RAM][..],
        &[FREE],
        &[DOORBELL + 8],
        &[DOORBELL, DOORBELL],
        &[DOORBELL + 4096, DOORBELL],
        &[4096, 8192, 12288, 16384, 20480],
    ] {
        assert_eq!(start(root, &bells(bad)), wrong, "doorbells {bad:x?}");
    }
}
