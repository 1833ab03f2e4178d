//! a60, a02, a03, a06 on confinement: a device held to one region of the host's pages, by a host that wants it to
//! reach more, wants the region for something else, or confines what it must not.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_abi::{
    DMA_CONFINED_MAX, DMA_PAGES_MAX, DmaRecord, Error, FunctionId, HostFunction, PAGE_SIZE,
    PageOwner,
};
use porthole_runtime::{probe, reg};

use crate::dma::{self, faults, out_of_reach};
use crate::edu::Edu;
use crate::harness::Failure;
use crate::hyp::{call, owner};
use crate::puppet::insn;
use crate::ranges::refused;
use crate::vm::{self, APERTURE, RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a60_confined_device_reaches_its_region_and_nothing_else,
    a60_confined_device_is_listed_and_its_faults_counted,
    a60_released_device_has_the_hosts_map_and_no_more,
    a60_confine_and_release_on_another_cpu_under_dma,
    a03_confined_pages_are_neither_given_away_nor_shared,
    a02_regions_that_are_not_the_hosts_own,
    a62_tables_of_the_interrupt_controller_are_no_region,
    a02_confine_range_arithmetic,
    a02_functions_that_cannot_be_confined,
    a06_every_slot_of_confined_functions,
];

/// Guest address of a page that is given away.
const IPA: u64 = RAM + 0x20_0000;
const SECRET: u64 = 0x5ec2_e75e_c2e7;
const POISON: u64 = 0xbad0_bad0_bad0;
/// Pages of a region.
const PAGES: u64 = 4;

use HostFunction::{DmaConfine, DmaInfo, DmaRelease};

/// A function of bus 0 that is not there; its requester id is as good as another.
fn absent(n: u8) -> u64 {
    FunctionId::new(0, 0, 24 + n / 8, n % 8).0.into()
}

fn confine(function: u64, pa: u64, pages: u64) -> Result<(), Error> {
    call(DmaConfine, &[function, pa, pages]).map(|_| ())
}

fn release(function: u64) -> Result<(), Error> {
    call(DmaRelease, &[function]).map(|_| ())
}

/// The device, confined to fresh pages, with the first of them for its words; and what it is called.
fn confined() -> Result<(Edu, u64), Failure> {
    confine_it(Edu::new())
}

fn confine_it(mut edu: Edu) -> Result<(Edu, u64), Failure> {
    let id = edu.function.0.into();
    edu.page = arena::pages(PAGES, PAGE_SIZE);
    ok!(confine(id, edu.page, PAGES));
    Ok((edu, id))
}

fn a60_confined_device_reaches_its_region_and_nothing_else() -> Result<(), Failure> {
    // Pages on both sides of the region, and another function's region, are the host's like the region itself.
    let edu = Edu::new();
    let before = arena::page();
    let (edu, id) = confine_it(edu)?;
    let (region, after, other) = (edu.page, arena::page(), arena::page());
    check_eq!(
        (before + PAGE_SIZE, after),
        (region, region + PAGES * PAGE_SIZE)
    );
    ok!(confine(absent(0), other, 1));
    for at in [region + PAGE_SIZE, region + PAGES * PAGE_SIZE - 8] {
        arena::poke(at, SECRET);
        check_eq!(edu.fetch(at), SECRET);
        edu.store(at, POISON);
        check_eq!(arena::peek(at), POISON);
    }
    for page in [before, after, other] {
        let at = page + PAGE_SIZE - 8;
        for at in [page, at] {
            arena::poke(at, SECRET);
        }
        out_of_reach(&edu, if page == before { at } else { page })?;
        check_eq!((arena::peek(page), arena::peek(at)), (SECRET, SECRET));
    }
    out_of_reach(&edu, arena::hyp_page())?;
    ok!(release(absent(0)));
    ok!(release(id));
    Ok(())
}

