//! a22 to a24: windows donated, unregistered, moved and torn down; what a guest may do with one.

use porthole_abi::{
    Error, ExitKind, FunctionId, GuestFunction, HostFunction, PAGE_SIZE, PageOwner,
    WINDOW_PAGES_MAX, WINDOWS_MAX,
};
use porthole_runtime::probe;

use crate::harness::Failure;
use crate::hyp::{audit, call, owner, owners};
use crate::puppet::insn;
use crate::vm::{self, APERTURE, RAM, Vm};
use crate::windows::{refused, unregister};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a22_window_page_donated_while_registered,
    a22_unregister_gives_page_back_and_takes_it_from_guest,
    a22_register_during_teardown,
    a22_unregister_what_is_not,
    a22_teardown_releases_windows,
    a23_window_of_a_moved_bar_is_not_found_twice,
    a23_window_of_a_removed_device_is_gone,
    a24_guest_cannot_execute_from_window,
    a24_guest_page_tables_in_window,
    a24_guest_enumerates_its_windows,
    a24_guest_asks_to_share_its_memory,
];

fn a22_window_page_donated_while_registered() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    let before = owners();
    let args = [vm.handle, pages + PAGE_SIZE, RAM + 0x10_0000, 1, 0];
    check_eq!(
        call(HostFunction::VmDonate, &args),
        Err(Error::PageIsWindow)
    );
    let mut config = vm::config(1);
    config.meta_pa = pages;
    check_eq!(
        vm::create(&config).map(|v| v.handle),
        Err(Error::PageIsWindow)
    );
    check_eq!(owners(), before);
    ok!(vm.destroy());
    Ok(())
}

fn a22_unregister_gives_page_back_and_takes_it_from_guest() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, page, 1)));
    ok!(vm.pull(0, insn::STORE, [APERTURE, 5, 0, 0, 0, 0]));
    ok!(unregister(&vm, id));
    check_eq!(owner(page), PageOwner::Host);
    check_eq!(probe::read(page, 0), Ok(5));
    let exit = vm.pull(0, insn::LOAD, [APERTURE, 0, 0, 0, 0, 0]);
    check!(matches!(exit, Err(e) if e.kind == ExitKind::MmioRead && e.p[0] == APERTURE));
    // Now it may be donated.
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    ok!(vm.destroy());
    Ok(())
}

fn a22_register_during_teardown() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    ok!(vm.teardown());
    let pages = arena::pages(2, PAGE_SIZE);
    refused(&vm::window(&vm, APERTURE, pages, 2), Error::BadState)?;
    ok!(vm.destroy());
    Ok(())
}

fn a22_unregister_what_is_not() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for id in [0, 1, WINDOWS_MAX as u64, u64::MAX, 1 << 32] {
        check_eq!(unregister(&vm, id), Err(Error::NoWindow));
        let r = call(HostFunction::WindowInfo, &[vm.handle, id]);
        check_eq!(r, Err(Error::NoWindow));
    }
    let page = arena::page();
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, page, 1)));
    ok!(unregister(&vm, id));
    check_eq!(unregister(&vm, id), Err(Error::NoWindow));
    ok!(vm.destroy());
    Ok(())
}

fn a22_teardown_releases_windows() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(WINDOW_PAGES_MAX, 0x20_0000);
    ok!(vm::register(&vm::window(
        &vm,
        APERTURE,
        pages,
        WINDOW_PAGES_MAX
    )));
    check_eq!(audit().shared, WINDOW_PAGES_MAX);
    ok!(vm.teardown());
    check_eq!(audit().shared, 0);
    check_eq!(owner(pages), PageOwner::Host);
    check_eq!(
        owner(pages + (WINDOW_PAGES_MAX - 1) * PAGE_SIZE),
        PageOwner::Host
    );
    ok!(vm.destroy());
    Ok(())
}

