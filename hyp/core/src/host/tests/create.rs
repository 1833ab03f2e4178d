//! `VM_CREATE` and what it runs out of.

use porthole_abi::{
    DONATE_PAGES_MAX, Error, Features, HostFunction, PAGE_SIZE, RegionKind, VmConfig,
};
use zerocopy::IntoBytes;

use super::refused;
use crate::testing::{Host, VmPlan};

/// A changed configuration must be refused with this error.
#[track_caller]
fn no_vm(host: &mut Host, error: Error, change: impl FnOnce(&mut VmConfig)) {
    let mut config = host.config(VmPlan::default());
    change(&mut config);
    let block = host.block(config.as_bytes());
    refused(host, HostFunction::VmCreate, &[block], error);
}

#[test]
fn a63_without_dma_isolation_no_vm_is_made() {
    let mut host = Host::with_features(Features::TRNG);
    no_vm(&mut host, Error::UnsafeDma, |_| {});
    for features in [Features::DMA_ISOLATED, Features::UNSAFE_DMA] {
        let mut host = Host::with_features(features);
        let config = host.config(VmPlan::default());
        host.create(&config).unwrap();
    }
}

#[test]
fn a_configuration_is_checked_whole() {
    let mut host = Host::new();
    let host = &mut host;
    no_vm(host, Error::BadVersion, |c| c.version += 1 << 16);
    no_vm(host, Error::BadVersion, |c| c.version += 1);
    no_vm(host, Error::BadVersion, |c| c.version = 0);
    no_vm(host, Error::ReservedNonZero, |c| c.flags = 2);
    no_vm(host, Error::ReservedNonZero, |c| c.flags = 1 << 63);
    no_vm(host, Error::ReservedNonZero, |c| c.reserved[1] = 1);
    no_vm(host, Error::ReservedNonZero, |c| c.regions[0].reserved = 1);
    no_vm(host, Error::ReservedNonZero, |c| c.regions[15].kind = 1);
    for vcpus in [0, 9, u32::MAX] {
        no_vm(host, Error::InvalidParameter, |c| c.vcpus = vcpus);
    }
    for spis in [225, u32::MAX] {
        no_vm(host, Error::TooLarge, |c| c.spi_count = spis);
    }
    for (base, count) in [
        (31, 1),
        (0, 1),
        (95, 2),
        (32, u32::MAX),
        (u32::MAX, 1),
        (80, 0),
    ] {
        no_vm(host, Error::BadIntid, |c| {
            (c.msi_base, c.msi_count) = (base, count)
        });
    }
    for count in [17, u32::MAX] {
        no_vm(host, Error::BadRegions, |c| c.region_count = count);
    }
    no_vm(host, Error::ReservedNonZero, |c| c.region_count = 4);
    no_vm(host, Error::BadRegions, |c| {
        c.region_count = 0;
        c.regions = Default::default();
    });
    for change in [
        |c: &mut VmConfig| c.regions[0].base += 1,
        |c: &mut VmConfig| c.regions[0].size = 0,
        |c: &mut VmConfig| c.regions[0].size += 1,
        |c: &mut VmConfig| c.regions[0].size = 1 << 36,
        |c: &mut VmConfig| c.regions[0].base = u64::MAX - 0xfff,
        |c: &mut VmConfig| c.regions[0].kind = 6,
        |c: &mut VmConfig| c.regions[1].base = Host::GUEST_RAM + 0x1000,
        |c: &mut VmConfig| c.regions[2].size = 0x1000,
        |c: &mut VmConfig| c.regions[2].kind = RegionKind::Ram as u32,
        |c: &mut VmConfig| c.regions[3].size += 0x2_0000,
        |c: &mut VmConfig| c.regions[3].kind = RegionKind::Window as u32,
        |c: &mut VmConfig| c.regions[4].kind = RegionKind::Window as u32,
        |c: &mut VmConfig| (c.msi_base, c.msi_count) = (0, 0),
    ] {
        no_vm(host, Error::BadRegions, change);
    }
    no_vm(host, Error::Empty, |c| c.meta_pages = 0);
    no_vm(host, Error::NoMetadata, |c| c.meta_pages = 1);
    no_vm(host, Error::TooLarge, |c| {
        c.meta_pages = DONATE_PAGES_MAX + 1
    });
    no_vm(host, Error::TooLarge, |c| c.meta_pages = u64::MAX);
    no_vm(host, Error::Unaligned, |c| c.meta_pa += 8);
    no_vm(host, Error::Overflow, |c| {
        c.meta_pa = 0u64.wrapping_sub(PAGE_SIZE)
    });
    no_vm(host, Error::NotRam, |c| c.meta_pa = 0x0900_0000);
    no_vm(host, Error::NotHostOwned, |c| c.meta_pa = Host::RAM);
    let config = host.config(VmPlan::default());
    host.create(&config).unwrap();
    no_vm(host, Error::NotHostOwned, |c| c.meta_pa = config.meta_pa);
}

