//! a07, a08: other CPUs with warm TLBs, and a parameter block that changes under the hypervisor's hands.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_abi::{Error, Extent, HostFunction, PAGE_SIZE, WindowConfig};
use porthole_runtime::mmu::{self, KERNEL_BASE};
use porthole_runtime::{probe, reg, timer};

use crate::harness::{self, Failure};
use crate::hyp::call;
use crate::puppet::insn;
use crate::vm::{self, APERTURE, RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a01_fetch_from_device_while_its_walk_comes_to_fail,
    a07_other_cpu_loses_page_with_donation,
    a07_other_cpu_loses_whole_block_with_donation,
    a07_neighbours_in_a_split_block_stay_reachable,
    a07_guest_loses_window_with_unregister,
    a07_guest_loses_memory_with_teardown,
    a08_block_in_protected_memory,
    a08_block_in_mmio_hole_or_hypervisor,
    a08_block_unaligned_or_across_pages,
    a08_block_changed_by_other_cpu,
    a08_reserved_fields_not_zero,
    a08_counts_beyond_the_block,
];

const IPA: u64 = RAM + 0x20_0000;

static PAGE: AtomicU64 = AtomicU64::new(0);
static GONE: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static WARM: AtomicU64 = AtomicU64::new(0);
static LATE: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);

fn begin(page: u64) {
    PAGE.store(page, Ordering::Release);
    GONE.store(false, Ordering::Release);
    STOP.store(false, Ordering::Release);
    for counter in [&WARM, &LATE, &FAULTS] {
        counter.store(0, Ordering::Release);
    }
}

fn until(counter: &AtomicU64, at_least: u64) {
    while counter.load(Ordering::Acquire) < at_least {
        core::hint::spin_loop();
    }
}

