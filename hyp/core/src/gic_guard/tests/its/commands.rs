//! Commands: what they may name, what they pin, in what order and how many of them are done.

use super::*;

#[test]
fn commands_reach_the_hardware_without_what_is_reserved() {
    let mut its = its();
    let noise = |words: [u64; 4], mask: [u64; 4]| [0, 1, 2, 3].map(|i| words[i] | mask[i]);
    let itt = its.spare;
    let device = 0x123u64;
    let event = |opcode| [device << 32 | opcode, 15, 0, 0];
    let all = [
        (
            mapd(device, itt, 3),
            [0xffff_ff00, !0x1f, 0x7ff0_0000_0000_00ff, !0],
        ),
        (mapc(7, CPU2), [!0xff, !0, 0x7ff0 << 48, !0]),
        (mapti(device, 2, 8192, 7), [0xffff_ff00, 0, !0xffff, !0]),
        (
            [device << 32 | 1, 2, 8, 0],
            [0xffff_ff00, !0 << 32, !0xffff, !0],
        ),
        (event(3), [0xffff_ff00, !0 << 32, !0, !0]),
        (event(4), [0xffff_ff00, !0 << 32, !0, !0]),
        (event(12), [0xffff_ff00, !0 << 32, !0, !0]),
        (event(15), [0xffff_ff00, !0 << 32, !0, !0]),
        ([13, 0, 7, 0], [!0xff, !0, !0xffff, !0]),
        (sync(CPU2), [!0xff, !0, 0xfff << 52 | 0xffff, !0]),
    ];
    for (words, mask) in all {
        assert!(its.command(noise(words, mask)), "{words:x?}");
        assert_eq!(its.done(), [words]);
    }
    assert!(its.command([9, 0, 7, 0]), "unmap of a collection");
    assert_eq!(its.done(), [[9, 0, 7, 0]]);
    its.host.machine().assert_sound();
}

#[test]
fn mapi_is_a_mapti_whose_event_is_the_intid() {
    let mut its = its();
    assert!(its.command(mapd(1, its.spare, 13)));
    its.done();
    assert!(its.command([1 << 32 | 11, 0xffff_0000_0000_2005, 3, 0]));
    assert_eq!(its.done(), [mapti(1, 0x2005, 0x2005, 3)]);
    assert!(!its.command([1 << 32 | 11, 0x1fff, 3, 0]));
}

