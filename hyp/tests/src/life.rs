//! a05, a06, a09, a81: reclaim, failures in the middle, metadata, handles, what runs out.

use porthole_abi::{
    DONATE_PAGES_MAX, Error, HostFunction, PAGE_SIZE, PageOwner, StatKind, VMS_MAX,
};
use porthole_runtime::probe;

use crate::harness::Failure;
use crate::hyp::{audit, call, owner, owners, stat};
use crate::puppet::insn;
use crate::ranges::{IPA, refused};
use crate::vm::{self, APERTURE, META, RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a05_reclaim_from_live_vm,
    a05_reclaim_what_is_not_the_vms,
    a05_reclaim_twice,
    a05_reclaimed_page_is_zero,
    a05_destroy_with_pages_left,
    a06_no_metadata_leaves_range_as_it_was,
    a06_no_host_tables_leaves_range_as_it_was,
    a06_half_mapped_range_leaves_all_as_it_was,
    a09_metadata_too_small,
    a09_metadata_not_host_owned,
    a09_metadata_reused_while_vm_lives,
    a09_stale_and_forged_handles,
    a09_handle_of_reused_slot_is_another,
    a81_vms_run_out_and_come_back,
];

fn a05_reclaim_from_live_vm() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    refused(
        HostFunction::VmReclaim,
        &[vm.handle, page, 1],
        Error::BadState,
    )?;
    ok!(vm.pull(0, insn::STORE, [IPA, 1, 0, 0, 0, 0]));
    refused(
        HostFunction::VmReclaim,
        &[vm.handle, page, 1],
        Error::BadState,
    )?;
    refused(HostFunction::VmDestroy, &[vm.handle], Error::BadState)?;
    ok!(vm.destroy());
    Ok(())
}

fn a05_reclaim_what_is_not_the_vms() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let mut other = Vm::puppet(1);
    let pages = arena::pages(3, PAGE_SIZE);
    let (mine, foreign, host) = (pages, pages + PAGE_SIZE, pages + 2 * PAGE_SIZE);
    ok!(vm.donate(mine, IPA, 1, 0));
    ok!(other.donate(foreign, IPA, 1, 0));
    ok!(vm.teardown());
    let hyp = arena::hyp_page();
    for (pa, count) in [(foreign, 1), (host, 1), (mine, 2), (hyp, 1)] {
        refused(
            HostFunction::VmReclaim,
            &[vm.handle, pa, count],
            Error::NotVmOwned,
        )?;
    }
    check_eq!(owner(mine), PageOwner::VmMemory);
    check_eq!(owner(foreign), PageOwner::VmMemory);
    ok!(vm.destroy());
    ok!(other.destroy());
    Ok(())
}

fn a05_reclaim_twice() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(call(HostFunction::VmDonate, &[vm.handle, page, IPA, 1, 0]));
    let keep = arena::page();
    ok!(vm.donate(keep, IPA + PAGE_SIZE, 1, 0));
    ok!(vm.teardown());
    ok!(vm.reclaim(page, 1));
    refused(
        HostFunction::VmReclaim,
        &[vm.handle, page, 1],
        Error::NotVmOwned,
    )?;
    ok!(vm.destroy());
    Ok(())
}

fn a05_reclaimed_page_is_zero() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    for i in 0..PAGE_SIZE / 64 {
        ok!(vm.pull(0, insn::STORE, [IPA + i * 64, !i, 0, 0, 0, 0]));
    }
    ok!(vm.teardown());
    // Torn down is not yet given back.
    check!(probe::read(page, 0).is_err());
    ok!(vm.destroy());
    for at in (page..page + PAGE_SIZE).step_by(8) {
        check_eq!(arena::peek(at), 0);
    }
    Ok(())
}

fn a05_destroy_with_pages_left() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    ok!(vm.teardown());
    refused(HostFunction::VmDestroy, &[vm.handle], Error::PagesLeft)?;
    ok!(vm.destroy());
    Ok(())
}

fn a06_no_metadata_leaves_range_as_it_was() -> Result<(), Failure> {
    let mut config = vm::config(1);
    config.meta_pages = 4;
    let mut vm = ok!(vm::create(&config));
    // Each page stands in a 2 MiB range of its own and so wants a table of its own.
    let mut failed = None;
    for i in 0..16 {
        let page = arena::page();
        arena::poke(page, 0x4242);
        let before = (owners(), stat(StatKind::Epoch, 0));
        match vm.donate(page, RAM + i * 0x20_0000, 1, 0) {
            Ok(()) => {}
            Err(error) => {
                check_eq!(error, Error::NoMetadata);
                check_eq!((owners(), stat(StatKind::Epoch, 0)), before);
                check_eq!(probe::read(page, 0), Ok(0x4242));
                failed = Some((page, RAM + i * 0x20_0000));
                break;
            }
        }
    }
    check!(failed.is_some());
    let (page, ipa) = failed.unwrap_or((0, 0));
    // More metadata mends it.
    let more = arena::page();
    ok!(call(HostFunction::VmDonateMeta, &[vm.handle, more, 1]));
    vm.remember(more, 1);
    ok!(vm.donate(page, ipa, 1, 0));
    ok!(vm.destroy());
    Ok(())
}