fn a60_confined_device_is_listed_and_its_faults_counted() -> Result<(), Failure> {
    let listed = |id: u64| {
        (0..DMA_CONFINED_MAX as u64)
            .filter_map(|index| call(DmaInfo, &[index]).ok())
            .find(|r| r[1] == DmaRecord::Confined as u64 && r[2] == id)
            .map(|r| (r[3], r[4]))
    };
    let counted = |id: u64| {
        (DMA_CONFINED_MAX as u64..)
            .map_while(|index| call(DmaInfo, &[index]).ok())
            .find(|r| r[1] == DmaRecord::Faults as u64 && r[2] == id)
            .map_or(0, |r| r[4])
    };
    let (edu, id) = confined()?;
    check_eq!(listed(id), Some((edu.page, PAGES)));
    check_eq!(listed(absent(0)), None);
    for page in (0..PAGES).map(|i| edu.page + i * PAGE_SIZE) {
        check_eq!(owner(page), PageOwner::Pinned);
    }
    let before = (counted(id), faults());
    edu.store(edu.page + PAGE_SIZE, POISON);
    check_eq!((counted(id), faults()), before);
    edu.store(arena::page(), POISON);
    check!(counted(id) > before.0);
    ok!(release(id));
    check_eq!(listed(id), None);
    check_eq!(owner(edu.page), PageOwner::Host);
    Ok(())
}

fn a60_released_device_has_the_hosts_map_and_no_more() -> Result<(), Failure> {
    let (edu, id) = confined()?;
    let (region, other) = (edu.page, arena::page());
    // Warm translations of the region, for the release to forget.
    edu.store(region + PAGE_SIZE, SECRET);
    out_of_reach(&edu, other)?;
    ok!(release(id));
    edu.store(other, SECRET);
    check_eq!(arena::peek(other), SECRET);
    check_eq!(edu.fetch(other), SECRET);
    // What was the region is as good as any page of the host: it can be given away and is out of reach then.
    let mut vm = Vm::puppet(1);
    ok!(vm.donate(region + PAGE_SIZE, IPA, 1, 0));
    out_of_reach(&edu, region + PAGE_SIZE)?;
    let report = ok!(vm.pull(0, insn::LOAD, [IPA, 0, 0, 0, 0, 0]));
    check_eq!((report.x[0], report.esr), (0, 0));
    ok!(vm.destroy());
    // The same region again, and a page that the device reached a moment ago.
    ok!(confine(id, region, PAGES));
    out_of_reach(&edu, other)?;
    edu.store(region + PAGE_SIZE, POISON);
    check_eq!(arena::peek(region + PAGE_SIZE), POISON);
    ok!(release(id));
    Ok(())
}

static FUNCTION: AtomicU64 = AtomicU64::new(0);
static REGION: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);
static LANDED: AtomicU64 = AtomicU64::new(0);

/// Confines the device, watches a page outside its region, releases it, and waits for it to come back.
fn jailer() {
    let [function, region, target] =
        [&FUNCTION, &REGION, &TARGET].map(|v| v.load(Ordering::Acquire));
    dma::turns(|| {
        confine(function, region, PAGES).expect("the function is free");
        // A store that was under way may have found its page before.
        dma::throughout_a_transfer(reg::relax);
        arena::poke(target, SECRET);
        dma::throughout_a_transfer(|| {
            if arena::peek(target) != SECRET {
                dma::harm();
            }
        });
        release(function).expect("the function is confined");
        dma::throughout_a_transfer(reg::relax);
        LANDED.fetch_add((arena::peek(target) == POISON).into(), Ordering::AcqRel);
    });
}

fn a60_confine_and_release_on_another_cpu_under_dma() -> Result<(), Failure> {
    let mut edu = Edu::new();
    let target = arena::page();
    edu.page = arena::pages(PAGES, PAGE_SIZE);
    FUNCTION.store(edu.function.0.into(), Ordering::Release);
    REGION.store(edu.page, Ordering::Release);
    TARGET.store(target, Ordering::Release);
    LANDED.store(0, Ordering::Release);
    let before = faults();
    dma::under_transfers(jailer, || {
        edu.store(target, POISON);
        // Inside the region the device is at work all the time.
        edu.store(edu.page + PAGE_SIZE, POISON);
        check_eq!(arena::peek(edu.page + PAGE_SIZE), POISON);
        arena::poke(edu.page + PAGE_SIZE, 0);
        Ok(())
    })?;
    // In each turn a whole store while the device was confined, and one after its release.
    check!(faults() - before >= dma::TURNS);
    check!(LANDED.load(Ordering::Acquire) >= dma::TURNS);
    Ok(())
}

