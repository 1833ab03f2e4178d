//! The guard on the fake machine, whose interrupt controller remembers which pages it was told of: each must be kept
//! for it at every moment. Accesses come the way of the host's, through its stage-2 faults.

mod its;
mod lpis;
mod random;

use porthole_abi::{Error, HostFunction, PageOwner};

use crate::addr::PhysAddr;
use crate::hypervisor::HostFaultAction;
use crate::testing::{FakeMachine, GicPlan, Host, VmPlan};
use crate::tracker::PageState;

const GICR: u64 = FakeMachine::GICR;
const GITS: u64 = FakeMachine::GITS;
const VALID: u64 = 1 << 63;

fn host() -> Host {
    Host::with_gic(GicPlan::default())
}

fn read(host: &Host, at: u64) -> u64 {
    host.access(at, 8, None).unwrap()
}

fn write(host: &Host, at: u64, value: u64) {
    assert_eq!(host.access(at, 8, Some(value)), Ok(0));
}

fn read32(host: &Host, at: u64) -> u64 {
    host.access(at, 4, None).unwrap()
}

fn write32(host: &Host, at: u64, value: u64) {
    assert_eq!(host.access(at, 4, Some(value)), Ok(0));
}

fn state(host: &Host, page: u64) -> PageState {
    host.hyp.memory.page_state(PhysAddr::new(page)).unwrap()
}

/// All that a refused access leaves as it was. The epoch is not: pages may have been pinned and let go.
fn steady(host: &Host) -> Vec<u64> {
    let mut state = host.state();
    state[PageOwner::ALL.len()] = 0;
    state
}

/// Pages that are pinned, and pages that are tables.
fn kept(host: &Host) -> [u64; 2] {
    [PageOwner::Pinned, PageOwner::HwTable].map(|owner| host.hyp.memory.pages_by_owner(owner))
}

/// 64 KiB aligned pages nobody used yet.
fn aligned(host: &mut Host, pages: u64) -> u64 {
    let at = host.pages(pages + 16);
    at.next_multiple_of(0x1_0000)
}

/// Pages of every kind that are not to become tables: guest memory, metadata, window, hypervisor, MMIO, nothing.
fn protected(host: &mut Host) -> Vec<(u64, &'static str)> {
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    let (page, window) = (aligned(host, 16), aligned(host, 16));
    let donate = [vm, page, Host::GUEST_RAM, 16, 0];
    host.call(HostFunction::VmDonate, &donate).unwrap();
    let config = host.window(vm, window, 16);
    let block = host.block(zerocopy::IntoBytes::as_bytes(&config));
    host.call(HostFunction::WindowRegister, &[block]).unwrap();
    let meta = host
        .hyp
        .memory
        .page_state(PhysAddr::new(page))
        .and_then(PageState::vm);
    assert!(meta.is_some());
    vec![
        (page, "guest memory"),
        (window, "a window"),
        (Host::RAM, "the hypervisor"),
        (Host::RAM + Host::RAM_BYTES, "no RAM"),
        (GITS, "registers"),
        (0xffff_ffff_0000, "nothing"),
    ]
}

#[test]
fn the_host_reaches_no_frame_with_lpi_or_its_tables() {
    let host = host();
    for frame in (0..4).map(|cpu| GICR + cpu * 0x2_0000).chain([GITS]) {
        for page in (frame..frame + 0x1_0000).step_by(4096) {
            assert!(
                !host
                    .hyp
                    .memory
                    .host_reaches(host.machine(), PhysAddr::new(page))
            );
        }
        // SGI_base and GITS_TRANSLATER stay.
        let next = PhysAddr::new(frame + 0x1_0000);
        assert!(host.hyp.memory.host_reaches(host.machine(), next));
    }
}

#[test]
fn accesses_that_no_register_takes_abort_and_change_nothing() {
    let mut host = host();
    let before = steady(&host);
    let table = aligned(&mut host, 16);
    write(&host, GICR + 0x70, table | 15);
    host.machine().gic_writes();
    for (at, width) in [
        (GICR + 0x70, 1),
        (GICR + 0x70, 2),
        (GICR + 0x71, 4),
        (GICR + 0x72, 4),
        (GICR + 0x74, 8),
        (GICR, 8),
        (GICR + 0x14, 8),
        (GICR + 0x14, 2),
        (GITS, 8),
        (GITS, 1),
        (GITS + 0x101, 8),
        (GITS + 0x104, 8),
        (GITS + 0x140, 8),
        (GITS + 0xfff8, 8),
    ] {
        for value in [None, Some(u64::MAX)] {
            let refused = host.access(at, width, value);
            assert_eq!(
                refused,
                Err(HostFaultAction::ExternalAbort),
                "{at:#x} {width}"
            );
        }
    }
    assert_eq!(read(&host, GICR + 0x70), table | 15);
    assert!(host.machine().gic_writes().is_empty());
    assert_eq!(steady(&host), before);
}

