//! Unprotected VMs: their RAM is windows that they execute from and the host reads.
//! A protected VM neither has such RAM nor gains it, and an unprotected one owns no page.

use porthole_abi::{
    Error, Features, GuestFunction, HostFunction, NO_ADDRESS, OPEN_WINDOW_PAGES_MAX, PAGE_SIZE,
    PageOwner, RegionKind, VmConfig, VmFlags,
};

use crate::harness::Failure;
use crate::hyp::{audit, call, owner, owners};
use crate::puppet::{self, insn};
use crate::vm::{self, APERTURE, RAM, RAM_SIZE, Vm};
use crate::window_life::guest_call;
use crate::windows::{refused, unregister};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a_vm_with_open_ram_hides_nothing_and_is_told,
    a20_open_ram_of_a_protected_vm,
    a20_open_ram_of_pages_not_the_hosts,
    a22_open_ram_taken_from_a_running_vm,
    a02_donation_to_a_vm_with_open_ram,
];

/// `ret`
const RET: u64 = 0xd65f_03c0;
/// Pages of RAM that an unprotected puppet has.
const PAGES: u64 = 16;

/// The usual map with open RAM, and the flag that goes with it.
fn open_config() -> VmConfig {
    let mut config = vm::config(1);
    config.flags = VmFlags::UNPROTECTED.bits();
    config.regions[0].kind = RegionKind::OpenRam as u32;
    config
}

/// An unprotected puppet, its RAM and the id of the window that is its RAM.
fn open_puppet() -> Result<(Vm, u64, u64), Failure> {
    let vm = ok!(vm::create(&open_config()));
    ok!(vm.create_vcpu(0));
    let ram = arena::pages(PAGES, PAGE_SIZE);
    let (code, size) = puppet::code();
    for at in (0..size).step_by(8) {
        arena::poke(ram + at, arena::peek(code + at));
    }
    let id = ok!(vm::register(&vm::window(&vm, RAM, ram, PAGES)));
    ok!(vm.finalize(RAM, 0));
    Ok((vm, ram, id))
}

/// GUEST_FEATURES says that RAM is open.
fn is_told_of_open_ram(vm: &Vm) -> Result<bool, Failure> {
    let x = guest_call(vm, GuestFunction::GuestFeatures, 0)?;
    check_eq!(x[0], 0);
    Ok(Features::from_bits_retain(x[2]).contains(Features::UNPROTECTED))
}

fn a_vm_with_open_ram_hides_nothing_and_is_told() -> Result<(), Failure> {
    let (vm, ram, _) = open_puppet()?;
    check!(is_told_of_open_ram(&vm)?);
    let info = ok!(call(HostFunction::VmInfo, &[vm.handle & 0xff]));
    check_eq!((info[1], info[8]), (vm.handle, VmFlags::UNPROTECTED.bits()));
    // What the guest writes the host reads, and what the host writes the guest executes.
    ok!(vm.pull(0, insn::STORE, [RAM + puppet::FREE, 0x5ec, 0, 0, 0, 0]));
    check_eq!(arena::peek(ram + puppet::FREE), 0x5ec);
    arena::poke(ram + puppet::FREE, RET);
    let branch = |to: u64| vm.pull(0, insn::BRANCH, [to, 0, 0, 0, 0, 0]);
    check_eq!(ok!(branch(RAM + puppet::FREE)).esr, 0);
    // A window in the aperture is still data only.
    let device = arena::page();
    arena::poke(device, RET);
    ok!(vm::register(&vm::window(&vm, APERTURE, device, 1)));
    let report = ok!(branch(APERTURE));
    check_eq!((report.class(), report.far), (0x21, APERTURE));
    // Nothing is shared behind the windows' back.
    let a = audit();
    check_eq!(
        (a.shared, a.windows, a.offender),
        (PAGES + 1, PAGES + 1, NO_ADDRESS)
    );
    check_eq!(owner(ram), PageOwner::Window);
    ok!(vm.destroy());
    // The pages never were the VM's: the host has them back as they are.
    check_eq!(arena::peek(ram + puppet::FREE), RET);
    check_eq!(owner(ram), PageOwner::Host);
    Ok(())
}

fn a20_open_ram_of_a_protected_vm() -> Result<(), Failure> {
    // Neither at its creation: open RAM without the flag, the flag without open RAM, both kinds at once...
    let kind = |c: &mut VmConfig, i: usize, kind: RegionKind| c.regions[i].kind = kind as u32;
    let unprotected = VmFlags::UNPROTECTED.bits();
    for step in 0..5 {
        let mut config = vm::config(1);
        match step {
            0 => kind(&mut config, 0, RegionKind::OpenRam),
            1 => config.flags = unprotected,
            2 => kind(&mut config, 1, RegionKind::OpenRam),
            3 => {
                kind(&mut config, 1, RegionKind::OpenRam);
                config.flags = unprotected;
            }
            _ => {
                config = open_config();
                kind(&mut config, 1, RegionKind::Ram);
            }
        }
        let before = owners();
        check_eq!(
            vm::create(&config).map(|v| v.handle),
            Err(Error::BadRegions)
        );
        check_eq!(owners(), before);
    }
    // ...nor while it is loaded, nor when it runs.
    let mut vm = ok!(vm::create(&vm::config(1)));
    let page = arena::page();
    let hole = RAM + 0x10_0000;
    refused(&vm::window(&vm, hole, page, 1), Error::OutsideRegion)?;
    ok!(vm.create_vcpu(0));
    vm.load_puppet();
    for ipa in [RAM, hole] {
        refused(&vm::window(&vm, ipa, page, 1), Error::OutsideRegion)?;
    }
    ok!(vm.finalize(RAM, 0));
    for ipa in [RAM, hole, RAM + RAM_SIZE - PAGE_SIZE] {
        refused(&vm::window(&vm, ipa, page, 1), Error::OutsideRegion)?;
    }
    check!(!is_told_of_open_ram(&vm)?);
    let info = ok!(call(HostFunction::VmInfo, &[vm.handle & 0xff]));
    check_eq!((info[1], info[8]), (vm.handle, 0));
    check_eq!(audit().shared, 0);
    ok!(vm.destroy());
    Ok(())
}