fn a03_confined_pages_are_neither_given_away_nor_shared() -> Result<(), Failure> {
    let (edu, id) = confined()?;
    let vm = Vm::puppet(1);
    for page in (0..PAGES).map(|i| edu.page + i * PAGE_SIZE) {
        refused(
            HostFunction::VmDonate,
            &[vm.handle, page, IPA, 1, 0],
            Error::PagePinned,
        )?;
        refused(
            HostFunction::VmDonateMeta,
            &[vm.handle, page, 1],
            Error::PagePinned,
        )?;
        let block = arena::page();
        arena::put(block, &vm::window(&vm, APERTURE, page, 1));
        refused(HostFunction::WindowRegister, &[block], Error::PagePinned)?;
        refused(DmaConfine, &[absent(0), page, 1], Error::PagePinned)?;
    }
    // The last page before the region and its first one, in one piece.
    let both = [vm.handle, edu.page + (PAGES - 1) * PAGE_SIZE, IPA, 2, 0];
    refused(HostFunction::VmDonate, &both, Error::PagePinned)?;
    let mut config = vm::config(1);
    config.meta_pa = edu.page;
    config.meta_pages = PAGES;
    let block = arena::page();
    arena::put(block, &config);
    refused(HostFunction::VmCreate, &[block], Error::PagePinned)?;
    // The device still has its region.
    edu.store(edu.page + PAGE_SIZE, SECRET);
    check_eq!(arena::peek(edu.page + PAGE_SIZE), SECRET);
    ok!(vm.destroy());
    ok!(release(id));
    Ok(())
}

fn a02_regions_that_are_not_the_hosts_own() -> Result<(), Failure> {
    let id = absent(0);
    let mut vm = Vm::puppet(1);
    let (memory, metadata, window) = (arena::page(), arena::page(), arena::page());
    ok!(vm.donate(memory, IPA, 1, 0));
    ok!(call(HostFunction::VmDonateMeta, &[vm.handle, metadata, 1]));
    vm.remember(metadata, 1);
    let shared = ok!(vm::register(&vm::window(&vm, APERTURE, window, 1)));
    for (page, error) in [
        (memory, Error::NotHostOwned),
        (metadata, Error::NotHostOwned),
        (window, Error::PageIsWindow),
        (arena::hyp_page(), Error::NotHostOwned),
        // The UART's registers, the SMMU's, and what is behind RAM.
        (0x900_0000, Error::NotRam),
        (0x905_0000, Error::NotRam),
        (arena::ram_end(), Error::NotRam),
    ] {
        refused(DmaConfine, &[id, page, 1], error)?;
    }
    // Only the last page of the region is not the host's.
    let run = arena::pages(3, PAGE_SIZE);
    ok!(vm.donate(run + 2 * PAGE_SIZE, IPA + PAGE_SIZE, 1, 0));
    refused(DmaConfine, &[id, run, 3], Error::NotHostOwned)?;
    refused(
        DmaConfine,
        &[id, arena::ram_end() - PAGE_SIZE, 2],
        Error::NotRam,
    )?;
    ok!(call(
        HostFunction::WindowUnregister,
        &[vm.handle, shared, 0]
    ));
    ok!(vm.destroy());
    // All of them are the host's again.
    for page in [memory, metadata, window] {
        ok!(confine(id, page, 1));
        ok!(release(id));
    }
    Ok(())
}

