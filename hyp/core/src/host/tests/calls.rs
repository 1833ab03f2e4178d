//! Every hypercall, every refusal; a refused call leaves all as it was.

use porthole_abi::{
    ABI_VERSION, CALL_COUNT, CALL_REVISION, CALL_UID, DONATE_PAGES_MAX, Error, Features,
    GuestFunction, HostFunction, NO_ADDRESS, PAGE_SIZE, PageOwner, StatKind, UID, VmState,
};
use zerocopy::IntoBytes;

use super::refused;
use crate::testing::{Host, VmPlan};

#[test]
fn a42_unknown_host_calls_change_x0_only() {
    let host = Host::new();
    let before = host.state();
    let guests = GuestFunction::ALL.iter().map(|f| f.id());
    let others = [
        0,
        1,
        0x8600_0000,
        0xc600_0000,
        0xc600_0fff,
        0xc700_0000,
        u32::MAX,
    ];
    for id in guests.chain(others) {
        for upper in [0, 1 << 32, 0xffff_ffff << 32] {
            let mut x = [0x5ec2; 31];
            x[0] = u64::from(id) | upper;
            host.hyp.host_hvc(0, &mut x);
            assert_eq!(x[0], u64::MAX, "{id:#x}");
            assert!(x[1..].iter().all(|r| *r == 0x5ec2));
        }
    }
    assert_eq!(host.state(), before);
}

#[test]
fn a42_immediates_are_refused() {
    let host = Host::new();
    for function in HostFunction::ALL {
        for immediate in [1, 2, 0x8000, 0xffff] {
            let mut x = [0; 31];
            x[0] = u64::from(function.id());
            host.hyp.host_hvc(immediate, &mut x);
            assert_eq!(x[0], u64::MAX);
        }
    }
}

#[test]
fn a42_the_upper_half_of_the_function_id_means_nothing() {
    let host = Host::new();
    let id = u64::from(HostFunction::Features.id());
    let plain = host.hvc(id, &[]);
    assert_eq!(host.hvc(id | 0xdead_beef << 32, &[]), plain);
    assert_eq!(plain[0], 0);
}

#[test]
fn discovery_and_features() {
    let host = Host::new();
    assert_eq!(
        host.hvc(u64::from(CALL_COUNT), &[])[0],
        HostFunction::ALL.len() as u64 + 3
    );
    assert_eq!(host.hvc(u64::from(CALL_UID), &[])[..4], UID.map(u64::from));
    assert_eq!(host.hvc(u64::from(CALL_REVISION), &[])[..2], [1, 0]);
    let x = host.call(HostFunction::Features, &[]).unwrap();
    assert_eq!(x[1], u64::from(ABI_VERSION));
    assert_eq!(x[2], (Features::UNSAFE_DMA | Features::TRNG).bits());
    assert_eq!(x[3..5], [Host::HYP_BYTES, 4]);
    assert_eq!(x[6], Host::RAM_BYTES);
}

#[test]
fn a08_parameter_blocks_are_the_hosts_own_pages() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let block = host.block(config.as_bytes());
    for function in [HostFunction::VmCreate, HostFunction::WindowRegister] {
        for (pa, error) in [
            (block + 4, Error::Unaligned),
            (block + PAGE_SIZE - 8, Error::Unaligned),
            (Host::RAM, Error::NotHostOwned),
            (0x0900_0000, Error::NotRam),
            (0, Error::NotRam),
            (Host::RAM + Host::RAM_BYTES, Error::NotRam),
            (u64::MAX - 7, Error::Unaligned),
        ] {
            refused(&host, function, &[pa], error);
        }
        refused(&host, function, &[config.meta_pa - 1], Error::Unaligned);
    }
    let vm = host.create(&config).unwrap();
    let page = host.pages(1);
    host.call(HostFunction::VmDonate, &[vm, page, Host::GUEST_RAM, 1, 0])
        .unwrap();
    for pa in [page, config.meta_pa] {
        refused(&host, HostFunction::VmCreate, &[pa], Error::NotHostOwned);
    }
}

