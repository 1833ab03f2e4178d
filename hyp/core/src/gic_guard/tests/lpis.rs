//! LPI tables: GICR_PROPBASER, GICR_PENDBASER, GICR_CTLR.EnableLPIs.

use super::*;
use crate::hypervisor::BootError;

const CTLR: u64 = GICR;
const PROPBASER: u64 = GICR + 0x70;
const PENDBASER: u64 = GICR + 0x78;
const NEXT: u64 = 0x2_0000;
/// Pages of the property table and of a pending table with 16-bit INTIDs: 56 KiB and 8 KiB.
const PINS: u64 = 14 + 2;

/// Names these tables and switches LPIs on; whether they are.
fn enable(host: &Host, cpu: u64, property: u64, pending: u64) -> bool {
    let offset = cpu * NEXT;
    write(host, PROPBASER + offset, property);
    write(host, PENDBASER + offset, pending);
    write32(host, CTLR + offset, 1);
    read32(host, CTLR + offset) & 1 != 0
}

#[test]
fn a62_lpi_tables_are_pinned_as_long_as_they_are_used() {
    let mut host = host();
    let vm = host.vm(VmPlan::default());
    let (property, pending) = (aligned(&mut host, 16), aligned(&mut host, 16));
    assert!(enable(&host, 0, property | 15, pending));
    assert_eq!(kept(&host), [PINS, 0]);
    for page in [property, property + 0xd000, pending, pending + 0x1000] {
        let donate = [vm, page, Host::GUEST_RAM, 1, 0];
        let refused = host.call(HostFunction::VmDonate, &donate).err();
        assert_eq!(refused, Some(Error::PagePinned));
    }
    // Behind their ends nothing is pinned.
    assert_eq!(state(&host, property + 0xe000), PageState::Host);
    assert_eq!(state(&host, pending + 0x2000), PageState::Host);
    // Writes while on are ignored.
    write(&host, PROPBASER, Host::RAM | 15);
    write(&host, PENDBASER, Host::RAM);
    assert_eq!(read(&host, PROPBASER), property | 15);
    assert_eq!(read(&host, PENDBASER), pending);
    write32(&host, CTLR, 1);
    assert_eq!(kept(&host), [PINS, 0]);
    write32(&host, CTLR, 0);
    assert_eq!(kept(&host), [0, 0]);
    let donate = [vm, pending, Host::GUEST_RAM, 1, 0];
    host.call(HostFunction::VmDonate, &donate).unwrap();
    assert!(!enable(&host, 0, property | 15, pending));
    assert_eq!(kept(&host), [0, 0]);
    host.machine().assert_sound();
}

#[test]
fn a62_lpi_tables_on_protected_pages_are_refused() {
    let mut host = host();
    let good = aligned(&mut host, 16);
    for (page, what) in protected(&mut host) {
        let before = steady(&host);
        assert!(
            !enable(&host, 0, page | 15, good),
            "property table on {what}"
        );
        assert!(
            !enable(&host, 0, good | 15, page),
            "pending table on {what}"
        );
        // Its last page only.
        assert!(
            !enable(&host, 0, page.wrapping_sub(0xd000) | 15, good),
            "{what}"
        );
        assert_eq!(steady(&host), before);
    }
    assert!(enable(&host, 0, good | 15, good));
    assert_eq!(state(&host, good), PageState::Pinned(2));
    host.machine().assert_sound();
}

#[test]
fn all_redistributors_share_one_property_table() {
    let mut host = host();
    let (property, other) = (aligned(&mut host, 16), aligned(&mut host, 16));
    let pending = aligned(&mut host, 64);
    for cpu in 0..4 {
        assert!(enable(&host, cpu, property | 15, pending + cpu * 0x1_0000));
    }
    assert_eq!(state(&host, property), PageState::Pinned(4));
    write32(&host, CTLR + 3 * NEXT, 0);
    // Another table, or fewer INTIDs in the same one: the register may be one for all, so it stays as it is.
    for value in [other | 15, property | 14, Host::RAM | 15, 0] {
        write(&host, PROPBASER + 3 * NEXT, value);
        assert_eq!(read(&host, PROPBASER + 3 * NEXT), property | 15);
    }
    // IDbits above the distributor's count as the distributor's.
    assert!(enable(&host, 3, property | 31, pending));
    for cpu in 0..4 {
        write32(&host, CTLR + cpu * NEXT, 0);
    }
    assert_eq!(kept(&host), [0, 0]);
    assert!(enable(&host, 3, other | 13, pending));
    // 8,192 LPIs, 2 KiB of pending bits.
    assert_eq!(kept(&host), [2 + 1, 0]);
    host.machine().assert_sound();
}

