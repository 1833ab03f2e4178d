//! Pins, which are counted, and pages that hardware tables take.

use porthole_abi::{Error, PageOwner};

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::hw::Vmid;
use crate::memory::pins::TABLE_PAGES_MAX;
use crate::tracker::PageState;

#[test]
fn a62_a_page_is_pinned_until_its_last_table_lets_go() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    memory.pin(&pages(FREE, 4)).unwrap();
    memory.pin(&pages(FREE + 0x2000, 4)).unwrap();
    assert_eq!(memory.pages_by_owner(PageOwner::Pinned), 6);
    assert_eq!(world.state(FREE + 0x2000), PageState::Pinned(2));
    let mut donate = |at| {
        let to = Ipa::new(GUEST_RAM + (at & 0xf_ffff));
        memory.donate(m, &mut guest, pages(at, 1), to, Content::Zeroed)
    };
    for at in [FREE, FREE + 0x2000, FREE + 0x5000] {
        assert_eq!(donate(at), Err(Error::PagePinned));
    }
    // Nothing happens to the first pages when a later one has no pin.
    assert_eq!(memory.unpin(&pages(FREE, 7)), Err(Error::NotHostOwned));
    assert_eq!(memory.pages_by_owner(PageOwner::Pinned), 6);
    memory.unpin(&pages(FREE, 4)).unwrap();
    donate(FREE).unwrap();
    assert_eq!(donate(FREE + 0x2000), Err(Error::PagePinned));
    memory.unpin(&pages(FREE + 0x2000, 4)).unwrap();
    donate(FREE + 0x2000).unwrap();
    let again = memory.unpin(&pages(FREE + 0x3000, 1));
    assert_eq!(again, Err(Error::NotHostOwned));
    assert_eq!(memory.pin(&pages(FREE, 2)), Err(Error::NotHostOwned));
    world.check(&[&guest]);
}

#[test]
fn pins_end_before_their_count_does() {
    let mut t = tracker();
    let world = World::new(&mut t);
    for _ in 0..u16::MAX {
        world.memory.pin(&pages(FREE, 1)).unwrap();
    }
    let more = world.memory.pin(&pages(FREE - 4096, 2));
    assert_eq!(more, Err(Error::PagePinned));
    assert_eq!(world.state(FREE - 4096), PageState::Host);
    for _ in 0..u16::MAX {
        world.memory.unpin(&pages(FREE, 1)).unwrap();
    }
    assert_eq!(world.state(FREE), PageState::Host);
}

#[test]
fn a62_a_taken_table_is_nobodys_and_comes_back_zeroed() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 8);
    let table = pages(FREE + 0x1_0000, 16);
    m.poke(table.start(), 3, 0xbad);
    m.warm();
    memory.take_table(m, table).unwrap();
    assert!(m.is_zero(table.start()));
    assert_eq!(m.access(Vmid::HOST, Ipa::new(table.start().raw())), None);
    assert_eq!(memory.pages_by_owner(PageOwner::HwTable), 16);
    world.check(&[&guest]);
    // Not the host's, not to be pinned, not taken twice, not a parameter block.
    let to = Ipa::new(GUEST_RAM);
    let one = pages(FREE + 0x1_f000, 1);
    for refused in [
        memory.donate(m, &mut guest, one, to, Content::Zeroed),
        memory.pin(&one),
        memory.unpin(&one),
        memory.take_table(m, pages(FREE + 0x1_f000, 2)),
        memory.copy_from_host(m, one.start(), &mut [0; 8]),
        memory.give_table(m, pages(FREE + 0x1_f000, 2)),
    ] {
        assert_eq!(refused, Err(Error::NotHostOwned));
    }
    m.poke(table.start(), 5, 0x1234);
    memory.give_table(m, table).unwrap();
    assert!(m.is_zero(table.start()));
    assert_eq!(memory.give_table(m, table), Err(Error::NotHostOwned));
    assert_eq!((memory.pages_donated(), memory.pages_reclaimed()), (8, 0));
    world.check(&[&guest]);
}

#[test]
fn tables_of_any_size_that_the_hardware_takes_and_no_larger() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let most = pages(HIGH + 0x1_0000, TABLE_PAGES_MAX);
    m.warm();
    memory.take_table(m, most).unwrap();
    world.check(&[]);
    memory.give_table(m, most).unwrap();
    memory.pin(&most).unwrap();
    memory.unpin(&most).unwrap();
    world.check(&[]);
    let more = pages(HIGH, TABLE_PAGES_MAX + 1);
    assert_eq!(memory.take_table(m, more), Err(Error::TooLarge));
    assert_eq!(memory.give_table(m, more), Err(Error::TooLarge));
    assert_eq!(memory.pin(&more), Err(Error::TooLarge));
    assert_eq!(memory.unpin(&more), Err(Error::TooLarge));
}

#[test]
fn a_pinned_page_still_takes_parameter_blocks() {
    let mut t = tracker();
    let world = World::new(&mut t);
    world.machine.poke(pa(FREE), 0, 0x1122);
    world.memory.pin(&pages(FREE, 1)).unwrap();
    let mut to = [0; 8];
    world
        .memory
        .copy_from_host(&world.machine, pa(FREE), &mut to)
        .unwrap();
    assert_eq!(u64::from_le_bytes(to), 0x1122);
}
