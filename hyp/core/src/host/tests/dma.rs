//! Confinement and DMA faults as the host asks for them.

use porthole_abi::{
    DMA_CONFINED_MAX, DMA_PAGES_MAX, DMA_SOURCES_MAX, DmaRecord, Error, Features, FunctionId,
    HostFunction, NO_ADDRESS, PageOwner, StatKind,
};

use super::refused;
use crate::addr::Ipa;
use crate::hw::DmaEvent;
use crate::testing::{Host, VmPlan};

const DEVICE: FunctionId = Host::FUNCTIONS[0];
const OTHER: FunctionId = Host::FUNCTIONS[1];
const ID: u64 = DEVICE.0 as u64;
/// First index of `DMA_INFO` that tells of faults.
const FAULTS: u64 = DMA_CONFINED_MAX as u64;

fn isolated() -> Host {
    Host::with_features(Features::DMA_ISOLATED | Features::UNSAFE_DMA)
}

fn info(host: &Host, index: u64) -> [u64; 6] {
    let x = host.call(HostFunction::DmaInfo, &[index]).unwrap();
    assert!(x[7..].iter().all(|r| *r == 0));
    [x[1], x[2], x[3], x[4], x[5], x[6]]
}

fn total(host: &Host) -> u64 {
    let kind = StatKind::DmaFaults as u64;
    host.call(HostFunction::Stats, &[kind, 0]).unwrap()[1]
}

#[test]
fn a_function_is_confined_listed_and_released() {
    let mut host = isolated();
    let region = host.pages(4) + 4096;
    let reaches = |at| host.machine().dma_access(DEVICE, Ipa::new(at)).is_some();
    assert!(reaches(region) && reaches(region - 4096) && reaches(Host::DOORBELL));
    assert!(!reaches(Host::RAM));
    assert_eq!(info(&host, 0), [0; 6]);
    host.call(HostFunction::DmaConfine, &[ID, region, 3])
        .unwrap();
    assert_eq!(
        info(&host, 0),
        [DmaRecord::Confined as u64, ID, region, 3, 0, 0]
    );
    assert_eq!(info(&host, 1), [0; 6]);
    assert!(reaches(region) && reaches(region + 8192) && reaches(Host::DOORBELL));
    assert!(!reaches(region - 4096) && !reaches(region + 12288));
    assert!(!reaches(Host::DOORBELL + 4096));
    let x = host.call(HostFunction::PageInfo, &[region]).unwrap();
    assert_eq!(x[1], PageOwner::Pinned as u64);
    assert_eq!(host.audit(), (0, 0, None));
    host.call(HostFunction::DmaRelease, &[ID]).unwrap();
    assert_eq!(info(&host, 0), [0; 6]);
    assert!(reaches(region - 4096));
    host.machine().assert_sound();
}

#[test]
fn a02_regions_and_functions_that_cannot_be_are_refused() {
    let mut host = isolated();
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    let region = host.pages(4);
    let to = Host::GUEST_RAM;
    host.call(HostFunction::VmDonate, &[vm, region, to, 1, 0])
        .unwrap();
    host.call(
        HostFunction::DmaConfine,
        &[u64::from(OTHER.0), region + 4096, 1],
    )
    .unwrap();
    for (id, pa, pages, error) in [
        (ID, region, DMA_PAGES_MAX + 1, Error::TooLarge),
        (ID, region, u64::MAX, Error::TooLarge),
        (ID, region, 0, Error::Empty),
        (ID, region + 8, 1, Error::Unaligned),
        (ID, u64::MAX, 1, Error::Unaligned),
        (ID, !0xfff, 1, Error::Overflow),
        (ID, !0xfff, DMA_PAGES_MAX, Error::Overflow),
        (ID, region, 1, Error::NotHostOwned),
        (ID, region + 4096, 1, Error::PagePinned),
        (ID, Host::RAM, 1, Error::NotHostOwned),
        (ID, config.meta_pa, 1, Error::NotHostOwned),
        (ID, Host::DOORBELL, 1, Error::NotRam),
        (ID, 1 << 51, 1, Error::NotRam),
        (ID | 1 << 32, region + 8192, 1, Error::BadStream),
        (u64::MAX, region + 8192, 1, Error::BadStream),
        (ID + 1, region + 8192, 1, Error::BadStream),
        (u64::from(OTHER.0), region + 8192, 1, Error::AlreadyConfined),
    ] {
        refused(&host, HostFunction::DmaConfine, &[id, pa, pages], error);
    }
    for id in [ID, ID + 1, ID | 1 << 32, u64::MAX] {
        refused(&host, HostFunction::DmaRelease, &[id], Error::NotConfined);
    }
    let behind = FAULTS + DMA_SOURCES_MAX as u64;
    for index in [behind, 1 << 32, u64::MAX] {
        refused(
            &host,
            HostFunction::DmaInfo,
            &[index],
            Error::InvalidParameter,
        );
    }
    assert_eq!(host.audit(), (0, 0, None));
}

