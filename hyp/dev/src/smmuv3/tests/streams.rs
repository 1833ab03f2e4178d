//! Stream tables of both shapes, and streams that change hands.

use std::cell::Cell;

use porthole_core::addr::PhysAddr;

use crate::smmuv3::{Format, Smmu, StreamError};

use super::fake::{Fake, IDR0, IDR1, Outcome};
use super::{BEHIND_HOST, BEHIND_OWN, OWN, PCI, started};

const PAGE: PhysAddr = PhysAddr::new(0x5000_0000);

fn attach(smmu: &Smmu<Fake>, stream: u32, page: Option<PhysAddr>) -> Result<(), StreamError> {
    smmu.set_stream(stream, Some(&OWN), || page, |_| panic!("given back"))
        .unwrap()
}

/// Puts a stream back; the page that came free.
fn detach(smmu: &Smmu<Fake>, stream: u32) -> Option<PhysAddr> {
    let freed = Cell::new(None);
    smmu.set_stream(
        stream,
        None,
        || panic!("no page"),
        |page| freed.set(Some(page)),
    )
    .unwrap()
    .unwrap();
    freed.into_inner()
}

#[test]
fn every_function_of_a_pci_root_is_behind_the_hosts_map() {
    let fake = Fake::qemu();
    let _smmu = started(&fake, PCI);
    for stream in 0..0x1_0000 {
        assert_eq!(fake.access(stream), BEHIND_HOST);
    }
    for stream in [0x1_0000, 0x1_0001, 0x2_0000, u32::MAX] {
        assert_eq!(fake.access(stream), Outcome::NoStream);
    }
}

#[test]
fn streams_outside_the_list_reach_nothing_whatever_the_size_of_the_table() {
    for two_level in [true, false] {
        for bits in 1..=16u32 {
            let fake = Fake::with(IDR1, 32 | 8 << 16 | 8 << 21);
            if !two_level {
                let idr0 = fake.register(IDR0) & !(3 << 27);
                fake.inner().registers.insert(IDR0, idr0);
            }
            // Runs that begin and end inside groups of 64, and one alone.
            let last = (1 << bits) - 1;
            let runs = [
                (last, 1),
                (last / 5, (last / 3).max(1)),
                (last / 2 + last / 4, 1),
            ];
            let runs: Vec<(u32, u32)> = runs
                .into_iter()
                .filter(|(first, count)| first + count <= last + 1)
                .collect();
            let smmu = started(&fake, &runs);
            let expected = if two_level && bits > 6 {
                Format::TwoLevel
            } else {
                Format::Linear
            };
            assert_eq!(smmu.abilities().format, expected);
            for stream in (0..=last).chain([last + 1, 1 << 20]) {
                let listed = runs.iter().any(|(s, n)| (*s..s + n).contains(&stream));
                let outcome = fake.access(stream);
                if listed {
                    assert_eq!(outcome, BEHIND_HOST, "{bits} bits, {stream}");
                } else {
                    let refused = [Outcome::NoStream, Outcome::NotConfigured];
                    assert!(
                        refused.contains(&outcome),
                        "{bits} bits, {stream}: {outcome:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_stream_changes_hands_through_an_abort_and_nothing_else() {
    for two_level in [true, false] {
        let fake = Fake::qemu();
        if !two_level {
            let idr0 = fake.register(IDR0) & !(3 << 27);
            fake.inner().registers.insert(IDR0, idr0);
        }
        let smmu = started(&fake, PCI);
        for stream in 0x40..0x100 {
            assert_eq!(fake.access(stream), BEHIND_HOST, "cached");
        }
        fake.inner().watched = Some(0x81);
        fake.inner().seen.push(BEHIND_HOST);
        attach(&smmu, 0x81, Some(PAGE)).unwrap();
        assert_eq!(fake.access(0x81), BEHIND_OWN);
        assert_eq!(fake.inner().seen, [BEHIND_HOST, Outcome::Abort, BEHIND_OWN]);
        fake.inner().seen.clear();
        assert_eq!(detach(&smmu, 0x81), two_level.then_some(PAGE));
        assert_eq!(fake.access(0x81), BEHIND_HOST);
        assert_eq!(fake.inner().seen, [Outcome::Abort, BEHIND_HOST]);
        for stream in (0x40..0x100).filter(|s| *s != 0x81) {
            assert_eq!(fake.access(stream), BEHIND_HOST);
        }
    }
}

#[test]
fn streams_of_a_group_share_its_page_until_the_last_is_back() {
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    attach(&smmu, 0x100, Some(PAGE)).unwrap();
    // The group has its own table now: no further page.
    attach(&smmu, 0x101, None).unwrap();
    fake.inner().watched = Some(0x102);
    assert_eq!(detach(&smmu, 0x100), None);
    assert_eq!(fake.access(0x101), BEHIND_OWN);
    assert_eq!(fake.access(0x100), BEHIND_HOST);
    assert_eq!(detach(&smmu, 0x101), Some(PAGE));
    // A neighbour noticed nothing of all this.
    assert_eq!(fake.inner().seen, [BEHIND_HOST]);
    // Nothing leads to the page any more, in caches neither.
    let poison: Vec<u64> = (0..512).collect();
    for word in poison {
        use crate::smmuv3::Bus;
        fake.store(PhysAddr::new(PAGE.raw() + word * 8), !0xf | 9);
    }
    for stream in 0x100..0x140 {
        assert_eq!(fake.access(stream), BEHIND_HOST);
    }
}

#[test]
fn a_page_of_boot_is_never_given_back() {
    for streams in [
        &[(0, 0x20), (0x20, 0x20), (0x100, 3)][..],
        &[(0x100, 3), (0x20, 0x20), (0, 0x20)],
        &[(0x10, 0x103), (0, 0x10)],
    ] {
        let fake = Fake::qemu();
        let smmu = started(&fake, streams);
        attach(&smmu, 5, Some(PAGE)).unwrap();
        assert_eq!(detach(&smmu, 5), Some(PAGE), "{streams:x?}");
        assert_eq!(fake.access(5), BEHIND_HOST);
    }
    let fake = Fake::qemu();
    let smmu = started(&fake, &[(0x100, 3)]);
    attach(&smmu, 0x100, None).unwrap();
    assert_eq!(detach(&smmu, 0x100), None);
}

#[test]
fn a_refused_change_changes_nothing() {
    let fake = Fake::qemu();
    let smmu = started(&fake, &[(0, 0x40), (0x100, 3)]);
    let commands = fake.inner().commands.len();
    assert_eq!(attach(&smmu, 5, None), Err(StreamError::NoPage));
    for stream in [0x103, 0x40, 0x1ff, 0x200, u32::MAX] {
        assert_eq!(
            attach(&smmu, stream, Some(PAGE)),
            Err(StreamError::NoStream),
            "{stream:#x}"
        );
    }
    assert_eq!(fake.inner().commands.len(), commands);
    assert_eq!(fake.access(5), BEHIND_HOST);
    assert_eq!(fake.access(0x103), Outcome::NotConfigured);
    // A stream of a group of its own needs no page.
    attach(&smmu, 0x101, None).unwrap();
    assert_eq!(fake.access(0x101), BEHIND_OWN);
    assert_eq!(fake.access(0x100), BEHIND_HOST);
    assert_eq!(detach(&smmu, 0x101), None);
    assert_eq!(fake.access(0x101), BEHIND_HOST);
}