/// Reads and writes the page until stopped; an access that began after GONE and succeeded is counted late.
fn toucher() {
    let page = PAGE.load(Ordering::Acquire);
    while !STOP.load(Ordering::Acquire) {
        let gone = GONE.load(Ordering::Acquire);
        let read = probe::read(page, 0);
        let high = probe::read(KERNEL_BASE | page, 0);
        let write = probe::write(page + 8, 0xbad);
        let reached = read.is_ok() || high.is_ok() || write.is_ok();
        WARM.fetch_add(1, Ordering::AcqRel);
        if gone && reached {
            LATE.fetch_add(1, Ordering::AcqRel);
        }
        if !reached {
            FAULTS.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn donation_takes_pages_from_other_cpus(pages: u64, align: u64) -> Result<(), Failure> {
    for _ in 0..4 {
        let mut vm = Vm::puppet(1);
        let run = arena::pages(pages, align);
        begin(run + (pages - 1) * PAGE_SIZE);
        for cpu in 1..harness::cpus() {
            harness::start(cpu, toucher);
        }
        until(&WARM, 64);
        ok!(vm.donate(run, IPA, pages, 0));
        GONE.store(true, Ordering::Release);
        until(&FAULTS, 64);
        STOP.store(true, Ordering::Release);
        for cpu in 1..harness::cpus() {
            harness::wait(cpu);
        }
        check_eq!(LATE.load(Ordering::Acquire), 0);
        let at = IPA + (pages - 1) * PAGE_SIZE;
        let report = ok!(vm.pull(0, insn::LOAD, [at + 8, 0, 0, 0, 0, 0]));
        check_eq!((report.x[0], report.esr), (0, 0));
        ok!(vm.destroy());
    }
    Ok(())
}

fn a07_other_cpu_loses_page_with_donation() -> Result<(), Failure> {
    donation_takes_pages_from_other_cpus(1, PAGE_SIZE)
}

fn a07_other_cpu_loses_whole_block_with_donation() -> Result<(), Failure> {
    donation_takes_pages_from_other_cpus(512, 0x20_0000)
}

fn a07_neighbours_in_a_split_block_stay_reachable() -> Result<(), Failure> {
    // While one page of a 2 MiB block comes and goes, the others must never be seen to fault.
    let block = arena::pages(512, 0x20_0000);
    begin(block + 300 * PAGE_SIZE);
    for cpu in 1..harness::cpus() {
        harness::start(cpu, toucher);
    }
    until(&WARM, 16);
    for round in 0..8 {
        let mut vm = Vm::puppet(1);
        ok!(vm.donate(block + round * PAGE_SIZE, IPA, 1, 0));
        ok!(vm.destroy());
    }
    let faults = FAULTS.load(Ordering::Acquire);
    STOP.store(true, Ordering::Release);
    check_eq!(faults, 0);
    Ok(())
}

static VM: AtomicU64 = AtomicU64::new(0);

/// Runs vCPU 1 of the VM until a run is refused or stopped.
fn runner() {
    let vm = VM.load(Ordering::Acquire);
    while !STOP.load(Ordering::Acquire) {
        match crate::hyp::vcpu_run(vm, 1, 0) {
            Ok(_) => {
                WARM.fetch_add(1, Ordering::AcqRel);
            }
            Err(_) => break,
        }
    }
}

fn a07_guest_loses_window_with_unregister() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    for _ in 0..8 {
        let id = ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
        arena::poke(pages + PAGE_SIZE, 0x600d);
        let at = APERTURE + PAGE_SIZE;
        let report = ok!(vm.pull(0, insn::LOAD, [at, 0, 0, 0, 0, 0]));
        check_eq!((report.x[0], report.esr), (0x600d, 0));
        ok!(call(HostFunction::WindowUnregister, &[vm.handle, id, 0]));
        // The warm translation is gone: the load comes out as MMIO now.
        let mut asked = None;
        let report = ok!(
            vm.pull_until(0, insn::LOAD, [at, 0, 0, 0, 0, 0], 0, &mut |e| {
                asked = Some(e);
                Some(0x77)
            })
        );
        check!(matches!(asked, Some(e) if e.p[0] == at));
        check_eq!(report.x[0], 0x77);
    }
    ok!(vm.destroy());
    Ok(())
}

fn a07_guest_loses_memory_with_teardown() -> Result<(), Failure> {
    // vCPU 1 runs on another CPU; teardown must be refused while it does, and then leave nothing.
    let vm = Vm::puppet(2);
    begin(0);
    VM.store(vm.handle, Ordering::Release);
    // vCPU 1 is off: its runs are exits; teardown sees it running now and then.
    harness::start(1, runner);
    // However long CPU 1 is not let run in the middle of one.
    let end = reg::counter() + timer::ticks(300_000_000);
    loop {
        match call(HostFunction::VmTeardown, &[vm.handle]) {
            Err(Error::Busy) => {}
            Err(_) => check!(false),
            Ok(r) if r[1] == 0 => break,
            Ok(_) => {}
        }
        check!(reg::counter() < end);
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    check_eq!(
        crate::hyp::vcpu_run(vm.handle, 0, 0).err(),
        Some(Error::BadState)
    );
    ok!(vm.destroy());
    Ok(())
}

fn a08_block_in_protected_memory() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    for function in [HostFunction::VmCreate, HostFunction::WindowRegister] {
        check_eq!(call(function, &[page]), Err(Error::NotHostOwned));
    }
    ok!(vm.destroy());
    Ok(())
}

fn a08_block_in_mmio_hole_or_hypervisor() -> Result<(), Failure> {
    for function in [HostFunction::VmCreate, HostFunction::WindowRegister] {
        for (pa, error) in [
            (0x0900_0000, Error::NotRam),
            (0, Error::NotRam),
            (arena::ram_end(), Error::NotRam),
            (1 << 52, Error::NotRam),
            (0u64.wrapping_sub(PAGE_SIZE), Error::NotRam),
            (arena::hyp_page(), Error::NotHostOwned),
        ] {
            let got = call(function, &[pa]);
            check!(got == Err(error) || got == Err(Error::Overflow));
        }
    }
    Ok(())
}

fn a08_block_unaligned_or_across_pages() -> Result<(), Failure> {
    let pages = arena::pages(2, PAGE_SIZE);
    for function in [HostFunction::VmCreate, HostFunction::WindowRegister] {
        for offset in [1, 4, 7] {
            check_eq!(call(function, &[pages + offset]), Err(Error::Unaligned));
        }
        check!(call(function, &[pages + PAGE_SIZE - 8]).is_err());
    }
    Ok(())
}

static BLOCK: AtomicU64 = AtomicU64::new(0);

/// Flips the window's address between the aperture and guest RAM, and its page between two.
fn flipper() {
    let block = BLOCK.load(Ordering::Acquire);
    let ipa = block + core::mem::offset_of!(WindowConfig, ipa) as u64;
    let length = block + core::mem::offset_of!(WindowConfig, length) as u64;
    let mut n = 0u64;
    while !STOP.load(Ordering::Acquire) {
        arena::poke(ipa, if n & 1 == 0 { APERTURE } else { RAM });
        arena::poke(
            length,
            if n & 2 == 0 {
                2 * PAGE_SIZE
            } else {
                u64::MAX - 0xfff
            },
        );
        n += 1;
        WARM.store(n, Ordering::Release);
    }
}

fn a08_block_changed_by_other_cpu() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let block = arena::page();
    arena::put(block, &vm::window(&vm, APERTURE, pages, 2));
    begin(0);
    BLOCK.store(block, Ordering::Release);
    harness::start(1, flipper);
    until(&WARM, 1);
    let (mut taken, mut denied) = (0, 0);
    // However the two CPUs fall out: until both outcomes were seen often enough.
    for _ in 0..4_000_000 {
        if taken >= 100 && denied >= 100 {
            break;
        }
        match call(HostFunction::WindowRegister, &[block]) {
            Ok(r) => {
                let info = ok!(call(HostFunction::WindowInfo, &[vm.handle, r[1]]));
                check_eq!((info[1], info[2]), (APERTURE, 2 * PAGE_SIZE));
                ok!(call(HostFunction::WindowUnregister, &[vm.handle, r[1], 0]));
                taken += 1;
            }
            Err(_) => denied += 1,
        }
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    check!(taken >= 100 && denied >= 100);
    ok!(vm.destroy());
    Ok(())
}

fn a08_reserved_fields_not_zero() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let good = vm::window(&vm, APERTURE, pages, 2);
    let mut bad = [good; 4];
    bad[0].reserved = 1;
    bad[1].flags = 2;
    bad[2].extents[1] = Extent {
        pa: pages,
        pages: 0,
    };
    bad[3].extents[239] = Extent { pa: 0, pages: 1 };
    for config in &bad {
        check_eq!(vm::register(config), Err(Error::ReservedNonZero));
    }
    let good = vm::config(1);
    let mut bad = [good; 5];
    bad[0].reserved[0] = 1;
    bad[1].reserved[1] = 1 << 63;
    bad[2].flags = 2;
    bad[3].regions[0].reserved = 1;
    bad[4].regions[15].size = PAGE_SIZE;
    for config in &bad {
        check_eq!(
            vm::create(config).map(|v| v.handle),
            Err(Error::ReservedNonZero)
        );
    }
    let mut version = good;
    version.version += 0x1_0000;
    check_eq!(
        vm::create(&version).map(|v| v.handle),
        Err(Error::BadVersion)
    );
    ok!(vm.destroy());
    Ok(())
}

fn a08_counts_beyond_the_block() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    for count in [0, 241, u32::MAX] {
        let mut config = vm::window(&vm, APERTURE, pages, 2);
        config.extent_count = count;
        check!(vm::register(&config).is_err());
    }
    for count in [0, 17, u32::MAX] {
        let mut config = vm::config(1);
        config.region_count = count;
        check!(vm::create(&config).is_err());
    }
    for vcpus in [0, 9, u32::MAX] {
        let mut config = vm::config(1);
        config.vcpus = vcpus;
        check!(vm::create(&config).is_err());
    }
    for (extent, error) in [
        (
            Extent {
                pa: pages,
                pages: u64::MAX,
            },
            Error::Overflow,
        ),
        (
            Extent {
                pa: pages,
                pages: 1,
            },
            Error::InvalidParameter,
        ),
        (
            Extent {
                pa: pages + 8,
                pages: 2,
            },
            Error::Unaligned,
        ),
        (
            Extent {
                pa: pages,
                pages: 0,
            },
            Error::Empty,
        ),
    ] {
        let mut config = vm::window(&vm, APERTURE, pages, 2);
        config.extents[0] = extent;
        let got = vm::register(&config);
        check!(
            got == Err(error) || got == Err(Error::TooLarge) || got == Err(Error::InvalidParameter)
        );
    }
    ok!(vm.destroy());
    Ok(())
}

