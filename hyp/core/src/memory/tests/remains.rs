//! What former owners leave behind: content that the host put into metadata, translations of a VM that is dead,
//! pages that another VM still has. None of it may reach the next owner.

use porthole_abi::Error;

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::hw::Vmid;

/// A page full of level 1 blocks that map the hypervisor's first GiB, read-write and executable.
fn write_tables_into(world: &World<'_>, page: u64) {
    for index in 0..512 {
        world.machine.poke(pa(page), index, RAM | 0x7fd);
    }
}

#[test]
fn a09_metadata_arrives_clean_whatever_the_host_left_in_it() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    (0..8).for_each(|i| write_tables_into(&world, FREE + i * 4096));
    let mut guest = world.guest(0, FREE, 3);
    world.check(&[&guest]);
    memory
        .donate_metadata(m, &mut guest, pages(FREE + 3 * 4096, 5))
        .unwrap();
    // Its tables take the pages that came later, too.
    for block in 0..4 {
        let from = pages(FREE + BLOCK + block * 4096, 1);
        let to = Ipa::new(GUEST_RAM + block * BLOCK);
        memory
            .donate(m, &mut guest, from, to, Content::Zeroed)
            .unwrap();
    }
    world.check(&[&guest]);
    assert_eq!(guest.metadata_free(), 2);
}

#[test]
fn a07_a_dead_vm_leaves_no_translation() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut guest = world.guest(0, FREE + BLOCK, 16);
    let vmid = guest.slot().vmid();
    let to = Ipa::new(GUEST_RAM);
    memory
        .donate(m, &mut guest, pages(FREE, 4), to, Content::Zeroed)
        .unwrap();
    let config = window(APERTURE, &[(HIGH, 4)]);
    memory.register_window(m, &mut guest, &config).unwrap();
    m.warm();
    assert!(m.access(vmid, to).is_some());
    world.retire(&mut guest);
    for at in [GUEST_RAM, GUEST_RAM + 3 * 4096, APERTURE] {
        assert!(m.access(vmid, Ipa::new(at)).is_none());
    }
    world.check(&[&guest]);
    // The next VM of the slot, and of its VMID, starts with nothing.
    memory.reclaim(m, &mut guest, pages(FREE, 4)).unwrap();
    memory
        .reclaim(m, &mut guest, pages(FREE + BLOCK, 16))
        .unwrap();
    let next = world.guest(0, FREE, 16);
    assert!(m.access(vmid, to).is_none());
    assert!(m.access(Vmid::HOST, Ipa::new(FREE + BLOCK)).is_some());
    world.check(&[&next]);
}

#[test]
fn a05_a_dead_vm_gives_back_no_page_of_another() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let (m, memory) = (&world.machine, &world.memory);
    let mut dead = world.guest(0, FREE + BLOCK, 8);
    let mut alive = world.guest(1, FREE + BLOCK + 8 * 4096, 8);
    for (guest, from) in [(&mut dead, FREE), (&mut alive, FREE + 2 * 4096)] {
        let to = Ipa::new(GUEST_RAM);
        memory
            .donate(m, guest, pages(from, 2), to, Content::Zeroed)
            .unwrap();
    }
    m.poke(pa(FREE + 2 * 4096), 0, 0x5ec2e7);
    world.retire(&mut dead);
    // Its own pages and another's, another's alone, another's metadata.
    for (at, count) in [(0, 3), (2, 1), (3, 1), (512 + 7, 2), (512 + 8, 1)] {
        let range = pages(FREE + at * 4096, count);
        assert_eq!(
            memory.reclaim(m, &mut dead, range),
            Err(Error::NotVmOwned),
            "page {at}"
        );
    }
    assert!(!m.is_zero(pa(FREE + 2 * 4096)));
    world.check(&[&dead, &alive]);
}
