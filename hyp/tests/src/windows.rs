//! a20, a21: windows that overlap, alias or leave their BAR.

use porthole_abi::{
    Error, Extent, FunctionId, HostFunction, PAGE_SIZE, PageOwner, RegionDesc, RegionKind,
    WINDOW_PAGES_MAX, WINDOWS_MAX, WindowConfig,
};

use crate::harness::Failure;
use crate::hyp::{audit, call, owner, owners};
use crate::puppet::insn;
use crate::vm::{self, APERTURE, APERTURE_SIZE, RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a20_window_is_shared_both_ways_and_audited,
    a20_same_ipa_twice,
    a20_same_page_twice_in_one_window,
    a20_same_page_in_two_windows,
    a20_same_page_in_two_vms,
    a20_window_over_ram_or_outside_aperture,
    a20_window_across_region_end,
    a20_window_pages_not_the_hosts,
    a20_window_range_arithmetic,
    a20_window_table_full,
    a21_bar_limits,
    a21_function_that_cannot_exist,
    a21_functions_of_one_device_share,
    a21_two_devices_do_not_share,
];

/// Registering must fail with `error`, and no page may have changed hands.
pub fn refused(config: &WindowConfig, error: Error) -> Result<(), Failure> {
    let before = owners();
    check_eq!(vm::register(config), Err(error));
    check_eq!(owners(), before);
    Ok(())
}

/// WINDOW_UNREGISTER for function 0.
pub fn unregister(vm: &Vm, id: u64) -> Result<(), Error> {
    call(HostFunction::WindowUnregister, &[vm.handle, id, 0]).map(drop)
}

fn a20_window_is_shared_both_ways_and_audited() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(4, PAGE_SIZE);
    ok!(vm::register(&vm::window(&vm, APERTURE, pages, 4)));
    arena::poke(pages + 3 * PAGE_SIZE, 0xabc);
    let at = APERTURE + 3 * PAGE_SIZE;
    let report = ok!(vm.pull(0, insn::LOAD, [at, 0, 0, 0, 0, 0]));
    check_eq!(report.x[0], 0xabc);
    ok!(vm.pull(0, insn::STORE, [at, 0xdef, 0, 0, 0, 0]));
    check_eq!(arena::peek(pages + 3 * PAGE_SIZE), 0xdef);
    let a = audit();
    check_eq!(
        (a.shared, a.windows, a.offender),
        (4, 4, porthole_abi::NO_ADDRESS)
    );
    check_eq!(owner(pages), PageOwner::Window);
    ok!(vm.destroy());
    Ok(())
}

