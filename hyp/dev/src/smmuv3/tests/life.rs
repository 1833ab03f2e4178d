//! From the take-over to the first transaction, and machines with several SMMUs.

use arrayvec::ArrayVec;
use porthole_abi::FunctionId;
use porthole_core::addr::{Ipa, PhysAddr};

use crate::smmuv3::{Fault, Route, Smmus, StreamError, Unfit};

use super::fake::{CR0, CR2, Fake, IDR0, Outcome, STRTAB};
use super::{BEHIND_HOST, BEHIND_OWN, HOST, OWN, PCI, started, taken};

#[test]
fn translation_goes_on_last_when_nothing_stale_is_left() {
    let fake = Fake::qemu();
    fake.inner().watched = Some(3);
    let _smmu = started(&fake, PCI);
    let inner = fake.inner();
    // From the first write on nothing got through, and then the host's map alone.
    assert_eq!(inner.seen, [Outcome::Abort, BEHIND_HOST]);
    let of = |register| {
        let last = inner.writes.iter().rposition(|w| w.0 == register);
        last.map(|at| (at, inner.writes[at].1)).unwrap()
    };
    let (on, value) = of(CR0);
    assert_eq!(value, 0b11101, "SMMUEN, EVENTQEN, CMDQEN, ATSCHK");
    assert!(of(STRTAB).0 < on);
    assert_eq!(of(CR2).1, 0b110, "PTM and RECINVSID");
    let opcodes: Vec<u64> = inner.commands.iter().map(|c| c[0]).collect();
    assert_eq!(opcodes, [0x04, 0x30, 0x46, 0x04, 0x30, 0x46]);
}

#[test]
fn contexts_of_el2_are_forgotten_where_there_are_some() {
    let fake = Fake::qemu();
    let idr0 = fake.register(IDR0) | 1 << 9;
    fake.inner().registers.insert(IDR0, idr0);
    let _smmu = taken(&fake, PCI);
    let opcodes: Vec<u64> = fake.inner().commands.iter().map(|c| c[0]).collect();
    assert_eq!(opcodes, [0x04, 0x20, 0x30, 0x46]);
}

#[test]
fn until_core_gives_it_a_map_everything_aborts() {
    let fake = Fake::qemu();
    let smmu = taken(&fake, PCI);
    assert_eq!(fake.access(0), Outcome::Abort);
    let early = smmu.set_stream(0, Some(&OWN), || Some(PhysAddr::new(0x5000_0000)), |_| {});
    assert_eq!(early, Ok(Err(StreamError::NoStream)));
}

#[test]
fn one_that_dies_on_the_way_is_reported() {
    let fake = Fake::qemu();
    let smmu = taken(&fake, PCI);
    fake.inner().dead = true;
    let result = smmu.start(&HOST, PCI.iter().copied());
    assert_eq!(result, Err(Unfit::Broken(Fault::Silent("CMDQ_CONS"))));
    let fake = Fake::qemu();
    let smmu = taken(&fake, PCI);
    let result = smmu.start(&HOST, [(0x1_0000, 1)].into_iter());
    assert_eq!(result, Err(Unfit::StreamBits { has: 16, needs: 17 }));
    assert_eq!(fake.access(0), Outcome::Abort);
}

/// Two PCI segments behind an SMMU each, the second one's streams shifted; a platform device beside them.
fn two() -> (Fake, Fake, Smmus<Fake>) {
    let (first, second) = (Fake::qemu(), Fake::qemu());
    let of = |id: u32| Some(FunctionId(id));
    let route = |smmu, stream, count, function| Route {
        smmu,
        stream,
        count,
        function,
    };
    let routes: ArrayVec<Route, 16> = [
        route(0, 0, 0x1000, of(0)),
        route(2, 0x100, 0xf000, of(0x1000)),
        route(2, 0xf100, 7, None),
    ]
    .into_iter()
    .collect();
    let smmus = [
        (0, taken(&first, &[(0, 0x1000)])),
        (2, taken(&second, &[(0x100, 0xf000), (0xf100, 7)])),
    ];
    (
        first,
        second,
        Smmus::new(smmus.into_iter().collect(), routes),
    )
}

#[test]
fn each_function_is_found_behind_its_own_smmu() {
    let (first, second, smmus) = two();
    smmus.start(&HOST).unwrap();
    assert_eq!(smmus.count(), 2);
    assert!(smmus.in_place());
    assert_eq!(first.access(0xfff), BEHIND_HOST);
    assert_eq!(first.access(0x1000), Outcome::NoStream);
    assert_eq!(second.access(0xff), Outcome::NoStream);
    assert_eq!(second.access(0xf106), BEHIND_HOST);
    assert_eq!(second.access(0xf107), Outcome::NotConfigured);
    let page = || Some(PhysAddr::new(0x5000_0000));
    let set = |function: u32| {
        smmus
            .set_function(FunctionId(function), Some(&OWN), page, |_| {})
            .unwrap()
    };
    assert_eq!(set(0x1001), Ok(()));
    assert_eq!(second.access(0x101), BEHIND_OWN);
    assert_eq!(first.access(0x101), BEHIND_HOST);
    // No function leads to the platform device, to another segment or past the end.
    for function in [0x1_0000, 0x1_0001, u32::MAX] {
        assert_eq!(set(function), Err(StreamError::NoStream));
    }
    assert_eq!(smmus.function(0, 0x101), Some(FunctionId(0x101)));
    assert_eq!(smmus.function(2, 0x101), Some(FunctionId(0x1001)));
    assert_eq!(smmus.function(2, 0xf100), None);
    assert_eq!(smmus.function(1, 0), None);
}

#[test]
fn a_flush_reaches_all_and_events_come_from_all() {
    let (first, second, smmus) = two();
    smmus.start(&HOST).unwrap();
    first.inner().tlb.insert((0, 5));
    second.inner().tlb.insert((0, 5));
    smmus.flush(0, Ipa::new(5 << 12), 1).unwrap();
    assert!(first.inner().tlb.is_empty() && second.inner().tlb.is_empty());
    assert_eq!(smmus.event(), None);
    second.event([0x10 | 0x77 << 32, 0, 0x1000, 0]);
    first.event([0x02, 0, 0, 0]);
    let events = [smmus.event(), smmus.event()].map(|e| e.map(|(s, e)| (s, e.kind)));
    assert_eq!(events, [Some((0, 2)), Some((2, 0x10))]);
    assert_eq!(smmus.event(), None);
}

#[test]
fn one_smmu_without_changes_in_place_is_enough_to_forbid_them() {
    let (fit, coarse) = (
        Fake::qemu(),
        Fake::with(super::fake::IDR3, 1 << 10 | 1 << 11),
    );
    let smmus = [(0, taken(&fit, PCI)), (1, taken(&coarse, PCI))];
    let smmus = Smmus::new(smmus.into_iter().collect(), ArrayVec::new());
    assert!(!smmus.in_place());
}