fn a06_no_host_tables_leaves_range_as_it_was() -> Result<(), Failure> {
    // One page out of every 2 MiB block of the host splits block after block until the pool is used up.
    let tables = stat(StatKind::HostTables, 0);
    let mut config = vm::config(1);
    config.meta_pages = 128;
    config.meta_pa = arena::pages(128, PAGE_SIZE);
    let vm = ok!(vm::create(&config));
    let (mut count, mut refused_at) = (0u64, None);
    while arena::blocks_left() > 1 {
        let page = arena::raw(1, 0x20_0000);
        let before = (owners(), stat(StatKind::Epoch, 0));
        match call(
            HostFunction::VmDonate,
            &[vm.handle, page, RAM + count * PAGE_SIZE, 1, 0],
        ) {
            Ok(_) => count += 1,
            Err(error) => {
                check_eq!(error, Error::NoMemory);
                check_eq!((owners(), stat(StatKind::Epoch, 0)), before);
                check!(probe::read(page, 0).is_ok());
                refused_at = Some(page);
                break;
            }
        }
    }
    if refused_at.is_some() {
        check!(count > 32);
    }
    ok!(vm.teardown());
    let first = (config.meta_pa + 128 * PAGE_SIZE + 0x1f_ffff) & !0x1f_ffff;
    for page in (first..arena::ram_end()).step_by(0x20_0000) {
        if owner(page) == PageOwner::VmMemory {
            ok!(vm.reclaim(page, 1));
        }
    }
    ok!(vm.destroy());
    // Joined again: no table is left behind.
    check_eq!(stat(StatKind::HostTables, 0), tables);
    Ok(())
}

fn a06_half_mapped_range_leaves_all_as_it_was() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let run = arena::pages(16, PAGE_SIZE);
    ok!(vm.donate(run, IPA + 8 * PAGE_SIZE, 1, 0));
    // The ninth IPA is taken: none of the sixteen may be mapped.
    refused(
        HostFunction::VmDonate,
        &[vm.handle, run + PAGE_SIZE, IPA, 12, 0],
        Error::AlreadyMapped,
    )?;
    let exit = vm.pull(0, insn::LOAD, [IPA, 0, 0, 0, 0, 0]);
    check!(matches!(exit, Err(e) if e.kind == porthole_abi::ExitKind::RamFault));
    ok!(vm.destroy());
    Ok(())
}

fn a09_metadata_too_small() -> Result<(), Failure> {
    let mut config = vm::config(8);
    config.meta_pages = 1;
    match vm::create(&config) {
        Err(error) => check_eq!(error, Error::NoMetadata),
        Ok(vm) => {
            let r = (0..8).try_for_each(|i| vm.create_vcpu(i));
            check_eq!(r, Err(Error::NoMetadata));
            ok!(vm.destroy());
        }
    }
    for pages in [0, DONATE_PAGES_MAX + 1, u64::MAX] {
        let mut config = vm::config(1);
        config.meta_pages = pages;
        check!(vm::create(&config).is_err());
    }
    Ok(())
}

fn a09_metadata_not_host_owned() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let pages = arena::pages(vm::META, PAGE_SIZE);
    let last = pages + (vm::META - 1) * PAGE_SIZE;
    ok!(vm.donate(last, IPA, 1, 0));
    for (pa, error) in [
        (pages, Error::NotHostOwned),
        (arena::hyp_page(), Error::NotHostOwned),
        (0x0900_0000, Error::NotRam),
        (pages + 1, Error::Unaligned),
    ] {
        let mut config = vm::config(1);
        config.meta_pa = pa;
        let before = owners();
        check_eq!(vm::create(&config).map(|v| v.handle), Err(error));
        check_eq!(owners(), before);
    }
    ok!(vm.destroy());
    Ok(())
}

fn a09_metadata_reused_while_vm_lives() -> Result<(), Failure> {
    let config = vm::config(1);
    let vm = ok!(vm::create(&config));
    let again = vm::create(&config).map(|v| v.handle);
    check_eq!(again, Err(Error::NotHostOwned));
    refused(
        HostFunction::VmDonateMeta,
        &[vm.handle, config.meta_pa, 1],
        Error::NotHostOwned,
    )?;
    ok!(vm.destroy());
    Ok(())
}

