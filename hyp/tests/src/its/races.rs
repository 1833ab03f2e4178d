//! Two CPUs at once: commands that change while they are read, tables that are placed twice or donated meanwhile.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use porthole_runtime::timer;

tests![
    a62_commands_that_change_while_they_are_read,
    a62_two_cpus_place_the_same_table,
    a62_donation_races_with_placing,
];

/// Bytes of an entry of an ITT on QEMU, which holds entries nowhere else.
const ITT_ENTRY: u64 = 12;

static SLOT: AtomicU64 = AtomicU64::new(0);
static GOOD: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);
/// How often the command has changed.
static TURNS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Changes a command's ITT, a good one or one in the hypervisor, and its bits, 5 or more than there are, all the time.
fn change_command() {
    let [slot, good, bad] = [&SLOT, &GOOD, &BAD].map(|a| a.load(Ordering::Acquire));
    let mut turn = 0u64;
    while !STOP.load(Ordering::Acquire) {
        arena::poke(slot + 16, VALID | if turn & 1 == 0 { good } else { bad });
        arena::poke(slot + 8, if turn & 2 == 0 { 4 } else { 31 });
        turn += 1;
        TURNS.store(turn, Ordering::Release);
    }
}

fn a62_commands_that_change_while_they_are_read() -> Result<(), Failure> {
    let mut its = Its::new();
    let good = block();
    GOOD.store(good, Ordering::Release);
    BAD.store(arena::hyp_page(), Ordering::Release);
    let before = owners()[PageOwner::Hyp as usize];
    let end = reg::counter() + timer::ticks(300_000_000);
    let (mut done, mut refused) = (0, 0);
    while done < 16 || refused < 16 {
        its.put(mapd(1, good, 4));
        STOP.store(false, Ordering::Release);
        SLOT.store(its.queue + its.tail, Ordering::Release);
        TURNS.store(0, Ordering::Release);
        harness::start(1, change_command);
        let next = (its.tail + 32) % PAGE_SIZE;
        // Each write has it read once more, until it is good as a whole.
        loop {
            // It changes meanwhile: another CPU that is not let run (QEMU's lock is not fair) would prove nothing.
            let turn = TURNS.load(Ordering::Acquire);
            while TURNS.load(Ordering::Acquire) == turn && reg::counter() < end {
                core::hint::spin_loop();
            }
            if reg::counter() >= end {
                STOP.store(true, Ordering::Release);
            }
            check!(reg::counter() < end);
            write(CWRITER, next | 1);
            if read(CREADR) == next {
                break;
            }
            refused += 1;
        }
        done += 1;
        STOP.store(true, Ordering::Release);
        harness::wait(1);
        its.tail = next;
        // The command that was checked is the one that the ITS got: it knows 32 events, and its entries are in the ITT.
        check_eq!(owner(good), PageOwner::Pinned);
        arena::poke(good + 30 * ITT_ENTRY, 0);
        check!(its.command([1 << 32 | 10, 8192 << 32 | 30, 0, 0]));
        check!(!its.command([1 << 32 | 10, 8192 << 32 | 32, 0, 0]));
        check!(its.command([5, 0, 0, 0]));
        check!(arena::peek(good + 30 * ITT_ENTRY) != 0);
    }
    porthole_runtime::println!("  {done} done, {refused} refused");
    check_eq!(owners()[PageOwner::Hyp as usize], before);
    off();
    check_eq!(owner(good), PageOwner::Host);
    Ok(())
}

fn place_tables() {
    let table = GOOD.load(Ordering::Acquire);
    while !STOP.load(Ordering::Acquire) {
        let _ = probe::write(COLLECTIONS, VALID | table | PAGE_64K);
        let _ = probe::write(COLLECTIONS, 0);
    }
}

fn a62_two_cpus_place_the_same_table() -> Result<(), Failure> {
    let table = block();
    GOOD.store(table, Ordering::Release);
    STOP.store(false, Ordering::Release);
    harness::start(1, place_tables);
    for _ in 0..60 {
        write(DEVICES, VALID | table | PAGE_64K);
        let valid = read(DEVICES) & VALID != 0;
        check!(!valid || owner(table) == PageOwner::HwTable);
        write(DEVICES, 0);
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    off();
    check_eq!(owner(table), PageOwner::Host);
    Ok(())
}

fn a62_donation_races_with_placing() -> Result<(), Failure> {
    // Donated and reclaimed VM by VM, while another CPU makes a table of the page.
    let table = block();
    GOOD.store(table, Ordering::Release);
    STOP.store(false, Ordering::Release);
    harness::start(1, place_tables);
    let mut given = 0;
    for _ in 0..12 {
        let mut vm = Vm::puppet(1);
        given += u32::from(vm.donate(table, RAM + 0x10_0000, 1, 0).is_ok());
        // The page may be a table again by the time that the reclaim returns.
        ok!(vm.destroy_without(table));
    }
    STOP.store(true, Ordering::Release);
    harness::wait(1);
    porthole_runtime::println!("  {given} of 12 donated");
    off();
    check_eq!(owner(table), PageOwner::Host);
    Ok(())
}
