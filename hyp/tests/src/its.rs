//! a62: the interrupt controller as the host's DMA engine. ITS tables, command queue, ITTs and LPI tables on pages that
//! are not the host's, pages given away after they became tables, commands that lie. What two CPUs do at once is in `races`.

pub mod races;

use core::sync::atomic::{AtomicU32, Ordering};

use porthole_abi::{Error, HostFunction, PAGE_SIZE, PageOwner};
use porthole_runtime::mmu::{self, Attr, KERNEL_BASE};
use porthole_runtime::probe::{self, El0, Fault};
use porthole_runtime::{exception, gic, reg};

use crate::harness::{self, Failure};
use crate::hyp::{call, owner, owners};
use crate::memory::USER_OFFSET;
use crate::vm::{self, APERTURE, RAM, Vm};
use crate::{arena, check, check_eq, interrupts, ok, tests};

tests![
    a62_its_delivers_the_hosts_own_interrupts,
    a62_tables_on_protected_pages_are_refused,
    a62_tables_are_not_given_away,
    a62_taken_tables_are_out_of_reach_and_come_back_clean,
    a62_commands_that_name_protected_pages_stall,
    a62_queue_wraps_and_offsets_beyond_it_wait,
    a62_registers_take_any_value,
    a62_accesses_of_wrong_width_or_by_users_abort,
    a62_a_reset_of_enable_bits_lets_all_go,
];

const GITS: u64 = 0x0808_0000;
const GICR: u64 = 0x080a_0000;
const CTLR: u64 = GITS;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
const DEVICES: u64 = GITS + 0x100;
const COLLECTIONS: u64 = GITS + 0x108;
const PROPBASER: u64 = GICR + 0x70;
const PENDBASER: u64 = GICR + 0x78;
const VALID: u64 = 1 << 63;
const PAGE_64K: u64 = 2 << 8;
const BLOCK: u64 = 0x1_0000;

fn read(at: u64) -> u64 {
    probe::read(at, 0).expect("a register of the ITS or a redistributor")
}

fn write(at: u64, value: u64) {
    probe::write(at, value).expect("a register of the ITS or a redistributor");
}

fn read32(at: u64) -> u32 {
    // SAFETY: a register that the machine has.
    unsafe { (at as *const u32).read_volatile() }
}

fn write32(at: u64, value: u32) {
    // SAFETY: as above.
    unsafe { (at as *mut u32).write_volatile(value) }
}

/// 64 KiB of the arena.
fn block() -> u64 {
    arena::pages(16, BLOCK)
}

/// An ITS with all 65,536 devices, and a queue of a page.
struct Its {
    queue: u64,
    tail: u64,
}

impl Its {
    fn new() -> Self {
        let devices = arena::pages(128, BLOCK);
        write(DEVICES, VALID | devices | PAGE_64K | 7);
        write(COLLECTIONS, VALID | block() | PAGE_64K);
        let queue = block();
        write(CBASER, VALID | queue);
        write(CWRITER, 0);
        write32(CTLR, 1);
        Self { queue, tail: 0 }
    }

    /// One command; whether it was done. A refused one is replaced by a SYNC.
    fn command(&mut self, words: [u64; 4]) -> bool {
        self.put(words);
        let next = (self.tail + 32) % PAGE_SIZE;
        write(CWRITER, next);
        let done = read(CREADR) == next;
        if !done {
            self.put([5, 0, 0, 0]);
            write(CWRITER, next | 1);
        }
        self.tail = next;
        done
    }

    fn put(&self, words: [u64; 4]) {
        for (index, word) in (0..).zip(words) {
            arena::poke(self.queue + self.tail + 8 * index, word);
        }
    }
}

fn mapd(device: u64, itt: u64, bits: u64) -> [u64; 4] {
    [device << 32 | 8, bits, VALID | itt, 0]
}

/// Everything off, all tables gone.
fn off() {
    write32(CTLR, 0);
    for register in [DEVICES, COLLECTIONS, CBASER] {
        write(register, 0);
    }
    for cpu in 0..harness::cpus() as u64 {
        write32(GICR + cpu * 0x2_0000, 0);
    }
}

