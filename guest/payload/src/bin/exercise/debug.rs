//! The guest's own debugging: hardware breakpoint, watchpoint and single step (Arm ARM, D2); and registers that must
//! not be there. All of it ends in synchronous exceptions, which the handler here counts and resolves.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_runtime::entry::CPUS_MAX;
use porthole_runtime::exception::Frame;
use porthole_runtime::{reg, write_reg};

use crate::check;

const EC_UNKNOWN: u64 = 0x00;
const EC_SYSREG: u64 = 0x18;
const EC_BREAKPOINT: u64 = 0x31;
const EC_STEP: u64 = 0x33;
const EC_WATCHPOINT: u64 = 0x35;
const EC_BRK: u64 = 0x3c;
/// MDSCR_EL1: single step, debug exceptions from EL1, hardware break- and watchpoints.
const MDSCR_SS: u64 = 1;
const MDSCR_KDE: u64 = 1 << 13;
const MDSCR_MDE: u64 = 1 << 15;
/// SPSR_EL1: step one instruction; mask debug exceptions.
const SPSR_SS: u64 = 1 << 21;
const SPSR_D: u64 = 1 << 9;
/// DBGBCR: enabled, at EL1, all four bytes.
const BREAK_AT_EL1: u64 = 1 | 1 << 1 | 0xf << 5;
/// DBGWCR: enabled, at EL1, stores, all eight bytes.
const WATCH_STORES: u64 = 1 | 1 << 1 | 2 << 3 | 0xff << 5;
/// Instructions that are stepped.
const STEPS: u64 = 3;
const ROUNDS: u64 = 10;

/// What a vCPU's handler saw.
struct Seen {
    breakpoints: AtomicU64,
    watchpoints: AtomicU64,
    steps: AtomicU64,
    last_pc: AtomicU64,
    last_far: AtomicU64,
    undefined: AtomicU64,
    expect_undefined: AtomicBool,
    watched: AtomicU64,
}

static SEEN: [Seen; CPUS_MAX] = [const {
    Seen {
        breakpoints: AtomicU64::new(0),
        watchpoints: AtomicU64::new(0),
        steps: AtomicU64::new(0),
        last_pc: AtomicU64::new(0),
        last_far: AtomicU64::new(0),
        undefined: AtomicU64::new(0),
        expect_undefined: AtomicBool::new(false),
        watched: AtomicU64::new(0),
    }
}; CPUS_MAX];

global_asm!(
    r#"
    .section .text.exercise_debug, "ax"
    .global exercise_break_here
exercise_break_here:
    add     x0, x0, #1
    ret
    // The BRK is where the handler begins to step; then STEPS instructions, one exception each.
    .global exercise_step_here
exercise_step_here:
    brk     #7
    add     x0, x0, #1
    add     x0, x0, #2
    add     x0, x0, #4
    ret
"#
);

unsafe extern "C" {
    static exercise_break_here: u8;
    static exercise_step_here: u8;
}

/// The program's handler of synchronous exceptions.
pub fn on_exception(frame: &mut Frame) -> bool {
    let seen = &SEEN[reg::cpu_index()];
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::AcqRel);
    match frame.class() {
        EC_BREAKPOINT => {
            seen.last_pc.store(frame.pc, Ordering::Release);
            count(&seen.breakpoints);
            write_reg!("dbgbcr0_el1", 0);
        }
        EC_WATCHPOINT => {
            seen.last_far.store(frame.far, Ordering::Release);
            count(&seen.watchpoints);
            write_reg!("dbgwcr0_el1", 0);
        }
        EC_BRK => {
            frame.pc += 4;
            frame.pstate = (frame.pstate | SPSR_SS) & !SPSR_D;
            write_reg!("mdscr_el1", MDSCR_KDE | MDSCR_SS);
        }
        EC_STEP => {
            seen.last_pc.store(frame.pc, Ordering::Release);
            if (count(&seen.steps) + 1).is_multiple_of(STEPS) {
                frame.pstate |= SPSR_D;
                write_reg!("mdscr_el1", 0);
            } else {
                frame.pstate |= SPSR_SS;
            }
        }
        EC_UNKNOWN | EC_SYSREG if seen.expect_undefined.load(Ordering::Acquire) => {
            frame.pc += 4;
            count(&seen.undefined);
        }
        _ => return false,
    }
    true
}

