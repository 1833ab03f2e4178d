//! ITS: tables and the host's command queue; its commands are in `commands`.

mod commands;

use super::*;
use crate::hw::Memory;
use crate::hypervisor::BootError;

const CTLR: u64 = GITS;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
const DEVICES: u64 = GITS + 0x100;
const COLLECTIONS: u64 = GITS + 0x108;
const PAGE_64K: u64 = 2 << 8;
const INDIRECT: u64 = 1 << 62;
/// Processor number of CPU 2 as RDbase.
const CPU2: u64 = 2 << 16;

/// An ITS with tables, a queue of one page, and its addresses.
pub(super) struct Its {
    pub host: Host,
    devices: u64,
    collections: u64,
    pub queue: u64,
    pub spare: u64,
    tail: u64,
}

impl Its {
    /// Device table for all 65,536 devices, collection table of a page; switched on.
    pub fn new(plan: GicPlan) -> Self {
        let mut host = Host::with_gic(plan);
        let devices = aligned(&mut host, 128);
        let collections = aligned(&mut host, 16);
        let (queue, spare) = (aligned(&mut host, 16), aligned(&mut host, 64));
        write(&host, DEVICES, VALID | devices | PAGE_64K | 7);
        write(&host, COLLECTIONS, VALID | collections | PAGE_64K);
        write(&host, CBASER, VALID | queue);
        write32(&host, CTLR, 1);
        host.machine().its_commands();
        Self {
            host,
            devices,
            collections,
            queue,
            spare,
            tail: 0,
        }
    }

    fn put(&mut self, words: [u64; 4]) {
        let first = self.tail as usize / 8;
        for (index, word) in (first..).zip(words) {
            let page = PhysAddr::new(self.queue);
            self.host.machine().poke(page, index, word);
        }
        self.tail = (self.tail + 32) % 4096;
    }

    /// Has one command done; whether it was. A refused one is left behind.
    pub fn command(&mut self, words: [u64; 4]) -> bool {
        let before = (steady(&self.host), self.tail);
        self.put(words);
        write(&self.host, CWRITER, self.tail);
        let reader = read(&self.host, CREADR);
        if reader == self.tail {
            return true;
        }
        assert_eq!(reader, before.1 | 1, "stalled at the command");
        assert_eq!(
            steady(&self.host),
            before.0,
            "a refused command changes nothing"
        );
        // It is overwritten by one that does nothing, and the queue goes on.
        self.tail = before.1;
        self.put(sync(CPU2));
        write(&self.host, CWRITER, self.tail | 1);
        assert_eq!(read(&self.host, CREADR), self.tail);
        false
    }

    pub fn done(&self) -> Vec<[u64; 4]> {
        self.host.machine().its_commands()
    }
}

pub(super) fn mapd(device: u64, itt: u64, bits: u64) -> [u64; 4] {
    [device << 32 | 8, bits, VALID | itt, 0]
}

pub(super) fn unmapd(device: u64) -> [u64; 4] {
    [device << 32 | 8, 0, 0, 0]
}

fn mapc(collection: u64, target: u64) -> [u64; 4] {
    [9, 0, VALID | target | collection, 0]
}

fn mapti(device: u64, event: u64, intid: u64, collection: u64) -> [u64; 4] {
    [device << 32 | 10, intid << 32 | event, collection, 0]
}

fn sync(target: u64) -> [u64; 4] {
    [5, 0, target, 0]
}

fn its() -> Its {
    Its::new(GicPlan::default())
}

#[test]
fn an_its_starts_switched_off_and_without_tables() {
    let host = host();
    assert_eq!(read32(&host, CTLR), 1 << 31);
    for n in 0..8 {
        let table = host.machine().gic_register(DEVICES + 8 * n);
        assert_eq!(table & VALID, 0);
    }
    assert_eq!(read(&host, DEVICES) >> 48 & 0x7ff, 0x107);
    assert_eq!(read(&host, COLLECTIONS) >> 48 & 0x7ff, 0x407);
    // Registers that are not shown, or not written.
    for at in [0x10, 0x18, 0x20, 0x40, 0x48, 0x98, 0x110, 0x138, 0x1000] {
        write32(&host, GITS + at, u64::MAX);
        assert_eq!(read32(&host, GITS + at), 0);
    }
    for at in [4, 8, 0xc, 0xffe8] {
        let before = read32(&host, GITS + at);
        write32(&host, GITS + at, !before);
        assert_eq!(read32(&host, GITS + at), before);
    }
    host.machine().assert_sound();
}

