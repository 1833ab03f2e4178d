//! a60, a61: the host aims a device's DMA at what is not its own, and touches what confines it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_abi::{
    DMA_CONFINED_MAX, DmaRecord, Features, HostFunction, PAGE_SIZE, PageOwner, StatKind,
};
use porthole_runtime::{probe, reg};

use crate::edu::{Edu, NOTHING};
use crate::harness::{self, Failure};
use crate::hyp::{call, owner, stat};
use crate::puppet::insn;
use crate::vm::{self, APERTURE, RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a60_dma_is_isolated_on_this_machine,
    a60_device_reaches_the_hosts_pages_and_windows,
    a60_device_cannot_reach_guest_memory,
    a60_device_cannot_reach_metadata_or_hypervisor,
    a60_page_leaves_the_device_with_its_donation_and_returns_zeroed,
    a60_donate_and_reclaim_on_another_cpu_under_dma,
    a60_neighbours_of_a_donated_page_stay_in_reach_without_a_fault,
    a60_refused_accesses_are_counted_by_function,
    a61_smmu_registers_are_out_of_the_hosts_reach,
    a61_no_other_master_is_within_the_hosts_reach,
];

/// Guest address of the page under attack.
const IPA: u64 = RAM + 0x20_0000;
const SECRET: u64 = 0x5ec2_e75e_c2e7;
const POISON: u64 = 0xbad0_bad0_bad0;

/// Accesses refused since boot.
pub fn faults() -> u64 {
    stat(StatKind::DmaFaults, 0)
}

/// The device can neither read nor change the page; both attempts are counted.
pub fn out_of_reach(edu: &Edu, pa: u64) -> Result<(), Failure> {
    let before = faults();
    edu.store(pa, POISON);
    check!(faults() > before);
    let before = faults();
    check!(NOTHING.contains(&edu.fetch(pa)));
    check!(faults() > before);
    Ok(())
}

fn a60_dma_is_isolated_on_this_machine() -> Result<(), Failure> {
    let features = Features::from_bits_retain(ok!(call(HostFunction::Features, &[]))[2]);
    check!(features.contains(Features::DMA_ISOLATED));
    check!(!features.contains(Features::UNSAFE_DMA));
    Ok(())
}