#[test]
fn a62_tables_that_were_named_before_another_redistributor_was_on_must_be_the_same() {
    let mut host = host();
    let (table, pending) = (aligned(&mut host, 32), aligned(&mut host, 32));
    let other = table + 0x1_0000;
    write(&host, PROPBASER + NEXT, other | 15);
    write(&host, PENDBASER + NEXT, pending + 0x1_0000);
    assert!(enable(&host, 0, table | 15, pending));
    write32(&host, CTLR + NEXT, 1);
    assert_eq!(read32(&host, CTLR + NEXT) & 1, 0);
    assert_eq!(kept(&host), [PINS, 0]);
    write(&host, PROPBASER + NEXT, table | 15);
    write32(&host, CTLR + NEXT, 1);
    assert_eq!(read32(&host, CTLR + NEXT) & 1, 1);
    host.machine().assert_sound();
}

#[test]
fn attributes_and_more_intids_than_the_distributors_change_no_table() {
    let mut host = host();
    let (property, pending) = (aligned(&mut host, 16), aligned(&mut host, 16));
    let attributes = 7 << 56 | 3 << 10 | 7 << 7;
    let property = attributes | property | 31;
    assert!(enable(&host, 0, property, 1 << 62 | attributes | pending));
    assert_eq!(read(&host, PROPBASER), property);
    assert_eq!(kept(&host), [PINS, 0]);
    host.machine().assert_sound();
}

#[test]
fn without_room_for_an_lpi_they_stay_off() {
    let mut host = host();
    let table = aligned(&mut host, 16);
    for bits in 0..13 {
        assert!(!enable(&host, 0, table | bits, table));
    }
    assert!(!enable(&host, 0, u64::MAX, u64::MAX));
    assert_eq!(kept(&host), [0, 0]);
    host.machine().assert_sound();
}

#[test]
fn halves_of_the_base_registers_are_written_one_by_one() {
    let mut host = host();
    let table = aligned(&mut host, 16);
    write32(&host, PENDBASER, table);
    write32(&host, PENDBASER + 4, 1 << 30 | 5);
    assert_eq!(host.machine().gic_register(PENDBASER), 5 << 32 | table);
    assert_eq!(read32(&host, PENDBASER + 4), 5);
    write32(&host, PENDBASER + 4, 0);
    assert_eq!(read(&host, PENDBASER), table);
    // A half that alone names another property table than the one in use is not lost.
    assert!(enable(&host, 0, 7 << 56 | table | 15, table));
    for half in [4, 0] {
        let value = (7 << 56 | table | 15) >> (8 * half);
        write32(&host, PROPBASER + NEXT + half, value & 0xffff_ffff);
    }
    assert_eq!(read(&host, PROPBASER + NEXT), 7 << 56 | table | 15);
    host.machine().assert_sound();
}