#[test]
fn a81_slots_run_out_and_come_back() {
    let mut host = Host::new();
    let plan = VmPlan {
        vcpus: 1,
        metadata: 4,
        ..VmPlan::default()
    };
    let configs: Vec<_> = (0..65).map(|_| host.config(plan)).collect();
    let vms: Vec<u64> = configs[..64]
        .iter()
        .map(|c| host.create(c).unwrap())
        .collect();
    let block = host.block(configs[64].as_bytes());
    refused(&host, HostFunction::VmCreate, &[block], Error::NoSlot);
    host.call(HostFunction::VmTeardown, &[vms[7]]).unwrap();
    host.call(HostFunction::VmReclaim, &[vms[7], configs[7].meta_pa, 4])
        .unwrap();
    refused(&host, HostFunction::VmCreate, &[block], Error::NoSlot);
    host.call(HostFunction::VmDestroy, &[vms[7]]).unwrap();
    let next = host.create(&configs[64]).unwrap();
    assert_eq!(next & 0xff, 7);
}

#[test]
fn a81_metadata_runs_out_and_more_of_it_mends_that() {
    let mut host = Host::new();
    let plan = VmPlan {
        vcpus: 8,
        metadata: 4,
        ..VmPlan::default()
    };
    let config = host.config(plan);
    let vm = host.create(&config).unwrap();
    host.call(HostFunction::VcpuCreate, &[vm, 0]).unwrap();
    host.call(HostFunction::VcpuCreate, &[vm, 1]).unwrap();
    refused(&host, HostFunction::VcpuCreate, &[vm, 2], Error::NoMetadata);
    let more = host.pages(1);
    host.call(HostFunction::VmDonateMeta, &[vm, more, 1])
        .unwrap();
    host.call(HostFunction::VcpuCreate, &[vm, 2]).unwrap();
}

#[test]
fn finalize_wants_every_declared_vcpu() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    let finalize = [vm, Host::GUEST_RAM, 0];
    refused(&host, HostFunction::VmFinalize, &finalize, Error::BadVcpu);
    host.call(HostFunction::VcpuCreate, &[vm, 0]).unwrap();
    refused(&host, HostFunction::VmFinalize, &finalize, Error::BadVcpu);
}

#[test]
fn nobody_waits_for_a_vcpu_that_another_cpu_has_in_hand() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    let finalize = [vm, Host::GUEST_RAM, 0];
    let create = [vm, 0];
    host.hyp
        .slots
        .with(vm, |inner| {
            let _held = inner.vcpu(0)?.lock();
            refused(&host, HostFunction::VcpuCreate, &create, Error::Busy);
            refused(&host, HostFunction::VmFinalize, &finalize, Error::Busy);
            Ok(())
        })
        .unwrap();
    host.call(HostFunction::VcpuCreate, &create).unwrap();
}