fn a20_same_ipa_twice() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(8, PAGE_SIZE);
    ok!(vm::register(&vm::window(
        &vm,
        APERTURE + PAGE_SIZE,
        pages,
        2
    )));
    let other = pages + 4 * PAGE_SIZE;
    for (ipa, error) in [
        (APERTURE, Error::WindowOverlap),
        (APERTURE + PAGE_SIZE, Error::WindowForeign),
        (APERTURE + 2 * PAGE_SIZE, Error::WindowOverlap),
    ] {
        let mut config = vm::window(&vm, ipa, other, 2);
        config.function = FunctionId::new(0, 0, 2, 0).0;
        refused(&config, error)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a20_same_page_twice_in_one_window() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(4, PAGE_SIZE);
    for second in [pages, pages + PAGE_SIZE] {
        let mut config = vm::window(&vm, APERTURE, pages, 4);
        config.extents[0] = Extent {
            pa: pages,
            pages: 2,
        };
        config.extents[1] = Extent {
            pa: second,
            pages: 2,
        };
        config.extent_count = 2;
        refused(&config, Error::DuplicatePage)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a20_same_page_in_two_windows() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(4, PAGE_SIZE);
    ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    for pa in [pages, pages + PAGE_SIZE] {
        let mut config = vm::window(&vm, APERTURE + 0x10_0000, pa, 2);
        config.bar = 2;
        refused(&config, Error::PageIsWindow)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a20_same_page_in_two_vms() -> Result<(), Failure> {
    let (one, two) = (Vm::puppet(1), Vm::puppet(1));
    let pages = arena::pages(2, PAGE_SIZE);
    ok!(vm::register(&vm::window(&one, APERTURE, pages, 2)));
    refused(&vm::window(&two, APERTURE, pages, 2), Error::PageIsWindow)?;
    refused(
        &vm::window(&two, APERTURE, pages + PAGE_SIZE, 1),
        Error::PageIsWindow,
    )?;
    ok!(one.destroy());
    ok!(vm::register(&vm::window(&two, APERTURE, pages, 2)));
    ok!(two.destroy());
    Ok(())
}

fn a20_window_over_ram_or_outside_aperture() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    for ipa in [
        RAM,
        RAM + 0x10_0000,
        vm::GICD,
        vm::V2M,
        0,
        APERTURE - PAGE_SIZE,
        APERTURE + APERTURE_SIZE,
        1 << 36,
        1 << 40,
    ] {
        refused(&vm::window(&vm, ipa, pages, 2), Error::OutsideRegion)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a20_window_across_region_end() -> Result<(), Failure> {
    let mut config = vm::config(1);
    // Two window regions side by side are two regions.
    config.regions[1].size = 0x10_0000;
    config.regions[5] = RegionDesc {
        base: APERTURE + 0x10_0000,
        size: 0x10_0000,
        kind: RegionKind::Window as u32,
        reserved: 0,
    };
    config.region_count = 6;
    let vm = ok!(vm::create(&config));
    let pages = arena::pages(4, PAGE_SIZE);
    for ipa in [
        APERTURE + 0x10_0000 - PAGE_SIZE,
        APERTURE + 0x20_0000 - 3 * PAGE_SIZE,
    ] {
        refused(&vm::window(&vm, ipa, pages, 4), Error::OutsideRegion)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a20_window_pages_not_the_hosts() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let guest = arena::page();
    ok!(vm.donate(guest, RAM + 0x10_0000, 1, 0));
    for (pa, error) in [
        (guest, Error::NotHostOwned),
        (arena::hyp_page(), Error::NotHostOwned),
        (0x0900_0000, Error::NotRam),
        (arena::ram_end(), Error::NotRam),
    ] {
        let mut config = vm::window(&vm, APERTURE, pages, 2);
        config.extents[0] = Extent {
            pa: pages,
            pages: 1,
        };
        config.extents[1] = Extent { pa, pages: 1 };
        config.extent_count = 2;
        refused(&config, error)?;
    }
    check_eq!(owner(pages), PageOwner::Host);
    ok!(vm.destroy());
    Ok(())
}

fn a20_window_range_arithmetic() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let good = vm::window(&vm, APERTURE, pages, 2);
    let change = |f: &dyn Fn(&mut WindowConfig)| {
        let mut c = good;
        f(&mut c);
        c
    };
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (config, error) in [
        (change(&|c| c.ipa += 8), Error::Unaligned),
        (change(&|c| c.bar_offset = 8), Error::Unaligned),
        (change(&|c| c.length += 8), Error::Unaligned),
        (change(&|c| c.length = 0), Error::Empty),
        (change(&|c| c.ipa = top), Error::Overflow),
        (change(&|c| c.bar_offset = top), Error::Overflow),
        (change(&|c| c.length = top), Error::Overflow),
        (
            change(&|c| {
                c.length = (WINDOW_PAGES_MAX + 1) * PAGE_SIZE;
                c.bar_size = 1 << 30;
                c.extents[0].pages = WINDOW_PAGES_MAX + 1;
            }),
            Error::TooLarge,
        ),
    ] {
        check_eq!(vm::register(&config), Err(error));
    }
    check_eq!(owner(pages), PageOwner::Host);
    ok!(vm.destroy());
    Ok(())
}

fn a20_window_table_full() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(WINDOWS_MAX as u64 + 1, PAGE_SIZE);
    for i in 0..WINDOWS_MAX as u64 {
        let mut config = vm::window(&vm, APERTURE + i * PAGE_SIZE, pages + i * PAGE_SIZE, 1);
        config.function = FunctionId::new(0, 0, i as u8, 0).0;
        ok!(vm::register(&config));
    }
    let last = WINDOWS_MAX as u64;
    let mut config = vm::window(
        &vm,
        APERTURE + last * PAGE_SIZE,
        pages + last * PAGE_SIZE,
        1,
    );
    config.function = FunctionId::new(0, 1, 0, 0).0;
    refused(&config, Error::NoSlot)?;
    ok!(unregister(&vm, 7));
    ok!(vm::register(&config));
    ok!(vm.destroy());
    Ok(())
}

fn a21_bar_limits() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let good = vm::window(&vm, APERTURE, pages, 2);
    for bar in [5, 6, 7, 255, u32::MAX] {
        let mut c = good;
        c.bar = bar;
        refused(&c, Error::BadBar)?;
    }
    let mut c = good;
    (c.bar, c.flags) = (6, 0);
    refused(&c, Error::BadBar)?;
    for (offset, size) in [
        (PAGE_SIZE, 2 * PAGE_SIZE),
        (2 * PAGE_SIZE, 2 * PAGE_SIZE),
        (0, PAGE_SIZE),
        (1 << 40, 1 << 32),
    ] {
        let mut c = good;
        (c.bar_offset, c.bar_size) = (offset, size);
        refused(&c, Error::OutsideBar)?;
    }
    for size in [0, 3 * PAGE_SIZE, PAGE_SIZE / 2, u64::MAX] {
        let mut c = good;
        c.bar_size = size;
        check!(vm::register(&c).is_err());
    }
    // A 32-bit BAR in slot 5 is right.
    let mut c = good;
    (c.bar, c.flags) = (5, 0);
    ok!(vm::register(&c));
    ok!(vm.destroy());
    Ok(())
}

fn a21_function_that_cannot_exist() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    for function in [1, 7, 8, u64::MAX] {
        let r = call(HostFunction::WindowUnregister, &[vm.handle, id, function]);
        check_eq!(r, Err(Error::BadFunction));
    }
    ok!(vm.destroy());
    Ok(())
}

fn a21_functions_of_one_device_share() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let mut config = vm::window(&vm, APERTURE, pages, 2);
    let id = ok!(vm::register(&config));
    config.function = FunctionId::new(0, 0, 1, 3).0;
    check_eq!(vm::register(&config), Ok(id));
    let info = ok!(call(HostFunction::WindowInfo, &[vm.handle, id]));
    check_eq!(info[6], 0b1001);
    ok!(unregister(&vm, id));
    check_eq!(owner(pages), PageOwner::Window);
    ok!(call(HostFunction::WindowUnregister, &[vm.handle, id, 3]));
    check_eq!(owner(pages), PageOwner::Host);
    ok!(vm.destroy());
    Ok(())
}

fn a21_two_devices_do_not_share() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let mut config = vm::window(&vm, APERTURE, pages, 2);
    ok!(vm::register(&config));
    for function in [
        FunctionId::new(0, 0, 2, 0),
        FunctionId::new(0, 1, 1, 0),
        FunctionId::new(1, 0, 1, 0),
    ] {
        config.function = function.0;
        refused(&config, Error::WindowForeign)?;
    }
    ok!(vm.destroy());
    Ok(())
}