/// Hole in the bus of QEMU `virt`: a table walk into it is an external abort.
const BUS_HOLE: u64 = 0x0b00_0000;
/// The interrupt controller: device memory, which stage 2 makes execute-never.
const DEVICE: u64 = 0x0800_0000;
/// Entry of the level-1 table that the two walks fight over.
const WALK_SLOT: u64 = 0x1fe;

/// Makes the walk of one address good and bad in turn.
fn walk_flipper() {
    let good = PAGE.load(Ordering::Acquire) | 3;
    let slot = mmu::root() + WALK_SLOT * 8;
    while !STOP.load(Ordering::Acquire) {
        arena::poke(slot, BUS_HOLE | 3);
        arena::poke(slot, good);
    }
    arena::poke(slot, 0);
}

/// A fetch that stage 2 refuses, at an address whose own walk is an external abort a moment later: whatever EL2 finds
/// out about the address must not become an abort of its own.
fn a01_fetch_from_device_while_its_walk_comes_to_fail() -> Result<(), Failure> {
    let table = arena::page();
    // A 2 MiB block of normal memory, executable at EL1.
    arena::poke(table, DEVICE | 1 << 10 | 3 << 8 | 1);
    begin(table);
    arena::poke(mmu::root() + WALK_SLOT * 8, table | 3);
    mmu::flush();
    harness::start(1, walk_flipper);
    let va = WALK_SLOT << 30;
    let mut refused = 0;
    for _ in 0..20_000 {
        mmu::flush();
        if matches!(probe::execute(va, 0), Err(fault) if fault.is_external()) {
            refused += 1;
        }
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    mmu::flush();
    check_eq!(refused, 20_000);
    Ok(())
}