#[test]
fn accesses_of_users_walks_fetches_and_without_syndrome_abort() {
    let host = host();
    let valid = 0x24 << 26 | 1 << 24 | 2 << 22 | 7;
    let at = GICR >> 12 << 4;
    for (esr, el0) in [
        (valid, true),
        (valid & !(1 << 24), false),
        (valid | 1 << 7, false),
        (0x20 << 26 | 7, false),
        // A fetch, whatever the fields of an access say.
        (valid & !(0x3f << 26) | 0x20 << 26, false),
        (0x24 << 26 | 1 << 8 | 7, false),
    ] {
        let mut x = [1; 31];
        let action = host.hyp.host_fault(esr, GICR, at, el0, &mut x);
        assert_eq!((action, x), (HostFaultAction::ExternalAbort, [1; 31]));
    }
    let mut x = [1; 31];
    let action = host.hyp.host_fault(valid, GICR, at, false, &mut x);
    assert_eq!((action, x[0]), (HostFaultAction::Skip, 0));
}

#[test]
fn reads_reach_the_register_as_wide_as_they_are() {
    let host = host();
    let valid = 0x24 << 26 | 1 << 24 | 7;
    // LDRSW x5 of the upper half of GICR_TYPER of CPU 3: its affinity; XZR takes nothing.
    let (at, hpfar) = (GICR + 0x6_000c, (GICR + 0x6_0000) >> 12 << 4);
    let mut x = [u64::MAX; 31];
    let esr = valid | 2 << 22 | 1 << 21 | 5 << 16 | 1 << 15;
    host.hyp.host_fault(esr, at, hpfar, false, &mut x);
    assert_eq!((x[5], x[4]), (3, u64::MAX));
    let before = x;
    let esr = valid | 2 << 22 | 31 << 16;
    let action = host.hyp.host_fault(esr, at, hpfar, false, &mut x);
    assert_eq!((action, x), (HostFaultAction::Skip, before));
}

#[test]
fn cache_maintenance_of_a_taken_table_is_stepped_over() {
    let mut host = host();
    let table = aligned(&mut host, 16);
    write(&host, GITS + 0x100, VALID | table | 2 << 8);
    assert_eq!(state(&host, table), PageState::HwTable);
    let clean = 0x24 << 26 | 1 << 8 | 1 << 6 | 7;
    let kernel = 0xffff_0000_0000_0000 | table;
    let fault = |esr, page: u64, el0| {
        host.hyp
            .host_fault(esr, kernel, page >> 12 << 4, el0, &mut [0; 31])
    };
    assert_eq!(fault(clean, table, false), HostFaultAction::Skip);
    // No user's, no other access, no other page.
    assert_eq!(fault(clean, table, true), HostFaultAction::ExternalAbort);
    let load = clean & !(1 << 8) | 1 << 24;
    assert_eq!(fault(load, table, false), HostFaultAction::TranslationFault);
    assert_eq!(
        fault(clean, Host::RAM, false),
        HostFaultAction::TranslationFault
    );
}

#[test]
fn gicv4_is_hidden_but_for_the_size_of_a_redistributor() {
    let mut host = Host::with_gic(GicPlan {
        is_v4: true,
        ..GicPlan::default()
    });
    let typer = read(&host, GICR + 8);
    assert_eq!(typer & (1 << 1 | 1 << 7 | 1 << 26), 1 << 1);
    assert_eq!(read(&host, GITS + 8) & (1 << 1 | 1 << 37 | 1 << 39), 0);
    // VLPI_base and the frame behind it read as zero; vPE tables do not exist.
    let table = aligned(&mut host, 16);
    for at in [GICR + 0x2_0070, GICR + 0x2_0078, GICR + 0x3_0000] {
        write(&host, at, VALID | table);
        assert_eq!(read(&host, at), 0);
    }
    write(&host, GITS + 0x110, VALID | table);
    assert_eq!(read(&host, GITS + 0x110), 0);
    assert_eq!(host.machine().gic_register(GITS + 0x110) & VALID, 0);
    assert_eq!(kept(&host), [0, 0]);
    host.machine().assert_sound();
}

#[test]
fn more_frames_than_there_is_room_for_are_refused_at_boot() {
    use crate::gic_guard::{Frames, GicConfig, ITS_MAX, REDISTRIBUTORS_MAX};
    let machine = FakeMachine::default();
    let bases: Vec<_> = (0..40).map(|i| PhysAddr::new(i << 20)).collect();
    let find = |redistributors: usize, its: usize| {
        let config = GicConfig {
            redistributors: &bases[..redistributors],
            its: &bases[..its],
            id_bits: 15,
        };
        Frames::find(&machine, &config).err()
    };
    assert_eq!(find(REDISTRIBUTORS_MAX, ITS_MAX), None);
    assert_eq!(find(REDISTRIBUTORS_MAX + 1, 0), Some(Error::TooLarge));
    assert_eq!(find(0, ITS_MAX + 1), Some(Error::TooLarge));
    for odd in [0x1000, 1 << 49] {
        let config = GicConfig {
            its: &[PhysAddr::new(odd)],
            ..GicConfig::default()
        };
        assert!(Frames::find(&machine, &config).is_err());
    }
}