#[test]
fn a62_an_its_that_cannot_be_switched_off_ends_the_boot() {
    let refused = Host::try_with_gic(GicPlan {
        slow: u32::MAX,
        ..GicPlan::default()
    });
    assert_eq!(refused.err(), Some(BootError::Gic(Error::Busy)));
}

#[test]
fn a62_tables_leave_the_host_and_come_back_zeroed() {
    let mut host = host();
    let (table, other) = (aligned(&mut host, 32), aligned(&mut host, 32));
    host.machine().poke(PhysAddr::new(table), 1, 0xbad);
    let value = VALID | 7 << 59 | 1 << 53 | table | 1 << 10 | PAGE_64K | 1;
    write(&host, DEVICES, value | INDIRECT);
    // What is written is what is read, but for what is fixed, and two-level tables do not exist.
    assert_eq!(read(&host, DEVICES), value & !(7 << 56) | 0x107 << 48);
    assert_eq!(kept(&host), [0, 32]);
    assert!(host.machine().is_zero(PhysAddr::new(table)));
    let reaches = |at| {
        host.hyp
            .memory
            .host_reaches(host.machine(), PhysAddr::new(at))
    };
    assert!(!reaches(table) && !reaches(table + 0x1_f000) && reaches(table + 0x2_0000));
    // Written once more, it keeps its content.
    host.machine().poke(PhysAddr::new(table), 1, 0x77);
    write(&host, DEVICES, value);
    assert_eq!(host.machine().read_word(PhysAddr::new(table), 1), 0x77);
    // Another one takes its place.
    write(&host, DEVICES, VALID | other | PAGE_64K);
    assert_eq!(kept(&host), [0, 16]);
    assert!(reaches(table) && host.machine().is_zero(PhysAddr::new(table)));
    write(&host, DEVICES, 0);
    assert_eq!(kept(&host), [0, 0]);
    assert_eq!(host.audit(), (0, 0, None));
    host.machine().assert_sound();
}

#[test]
fn a62_tables_on_protected_pages_are_refused() {
    let mut host = host();
    let good = aligned(&mut host, 32);
    for (page, what) in protected(&mut host) {
        for register in [DEVICES, COLLECTIONS] {
            let before = steady(&host);
            for value in [
                page | PAGE_64K,
                page,
                page | PAGE_64K | 0xff,
                page.wrapping_sub(0xf000) & 0xffff_ffff_f000 | 15,
            ] {
                write(&host, register, VALID | value);
                assert_eq!(read(&host, register) & VALID, 0, "{value:#x} on {what}");
            }
            assert_eq!(steady(&host), before);
        }
    }
    // A table that is pinned by another, or taken by it.
    write(&host, CBASER, VALID | good);
    write(&host, DEVICES, VALID | good);
    assert_eq!(read(&host, DEVICES) & VALID, 0);
    write(&host, CBASER, 0);
    write(&host, DEVICES, VALID | good);
    write(&host, COLLECTIONS, VALID | good);
    assert_eq!(read(&host, COLLECTIONS) & VALID, 0);
    write(&host, CBASER, VALID | good);
    assert_eq!(read(&host, CBASER) & VALID, 0);
    assert_eq!(kept(&host), [0, 1]);
    host.machine().assert_sound();
}

#[test]
fn the_hardwares_page_size_decides_what_is_taken() {
    for (size, pages) in [(0, 2), (1, 8), (2, 32)] {
        let mut host = Host::with_gic(GicPlan {
            page_size: Some(size),
            ..GicPlan::default()
        });
        let table = aligned(&mut host, 32);
        for asked in [0, 1, 2, 3] {
            write(&host, DEVICES, VALID | table | asked << 8 | 1);
            assert_eq!(read(&host, DEVICES) >> 8 & 3, size);
            assert_eq!(kept(&host), [0, pages]);
            host.machine().assert_sound();
        }
    }
}