/// A VM, and 64 KiB each of its memory, its window; the hypervisor's, MMIO, nothing.
fn protected() -> Result<(Vm, [(u64, Error); 5]), Failure> {
    let mut vm = Vm::puppet(1);
    let (page, window) = (block(), block());
    ok!(vm.donate(page, RAM + 0x10_0000, 16, 0));
    ok!(vm::register(&vm::window(&vm, APERTURE, window, 16)));
    Ok((
        vm,
        [
            (page, Error::NotHostOwned),
            (window, Error::PageIsWindow),
            (arena::hyp_page(), Error::NotHostOwned),
            (0x0900_0000, Error::NotRam),
            (0xf_ffff_0000, Error::NotRam),
        ],
    ))
}

static TAKEN: AtomicU32 = AtomicU32::new(0);

fn on_irq(_: &mut exception::Frame) -> bool {
    loop {
        let intid = gic::acknowledge();
        if (1020..8192).contains(&intid) {
            return true;
        }
        TAKEN.store(intid, Ordering::Release);
        gic::end(intid);
    }
}

fn a62_its_delivers_the_hosts_own_interrupts() -> Result<(), Failure> {
    interrupts::init_cpu();
    let (property, pending, itt) = (block(), block(), block());
    // SAFETY: a page of the arena; the first LPI enabled, at priority 0xa0.
    unsafe { (property as *mut u8).write_volatile(0xa1) };
    write(PROPBASER, property | 15);
    write(PENDBASER, pending);
    write32(GICR, 1);
    check_eq!(read32(GICR) & 1, 1);
    let mut its = Its::new();
    check!(its.command(mapd(0x10, itt, 4)));
    check!(its.command([9, 0, VALID, 0]));
    check!(its.command([0x10 << 32 | 10, 8192 << 32 | 3, 0, 0]));
    check!(its.command([13, 0, 0, 0]));
    TAKEN.store(0, Ordering::Release);
    exception::on_irq(Some(on_irq));
    check!(its.command([0x10 << 32 | 3, 3, 0, 0]));
    for _ in 0..1000 {
        interrupts::take();
    }
    interrupts::restore_handler();
    check_eq!(TAKEN.load(Ordering::Acquire), 8192);
    off();
    Ok(())
}

fn a62_tables_on_protected_pages_are_refused() -> Result<(), Failure> {
    let (vm, pages) = protected()?;
    let good = block();
    for (page, _) in pages {
        let before = owners();
        for value in [page & !0xffff | PAGE_64K, page, page | 0xff] {
            for register in [DEVICES, COLLECTIONS, CBASER] {
                write(register, VALID | value);
                check_eq!(read(register) & VALID, 0);
            }
        }
        for (property, pending) in [(page, good), (good, page & !0xffff), (page - 0xd000, good)] {
            write(PROPBASER, property | 15);
            write(PENDBASER, pending);
            write32(GICR, 1);
            check_eq!(read32(GICR) & 1, 0);
        }
        check_eq!(owners(), before);
    }
    // The last page of a table alone is another's.
    let (mine, theirs) = (block(), pages[0].0);
    check!(mine > theirs);
    write(DEVICES, VALID | (theirs - BLOCK) | PAGE_64K | 1);
    check_eq!(read(DEVICES) & VALID, 0);
    ok!(vm.destroy());
    Ok(())
}