/// Break- and watchpoints and single step of this vCPU, while the others do the same at other addresses.
pub fn all(cpu: usize) {
    write_reg!("oslar_el1", 0);
    // A second breakpoint that is never hit must stay as it is through all of it.
    let marker = 0x1000 * (cpu as u64 + 1);
    write_reg!("dbgbvr1_el1", marker);
    for round in 1..=ROUNDS {
        breakpoint(cpu, round);
        watchpoint(cpu, round);
        step(cpu, round);
    }
    let kept = porthole_runtime::read_reg!("dbgbvr1_el1");
    check!(
        kept == marker,
        "cpu {cpu}: DBGBVR1_EL1 is {kept:#x}, not {marker:#x}"
    );
}

/// Calls a routine of `global_asm!` above with 0: what it added.
fn run(routine: *const u8) -> u64 {
    let result;
    // SAFETY: both routines change x0 and return; exceptions on the way are resolved by the handler.
    unsafe {
        asm!("msr daifclr, #8", "blr {}", "msr daifset, #8", in(reg) routine, inout("x0") 0u64 => result,
            out("x30") _, clobber_abi("C"));
    }
    result
}

fn breakpoint(cpu: usize, round: u64) {
    let seen = &SEEN[cpu];
    let at = &raw const exercise_break_here;
    write_reg!("dbgbvr0_el1", at as u64);
    write_reg!("dbgbcr0_el1", BREAK_AT_EL1);
    write_reg!("mdscr_el1", MDSCR_KDE | MDSCR_MDE);
    let result = run(at);
    write_reg!("mdscr_el1", 0);
    let hits = seen.breakpoints.load(Ordering::Acquire);
    check!(hits == round, "cpu {cpu}: {hits} breakpoints, not {round}");
    let pc = seen.last_pc.load(Ordering::Acquire);
    check!(
        pc == at as u64,
        "cpu {cpu}: breakpoint at {pc:#x}, not {at:p}"
    );
    check!(
        result == 1,
        "cpu {cpu}: the code behind the breakpoint gave {result}"
    );
}

fn watchpoint(cpu: usize, round: u64) {
    let seen = &SEEN[cpu];
    let at = core::ptr::from_ref(&seen.watched) as u64;
    write_reg!("dbgwvr0_el1", at);
    write_reg!("dbgwcr0_el1", WATCH_STORES);
    write_reg!("mdscr_el1", MDSCR_KDE | MDSCR_MDE);
    // SAFETY: unmasks debug exceptions, which the handler resolves.
    unsafe { asm!("msr daifclr, #8", options(nostack)) };
    let before = seen.watched.load(Ordering::Relaxed);
    seen.watched.store(round, Ordering::Relaxed);
    // SAFETY: masks them again.
    unsafe { asm!("msr daifset, #8", options(nostack)) };
    write_reg!("mdscr_el1", 0);
    let hits = seen.watchpoints.load(Ordering::Acquire);
    check!(hits == round, "cpu {cpu}: {hits} watchpoints, not {round}");
    let far = seen.last_far.load(Ordering::Acquire);
    check!(far == at, "cpu {cpu}: watchpoint at {far:#x}, not {at:#x}");
    let after = seen.watched.load(Ordering::Relaxed);
    check!(
        (before, after) == (round - 1, round),
        "cpu {cpu}: watched word {before}, then {after}"
    );
}

fn step(cpu: usize, round: u64) {
    let seen = &SEEN[cpu];
    let at = &raw const exercise_step_here;
    let result = run(at);
    let steps = seen.steps.load(Ordering::Acquire);
    check!(
        steps == round * STEPS,
        "cpu {cpu}: {steps} steps, not {}",
        round * STEPS
    );
    let (pc, end) = (
        seen.last_pc.load(Ordering::Acquire),
        at as u64 + 4 * (STEPS + 1),
    );
    check!(pc == end, "cpu {cpu}: stepped to {pc:#x}, not {end:#x}");
    check!(result == 7, "cpu {cpu}: the stepped code gave {result}");
}

/// Runs `access`, which must be undefined.
pub fn undefined(name: &str, access: impl FnOnce()) {
    let seen = &SEEN[reg::cpu_index()];
    let before = seen.undefined.load(Ordering::Acquire);
    seen.expect_undefined.store(true, Ordering::Release);
    access();
    seen.expect_undefined.store(false, Ordering::Release);
    let count = seen.undefined.load(Ordering::Acquire) - before;
    check!(count == 1, "{name} is not undefined");
}
