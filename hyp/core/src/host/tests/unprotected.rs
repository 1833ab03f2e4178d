//! Unprotected VMs: all their RAM is declared windows, and no other VM ever has such RAM.

use porthole_abi::{
    Error, Features, GuestFunction, HostFunction, OPEN_WINDOW_PAGES_MAX, PAGE_RUN_MAX, PageOwner,
    RegionKind, VmConfig, VmFlags, WINDOW_PAGES_MAX, WindowConfig,
};
use zerocopy::IntoBytes;

use super::refused;
use crate::run::tests::guest_call;
use crate::testing::{Host, VmPlan};

/// The usual map with open RAM.
fn open(config: &mut VmConfig) {
    config.flags = VmFlags::UNPROTECTED.bits();
    config.regions[0].kind = RegionKind::OpenRam as u32;
}

/// A window of these pages in RAM, `page` pages from its start.
fn ram(host: &Host, vm: u64, page: u64, pa: u64, pages: u64) -> WindowConfig {
    WindowConfig {
        ipa: Host::GUEST_RAM + page * 4096,
        bar_size: 64 << 20,
        ..host.window(vm, pa, pages)
    }
}

/// An unprotected VM that is not finalized.
fn created(host: &mut Host) -> u64 {
    let mut config = host.config(VmPlan::default());
    open(&mut config);
    let vm = host.create(&config).unwrap();
    for vcpu in [0, 1] {
        host.call(HostFunction::VcpuCreate, &[vm, vcpu]).unwrap();
    }
    vm
}

fn register(host: &mut Host, config: &WindowConfig) -> Result<u64, Error> {
    let block = host.block(config.as_bytes());
    let done = host.call(HostFunction::WindowRegister, &[block]);
    done.map(|x| x[1])
}

#[test]
fn an_unprotected_vm_runs_from_windows_and_says_so() {
    let mut host = Host::new();
    let vm = created(&mut host);
    let pages = host.pages(600);
    let config = ram(&host, vm, 0, pages, 600);
    let id = register(&mut host, &config).unwrap();
    let finalize = [vm, Host::GUEST_RAM, 7];
    host.call(HostFunction::VmFinalize, &finalize).unwrap();
    // The audit demands that these pages, and no other window's, can be executed.
    let device = host.pages(2);
    let window = host.window(vm, device, 2);
    register(&mut host, &window).unwrap();
    assert_eq!(host.audit(), (602, 602, None));
    let features = u64::from(GuestFunction::GuestFeatures.id());
    let (x, _) = guest_call(&host, vm, 0, &[features]);
    assert_eq!(
        x[2] & Features::UNPROTECTED.bits(),
        Features::UNPROTECTED.bits()
    );
    let info = host.call(HostFunction::VmInfo, &[vm & 0xff]).unwrap();
    assert_eq!((info[3], info[8]), (0, VmFlags::UNPROTECTED.bits()));
    let donated = host.pages(1);
    let donate = [vm, donated, Host::GUEST_RAM + (1 << 24), 1, 0];
    refused(&host, HostFunction::VmDonate, &donate, Error::OutsideRegion);
    host.call(HostFunction::WindowUnregister, &[vm, id, 0])
        .unwrap();
    while host.call(HostFunction::VmTeardown, &[vm]).unwrap()[1] > 0 {}
    assert_eq!(host.audit(), (0, 0, None));
}

#[test]
fn a_protected_vm_neither_has_open_ram_nor_gets_it() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let features = u64::from(GuestFunction::GuestFeatures.id());
    let (x, _) = guest_call(&host, vm, 0, &[features]);
    assert_eq!(x[2] & Features::UNPROTECTED.bits(), 0);
    let pages = host.pages(1);
    let config = ram(&host, vm, 0, pages, 1);
    let block = host.block(config.as_bytes());
    refused(
        &host,
        HostFunction::WindowRegister,
        &[block],
        Error::OutsideRegion,
    );
    for change in [
        |c: &mut VmConfig| c.flags = VmFlags::UNPROTECTED.bits(),
        |c: &mut VmConfig| c.regions[0].kind = RegionKind::OpenRam as u32,
        |c: &mut VmConfig| c.regions[1].kind = RegionKind::OpenRam as u32,
        |c: &mut VmConfig| {
            open(c);
            c.regions[1].kind = RegionKind::Ram as u32;
        },
    ] {
        let mut config = host.config(VmPlan::default());
        change(&mut config);
        let block = host.block(config.as_bytes());
        refused(&host, HostFunction::VmCreate, &[block], Error::BadRegions);
    }
}

#[test]
fn windows_in_open_ram_have_a_limit_of_their_own_and_stay_inside() {
    let mut host = Host::new();
    let mut config = host.config(VmPlan::default());
    open(&mut config);
    // The aperture right behind RAM.
    config.regions[1].base = Host::GUEST_RAM + (64 << 20);
    let vm = host.create(&config).unwrap();
    let pages = host.pages(WINDOW_PAGES_MAX + 1);
    let last = (64 << 20) / 4096 - 1;
    let across = ram(&host, vm, last, pages, 2);
    let device = ram(&host, vm, last + 1, pages, WINDOW_PAGES_MAX + 1);
    let mut large = ram(&host, vm, 0, Host::RAM, OPEN_WINDOW_PAGES_MAX + 1);
    large.bar_size = 1 << 30;
    for (config, error) in [
        (across, Error::OutsideRegion),
        (device, Error::TooLarge),
        (large, Error::TooLarge),
    ] {
        let block = host.block(config.as_bytes());
        refused(&host, HostFunction::WindowRegister, &[block], error);
    }
    let config = ram(&host, vm, 0, pages, WINDOW_PAGES_MAX + 1);
    register(&mut host, &config).unwrap();
    assert_eq!(
        host.audit(),
        (WINDOW_PAGES_MAX + 1, WINDOW_PAGES_MAX + 1, None)
    );
    let x = host.call(HostFunction::PageInfo, &[pages]).unwrap();
    let run = WINDOW_PAGES_MAX + 1;
    assert!(run < PAGE_RUN_MAX);
    assert_eq!(x[1..4], [PageOwner::Window as u64, vm, run]);
}