fn a62_tables_are_not_given_away() -> Result<(), Failure> {
    let mut its = Its::new();
    let (property, pending, itt) = (block(), block(), block());
    check!(its.command(mapd(1, itt, 9)));
    write(PROPBASER, property | 15);
    write(PENDBASER, pending);
    write32(GICR, 1);
    let tables = [DEVICES, COLLECTIONS].map(|r| read(r) & 0xffff_ffff_0000);
    let vm = Vm::puppet(1);
    let pinned = [
        its.queue,
        property,
        property + 0xd000,
        pending + 0x1000,
        itt + 0x2000,
    ];
    let all = pinned
        .map(|page| (page, Error::PagePinned))
        .into_iter()
        .chain(tables.map(|page| (page, Error::NotHostOwned)));
    for (page, error) in all {
        let before = owners();
        for (function, args) in [
            (
                HostFunction::VmDonate,
                [vm.handle, page, RAM + 0x10_0000, 1, 0],
            ),
            (HostFunction::VmDonateMeta, [vm.handle, page, 1, 0, 0]),
        ] {
            check_eq!(call(function, &args).map(|_| ()), Err(error));
        }
        let window = vm::register(&vm::window(&vm, APERTURE, page, 1));
        check_eq!(window, Err(error));
        check_eq!(owners(), before);
    }
    off();
    for page in pinned.into_iter().chain(tables) {
        check_eq!(owner(page), PageOwner::Host);
    }
    ok!(vm.destroy());
    Ok(())
}

fn a62_taken_tables_are_out_of_reach_and_come_back_clean() -> Result<(), Failure> {
    let table = arena::pages(32, BLOCK);
    let other = block();
    arena::poke(table + 8, 0xbad);
    // Two levels are refused, the table is taken as the flat one that it then is.
    write(DEVICES, VALID | 1 << 62 | table | PAGE_64K | 1);
    check_eq!(read(DEVICES) >> 62, 2);
    let refused = |r: Result<u64, Fault>| matches!(r, Err(f) if f.is_external());
    for page in (table..table + 2 * BLOCK).step_by(PAGE_SIZE as usize) {
        check_eq!(owner(page), PageOwner::HwTable);
        check!(refused(probe::read(page, 0)) && refused(probe::write(page, 1)));
        let kernel = probe::read(KERNEL_BASE | page, 0);
        check!(matches!(kernel, Err(f) if f.is_translation()));
    }
    let _ = probe::clean_invalidate(KERNEL_BASE | table, 0);
    // The same value again keeps it; another one gives it back.
    write(DEVICES, read(DEVICES));
    check_eq!(owner(table), PageOwner::HwTable);
    write(DEVICES, VALID | other | PAGE_64K);
    check_eq!(
        (owner(table), owner(other)),
        (PageOwner::Host, PageOwner::HwTable)
    );
    check_eq!(probe::read(table + 8, 0), Ok(0));
    off();
    check_eq!(probe::read(other, 0), Ok(0));
    Ok(())
}

fn a62_commands_that_name_protected_pages_stall() -> Result<(), Failure> {
    let (vm, pages) = protected()?;
    let mut its = Its::new();
    let devices = read(DEVICES) & 0xffff_ffff_0000;
    let itt = block();
    let before = owners();
    let all = pages.into_iter().map(|(page, _)| page);
    for page in all.chain([devices, 0, 0xf_ffff_ffff_f000]) {
        for bits in [0, 9, 15] {
            check!(!its.command(mapd(1, page, bits)));
        }
        check!(!its.command(mapd(1, page.wrapping_sub(0x100) & 0xf_ffff_ffff_ff00, 5)));
    }
    for words in [
        mapd(1 << 16, itt, 3),
        mapd(1, itt, 31),
        mapd(1, itt, 16),
        [1 << 32 | 10, 8192 << 32, 0, 0],
        [9, 0, VALID | 99 << 16, 0],
        [9, 0, VALID | 0xffff, 0],
        [14, 0, 0, 1 << 16],
        [u64::MAX; 4],
    ] {
        check!(!its.command(words));
    }
    for opcode in [
        0, 2, 6, 7, 0x10, 0x20, 0x25, 0x29, 0x2a, 0x2b, 0x2e, 0x2f, 0xff,
    ] {
        check!(!its.command([1 << 32 | opcode, 0, VALID | itt, 0]));
    }
    check_eq!(owners(), before);
    check!(its.command(mapd(1, itt, 3)));
    off();
    ok!(vm.destroy());
    Ok(())
}

