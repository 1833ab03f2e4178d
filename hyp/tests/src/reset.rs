//! a82: the host resets the machine while a guest runs that no interrupt reaches. The last test: the reset is real, and
//! the second boot, which knows itself by a note that the first one left in memory, looks for what the guest had.
//! Other tests of power are those of `vcpus` and `calls`.

use core::sync::atomic::{AtomicBool, Ordering};

use porthole_abi::{ExitKind, PAGE_SIZE};
use porthole_runtime::mmio::Registers;
use porthole_runtime::{println, psci, reg, timer};

use crate::arena;
use crate::harness;
use crate::hyp::vcpu_run;
use crate::puppet::{self, insn};
use crate::vm::{RAM, Vm};

const NAME: &str = "a82_reset_does_not_wait_for_a_guest_whose_kick_is_withheld";
const IPA: u64 = RAM + 0x20_0000;
const SECRET: u64 = 0x5ec2_e75e_c2e7;
/// `b .`
const FOR_EVER: u32 = 0x1400_0000;

/// The note, in the first page of the arena: two words that memory does not hold by chance, the results of the tests
/// before, and where the guest's pages are.
const MAGIC: [u64; 2] = [0x9047_401e_a820_0001, 0x6b1c_4d5e_2f30_a197];
const PASSED: usize = 2;
const FAILED: usize = 3;
const COUNT: usize = 4;
const RUNS: usize = 5;

/// Redistributor of CPU 1 on QEMU `virt`, its frame of SGIs and PPIs; the register that disables them.
const SGI_FRAME: u64 = 0x080a_0000 + 0x2_0000 + 0x1_0000;
const ICENABLER0: u64 = 0x180;
/// Microseconds after which the reset counts as stuck.
const PATIENCE: u64 = 300_000_000;

static RUNNING: AtomicBool = AtomicBool::new(false);

fn note(word: usize) -> u64 {
    arena::note() + word as u64 * 8
}

/// A guest that has written its page and then runs without an end, and without an exit.
fn prisoner() {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    vm.donate(page, IPA, 1, 0).expect("the page is the host's");
    for at in (IPA..IPA + PAGE_SIZE).step_by(64) {
        let report = vm.pull(0, insn::STORE, [at, SECRET, 0, 0, 0, 0]);
        assert!(matches!(report, Ok(r) if r.esr == 0));
    }
    arena::poke(note(COUNT), vm.runs().len() as u64);
    for (n, (pa, pages)) in vm.runs().iter().enumerate() {
        arena::poke(note(RUNS + 2 * n), *pa);
        arena::poke(note(RUNS + 2 * n + 1), *pages);
    }
    let mut value = 0;
    // It fetches the instruction and six registers, one in each run; the last run does not return.
    while let Ok(exit) = vcpu_run(vm.handle, 0, value) {
        let string = exit.p[0].wrapping_sub(puppet::STRINGS);
        value = match (exit.kind, string) {
            (ExitKind::MmioRead, 0) => u64::from(FOR_EVER),
            _ => 0,
        };
        RUNNING.store(string == 48, Ordering::Release);
    }
    // Thrown out by the wipe; the reset takes this CPU, too.
    loop {
        reg::relax();
    }
}

/// Withholds every kick from CPU 1, for good, and says so if the machine is still here after all.
fn withholder() {
    // SAFETY: the GIC, whose SGI frames are the host's, is mapped as Device; what is written are enable bits.
    let frame = unsafe { Registers::new(SGI_FRAME, 0x1_0000) };
    let until = reg::counter() + timer::ticks(PATIENCE);
    while reg::counter() < until {
        frame.write32(ICENABLER0, u32::MAX);
    }
    println!("test {NAME} ... FAILED: the machine is still there");
    loop {
        frame.write32(ICENABLER0, u32::MAX);
    }
}

/// Ends the first boot, with the results so far.
pub fn with_a_guest(passed: u64, failed: u64) -> ! {
    arena::reset();
    for (word, value) in [
        (PASSED, passed),
        (FAILED, failed),
        (0, MAGIC[0]),
        (1, MAGIC[1]),
    ] {
        arena::poke(note(word), value);
    }
    harness::start(1, prisoner);
    while !RUNNING.load(Ordering::Acquire) {
        reg::relax();
    }
    harness::start(2, withholder);
    // It is in the guest by then, and what came before the kicks were withheld has been taken.
    let until = reg::counter() + timer::ticks(200_000);
    while reg::counter() < until {
        reg::relax();
    }
    psci::system_reset()
}

/// On the second boot: judges the first, prints the last line and switches the machine off. Else returns.
pub fn look_back() {
    if [note(0), note(1)].map(arena::peek) != MAGIC {
        return;
    }
    arena::poke(note(0), 0);
    let [passed, failed, runs] = [PASSED, FAILED, COUNT].map(|word| arena::peek(note(word)));
    let left = (0..runs as usize)
        .map(|n| [2 * n, 2 * n + 1].map(|word| arena::peek(note(RUNS + word))))
        .flat_map(|[pa, pages]| (pa..pa + pages * PAGE_SIZE).step_by(8))
        .find(|word| arena::peek(*word) != 0);
    let ok = match left {
        None if runs > 3 => {
            println!("test {NAME} ... ok");
            true
        }
        None => {
            println!("test {NAME} ... FAILED: the guest had no pages");
            false
        }
        Some(at) => {
            println!("test {NAME} ... FAILED: {:#x} at {at:#x}", arena::peek(at));
            false
        }
    };
    let (passed, failed) = (passed + u64::from(ok), failed + u64::from(!ok));
    println!("done: {passed} passed, {failed} failed");
    psci::system_off()
}