#[test]
fn a62_a_table_starts_at_a_multiple_of_its_page_size() {
    let mut host = host();
    let table = aligned(&mut host, 32);
    // Bits 13:12 are no part of the address of a 16 KiB page; hardware that adds them all the same finds zeros.
    write(&host, DEVICES, VALID | table | 0x3000 | 1 << 8);
    assert_eq!(read(&host, DEVICES) & 0xffff_ffff_ffff, table | 1 << 8);
    assert_eq!(kept(&host), [0, 4]);
    host.machine().assert_sound();
}

#[test]
fn there_are_no_tables_of_two_levels() {
    let mut host = host();
    let table = aligned(&mut host, 16);
    write(&host, DEVICES, VALID | INDIRECT | table | PAGE_64K);
    let register = host.machine().gic_register(DEVICES);
    assert_eq!(register & (VALID | INDIRECT), VALID);
}

#[test]
fn a62_a_table_that_the_hardware_does_not_take_as_it_is_goes_back() {
    for unstuck in [0xff, 1 << 20] {
        let mut host = Host::with_gic(GicPlan {
            unstuck,
            ..GicPlan::default()
        });
        let table = aligned(&mut host, 1024).next_multiple_of(0x10_0000) | 1 << 20;
        write(&host, DEVICES, VALID | table | PAGE_64K | 1);
        assert_eq!(host.machine().gic_register(DEVICES) & VALID, 0);
        assert_eq!(kept(&host), [0, 0]);
        host.machine().assert_sound();
    }
}

#[test]
fn an_address_above_48_bits_of_a_table_is_no_ram() {
    let mut host = host();
    let table = aligned(&mut host, 16);
    write(&host, DEVICES, VALID | table | PAGE_64K | 1 << 12);
    assert_eq!(read(&host, DEVICES) & VALID, 0);
    assert_eq!(kept(&host), [0, 0]);
}

#[test]
fn without_memory_for_host_tables_a_table_is_refused_and_comes_back_later() {
    let mut host = host();
    let table = aligned(&mut host, 512).next_multiple_of(0x20_0000);
    host.machine().limit_pool(Some(0));
    write(&host, DEVICES, VALID | table | PAGE_64K);
    assert_eq!(read(&host, DEVICES) & VALID, 0);
    assert_eq!(kept(&host), [0, 0]);
    host.machine().limit_pool(None);
    // A whole block: its way back takes a table where the host's was given up.
    write(&host, DEVICES, VALID | table | PAGE_64K | 0x1f);
    assert_eq!(kept(&host), [0, 512]);
    host.machine().assert_sound();
    write(&host, DEVICES, 0);
    assert_eq!(kept(&host), [0, 0]);
}

#[test]
fn a_table_whose_pages_cannot_go_back_yet_is_no_table_and_makes_way_for_none() {
    let mut its = Its::new(GicPlan::default());
    // Its metadata keep the block of the spare pages split: they could become a table without further memory.
    its.host.vm(VmPlan::default());
    write32(&its.host, CTLR, 0);
    let block = aligned(&mut its.host, 1024).next_multiple_of(0x20_0000);
    // Halves of a block, whose table in the host's stage 2 goes with the second.
    write(&its.host, COLLECTIONS, VALID | block | PAGE_64K | 15);
    let second = block + 0x10_0000;
    write(&its.host, DEVICES, VALID | second | PAGE_64K | 15);
    assert_eq!(kept(&its.host), [1, 512]);
    its.host.machine().limit_pool(Some(0));
    let spare = its.spare;
    write(&its.host, DEVICES, VALID | spare | PAGE_64K);
    assert_eq!(read(&its.host, DEVICES) & VALID, 0);
    assert_eq!(kept(&its.host), [1, 512]);
    write32(&its.host, CTLR, 1);
    assert!(!its.command(mapd(1, spare, 3)));
    write32(&its.host, CTLR, 0);
    its.host.machine().limit_pool(None);
    write(&its.host, DEVICES, VALID | spare | PAGE_64K);
    assert_eq!(kept(&its.host), [1, 256 + 16]);
    write(&its.host, COLLECTIONS, 0);
    assert_eq!(kept(&its.host), [1, 16]);
    its.host.machine().assert_sound();
}