fn a20_open_ram_of_pages_not_the_hosts() -> Result<(), Failure> {
    let mut guest = Vm::puppet(1);
    let secret = arena::page();
    ok!(guest.donate(secret, RAM + 0x10_0000, 1, 0));
    ok!(guest.pull(0, insn::STORE, [RAM + 0x10_0000, 0x5ec, 0, 0, 0, 0]));
    let shared = arena::page();
    ok!(vm::register(&vm::window(&guest, APERTURE, shared, 1)));
    let (open, ram, _) = open_puppet()?;
    let free = RAM + PAGES * PAGE_SIZE;
    for (pa, error) in [
        (secret, Error::NotHostOwned),
        (arena::hyp_page(), Error::NotHostOwned),
        (shared, Error::PageIsWindow),
        (ram, Error::PageIsWindow),
        (0x0900_0000, Error::NotRam),
    ] {
        refused(&vm::window(&open, free, pa, 1), error)?;
    }
    // Its RAM is no protected VM's RAM or window either.
    refused(
        &vm::window(&guest, APERTURE + 0x10_0000, ram, 1),
        Error::PageIsWindow,
    )?;
    let donation = [guest.handle, ram, RAM + 0x20_0000, 1, 0];
    check_eq!(
        call(HostFunction::VmDonate, &donation),
        Err(Error::PageIsWindow)
    );
    // Nor does it leave its region, nor has a window more than its share.
    let spare = arena::pages(2, PAGE_SIZE);
    let last = RAM + RAM_SIZE - PAGE_SIZE;
    refused(&vm::window(&open, last, spare, 2), Error::OutsideRegion)?;
    let large = vm::window(&open, free, spare, OPEN_WINDOW_PAGES_MAX + 1);
    refused(&large, Error::TooLarge)?;
    let a = audit();
    check_eq!((a.shared, a.offender), (PAGES + 1, NO_ADDRESS));
    let report = ok!(guest.pull(0, insn::LOAD, [RAM + 0x10_0000, 0, 0, 0, 0, 0]));
    check_eq!(report.x[0], 0x5ec);
    ok!(open.destroy());
    ok!(guest.destroy());
    Ok(())
}

fn a22_open_ram_taken_from_a_running_vm() -> Result<(), Failure> {
    let (vm, ram, id) = open_puppet()?;
    let more = arena::page();
    arena::poke(more, RET);
    let at = RAM + PAGES * PAGE_SIZE;
    let second = ok!(vm::register(&vm::window(&vm, at, more, 1)));
    check_eq!(ok!(vm.pull(0, insn::BRANCH, [at, 0, 0, 0, 0, 0])).esr, 0);
    ok!(unregister(&vm, second));
    // No stale translation: the fetch aborts in the guest, or the load exits, and the page is the host's to donate.
    let report = vm.pull(0, insn::BRANCH, [at, 0, 0, 0, 0, 0]);
    check!(!matches!(report, Ok(r) if r.esr == 0));
    let mut guest = Vm::puppet(1);
    ok!(guest.donate(more, RAM + 0x10_0000, 1, 0));
    // All of it goes under the vCPU's feet: only this VM is the worse for it.
    ok!(unregister(&vm, id));
    check_eq!(audit().shared, 0);
    check_eq!(owner(ram), PageOwner::Host);
    ok!(vm.destroy());
    let report = ok!(guest.pull(0, insn::LOAD, [RAM + 0x10_0000, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (0, 0));
    ok!(guest.destroy());
    Ok(())
}

fn a02_donation_to_a_vm_with_open_ram() -> Result<(), Failure> {
    let loaded = ok!(vm::create(&open_config()));
    let (running, _, _) = open_puppet()?;
    let page = arena::page();
    arena::poke(page, 0x5ec);
    let before = owners();
    for vm in [&loaded, &running] {
        for ipa in [RAM, RAM + 0x10_0000, APERTURE, vm::GICD] {
            let args = [vm.handle, page, ipa, 1, 0];
            check_eq!(
                call(HostFunction::VmDonate, &args),
                Err(Error::OutsideRegion)
            );
        }
    }
    // With content, too.
    let args = [loaded.handle, page, RAM, 1, 1];
    check_eq!(
        call(HostFunction::VmDonate, &args),
        Err(Error::OutsideRegion)
    );
    check_eq!(owners(), before);
    check_eq!((owner(page), arena::peek(page)), (PageOwner::Host, 0x5ec));
    ok!(loaded.destroy());
    ok!(running.destroy());
    Ok(())
}