#[test]
fn a09_handles_name_living_vms_only() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let by_handle = [
        (HostFunction::VmDonateMeta, vec![Host::RAM, 1]),
        (
            HostFunction::VmDonate,
            vec![Host::RAM, Host::GUEST_RAM, 1, 0],
        ),
        (HostFunction::VmFinalize, vec![0, 0]),
        (HostFunction::VmTeardown, vec![]),
        (HostFunction::VmReclaim, vec![Host::RAM, 1]),
        (HostFunction::VmDestroy, vec![]),
        (HostFunction::VmMeasurement, vec![]),
        (HostFunction::VcpuCreate, vec![0]),
        (HostFunction::VcpuRun, vec![0, 0]),
        (HostFunction::WindowUnregister, vec![0, 0]),
        (HostFunction::WindowInfo, vec![0]),
        (HostFunction::SpiSet, vec![40, 1]),
    ];
    for handle in [
        0,
        vm - 1,
        vm + 1,
        vm + 0x100,
        vm | 1 << 40,
        vm | 0xff,
        u64::MAX,
    ] {
        for (function, rest) in &by_handle {
            let mut args = vec![handle];
            args.extend(rest);
            refused(&host, *function, &args, Error::BadHandle);
        }
    }
    let page = host.pages(2);
    let block = host.window(vm + 0x100, page, 2);
    let block = host.block(block.as_bytes());
    refused(
        &host,
        HostFunction::WindowRegister,
        &[block],
        Error::BadHandle,
    );
}

#[test]
fn a05_a_vm_is_not_destroyed_before_its_last_page_is_back() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let page = host.pages(1);
    let vm = host.create(&config).unwrap();
    let call = |function, args: &[u64]| host.call(function, args);
    let donate = [vm, page, Host::GUEST_RAM, 1, 0];
    call(HostFunction::VmDonate, &donate).unwrap();
    call(HostFunction::VmTeardown, &[vm]).unwrap();
    // Either kind of page alone keeps the slot, and with it the handle that they are reclaimed by.
    let metadata = [vm, config.meta_pa, config.meta_pages];
    call(HostFunction::VmReclaim, &metadata).unwrap();
    refused(&host, HostFunction::VmDestroy, &[vm], Error::PagesLeft);
    call(HostFunction::VmReclaim, &[vm, page, 1]).unwrap();
    call(HostFunction::VmDestroy, &[vm]).unwrap();
}

#[test]
fn a_vm_lives_and_gives_everything_back() {
    let mut host = Host::new();
    let before = host.state();
    let config = host.config(VmPlan::default());
    let (meta, count) = (config.meta_pa, config.meta_pages);
    let vm = host.create(&config).unwrap();
    let call = |function, args: &[u64]| host.call(function, args);
    let info = call(HostFunction::VmInfo, &[vm & 0xff]).unwrap();
    assert_eq!(info[1..7], [vm, VmState::Created as u64, 0, count, 0, 2]);
    for index in [0, 1] {
        call(HostFunction::VcpuCreate, &[vm, index]).unwrap();
        refused(
            &host,
            HostFunction::VcpuCreate,
            &[vm, index],
            Error::BadVcpu,
        );
    }
    for index in [2, 8, u64::MAX] {
        refused(
            &host,
            HostFunction::VcpuCreate,
            &[vm, index],
            Error::BadVcpu,
        );
    }
    refused(&host, HostFunction::VmMeasurement, &[vm], Error::BadState);
    for (entry, error) in [
        (0, Error::OutsideRegion),
        (Host::GICD, Error::OutsideRegion),
        (Host::APERTURE, Error::OutsideRegion),
        (Host::GUEST_RAM + (64 << 20), Error::OutsideRegion),
        (Host::GUEST_RAM + 2, Error::Unaligned),
        (u64::MAX, Error::Unaligned),
    ] {
        refused(&host, HostFunction::VmFinalize, &[vm, entry, 0], error);
    }
    let finalize = [vm, Host::GUEST_RAM, 0];
    call(HostFunction::VmFinalize, &finalize).unwrap();
    refused(&host, HostFunction::VmFinalize, &finalize, Error::BadState);
    refused(&host, HostFunction::VcpuCreate, &[vm, 0], Error::BadState);
    refused(
        &host,
        HostFunction::VmReclaim,
        &[vm, meta, 1],
        Error::BadState,
    );
    refused(&host, HostFunction::VmDestroy, &[vm], Error::BadState);
    assert_eq!(call(HostFunction::VmTeardown, &[vm]).unwrap()[1], 0);
    assert_eq!(call(HostFunction::VmTeardown, &[vm]).unwrap()[1], 0);
    refused(&host, HostFunction::VcpuRun, &[vm, 0, 0], Error::BadState);
    refused(&host, HostFunction::SpiSet, &[vm, 40, 1], Error::BadState);
    refused(
        &host,
        HostFunction::VmDonateMeta,
        &[vm, Host::RAM, 1],
        Error::BadState,
    );
    refused(
        &host,
        HostFunction::VmDonate,
        &[vm, Host::RAM, 0, 1, 0],
        Error::BadState,
    );
    refused(&host, HostFunction::VmDestroy, &[vm], Error::PagesLeft);
    call(HostFunction::VmReclaim, &[vm, meta, count]).unwrap();
    refused(
        &host,
        HostFunction::VmReclaim,
        &[vm, meta, 1],
        Error::NotVmOwned,
    );
    call(HostFunction::VmDestroy, &[vm]).unwrap();
    refused(&host, HostFunction::VmDestroy, &[vm], Error::BadHandle);
    // All but the epoch is as it was at boot.
    let mut after = host.state();
    after[PageOwner::ALL.len()] = before[PageOwner::ALL.len()];
    assert_eq!(after, before);
    // The slot's next VM has another handle.
    let next = host.create(&config).unwrap();
    assert_eq!(next & 0xff, vm & 0xff);
    assert_ne!(next, vm);
    host.machine().assert_sound();
}