#[test]
fn a62_tables_stay_pinned_until_the_hardware_says_that_it_is_done() {
    let mut host = Host::with_gic(GicPlan {
        slow: 3,
        ..GicPlan::default()
    });
    let table = aligned(&mut host, 32);
    assert!(enable(&host, 0, table | 15, table + 0x1_0000));
    while read32(&host, CTLR) & 1 << 3 != 0 {}
    write32(&host, CTLR, 0);
    let mut reads = 0;
    while kept(&host) != [0, 0] {
        read32(&host, CTLR);
        reads += 1;
    }
    assert!(reads > 1);
    // Nobody has to ask before the registers take another table.
    assert!(enable(&host, 0, table | 15, table + 0x1_0000));
    write32(&host, CTLR, 0);
    while host.machine().gic_register(CTLR) & 1 << 3 != 0 {}
    write(&host, PENDBASER, table);
    assert_eq!(read(&host, PENDBASER), table);
    assert_eq!(kept(&host), [0, 0]);
    host.machine().assert_sound();

    let mut host = Host::with_gic(GicPlan {
        lpis_stay: true,
        ..GicPlan::default()
    });
    let table = aligned(&mut host, 32);
    assert!(enable(&host, 0, table | 15, table + 0x1_0000));
    write32(&host, CTLR, 0);
    assert_eq!(read32(&host, CTLR) & 1, 1);
    assert_eq!(kept(&host), [PINS, 0]);
    write(&host, PENDBASER, Host::RAM);
    host.machine().assert_sound();
}

#[test]
fn lpis_that_firmware_left_on_are_switched_off_or_their_tables_pinned() {
    let at = Host::RAM + Host::HYP_BYTES;
    let host = Host::with_gic(GicPlan {
        lpis_at_boot: Some((at | 15, at + 0x1_0000)),
        ..GicPlan::default()
    });
    assert_eq!(read32(&host, CTLR) & 1, 0);
    assert_eq!(kept(&host), [0, 0]);
    let host = Host::with_gic(GicPlan {
        lpis_at_boot: Some((at | 15, at + 0x1_0000)),
        lpis_stay: true,
        ..GicPlan::default()
    });
    assert_eq!(read32(&host, CTLR) & 1, 1);
    assert_eq!(state(&host, at), PageState::Pinned(4));
    host.machine().assert_sound();
}

#[test]
fn a62_tables_in_the_hypervisors_memory_that_stay_on_end_the_boot() {
    let refused = Host::try_with_gic(GicPlan {
        lpis_at_boot: Some((Host::RAM | 15, Host::RAM + 0x1_0000)),
        lpis_stay: true,
        ..GicPlan::default()
    });
    assert_eq!(refused.err(), Some(BootError::Gic(Error::NotHostOwned)));
}

#[test]
fn commands_by_register_name_lpis_only_and_only_while_they_are_on() {
    let mut host = host();
    let table = aligned(&mut host, 32);
    let all = [0x40, 0x48, 0xa0].map(|offset| GICR + offset);
    for at in all {
        write(&host, at, 8192);
    }
    write(&host, GICR + 0xb0, 0);
    assert!(host.machine().gic_writes().is_empty());
    assert!(enable(&host, 0, table | 14, table + 0x1_0000));
    for at in all {
        for value in [0, 8191, 1 << 15, u64::MAX, 0xffff_ffff] {
            write(&host, at, value);
        }
        assert!(host.machine().gic_writes().is_empty());
        // vPEID and V of GICv4.1 are dropped.
        write(&host, at, 1 << 63 | 3 << 32 | 8192);
        write32(&host, at, (1 << 15) - 1);
        let passed = [(at, 8192), (at, (1 << 15) - 1)];
        assert_eq!(host.machine().gic_writes(), passed);
    }
    write(&host, GICR + 0xb0, u64::MAX);
    assert_eq!(host.machine().gic_writes(), [(GICR + 0xb0, 0)]);
    host.machine().assert_sound();
}

#[test]
fn other_registers_are_passed_on_or_read_as_zero() {
    let host = host();
    write32(&host, CTLR, 7 << 24 | 0xf0);
    assert_eq!(read32(&host, CTLR), 7 << 24);
    write32(&host, GICR + 0x14, 2);
    assert_eq!(read32(&host, GICR + 0x14), 6);
    assert_eq!(read32(&host, GICR + 4), 0x43b);
    assert_eq!(read32(&host, GICR + 0xffe8), 0x3b);
    write32(&host, GICR + 4, 1);
    write32(&host, GICR + 0xffe8, 1);
    for at in [0x10, 0x18, 0x1c, 0x20, 0x100, 0x110, 0x7000] {
        write32(&host, GICR + at, u64::MAX);
        assert_eq!(read32(&host, GICR + at), 0);
    }
    assert!(host.machine().gic_writes().is_empty());
    host.machine().assert_sound();
}