fn a62_tables_of_the_interrupt_controller_are_no_region() -> Result<(), Failure> {
    // GITS_BASER0 of QEMU `virt`, for the table of devices: 16 pages, which EL2 takes.
    const BASER: u64 = 0x0808_0100;
    const VALID: u64 = 1 << 63;
    const PAGES_64K: u64 = 2 << 8;
    let table = arena::pages(16, 0x1_0000);
    let id = absent(0);
    ok!(probe::write(BASER, VALID | PAGES_64K | table));
    check_eq!(owner(table), PageOwner::HwTable);
    for (pa, pages) in [
        (table, 1),
        (table + 15 * PAGE_SIZE, 2),
        (table - PAGE_SIZE, 2),
    ] {
        refused(DmaConfine, &[id, pa, pages], Error::NotHostOwned)?;
    }
    let edu = Edu::new();
    refused(
        DmaConfine,
        &[edu.function.0.into(), table, 1],
        Error::NotHostOwned,
    )?;
    out_of_reach(&edu, table)?;
    ok!(probe::write(BASER, 0));
    check_eq!(owner(table), PageOwner::Host);
    // And a region is no table, whichever of its pages.
    ok!(confine(id, table + 15 * PAGE_SIZE, 2));
    ok!(probe::write(BASER, VALID | PAGES_64K | table));
    check_eq!(ok!(probe::read(BASER, 0)) & VALID, 0);
    check_eq!(owner(table), PageOwner::Host);
    ok!(release(id));
    ok!(probe::write(BASER, 0));
    Ok(())
}

fn a02_confine_range_arithmetic() -> Result<(), Failure> {
    let (id, page) = (absent(0), arena::page());
    let top = 0u64.wrapping_sub(PAGE_SIZE);
    for (pa, pages, error) in [
        (page, 0, Error::Empty),
        (page + 1, 1, Error::Unaligned),
        (page + 0x800, 1, Error::Unaligned),
        (page, DMA_PAGES_MAX + 1, Error::TooLarge),
        (page, 1 << 52, Error::TooLarge),
        (page, u64::MAX, Error::TooLarge),
        (top, 1, Error::Overflow),
        (top, 2, Error::Overflow),
        (u64::MAX, 1, Error::Unaligned),
        (1 << 52, 1, Error::NotRam),
        (1 << 63, 1, Error::NotRam),
    ] {
        refused(DmaConfine, &[id, pa, pages], error)?;
    }
    refused(DmaInfo, &[32], Error::InvalidParameter)?;
    refused(DmaInfo, &[u64::MAX], Error::InvalidParameter)
}

fn a02_functions_that_cannot_be_confined() -> Result<(), Failure> {
    let page = arena::page();
    // Segment 1, which the machine does not have; ids above 32 bits, one with a real function in its low half.
    let segment = FunctionId::new(1, 0, 1, 0).0.into();
    for id in [
        segment,
        u32::MAX.into(),
        1 << 32 | absent(0),
        1 << 63,
        u64::MAX,
    ] {
        refused(DmaConfine, &[id, page, 1], Error::BadStream)?;
        refused(DmaRelease, &[id], Error::NotConfined)?;
    }
    refused(DmaRelease, &[absent(0)], Error::NotConfined)?;
    let (edu, id) = confined()?;
    refused(DmaConfine, &[id, page, 1], Error::AlreadyConfined)?;
    refused(DmaConfine, &[id, edu.page, PAGES], Error::AlreadyConfined)?;
    out_of_reach(&edu, page)?;
    ok!(release(id));
    refused(DmaRelease, &[id], Error::NotConfined)
}

fn a06_every_slot_of_confined_functions() -> Result<(), Failure> {
    let count = DMA_CONFINED_MAX as u8;
    let pages = arena::pages(u64::from(count) + 1, PAGE_SIZE);
    let page = |n: u8| pages + u64::from(n) * PAGE_SIZE;
    for n in 0..count {
        ok!(confine(absent(n), page(n), 1));
    }
    refused(DmaConfine, &[absent(count), page(count), 1], Error::NoSlot)?;
    // One from the middle makes room for one.
    ok!(release(absent(count / 2)));
    ok!(confine(absent(count), page(count), 1));
    ok!(release(absent(count)));
    for n in (0..count).filter(|n| *n != count / 2) {
        ok!(release(absent(n)));
    }
    Ok(())
}