fn a60_device_reaches_the_hosts_pages_and_windows() -> Result<(), Failure> {
    // Without this the refusals below would prove nothing.
    let edu = Edu::new();
    let page = arena::page();
    arena::poke(page, SECRET);
    check_eq!(edu.fetch(page), SECRET);
    edu.store(page + 8, POISON);
    check_eq!(arena::peek(page + 8), POISON);
    let vm = Vm::puppet(1);
    let pages = arena::pages(2, PAGE_SIZE);
    let id = ok!(vm::register(&vm::window(&vm, APERTURE, pages, 2)));
    edu.store(pages + PAGE_SIZE, SECRET);
    let at = APERTURE + PAGE_SIZE;
    let report = ok!(vm.pull(0, insn::LOAD, [at, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (SECRET, 0));
    check_eq!(edu.fetch(pages + PAGE_SIZE), SECRET);
    ok!(call(HostFunction::WindowUnregister, &[vm.handle, id, 0]));
    ok!(vm.destroy());
    Ok(())
}

fn a60_device_cannot_reach_guest_memory() -> Result<(), Failure> {
    let edu = Edu::new();
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, IPA, 1, 0));
    let report = ok!(vm.pull(0, insn::STORE, [IPA, SECRET, 0, 0, 0, 0]));
    check_eq!(report.esr, 0);
    out_of_reach(&edu, page)?;
    let report = ok!(vm.pull(0, insn::LOAD, [IPA, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (SECRET, 0));
    ok!(vm.destroy());
    Ok(())
}

fn a60_device_cannot_reach_metadata_or_hypervisor() -> Result<(), Failure> {
    let edu = Edu::new();
    let config = vm::config(1);
    let vm = ok!(vm::create(&config));
    ok!(vm.create_vcpu(0));
    check_eq!(owner(config.meta_pa), PageOwner::VmMetadata);
    out_of_reach(&edu, config.meta_pa)?;
    ok!(vm.destroy());
    // The first page of the hypervisor is code; its last pages are the pool, with the SMMU's tables before it.
    let first = arena::hyp_page();
    let bytes = ok!(call(HostFunction::Features, &[]))[3];
    for page in [first, first + bytes / 2, first + bytes - PAGE_SIZE] {
        check_eq!(owner(page & !(PAGE_SIZE - 1)), PageOwner::Hyp);
        out_of_reach(&edu, page & !(PAGE_SIZE - 1))?;
    }
    Ok(())
}

fn a60_page_leaves_the_device_with_its_donation_and_returns_zeroed() -> Result<(), Failure> {
    let edu = Edu::new();
    // A page and a whole block: the SMMU has warm translations of both.
    for (pages, align) in [(1, PAGE_SIZE), (512, 0x20_0000)] {
        let run = arena::pages(pages, align);
        let last = run + (pages - 1) * PAGE_SIZE;
        arena::poke(last, SECRET);
        check_eq!(edu.fetch(last), SECRET);
        let mut vm = Vm::puppet(1);
        ok!(vm.donate(run, IPA, pages, 0));
        out_of_reach(&edu, last)?;
        let at = IPA + (pages - 1) * PAGE_SIZE;
        let report = ok!(vm.pull(0, insn::LOAD, [at, 0, 0, 0, 0, 0]));
        check_eq!((report.x[0], report.esr), (0, 0));
        ok!(vm.destroy());
        check_eq!(edu.fetch(last), 0);
        edu.store(last, POISON);
        check_eq!(arena::peek(last), POISON);
    }
    Ok(())
}

static PAGE: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static HARMED: AtomicU64 = AtomicU64::new(0);
/// Transfers that the device has reported as done.
static DONE: AtomicU64 = AtomicU64::new(0);
/// Stores that the device was told to make, each of [`POISON`] and its own number.
static STORES: AtomicU64 = AtomicU64::new(0);

/// Looks until the device has done a whole transfer that began after this call, and whatever was under way.
pub fn throughout_a_transfer(mut look: impl FnMut()) {
    // The first that ends may have met the page before.
    let last = DONE.load(Ordering::Acquire) + 2;
    while DONE.load(Ordering::Acquire) < last && !STOP.load(Ordering::Acquire) {
        look();
    }
}

/// Donates the page, looks at it from inside for a while, and takes it back; again and again.
fn giver() {
    let page = PAGE.load(Ordering::Acquire);
    turns(|| {
        let mut vm = Vm::puppet(1);
        vm.donate(page, IPA, 1, 0).expect("the page is the host's");
        throughout_a_transfer(|| {
            for at in [IPA, IPA + 8] {
                let report = vm.pull(0, insn::LOAD, [at, 0, 0, 0, 0, 0]);
                if !matches!(report, Ok(r) if r.esr == 0 && r.x[0] == 0) {
                    harm();
                }
            }
        });
        // Torn down is not yet given back.
        vm.teardown().expect("no vCPU runs");
        throughout_a_transfer(reg::relax);
        let done = DONE.load(Ordering::Acquire);
        // The page is still the guest's. What the device has done by now can never be found in it; a store that ends
        // later may land when the page is the host's again.
        let late = |word: u64| {
            let number = word.wrapping_sub(POISON);
            number > done && number <= STORES.load(Ordering::Acquire)
        };
        vm.destroy_under(|at, word| word == 0 || (at == page + 8 && late(word)))
            .expect("all pages come back");
    });
}

/// Lets the device make one transfer after another while the page comes and goes.
fn with_giver(page: u64, transfer: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    PAGE.store(page, Ordering::Release);
    under_transfers(giver, transfer)
}

/// How often the other CPU does what it does.
pub const TURNS: u64 = 6;

/// Notes harm that the other CPU sees.
pub fn harm() {
    HARMED.fetch_add(1, Ordering::AcqRel);
}

/// Calls `turn` until the transfers end, [`TURNS`] times or more.
pub fn turns(turn: impl Fn()) {
    while !STOP.load(Ordering::Acquire) {
        turn();
        ROUNDS.fetch_add(1, Ordering::AcqRel);
    }
}

/// Lets the device make one transfer after another while CPU 1 is at its [`turns`].
pub fn under_transfers(
    other: fn(),
    transfer: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    STOP.store(false, Ordering::Release);
    for count in [&ROUNDS, &HARMED, &DONE, &STORES] {
        count.store(0, Ordering::Release);
    }
    harness::start(1, other);
    let mut result = Ok(());
    while ROUNDS.load(Ordering::Acquire) < TURNS && result.is_ok() {
        result = transfer();
        DONE.fetch_add(1, Ordering::Release);
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    result?;
    check_eq!(HARMED.load(Ordering::Acquire), 0);
    Ok(())
}

fn a60_donate_and_reclaim_on_another_cpu_under_dma() -> Result<(), Failure> {
    let edu = Edu::new();
    let page = arena::page();
    let before = faults();
    // The device's writes land while the page is the host's and are refused while it is the guest's.
    with_giver(page, || {
        let number = STORES.fetch_add(1, Ordering::AcqRel) + 1;
        edu.store(page + 8, POISON + number);
        Ok(())
    })?;
    // In each turn a whole store while the guest lived, and one more before the page was given back.
    check!(faults() - before >= 2 * TURNS);
    Ok(())
}

fn a60_neighbours_of_a_donated_page_stay_in_reach_without_a_fault() -> Result<(), Failure> {
    let edu = Edu::new();
    // Every round splits the block and joins it again. A device cannot try again: not one access may fail.
    let block = arena::pages(512, 0x20_0000);
    let neighbour = block + 301 * PAGE_SIZE;
    arena::poke(neighbour, SECRET);
    let before = faults();
    with_giver(block + 300 * PAGE_SIZE, || {
        check_eq!(edu.fetch(neighbour), SECRET);
        Ok(())
    })?;
    check_eq!(faults(), before);
    Ok(())
}

fn a60_refused_accesses_are_counted_by_function() -> Result<(), Failure> {
    const TRANSLATION: u64 = 0x10;
    const WRITE: u64 = 1 << 8;
    let edu = Edu::new();
    let target = arena::hyp_page() + 0x5678 / 8 * 8;
    let record = || {
        (DMA_CONFINED_MAX as u64..)
            .map_while(|index| call(HostFunction::DmaInfo, &[index]).ok())
            .find(|r| r[1] == DmaRecord::Faults as u64 && r[2] == u64::from(edu.function.0))
    };
    let count = record().map_or(0, |r| r[4]);
    edu.store(target, POISON);
    let Some(r) = record() else {
        check!(record().is_some());
        return Ok(());
    };
    check!(r[4] > count);
    // SMMU 0, and the stream that the iommu-map gives the function: its own number.
    check_eq!(r[3], u64::from(edu.function.0));
    // QEMU takes the word in two halves.
    check_eq!((r[5] & !7, r[6]), (target, TRANSLATION | WRITE));
    let _ = edu.fetch(target);
    check!(matches!(record(), Some(r) if (r[5] & !7, r[6]) == (target, TRANSLATION)));
    Ok(())
}

/// Every page of a range refuses the host's reads and writes.
fn refused(start: u64, end: u64) -> Result<(), Failure> {
    for page in (start..end).step_by(PAGE_SIZE as usize) {
        for at in [page, page + 0x20, page + 0x98] {
            check!(matches!(probe::read(at & !7, 0), Err(f) if f.is_external()));
            check!(matches!(probe::write(at & !7, 0), Err(f) if f.is_external()));
        }
    }
    Ok(())
}

fn a61_smmu_registers_are_out_of_the_hosts_reach() -> Result<(), Failure> {
    // QEMU `virt`: pages 0 and 1 of the SMMU.
    refused(0x905_0000, 0x907_0000)
}

fn a61_no_other_master_is_within_the_hosts_reach() -> Result<(), Failure> {
    // fw_cfg, which copies to any address by itself, and virtio-mmio transports.
    refused(0x902_0000, 0x902_1000)?;
    refused(0xa00_0000, 0xa00_4000)
}