fn a62_queue_wraps_and_offsets_beyond_it_wait() -> Result<(), Failure> {
    let mut its = Its::new();
    for _ in 0..300 {
        check!(its.command([5, 0, 0, 0]));
    }
    let tail = its.tail;
    for beyond in [PAGE_SIZE, 0xf_ffe0, u64::MAX] {
        write(CWRITER, beyond & !1);
        check_eq!(read(CREADR), tail);
    }
    // A whole queue at once.
    write(CWRITER, tail);
    for slot in (0..PAGE_SIZE).step_by(32) {
        arena::poke(its.queue + slot, 5);
        arena::poke(its.queue + slot + 16, 0);
    }
    let last = (tail + PAGE_SIZE - 32) % PAGE_SIZE;
    write(CWRITER, last);
    while read(CREADR) != last {}
    off();
    Ok(())
}

fn a62_registers_take_any_value() -> Result<(), Failure> {
    let before = owners();
    for offset in (0..0x200).chain(0xffc0..0x1_0000).step_by(4) {
        for value in [u32::MAX, 0x5a5a_5a5a, 0] {
            for frame in [GITS, GICR] {
                // The CPU's own redistributor stays awake.
                if (frame, offset) != (GICR, 0x14) {
                    write32(frame + offset, value);
                    let _ = read32(frame + offset);
                }
            }
        }
    }
    for register in [8, 0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0] {
        write(GICR + register, u64::MAX);
    }
    for register in [8, 0x80, 0x88, 0x90, 0x100, 0x108, 0x110, 0x138] {
        write(GITS + register, u64::MAX);
    }
    off();
    write(PROPBASER, 0);
    write(PENDBASER, 0);
    check_eq!(owners(), before);
    Ok(())
}

fn a62_accesses_of_wrong_width_or_by_users_abort() -> Result<(), Failure> {
    let before = owners();
    let external = |r: Result<u64, Fault>| matches!(r, Err(f) if f.is_external());
    for at in [GICR, GICR + 0x70, GITS, DEVICES, CWRITER] {
        check!(external(probe::read8(at, 0)));
        check!(external(probe::load_exclusive(at, 0)));
        check!(external(probe::execute(at, 0)) || probe::execute(at, 0).is_err());
    }
    // 64 bits of 32-bit registers, through the kernel's map too.
    for at in [GICR, GITS, GICR + 0x10] {
        check!(external(probe::read(at, 0)) && external(probe::write(at, 1)));
    }
    // Registers, and the code that makes the access.
    for gib in [0, 1 << 30] {
        mmu::map(USER_OFFSET + gib, gib, 1 << 30, Attr::User);
    }
    for at in [GICR + 0x70, DEVICES] {
        for what in [El0::Read, El0::Write] {
            check!(external(probe::at_el0(what, USER_OFFSET, at + USER_OFFSET)));
        }
    }
    check_eq!(read(DEVICES) & VALID, 0);
    check_eq!(owners(), before);
    Ok(())
}

fn a62_a_reset_of_enable_bits_lets_all_go() -> Result<(), Failure> {
    let before = owners();
    for _ in 0..8 {
        let mut its = Its::new();
        let itt = block();
        for device in 0..32 {
            check!(its.command(mapd(device * 2000, itt + device * 0x100, 3)));
        }
        let (property, pending) = (block(), arena::pages(16 * 8, BLOCK));
        for cpu in 0..harness::cpus() as u64 {
            let offset = cpu * 0x2_0000;
            write(PROPBASER + offset, property | 15);
            write(PENDBASER + offset, pending + cpu * BLOCK);
            write32(GICR + offset, 1);
            // Not while they are on.
            write(PENDBASER + offset, arena::hyp_page());
            check_eq!(read(PENDBASER + offset), pending + cpu * BLOCK);
        }
        check_eq!(owner(property), PageOwner::Pinned);
        // The ITS is on: its tables stay.
        write(DEVICES, 0);
        check_eq!(read(DEVICES) >> 63, 1);
        off();
        reg::barrier();
        check_eq!(owners(), before);
    }
    Ok(())
}