#[test]
fn base_registers_take_their_halves_in_any_order() {
    let mut host = host();
    let at = aligned(&mut host, 32);
    for (register, value) in [
        (CBASER, VALID | 7 << 59 | at | 1 << 10 | 3),
        (DEVICES, VALID | at | 1 << 16 | PAGE_64K),
    ] {
        for halves in [[0, 4], [4, 0]] {
            // Of the halves, one names no memory of the host's.
            for half in halves {
                write32(&host, register + half, value >> (8 * half) & 0xffff_ffff);
            }
            let read = read(&host, register);
            assert_eq!(read & (VALID | 0xffff_ffff), value & (VALID | 0xffff_ffff));
            write32(&host, register + 4, 0);
            write32(&host, register, 0);
            assert_eq!(kept(&host), [0, 0]);
        }
    }
    host.machine().assert_sound();
}

#[test]
fn an_its_that_is_not_quiescent_is_not_switched_on() {
    let host = Host::with_gic(GicPlan {
        slow: 6,
        ..GicPlan::default()
    });
    write32(&host, CTLR, 1);
    write32(&host, CTLR, 0);
    write32(&host, CTLR, 1);
    assert_eq!(read32(&host, CTLR) & 1, 0);
    while read32(&host, CTLR) >> 31 == 0 {}
    write32(&host, CTLR, 1);
    assert_eq!(read32(&host, CTLR), 1);
    host.machine().assert_sound();
}

#[test]
fn tables_and_queue_of_an_its_that_is_on_or_busy_are_not_changed() {
    let mut its = its();
    let before = steady(&its.host);
    for (register, value) in [
        (DEVICES, 0),
        (DEVICES, VALID | its.spare | PAGE_64K),
        (COLLECTIONS, 0),
        (CBASER, 0),
        (CBASER, VALID | its.spare),
    ] {
        write(&its.host, register, value);
    }
    assert_eq!(steady(&its.host), before);
    assert!(its.command(mapd(1, its.spare, 4)));

    let mut busy = Its::new(GicPlan {
        slow: 6,
        ..GicPlan::default()
    });
    assert!(busy.command(mapd(1, busy.spare, 4)));
    write32(&busy.host, CTLR, 0);
    write(&busy.host, DEVICES, 0);
    assert_eq!(kept(&busy.host), [2, 144]);
    while read32(&busy.host, CTLR) >> 31 == 0 {}
    write(&busy.host, DEVICES, 0);
    write(&busy.host, CBASER, 0);
    assert_eq!(kept(&busy.host), [0, 16]);
    busy.host.machine().assert_sound();
}

#[test]
fn a62_the_queue_is_pinned_as_long_as_it_is_one() {
    let mut host = host();
    let vm = host.vm(VmPlan::default());
    let queue = aligned(&mut host, 16);
    write(&host, CBASER, VALID | 7 << 59 | queue | 1 << 10 | 15);
    assert_eq!(read(&host, CBASER), VALID | 7 << 59 | queue | 1 << 10 | 15);
    assert_eq!(kept(&host), [16, 0]);
    // Reserved fields stay zero.
    write(
        &host,
        CBASER,
        !(0x7f << 52 | 0xf_ffff_ffff_f0ff) | queue | 15,
    );
    let fields = VALID | 7 << 59 | 3 << 10 | 15;
    assert_eq!(read(&host, CBASER) & !(7 << 53), fields | queue);
    let donate = [vm, queue + 0xf000, Host::GUEST_RAM, 1, 0];
    let refused = host.call(HostFunction::VmDonate, &donate).err();
    assert_eq!(refused, Some(Error::PagePinned));
    // The ITS itself has EL2's.
    write32(&host, CTLR, 1);
    let own = host.machine().gic_register(CBASER) & 0xf_ffff_ffff_f000;
    assert_eq!(state(&host, own), PageState::Hyp);
    write32(&host, CTLR, 0);
    for (page, what) in protected(&mut host) {
        write(&host, CBASER, VALID | page);
        assert_eq!(read(&host, CBASER) & VALID, 0, "{what}");
        assert_eq!(kept(&host), [0, 0]);
        // Nothing is read from there.
        write32(&host, CTLR, 1);
        write(&host, CWRITER, 0x40);
        assert_eq!(read(&host, CREADR), 0);
        write32(&host, CTLR, 0);
    }
    host.machine().assert_sound();
}
