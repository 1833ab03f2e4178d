//! a02 to a04: ranges and transitions that do not hold.

use porthole_abi::{DONATE_PAGES_MAX, Error, HostFunction, PAGE_SIZE, PageOwner, StatKind};
use porthole_runtime::probe;

use crate::harness::Failure;
use crate::hyp::{call, owner, owners, stat};
use crate::puppet::insn;
use crate::vm::{self, APERTURE, RAM, RAM_SIZE, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a02_donate_range_arithmetic,
    a02_donate_partly_mmio_or_past_ram,
    a02_donate_with_only_last_page_bad,
    a02_reclaim_range_arithmetic,
    a02_metadata_range_arithmetic,
    a03_donate_twice,
    a03_donate_to_two_vms,
    a03_donate_window_page,
    a03_donate_hypervisor_mmio_and_holes,
    a03_donate_metadata_page_as_memory,
    a04_donate_at_mapped_ipa,
    a04_donate_outside_ram_regions,
];

/// A free address in guest RAM.
pub const IPA: u64 = RAM + 0x20_0000;

/// The call must fail with `error`, and no page may have changed hands.
pub fn refused(function: HostFunction, args: &[u64], error: Error) -> Result<(), Failure> {
    let before = (owners(), stat(StatKind::Epoch, 0));
    check_eq!(call(function, args), Err(error));
    check_eq!((owners(), stat(StatKind::Epoch, 0)), before);
    Ok(())
}

fn a02_donate_range_arithmetic() -> Result<(), Failure> {
    use HostFunction::VmDonate;
    let vm = Vm::puppet(1);
    let (h, page) = (vm.handle, arena::pages(4, PAGE_SIZE));
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (pa, ipa, pages, error) in [
        (page, IPA, 0, Error::Empty),
        (page + 1, IPA, 1, Error::Unaligned),
        (page + 0x800, IPA, 1, Error::Unaligned),
        (page, IPA + 8, 1, Error::Unaligned),
        (page, IPA, DONATE_PAGES_MAX + 1, Error::TooLarge),
        (page, IPA, u64::MAX, Error::TooLarge),
        (page, IPA, 1 << 52, Error::TooLarge),
        (page, IPA, 1 << 63, Error::TooLarge),
        (top, IPA, 1, Error::Overflow),
        (top, IPA, 2, Error::Overflow),
        (page, top, 2, Error::Overflow),
        (1 << 52, IPA, 1, Error::NotRam),
        (1 << 63, IPA, 1, Error::NotRam),
    ] {
        refused(VmDonate, &[h, pa, ipa, pages, 0], error)?;
    }
    for flags in [2, 1 << 63, u64::MAX] {
        let r = call(VmDonate, &[h, page, IPA, 1, flags]);
        check!(matches!(r, Err(Error::ReservedNonZero)));
    }
    // With content, after finalize.
    refused(VmDonate, &[h, page, IPA, 1, 1], Error::BadState)?;
    check_eq!(owner(page), PageOwner::Host);
    ok!(vm.destroy());
    Ok(())
}

fn a02_donate_partly_mmio_or_past_ram() -> Result<(), Failure> {
    use HostFunction::VmDonate;
    let vm = Vm::puppet(1);
    let end = arena::ram_end();
    refused(
        VmDonate,
        &[vm.handle, end - PAGE_SIZE, IPA, 2, 0],
        Error::NotRam,
    )?;
    refused(VmDonate, &[vm.handle, end, IPA, 1, 0], Error::NotRam)?;
    let r = call(
        VmDonate,
        &[vm.handle, arena::RAM_BASE - PAGE_SIZE, IPA, 2, 0],
    );
    check_eq!(r, Err(Error::NotRam));
    check!(probe::read(end - PAGE_SIZE, 0).is_ok());
    ok!(vm.destroy());
    Ok(())
}

fn a02_donate_with_only_last_page_bad() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let run = arena::pages(8, PAGE_SIZE);
    let last = run + 7 * PAGE_SIZE;
    ok!(vm.donate(last, IPA + 0x10_0000, 1, 0));
    refused(
        HostFunction::VmDonate,
        &[vm.handle, run, IPA, 8, 0],
        Error::NotHostOwned,
    )?;
    for i in 0..7 {
        check_eq!(owner(run + i * PAGE_SIZE), PageOwner::Host);
        check!(probe::write(run + i * PAGE_SIZE, 1).is_ok());
    }
    ok!(vm.destroy());
    Ok(())
}