#[test]
fn a_confined_region_takes_no_parameter_block_and_starts_no_cpu() {
    let mut host = isolated();
    let config = host.config(VmPlan::default());
    let block = host.block(zerocopy::IntoBytes::as_bytes(&config));
    host.call(HostFunction::DmaConfine, &[ID, block, 1])
        .unwrap();
    refused(&host, HostFunction::VmCreate, &[block], Error::PagePinned);
    host.call(HostFunction::DmaRelease, &[ID]).unwrap();
    host.call(HostFunction::VmCreate, &[block]).unwrap();
}

#[test]
fn a63_confinement_without_an_smmu_is_refused() {
    let mut host = Host::new();
    let region = host.pages(1);
    refused(
        &host,
        HostFunction::DmaConfine,
        &[ID, region, 1],
        Error::BadStream,
    );
    refused(&host, HostFunction::DmaRelease, &[ID], Error::NotConfined);
    assert_eq!((total(&host), info(&host, FAULTS)), (0, [0; 6]));
}

#[test]
fn a63_features_say_what_is_in_effect() {
    let features = |host: &Host| host.call(HostFunction::Features, &[]).unwrap()[2];
    assert_eq!(features(&isolated()), Features::DMA_ISOLATED.bits());
    assert_eq!(features(&Host::new()) & 3, Features::UNSAFE_DMA.bits());
    // No SMMU, whatever the binary believes.
    let pool = crate::addr::PhysPages::new(crate::addr::PhysAddr::new(Host::RAM + 0x10_0000), 64);
    let bare = crate::testing::FakeMachine::new(pool.unwrap());
    let mut host = Host::boot(bare, Features::DMA_ISOLATED);
    assert_eq!(features(&host), 0);
    let config = host.config(VmPlan::default());
    assert_eq!(host.create(&config), Err(Error::UnsafeDma));
}

fn event(stream: u32, function: Option<FunctionId>, address: u64) -> DmaEvent {
    DmaEvent {
        smmu: 1,
        stream,
        function,
        kind: 0x10,
        address,
        write: true,
    }
}

fn log(host: &Host) -> usize {
    host.call(HostFunction::LogRead, &[0]).unwrap()[2] as usize
}

#[test]
fn refused_accesses_are_counted_by_device() {
    let host = isolated();
    let ours = event(0x18, Some(DEVICE), 0x1234);
    host.machine().push_event(ours);
    assert_eq!(total(&host), 1);
    host.machine().push_event(event(9, None, NO_ADDRESS));
    host.machine().push_event(DmaEvent {
        address: 0x5678,
        write: false,
        ..ours
    });
    let kind = DmaRecord::Faults as u64;
    assert_eq!(
        info(&host, FAULTS),
        [kind, ID, 1 << 32 | 0x18, 2, 0x5678, 0x10]
    );
    let unknown = [kind, NO_ADDRESS, 1 << 32 | 9, 1, NO_ADDRESS, 0x110];
    assert_eq!(info(&host, FAULTS + 1), unknown);
    assert_eq!(info(&host, FAULTS + 2), [0; 6]);
    // Another SMMU's stream of the same number is another device.
    host.machine().push_event(DmaEvent { smmu: 0, ..ours });
    log(&host);
    assert_eq!(info(&host, FAULTS + 2)[1..4], [ID, 0x18, 1]);
    assert_eq!(total(&host), 4);
}

#[test]
fn a_full_table_and_lost_records_leave_the_sum_right() {
    let host = isolated();
    let sources = DMA_SOURCES_MAX as u32;
    for stream in 0..sources + 5 {
        host.machine().push_event(event(stream, None, 0));
    }
    host.machine().push_event(DmaEvent {
        kind: 0,
        ..event(3, None, 0)
    });
    host.machine().push_event(event(sources - 1, None, 1));
    assert_eq!(total(&host), u64::from(sources) + 7);
    let last = FAULTS + u64::from(sources) - 1;
    assert_eq!(info(&host, last)[3..5], [2, 1]);
    assert_eq!(info(&host, FAULTS + 3)[3], 1);
}

#[test]
fn a_device_that_faults_for_ever_keeps_no_caller() {
    let host = isolated();
    for _ in 0..200 {
        host.machine().push_event(event(1, Some(DEVICE), 0));
    }
    assert_eq!([total(&host), total(&host)], [64, 128]);
    log(&host);
    info(&host, FAULTS);
    assert_eq!(total(&host), 200);
}

#[test]
fn every_event_has_a_name() {
    for kind in 0..=u8::MAX {
        let event = DmaEvent {
            kind,
            ..event(0, None, NO_ADDRESS)
        };
        assert!(!event.name().is_empty());
    }
}
