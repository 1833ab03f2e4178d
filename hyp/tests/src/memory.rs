//! a01, a09: the host touches what is not its own, or leaves something in it before.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_abi::{ExitKind, PAGE_SIZE, PageOwner};
use porthole_runtime::mmu::{self, Attr, KERNEL_BASE};
use porthole_runtime::probe::{self, El0, Fault};
use porthole_runtime::read_reg;

use crate::arena;
use crate::harness::{self, Failure};
use crate::hyp::{owner, owner_of_run};
use crate::puppet::{self, insn};
use crate::vm::{self, RAM, Vm};
use crate::{check, check_eq, ok, tests};

tests![
    a01_host_accesses_to_guest_page_abort,
    a01_host_accesses_to_metadata_page_abort,
    a01_host_accesses_to_hypervisor_pages_abort,
    a01_host_kernel_address_gets_translation_fault,
    a01_host_el0_gets_external_abort,
    a01_host_page_table_walk_through_guest_page_aborts,
    a01_address_translation_shows_no_content,
    a01_guest_content_is_unharmed_by_host_writes,
    a01_every_hypervisor_page_is_out_of_reach,
    a01_tables_that_change_under_a_fault,
    a09_metadata_arrives_clean,
];

/// Where the tests map an alias for EL0.
pub const USER_OFFSET: u64 = 0x10_0000_0000;

fn has_lse() -> bool {
    (read_reg!("id_aa64isar0_el1") >> 20) & 0xf != 0
}

fn refused(r: Result<u64, Fault>) -> bool {
    matches!(r, Err(f) if f.is_external())
}

/// Every kind of access through a TTBR0 address.
fn all_accesses_refused(pa: u64) -> Result<(), Failure> {
    for at in [pa, pa + 8, pa + PAGE_SIZE - 8] {
        check!(refused(probe::read(at, 0)));
        check!(refused(probe::read8(at, 0)));
        check!(refused(probe::write(at, 0x4141)));
        check!(refused(probe::load_exclusive(at, 0)));
        check!(
            refused(probe::read_unprivileged(at, 0)) || probe::read_unprivileged(at, 0).is_err()
        );
        check!(refused(probe::zero_line(at & !63, 0)));
        if has_lse() {
            check!(refused(probe::atomic_add(at, 1)));
        }
        check!(refused(probe::execute(at, 0)));
        // Cache maintenance may be done without an access (QEMU) or abort; it must not harm.
        let _ = probe::clean_invalidate(at, 0);
        let _ = probe::invalidate(at, 0);
        let _ = probe::invalidate_instruction(at, 0);
    }
    Ok(())
}

fn a01_host_accesses_to_guest_page_abort() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    arena::poke(page, 0x1111);
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    check_eq!(owner(page), PageOwner::VmMemory);
    all_accesses_refused(page)?;
    ok!(vm.destroy());
    check_eq!(probe::read(page, 0), Ok(0));
    Ok(())
}

fn a01_host_accesses_to_metadata_page_abort() -> Result<(), Failure> {
    let config = vm::config(1);
    let vm = ok!(vm::create(&config));
    ok!(vm.create_vcpu(0));
    for i in 0..config.meta_pages {
        let page = config.meta_pa + i * PAGE_SIZE;
        check_eq!(owner(page), PageOwner::VmMetadata);
        all_accesses_refused(page)?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a01_host_accesses_to_hypervisor_pages_abort() -> Result<(), Failure> {
    all_accesses_refused(arena::hyp_page())
}

fn a01_every_hypervisor_page_is_out_of_reach() -> Result<(), Failure> {
    let (mut pages, mut at) = (0, arena::RAM_BASE);
    while at < arena::ram_end() {
        let (owner, run) = owner_of_run(at);
        let next = at + run * PAGE_SIZE;
        if owner == PageOwner::Hyp {
            for page in (at..next).step_by(PAGE_SIZE as usize) {
                check!(refused(probe::read(page, 0)));
                check!(refused(probe::write(page, 0)));
            }
            pages += run;
        }
        at = next;
    }
    check!(pages > 16);
    Ok(())
}

fn a01_host_kernel_address_gets_translation_fault() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    check_eq!(probe::read(KERNEL_BASE | page, 0), Ok(0));
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    for r in [
        probe::read(KERNEL_BASE | page, 0),
        probe::write(KERNEL_BASE | page, 1),
        probe::execute(KERNEL_BASE | page, 0),
    ] {
        check!(matches!(r, Err(f) if f.is_translation() && f.far == KERNEL_BASE | page));
    }
    // The syndrome tells reads from writes, as a fault of the host's own tables would.
    let write = probe::write(KERNEL_BASE | page, 1)
        .err()
        .map(|f| f.esr >> 6 & 1);
    let read = probe::read(KERNEL_BASE | page, 0)
        .err()
        .map(|f| f.esr >> 6 & 1);
    check_eq!((write, read), (Some(1), Some(0)));
    ok!(vm.destroy());
    check_eq!(probe::read(KERNEL_BASE | page, 0), Ok(0));
    Ok(())
}

fn a01_host_el0_gets_external_abort() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    mmu::map(USER_OFFSET + (1 << 30), 1 << 30, 1 << 30, Attr::User);
    arena::poke(page, 0x77);
    check_eq!(
        probe::at_el0(El0::Read, USER_OFFSET, page + USER_OFFSET),
        Ok(0x77)
    );
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    check!(refused(probe::at_el0(
        El0::Read,
        USER_OFFSET,
        page + USER_OFFSET
    )));
    check!(refused(probe::at_el0(
        El0::Write,
        USER_OFFSET,
        page + USER_OFFSET
    )));
    ok!(vm.destroy());
    check_eq!(
        probe::at_el0(El0::Read, USER_OFFSET, page + USER_OFFSET),
        Ok(0)
    );
    Ok(())
}