/// Every call that names a VM by its handle, with arguments that a living VM would take.
fn each_call_with(h: u64, page: u64) -> [(HostFunction, [u64; 5]); 12] {
    use HostFunction as F;
    [
        (F::VmDonate, [h, page, IPA, 1, 0]),
        (F::VmDonateMeta, [h, page, 1, 0, 0]),
        (F::VmFinalize, [h, RAM, 0, 0, 0]),
        (F::VmTeardown, [h, 0, 0, 0, 0]),
        (F::VmReclaim, [h, page, 1, 0, 0]),
        (F::VmDestroy, [h, 0, 0, 0, 0]),
        (F::VmMeasurement, [h, 0, 0, 0, 0]),
        (F::VcpuCreate, [h, 0, 0, 0, 0]),
        (F::VcpuRun, [h, 0, 0, 0, 0]),
        (F::WindowUnregister, [h, 0, 0, 0, 0]),
        (F::WindowInfo, [h, 0, 0, 0, 0]),
        (F::SpiSet, [h, 32, 1, 0, 0]),
    ]
}

fn a09_stale_and_forged_handles() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let live = vm.handle;
    ok!(vm.destroy());
    let page = arena::page();
    for h in [
        0,
        live,
        live + 1,
        live ^ 0x100,
        live | 1 << 40,
        live | 1 << 63,
        0xff,
        u64::MAX,
    ] {
        for (function, args) in each_call_with(h, page) {
            refused(function, &args, Error::BadHandle)?;
        }
    }
    Ok(())
}

fn a09_handle_of_reused_slot_is_another() -> Result<(), Failure> {
    let one = Vm::puppet(1);
    let old = one.handle;
    ok!(one.destroy());
    let two = Vm::puppet(1);
    check!(two.handle != old);
    let page = arena::page();
    for (function, args) in each_call_with(old, page) {
        refused(function, &args, Error::BadHandle)?;
    }
    ok!(two.pull(0, insn::NOP, [0; 6]));
    ok!(two.destroy());
    Ok(())
}

/// Many VMs, each with windows and with pages that want tables of their own, until there is no slot; then all again.
fn a81_vms_run_out_and_come_back() -> Result<(), Failure> {
    const BLOCK: u64 = 0x20_0000;
    const WINDOWS: u64 = 4;
    const PAGES: u64 = 4;
    let tables = stat(StatKind::HostTables, 0);
    let witness = Vm::puppet(1);
    for round in 0..2 {
        // Handle, its metadata, its pages.
        let mut vms = [(0, 0, 0); VMS_MAX - 1];
        for entry in &mut vms {
            let config = vm::config(1);
            let vm = ok!(vm::create(&config));
            let pages = arena::pages(PAGES, PAGE_SIZE);
            for n in 0..PAGES {
                let (pa, ipa) = (pages + n * PAGE_SIZE, RAM + n * BLOCK);
                ok!(call(HostFunction::VmDonate, &[vm.handle, pa, ipa, 1, 0]));
            }
            for n in 0..WINDOWS {
                let window = vm::window(&vm, APERTURE + n * BLOCK, arena::page(), 1);
                ok!(vm::register(&window));
            }
            *entry = (vm.handle, config.meta_pa, pages);
        }
        let one_more = vm::config(1);
        let before = (owners(), stat(StatKind::Epoch, 0));
        check_eq!(vm::create(&one_more).err(), Some(Error::NoSlot));
        check_eq!((owners(), stat(StatKind::Epoch, 0)), before);
        check_eq!(owner(one_more.meta_pa), PageOwner::Host);
        // Who lives already is not disturbed.
        ok!(witness.pull(0, insn::STORE, [RAM + 8 * PAGE_SIZE, round, 0, 0, 0, 0]));
        let a = audit();
        let windows = WINDOWS * (VMS_MAX as u64 - 1);
        check_eq!((a.shared, a.windows), (windows, windows));
        for (handle, metadata, pages) in vms {
            while ok!(call(HostFunction::VmTeardown, &[handle]))[1] != 0 {}
            ok!(call(HostFunction::VmReclaim, &[handle, pages, PAGES]));
            ok!(call(HostFunction::VmReclaim, &[handle, metadata, META]));
            ok!(call(HostFunction::VmDestroy, &[handle]));
        }
    }
    ok!(witness.destroy());
    check_eq!(stat(StatKind::HostTables, 0), tables);
    Ok(())
}