#[test]
fn a02_donations_are_checked_before_anything_moves() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let page = host.pages(4);
    let ipa = Host::GUEST_RAM;
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (pa, ipa, pages, flags, error) in [
        (page, ipa, 0, 0, Error::Empty),
        (page, ipa, DONATE_PAGES_MAX + 1, 0, Error::TooLarge),
        (page, ipa, u64::MAX, 0, Error::TooLarge),
        (page + 8, ipa, 1, 0, Error::Unaligned),
        (page, ipa + 8, 1, 0, Error::Unaligned),
        (top, ipa, 1, 0, Error::Overflow),
        (page, top, 1, 0, Error::Overflow),
        (page, Host::GICD, 1, 0, Error::OutsideRegion),
        (page, Host::APERTURE, 1, 0, Error::OutsideRegion),
        (
            page,
            ipa + (64 << 20) - PAGE_SIZE,
            2,
            0,
            Error::OutsideRegion,
        ),
        (0x0900_0000, ipa, 1, 0, Error::NotRam),
        (Host::RAM, ipa, 1, 0, Error::NotHostOwned),
        (page, ipa, 1, 2, Error::ReservedNonZero),
        (page, ipa, 1, 1 << 63, Error::ReservedNonZero),
        (page, ipa, 1, 1, Error::BadState),
    ] {
        let args = [vm, pa, ipa, pages, flags];
        refused(&host, HostFunction::VmDonate, &args, error);
    }
    host.call(HostFunction::VmDonate, &[vm, page, ipa, 4, 0])
        .unwrap();
    let again = [vm, page, ipa + 0x1_0000, 1, 0];
    refused(&host, HostFunction::VmDonate, &again, Error::NotHostOwned);
    let other = host.pages(1);
    let mapped = [vm, other, ipa + 0x3000, 1, 0];
    refused(&host, HostFunction::VmDonate, &mapped, Error::AlreadyMapped);
    let info = host.call(HostFunction::PageInfo, &[page]).unwrap();
    assert_eq!(info[1..3], [PageOwner::VmMemory as u64, vm]);
}

#[test]
fn windows_through_registers() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let pages = host.pages(2);
    let config = host.window(vm, pages, 2);
    let block = host.block(config.as_bytes());
    let id = host.call(HostFunction::WindowRegister, &[block]).unwrap()[1];
    let info = host.call(HostFunction::WindowInfo, &[vm, id]).unwrap();
    assert_eq!(info[1..7], [Host::APERTURE, 0x2000, 1 << 3, 2, 0, 1]);
    let page = host.call(HostFunction::PageInfo, &[pages]).unwrap();
    assert_eq!(page[1..3], [PageOwner::Window as u64, vm]);
    assert_eq!(host.audit(), (2, 2, None));
    let donate = [vm, pages, Host::GUEST_RAM, 1, 0];
    refused(&host, HostFunction::VmDonate, &donate, Error::PageIsWindow);
    refused(
        &host,
        HostFunction::WindowUnregister,
        &[vm, id, 1],
        Error::BadFunction,
    );
    for other in [id + 1, 32, u64::MAX] {
        refused(
            &host,
            HostFunction::WindowUnregister,
            &[vm, other, 0],
            Error::NoWindow,
        );
        refused(
            &host,
            HostFunction::WindowInfo,
            &[vm, other],
            Error::NoWindow,
        );
    }
    host.call(HostFunction::WindowUnregister, &[vm, id, 0])
        .unwrap();
    assert_eq!(host.audit(), (0, 0, None));
    host.call(HostFunction::VmTeardown, &[vm]).unwrap();
    refused(
        &host,
        HostFunction::WindowRegister,
        &[block],
        Error::BadState,
    );
    refused(
        &host,
        HostFunction::WindowUnregister,
        &[vm, id, 0],
        Error::BadState,
    );
}