fn a01_host_page_table_walk_through_guest_page_aborts() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let table = arena::page();
    // A level-2 table that maps a 2 MiB block of ours, hung into the program's own root.
    arena::poke(table, (arena::RAM_BASE) | 0x705 | 3 << 8 | 1);
    let slot = mmu::root() + 0x1ff * 8;
    let va = 0x1ffu64 << 30;
    arena::poke(slot, table | 3);
    mmu::flush();
    ok!(vm.donate(table, RAM + 0x10_0000, 1, 0));
    mmu::flush();
    let r = probe::read(va, 0);
    arena::poke(slot, 0);
    mmu::flush();
    check!(matches!(r, Err(f) if f.is_external() || f.is_translation()));
    ok!(vm.destroy());
    Ok(())
}

fn a01_address_translation_shows_no_content() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    // A stage-1 translation of an identity map tells the host what it knows: its own address.
    let par = probe::translate(page);
    check!(par & 1 == 1 || par & 0x0000_ffff_ffff_f000 == page);
    ok!(vm.destroy());
    Ok(())
}

fn a01_guest_content_is_unharmed_by_host_writes() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    let ipa = RAM + 0x10_0000;
    arena::poke(page, 0xbad);
    ok!(vm.donate(page, ipa, 1, 0));
    let report = ok!(vm.pull(0, insn::LOAD, [ipa, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (0, 0));
    let secret = 0x5ec2_e75e_c2e7;
    ok!(vm.pull(0, insn::STORE, [ipa, secret, 0, 0, 0, 0]));
    let _ = probe::write(page, 0);
    let _ = probe::zero_line(page, 0);
    let _ = probe::invalidate(page, 0);
    let _ = probe::write(KERNEL_BASE | page, 0);
    let report = ok!(vm.pull(0, insn::LOAD, [ipa, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (secret, 0));
    let _ = puppet::FREE;
    ok!(vm.destroy());
    Ok(())
}

static TABLE: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Entry of the program's root that the test below changes all the time.
const FLIPPED: u64 = 0x1fe;
/// An address where nothing answers: behind RAM, before QEMU's 64-bit PCI aperture.
const NOBODY: u64 = 0x8_0000_0000;

/// Hangs a sound table and one at an address where nothing answers into the root, in turn.
fn change_root() {
    let slot = mmu::root() + FLIPPED * 8;
    let table = TABLE.load(Ordering::Acquire);
    let mut turn = 0u64;
    while !STOP.load(Ordering::Acquire) {
        arena::poke(slot, if turn & 1 == 0 { table } else { NOBODY } | 3);
        // Each state holds for another while, up to about what EL2 takes for a fault.
        for _ in 0..turn & 0x1f {
            core::hint::spin_loop();
        }
        turn += 1;
    }
}

fn a01_tables_that_change_under_a_fault() -> Result<(), Failure> {
    // The fetch that stage 2 refuses went through sound tables; whoever walks them again at EL2 meets others.
    let table = arena::page();
    arena::poke(table, 0x0900_0000 | 0x701);
    TABLE.store(table, Ordering::Release);
    STOP.store(false, Ordering::Release);
    harness::start(1, change_root);
    let va = FLIPPED << 30;
    let mut fetched = 0;
    for _ in 0..20_000 {
        fetched += u64::from(probe::execute(va, 0).is_ok());
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    arena::poke(mmu::root() + FLIPPED * 8, 0);
    mmu::flush();
    check_eq!(fetched, 0);
    Ok(())
}

fn a09_metadata_arrives_clean() -> Result<(), Failure> {
    // Every page of metadata comes as a table that maps the hypervisor for the guest, in blocks of 1 GiB.
    let config = vm::config(1);
    let bytes = config.meta_pages * PAGE_SIZE;
    for word in (config.meta_pa..config.meta_pa + bytes).step_by(8) {
        arena::poke(word, arena::RAM_BASE | 0x7fd);
    }
    let mut vm = ok!(vm::create(&config));
    ok!(vm.create_vcpu(0));
    vm.load_puppet();
    ok!(vm.finalize(RAM, 0));
    let secret = arena::hyp_page() - arena::RAM_BASE;
    for gib in [0, 1, 3, 4, 63] {
        let at = gib << 30 | secret;
        let mut seen = None;
        let x = [at, 0, 0, 0, 0, 0];
        let report = ok!(vm.pull_until(0, insn::LOAD, x, 0, &mut |exit| {
            seen = Some((exit.kind, exit.p[0]));
            Some(0x77)
        }));
        check_eq!(seen, Some((ExitKind::MmioRead, at)));
        check_eq!((report.x[0], report.esr), (0x77, 0));
    }
    ok!(vm.destroy());
    Ok(())
}