fn a23_window_of_a_moved_bar_is_not_found_twice() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let moved = APERTURE + 0x10_0000;
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    arena::poke(pages, 0xba5);
    // A BAR moves by unregister and register; until then the window stays where it is.
    refused(&vm::window(&vm, moved, pages, 2), Error::PageIsWindow)?;
    let report = ok!(vm.pull(0, insn::LOAD, [APERTURE, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (0xba5, 0));
    ok!(unregister(&vm, id));
    ok!(vm::register(&vm::window(&vm, moved, pages, 2)));
    let report = ok!(vm.pull(0, insn::LOAD, [moved, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (0xba5, 0));
    let exit = vm.pull(0, insn::LOAD, [APERTURE, 0, 0, 0, 0, 0]);
    check!(matches!(exit, Err(e) if e.kind == ExitKind::MmioRead && e.p[0] == APERTURE));
    let a = audit();
    check_eq!(
        (a.shared, a.windows, a.offender),
        (2, 2, porthole_abi::NO_ADDRESS)
    );
    ok!(vm.destroy());
    Ok(())
}

fn a23_window_of_a_removed_device_is_gone() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    ok!(vm.pull(0, insn::STORE, [APERTURE, 1, 0, 0, 0, 0]));
    ok!(unregister(&vm, id));
    // Another device may come to its place, with other pages, and inherits nothing.
    let others = arena::pages(2, PAGE_SIZE);
    let mut config = vm::window(&vm, APERTURE, others, 2);
    config.function = FunctionId::new(0, 0, 7, 0).0;
    let new = ok!(vm::register(&config));
    ok!(vm.pull(0, insn::STORE, [APERTURE, 2, 0, 0, 0, 0]));
    check_eq!((arena::peek(pages), arena::peek(others)), (1, 2));
    check_eq!(owner(pages), PageOwner::Host);
    let info = ok!(call(HostFunction::WindowInfo, &[vm.handle, new]));
    check_eq!(info[3], u64::from(config.function));
    ok!(vm.destroy());
    Ok(())
}

fn a24_guest_cannot_execute_from_window() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let page = arena::page();
    arena::poke(page, 0xd65f_03c0); // ret
    ok!(vm::register(&vm::window(&vm, APERTURE, page, 1)));
    let report = ok!(vm.pull(0, insn::BRANCH, [APERTURE, 0, 0, 0, 0, 0]));
    check_eq!((report.class(), report.far), (0x21, APERTURE));
    // Neither after the guest wrote there itself.
    ok!(vm.pull(0, insn::STORE, [APERTURE, 0xd65f_03c0, 0, 0, 0, 0]));
    let report = ok!(vm.pull(0, insn::BRANCH, [APERTURE, 0, 0, 0, 0, 0]));
    check_eq!(report.class(), 0x21);
    ok!(vm.destroy());
    Ok(())
}

fn a24_guest_page_tables_in_window() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm::register(&vm::window(&vm, APERTURE, page, 1)));
    // 39-bit identity map: the strings' gigabyte as device, RAM as normal memory.
    arena::poke(page, 1 | 1 << 10 | 1 << 2 | 1 << 54);
    arena::poke(page + 16, RAM | 1 | 1 << 10 | 3 << 8);
    let msr = |insn: u32, value: u64| vm.pull(0, insn, [value, 0, 0, 0, 0, 0]);
    ok!(msr(insn::msr(3, 0, 10, 2, 0), 0x04ff));
    ok!(msr(
        insn::msr(3, 0, 2, 0, 2),
        25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 32
    ));
    ok!(msr(insn::msr(3, 0, 2, 0, 0), APERTURE));
    let sctlr = ok!(vm.pull(0, insn::mrs(3, 0, 1, 0, 0), [0; 6])).x[0];
    ok!(msr(insn::msr(3, 0, 1, 0, 0), sctlr | 1));
    let report = ok!(vm.pull(0, insn::LOAD, [RAM, 0, 0, 0, 0, 0]));
    check_eq!(report.esr, 0);
    // The host points the guest's map elsewhere: that can only harm this guest.
    arena::poke(page + 24, arena::RAM_BASE | 1 | 1 << 10 | 3 << 8);
    let exit = vm.pull_until(0, insn::LOAD, [3 << 30, 0, 0, 0, 0, 0], 0, &mut |_| Some(0));
    check!(exit.is_ok());
    let a = audit();
    check_eq!((a.shared, a.offender), (1, porthole_abi::NO_ADDRESS));
    ok!(vm.destroy());
    Ok(())
}

/// A call of puppet 0: x0 to x3 of the answer.
pub fn guest_call(vm: &Vm, function: GuestFunction, a: u64) -> Result<[u64; 4], Failure> {
    let id = u64::from(function.id());
    Ok(ok!(vm.pull(0, insn::HVC, [id, a, 0, 0, 0, 0])).x)
}

fn a24_guest_enumerates_its_windows() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(4, PAGE_SIZE);
    let x = guest_call(&vm, GuestFunction::WindowEnum, 0)?;
    check_eq!(x[0].cast_signed(), Error::NoWindow.code());
    ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    let mut second = vm::window(&vm, APERTURE + 0x10_0000, pages + 2 * PAGE_SIZE, 2);
    second.function = FunctionId::new(0, 0, 3, 0).0;
    ok!(vm::register(&second));
    let x = guest_call(&vm, GuestFunction::WindowEnum, 0)?;
    check_eq!(x, [0, 0, APERTURE, 2 * PAGE_SIZE]);
    let x = guest_call(&vm, GuestFunction::WindowEnum, 1)?;
    check_eq!(x, [0, 1, APERTURE + 0x10_0000, 2 * PAGE_SIZE]);
    for start in [2, WINDOWS_MAX as u64, u64::MAX] {
        let x = guest_call(&vm, GuestFunction::WindowEnum, start)?;
        check_eq!(x[0].cast_signed(), Error::NoWindow.code());
    }
    ok!(vm.destroy());
    Ok(())
}

fn a24_guest_asks_to_share_its_memory() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for function in [GuestFunction::MemShare, GuestFunction::MemUnshare] {
        let x = guest_call(&vm, function, RAM)?;
        check_eq!(x[0].cast_signed(), Error::Denied.code());
    }
    check_eq!(audit().shared, 0);
    ok!(vm.destroy());
    Ok(())
}