#[test]
fn reports_refuse_what_they_do_not_know() {
    let host = Host::new();
    for (kind, index, error) in [
        (StatKind::ALL.len() as u64, 0, Error::InvalidParameter),
        (u64::MAX, 0, Error::InvalidParameter),
        (StatKind::HostCalls as u64, 4, Error::BadCpu),
        (StatKind::HostCalls as u64, 256, Error::BadCpu),
        (StatKind::GuestExitsInside as u64, u64::MAX, Error::BadCpu),
        (StatKind::Epoch as u64, 1, Error::InvalidParameter),
        (StatKind::DmaFaults as u64, 1, Error::InvalidParameter),
        (StatKind::PagesByOwner as u64, 8, Error::InvalidParameter),
    ] {
        refused(&host, HostFunction::Stats, &[kind, index], error);
    }
    for slot in [64, 255, u64::MAX] {
        refused(
            &host,
            HostFunction::VmInfo,
            &[slot],
            Error::InvalidParameter,
        );
    }
    refused(
        &host,
        HostFunction::ShareAudit,
        &[u64::MAX],
        Error::InvalidParameter,
    );
    let run = |pa| host.call(HostFunction::PageInfo, &[pa]).unwrap()[3];
    assert_eq!(run(0), Host::RAM / PAGE_SIZE);
    assert_eq!(run(Host::RAM - 1), 1);
    assert_eq!(run(Host::RAM + Host::RAM_BYTES), 0);
    assert_eq!(run(u64::MAX), 0);
    assert_eq!(run(Host::RAM), Host::HYP_BYTES / PAGE_SIZE);
    assert_eq!(run(Host::RAM + Host::HYP_BYTES - 1), 1);
    assert_eq!(run(Host::RAM + Host::RAM_BYTES - 0x2000), 2);
    let info = |pa| host.call(HostFunction::PageInfo, &[pa]).unwrap()[1..3].to_vec();
    assert_eq!(info(0), [PageOwner::None as u64, 0]);
    assert_eq!(info(u64::MAX), [PageOwner::None as u64, 0]);
    assert_eq!(info(Host::RAM), [PageOwner::Hyp as u64, 0]);
    assert_eq!(
        info(Host::RAM + Host::RAM_BYTES - 1),
        [PageOwner::Host as u64, 0]
    );
    let x = host
        .call(HostFunction::Stats, &[StatKind::LastAbortAddress as u64, 0])
        .unwrap();
    assert_eq!(x[1], NO_ADDRESS);
}

#[test]
fn host_calls_are_counted_for_each_cpu() {
    let host = Host::new();
    let count = |cpu| {
        let kind = StatKind::HostCalls as u64;
        host.call(HostFunction::Stats, &[kind, cpu]).unwrap()[1]
    };
    let before = count(0);
    host.machine().cpu.script().id = 3;
    assert_eq!(count(3), 1);
    assert_eq!(count(0), before);
}

#[test]
fn the_log_comes_in_pieces_of_registers() {
    let host = Host::new();
    let text: Vec<u8> = (0..200).collect();
    host.hyp.log.write(&text);
    let mut read = Vec::new();
    let mut position = 0;
    loop {
        let x = host.call(HostFunction::LogRead, &[position]).unwrap();
        let bytes: Vec<u8> = x[3..18].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert!(x[18..].iter().all(|r| *r == 0));
        if x[2] == 0 {
            break;
        }
        assert_eq!(x[1], position);
        read.extend_from_slice(&bytes[..x[2] as usize]);
        position = x[1] + x[2];
    }
    assert_eq!(read, text);
    for position in [201, u64::MAX] {
        let x = host.call(HostFunction::LogRead, &[position]).unwrap();
        assert_eq!(x[2], 0);
    }
}