#[test]
fn a62_commands_that_name_what_is_not_there_stall_the_queue() {
    let mut its = its();
    let itt = its.spare;
    assert!(its.command(mapd(1, itt, 3)));
    its.done();
    let mut refused = vec![
        mapd(2, itt, 16),
        mapd(1 << 16, itt, 3),
        mapd(u64::from(u32::MAX), itt, 3),
        mapti(1, 16, 8192, 0),
        mapti(1, 0, 8191, 0),
        mapti(1, 0, 1 << 16, 0),
        mapti(1, 0, u64::from(u32::MAX), 0),
        mapti(1, 0, 8192, 0x2000),
        mapti(2, 0, 8192, 0),
        mapc(0x2000, CPU2),
        mapc(1, 4 << 16),
        mapc(1, GICR),
        sync(4 << 16),
        sync(0xf_ffff << 32),
        [13, 0, 0xffff, 0],
        // CPU 0 and 2 do not use LPIs.
        [14, 0, 0, CPU2],
        [1 << 32 | 1, 0, 0x2000, 0],
        [u64::MAX; 4],
        [0; 4],
    ];
    for opcode in [1, 3, 4, 12, 15] {
        refused.push([1 << 32 | opcode, 16, 0, 0]);
        refused.push([2 << 32 | opcode, 0, 0, 0]);
    }
    // GICv4's, and all numbers that are none.
    let known = [1, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
    let unknown = (0..0x100).filter(|opcode| !known.contains(opcode));
    refused.extend(unknown.map(|opcode| [1 << 32 | opcode, 0, 0, 0]));
    for words in refused {
        assert!(!its.command(words), "{words:x?}");
        assert_eq!(its.done(), [sync(CPU2)], "nothing but the one in its place");
    }
    its.host.machine().assert_sound();
}

#[test]
fn lpis_move_between_redistributors_that_use_them() {
    let mut its = its();
    for (cpu, pending) in [(0, its.spare + 0x1_0000), (2, its.spare + 0x2_0000)] {
        let at = GICR + cpu * 0x2_0000;
        write(&its.host, at + 0x70, its.spare | 15);
        write(&its.host, at + 0x78, pending);
        write32(&its.host, at, 1);
    }
    assert!(its.command([14, 0, 0, CPU2]));
    assert_eq!(its.done(), [[14, 0, 0, CPU2]]);
    // Reserved fields are dropped.
    let reserved = 0xfff << 52 | 0xffff;
    assert!(its.command([!0xff | 14, !0, reserved, reserved | CPU2]));
    assert_eq!(its.done(), [[14, 0, 0, CPU2]]);
    assert!(!its.command([14, 0, 0, 1 << 16]));
    assert!(!its.command([14, 0, 1 << 16, CPU2]));
}

#[test]
fn redistributors_are_named_by_address_where_the_its_says_so() {
    let mut its = Its::new(GicPlan {
        by_address: true,
        ..GicPlan::default()
    });
    assert!(its.command([5, 0, GICR + 0x4_0000, 0]));
    for target in [CPU2, GICR + 0x8_0000, GICR + 0x1_0000] {
        its.put([5, 0, target, 0]);
        write(&its.host, CWRITER, its.tail);
        assert_eq!(read(&its.host, CREADR), (its.tail - 32) | 1);
        its.tail -= 32;
    }
}

#[test]
fn collections_that_the_hardware_holds_need_no_table() {
    let mut its = Its::new(GicPlan {
        collections: 4,
        ..GicPlan::default()
    });
    assert!(its.command(mapc(0x1fff, CPU2)));
    write32(&its.host, CTLR, 0);
    write(&its.host, COLLECTIONS, 0);
    write32(&its.host, CTLR, 1);
    assert!(its.command(mapc(3, CPU2)));
    assert!(!its.command(mapc(4, CPU2)));
}

#[test]
fn numbers_of_devices_and_collections_are_those_of_the_hardware() {
    let with = |typer, collections| {
        Its::new(GicPlan {
            typer,
            collections,
            ..GicPlan::default()
        })
    };
    // Devbits, then CIDbits: 8 instead of 16.
    let mut its = with(8 << 13, 0);
    assert!(its.command(mapd(255, its.spare, 3)));
    assert!(!its.command(mapd(256, its.spare, 3)));
    let mut its = with(8 << 32, 0);
    assert!(its.command(mapc(255, CPU2)));
    assert!(!its.command(mapc(256, CPU2)));
    // Without CIL there are 16.
    let mut its = with(8 << 32 | 1 << 36, 0);
    assert!(its.command(mapc(256, CPU2)));
    // Those of the hardware add to the table's with CCT only.
    assert!(!with(0, 4).command(mapc(0x2000, CPU2)));
    let mut its = with(1 << 2, 4);
    assert!(its.command(mapc(0x2003, CPU2)));
    assert!(!its.command(mapc(0x2004, CPU2)));
}

#[test]
fn a62_a_device_is_unmapped_everywhere_before_it_is_mapped_anew() {
    let mut its = its();
    let (old, new) = (its.spare, its.spare + 0x1000);
    assert!(its.command(mapd(1, old, 3)));
    its.done();
    assert!(its.command(mapd(1, new, 3)));
    let syncs = [0, 1, 2, 3].map(|cpu| sync(cpu << 16));
    let order = [&[unmapd(1)][..], &syncs, &[mapd(1, new, 3)]].concat();
    assert_eq!(its.done(), order);
    assert_eq!(state(&its.host, old), PageState::Host);
    its.host.machine().assert_sound();
}

#[test]
fn a62_an_itt_stays_known_while_a_redistributor_has_not_seen_its_end() {
    let mut its = its();
    let (old, new) = (its.spare, its.spare + 0x1000);
    assert!(its.command(mapd(1, old, 3)));
    its.host.machine().stall_if(|words| *words == sync(3 << 16));
    for words in [mapd(1, new, 3), unmapd(1), mapd(1, new, 3)] {
        assert!(!its.command(words));
        assert_eq!(state(&its.host, old), PageState::Pinned(1));
        assert_eq!(state(&its.host, new), PageState::Host);
    }
    its.host.machine().stall_on(None);
    assert!(its.command(mapd(1, new, 3)));
    assert_eq!(state(&its.host, old), PageState::Host);
    assert_eq!(kept(&its.host), [1 + 1, 144]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_an_itt_is_pinned_as_long_as_its_device_is_mapped() {
    let mut its = its();
    let vm = its.host.vm(VmPlan::default());
    let itt = its.spare;
    // 2^10 events of 12 bytes: three pages; two devices share the middle one.
    assert!(its.command(mapd(1, itt, 9)));
    assert!(its.command(mapd(2, itt + 0x1800, 3)));
    assert_eq!(kept(&its.host), [3 + 1, 144]);
    assert_eq!(state(&its.host, itt + 0x1000), PageState::Pinned(2));
    let donate = [vm, itt + 0x2000, Host::GUEST_RAM, 1, 0];
    let refused = its.host.call(HostFunction::VmDonate, &donate).err();
    assert_eq!(refused, Some(Error::PagePinned));
    its.done();
    assert!(its.command(unmapd(1)));
    // Every redistributor has seen it before the page goes.
    let done = its.done();
    assert_eq!(done[0], unmapd(1));
    assert_eq!(done[1..], [0, 1, 2, 3].map(|cpu| sync(cpu << 16)));
    assert_eq!(kept(&its.host), [1 + 1, 144]);
    its.host.call(HostFunction::VmDonate, &donate).unwrap();
    // A device moves to another table, and to the same once more.
    assert!(its.command(mapd(2, itt + 0x4000, 3)));
    assert!(its.command(mapd(2, itt + 0x4000, 3)));
    assert_eq!(state(&its.host, itt + 0x1000), PageState::Host);
    assert_eq!(state(&its.host, itt + 0x4000), PageState::Pinned(1));
    assert!(!its.command(mapd(2, itt + 0x2000, 3)), "donated meanwhile");
    assert!(its.command(unmapd(2)));
    its.done();
    assert!(its.command(unmapd(2)), "twice");
    assert!(its.done().is_empty());
    assert_eq!(kept(&its.host), [1, 144]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_itts_on_protected_pages_are_refused() {
    let mut its = its();
    let mut pages = protected(&mut its.host);
    pages.extend([
        (its.devices, "the device table"),
        (its.collections, "the collection table"),
        (0xf_ffff_ffff_f000, "the last page"),
    ]);
    for (page, what) in pages {
        assert!(!its.command(mapd(1, page, 3)), "{what}");
        // Its last bytes only.
        let before = page.wrapping_sub(0x100) & 0xf_ffff_ffff_ff00;
        assert!(!its.command(mapd(1, before, 5)), "{what}");
        assert!(its.host.machine().its_devices().is_empty());
    }
    its.host.machine().assert_sound();
}

#[test]
fn a62_an_itt_has_at_most_2_mib() {
    // 16 bytes an entry, 18 EventID bits: a command may ask for 4 MiB, which memory would still pin.
    let mut its = Its::new(GicPlan {
        typer: (11 ^ 15) << 4 | (15 ^ 17) << 8,
        ..GicPlan::default()
    });
    let itt = its.host.pages(1025);
    for (start, bits) in [(itt, 17), (itt + 0x100, 16)] {
        assert!(!its.command(mapd(1, start, bits)), "{bits}");
    }
    assert!(its.command(mapd(1, itt, 16)));
    assert_eq!(kept(&its.host), [1 + 512, 144]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_devices_are_bounded_in_number_and_their_tables_in_size() {
    let mut its = its();
    for device in 0..255 {
        assert!(its.command(mapd(device, its.spare, 0)));
    }
    assert!(!its.command(mapd(255, its.spare, 0)));
    assert!(its.command(mapd(254, its.spare + 0x1000, 0)), "a known one");
    assert!(its.command(unmapd(7)));
    assert!(its.command(mapd(255, its.spare, 0)));
    assert_eq!(state(&its.host, its.spare), PageState::Pinned(254));
    // Without the device table there are no devices.
    write32(&its.host, CTLR, 0);
    its.done();
    write(&its.host, DEVICES, 0);
    assert_eq!(kept(&its.host), [1, 16]);
    assert!(its.host.machine().its_devices().is_empty());
    assert_eq!(read32(&its.host, CTLR), 1 << 31);
    write32(&its.host, CTLR, 1);
    assert!(!its.command(mapd(1, its.spare, 0)));
    its.host.machine().assert_sound();
}

#[test]
fn a62_a_command_that_the_hardware_refuses_changes_nothing() {
    let mut its = its();
    assert!(its.command(mapd(1, its.spare, 3)));
    its.host.machine().stall_on(Some(8));
    for words in [
        mapd(2, its.spare, 3),
        mapd(1, its.spare + 0x1000, 3),
        unmapd(1),
    ] {
        assert!(!its.command(words));
    }
    its.host.machine().stall_on(None);
    assert_eq!(state(&its.host, its.spare), PageState::Pinned(1));
    assert!(its.command(unmapd(1)));
    assert_eq!(kept(&its.host), [1, 144]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_a_device_table_stays_while_its_devices_cannot_be_unmapped() {
    let mut its = its();
    assert!(its.command(mapd(1, its.spare, 3)));
    write32(&its.host, CTLR, 0);
    its.host.machine().stall_on(Some(8));
    write(&its.host, DEVICES, 0);
    assert_eq!(kept(&its.host), [2, 144]);
    // It is off, as the host left it, and the next try succeeds.
    assert_eq!(read32(&its.host, CTLR), 1 << 31);
    its.host.machine().stall_on(None);
    write(&its.host, DEVICES, 0);
    assert_eq!(kept(&its.host), [1, 16]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_an_its_that_answers_no_more_keeps_what_it_may_use() {
    let mut its = its();
    assert!(its.command(mapd(1, its.spare, 3)));
    its.host.machine().kill_its();
    for words in [unmapd(1), mapd(2, its.spare + 0x1000, 3), unmapd(1)] {
        its.put(words);
        write(&its.host, CWRITER, its.tail | 1);
        assert_eq!(read(&its.host, CREADR) & 1, 1);
    }
    write32(&its.host, CTLR, 0);
    write(&its.host, DEVICES, 0);
    write(&its.host, CBASER, 0);
    write32(&its.host, CTLR, 1);
    assert_eq!(read32(&its.host, CTLR) & 1, 0);
    assert_eq!(kept(&its.host), [2, 144]);
    its.host.machine().assert_sound();
}

#[test]
fn a62_an_itt_that_was_on_its_way_to_a_dead_its_stays_pinned() {
    let its = |stall: bool| {
        let mut its = its();
        if stall {
            let both = |words: &[u64; 4]| [5, 8].contains(&(words[0] & 0xff));
            its.host.machine().stall_if(both);
        } else {
            its.host.machine().kill_its();
        }
        its.put(mapd(1, its.spare, 3));
        write(&its.host, CWRITER, its.tail);
        its.host.machine().stall_on(None);
        its
    };
    // It takes no command, or stalls on a SYNC.
    for mut its in [its(false), its(true)] {
        assert_eq!(read(&its.host, CREADR), 1);
        assert_eq!(state(&its.host, its.spare), PageState::Pinned(1));
        // Nothing is tried again, nothing more is pinned.
        let written = its.host.machine().gic_register(CWRITER);
        its.tail = 0;
        its.put(mapd(1, its.spare + 0x1000, 3));
        write(&its.host, CWRITER, its.tail | 1);
        assert_eq!(read(&its.host, CREADR), 1);
        assert_eq!(its.host.machine().gic_register(CWRITER), written);
        assert_eq!(kept(&its.host), [1 + 1, 144]);
        write32(&its.host, CTLR, 0);
        write32(&its.host, CTLR, 1);
        assert_eq!(read32(&its.host, CTLR) & 1, 0);
        its.host.machine().assert_sound();
    }
}

#[test]
fn an_its_that_is_switched_on_again_repeats_no_command() {
    let mut its = its();
    assert!(its.command(mapd(1, its.spare, 3)));
    write32(&its.host, CTLR, 0);
    write32(&its.host, CTLR, 1);
    its.done();
    assert!(its.command(sync(CPU2)));
    assert_eq!(its.done(), [sync(CPU2)]);
    its.host.machine().assert_sound();
}

#[test]
fn a_stalled_queue_reads_its_command_again_for_a_retry_only() {
    let mut its = its();
    its.put([0xff, 0, 0, 0]);
    write(&its.host, CWRITER, its.tail);
    assert_eq!(read(&its.host, CREADR), 1);
    its.tail = 0;
    its.put(sync(CPU2));
    write(&its.host, CWRITER, its.tail);
    assert_eq!(read(&its.host, CREADR), 1);
    assert!(its.done().is_empty());
    write(&its.host, CWRITER, its.tail | 1);
    assert_eq!(read(&its.host, CREADR), its.tail);
}

#[test]
fn the_queue_wraps_and_long_runs_are_done_in_batches() {
    let its = its();
    write32(&its.host, CTLR, 0);
    write(&its.host, CBASER, VALID | its.spare | 1);
    write32(&its.host, CTLR, 1);
    for at in (0..0x2000u64).step_by(32) {
        let page = PhysAddr::new(its.spare + (at & !0xfff));
        let index = (at & 0xfff) as usize / 8;
        its.host.machine().poke(page, index, 5);
        its.host.machine().poke(page, index + 2, CPU2);
    }
    write(&its.host, CWRITER, 0x1fe0);
    assert_eq!(its.done().len(), 128);
    assert_eq!(read(&its.host, CREADR), 0x1fe0);
    assert_eq!(its.done().len(), 127);
    write(&its.host, CWRITER, 0x40);
    assert_eq!(read(&its.host, CREADR), 0x40);
    assert_eq!(its.done().len(), 3);
    // An offset beyond the queue is waited for in vain.
    write(&its.host, CWRITER, u64::MAX);
    assert_eq!(read(&its.host, CWRITER), 0xf_ffe0);
    assert_eq!(read(&its.host, CREADR), 0x40);
    write(&its.host, CWRITER, 0x2000);
    assert_eq!(read(&its.host, CREADR), 0x40);
    assert!(its.done().is_empty());
}

#[test]
fn commands_wait_for_the_its_and_a_stalled_queue_for_a_retry() {
    let mut its = its();
    write32(&its.host, CTLR, 0);
    its.put([0xff, 0, 0, 0]);
    its.put(sync(CPU2));
    write(&its.host, CWRITER, 0x40);
    assert_eq!(read(&its.host, CREADR), 0);
    write32(&its.host, CTLR, 1);
    assert_eq!(read(&its.host, CREADR), 1);
    write(&its.host, CWRITER, 0x40);
    write32(&its.host, CTLR, 0);
    write32(&its.host, CTLR, 1);
    assert_eq!(read(&its.host, CREADR), 1);
    let page = PhysAddr::new(its.queue);
    its.host.machine().poke(page, 0, 5);
    its.host.machine().poke(page, 2, CPU2);
    assert!(its.done().is_empty());
    write32(&its.host, CWRITER, 0x41);
    assert_eq!(read(&its.host, CREADR), 0x40);
    assert_eq!(its.done().len(), 2);
    // A new queue starts at its beginning, without the stall.
    its.host.machine().poke(page, 8, 0xff);
    write(&its.host, CWRITER, 0x60);
    assert_eq!(read(&its.host, CREADR), 0x41);
    write32(&its.host, CTLR, 0);
    write(&its.host, CBASER, VALID | its.queue);
    assert_eq!(read(&its.host, CREADR), 0);
}