fn a02_reclaim_range_arithmetic() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    ok!(vm.teardown());
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (pa, pages, error) in [
        (page, 0, Error::Empty),
        (page + 1, 1, Error::Unaligned),
        (page, u64::MAX, Error::TooLarge),
        (page, DONATE_PAGES_MAX + 1, Error::TooLarge),
        (top, 1, Error::Overflow),
        (arena::ram_end(), 1, Error::NotRam),
    ] {
        refused(HostFunction::VmReclaim, &[vm.handle, pa, pages], error)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a02_metadata_range_arithmetic() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let page = arena::page();
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (pa, pages, error) in [
        (page, 0, Error::Empty),
        (page + 4, 1, Error::Unaligned),
        (page, u64::MAX, Error::TooLarge),
        (top, 1, Error::Overflow),
        (arena::ram_end(), 1, Error::NotRam),
        (0x0900_0000, 1, Error::NotRam),
    ] {
        refused(HostFunction::VmDonateMeta, &[vm.handle, pa, pages], error)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a03_donate_twice() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    refused(
        HostFunction::VmDonate,
        &[vm.handle, page, IPA + PAGE_SIZE, 1, 0],
        Error::NotHostOwned,
    )?;
    ok!(vm.destroy());
    Ok(())
}

fn a03_donate_to_two_vms() -> Result<(), Failure> {
    let mut one = Vm::puppet(1);
    let two = Vm::puppet(1);
    let page = arena::page();
    ok!(one.donate(page, IPA, 1, 0));
    refused(
        HostFunction::VmDonate,
        &[two.handle, page, IPA, 1, 0],
        Error::NotHostOwned,
    )?;
    let secret = 0x1234_5678;
    ok!(one.pull(0, insn::STORE, [IPA, secret, 0, 0, 0, 0]));
    // The other guest finds no page there.
    let exit = two.pull(0, insn::LOAD, [IPA, 0, 0, 0, 0, 0]);
    check!(matches!(exit, Err(e) if e.kind == porthole_abi::ExitKind::RamFault && e.p[0] == IPA));
    ok!(two.destroy());
    ok!(one.destroy());
    Ok(())
}

fn a03_donate_window_page() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let other = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    for h in [vm.handle, other.handle] {
        refused(
            HostFunction::VmDonate,
            &[h, pages, IPA, 1, 0],
            Error::PageIsWindow,
        )?;
        refused(
            HostFunction::VmDonateMeta,
            &[h, pages + PAGE_SIZE, 1],
            Error::PageIsWindow,
        )?;
    }
    ok!(vm.destroy());
    ok!(other.destroy());
    Ok(())
}

fn a03_donate_hypervisor_mmio_and_holes() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let hyp = arena::hyp_page();
    for (pa, error) in [
        (hyp, Error::NotHostOwned),
        (0x0900_0000, Error::NotRam),
        (0x0800_0000, Error::NotRam),
        (0, Error::NotRam),
        (0x3f00_0000, Error::NotRam),
        (0x40_1000_0000, Error::NotRam),
    ] {
        refused(HostFunction::VmDonate, &[vm.handle, pa, IPA, 1, 0], error)?;
        refused(HostFunction::VmDonateMeta, &[vm.handle, pa, 1], error)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a03_donate_metadata_page_as_memory() -> Result<(), Failure> {
    let config = vm::config(1);
    let vm = ok!(vm::create(&config));
    for i in [0, config.meta_pages - 1] {
        refused(
            HostFunction::VmDonate,
            &[vm.handle, config.meta_pa + i * PAGE_SIZE, IPA, 1, 0],
            Error::NotHostOwned,
        )?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a04_donate_at_mapped_ipa() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::pages(8, PAGE_SIZE);
    ok!(vm.donate(page, IPA, 1, 0));
    let next = page + PAGE_SIZE;
    for (ipa, pages) in [
        (IPA, 1),
        (IPA - PAGE_SIZE, 2),
        (IPA - 6 * PAGE_SIZE, 7),
        (RAM, 1),
    ] {
        refused(
            HostFunction::VmDonate,
            &[vm.handle, next, ipa, pages, 0],
            Error::AlreadyMapped,
        )?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a04_donate_outside_ram_regions() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let page = arena::pages(2, PAGE_SIZE);
    for (ipa, pages) in [
        (RAM - PAGE_SIZE, 1),
        (RAM - PAGE_SIZE, 2),
        (RAM + RAM_SIZE, 1),
        (RAM + RAM_SIZE - PAGE_SIZE, 2),
        (APERTURE, 1),
        (0, 1),
        (vm::GICD, 1),
        (1 << 36, 1),
        (1 << 47, 1),
        (1 << 63, 1),
    ] {
        refused(
            HostFunction::VmDonate,
            &[vm.handle, page, ipa, pages, 0],
            Error::OutsideRegion,
        )?;
    }
    ok!(vm.destroy());
    Ok(())
}
