//! Timer, SGIs between all vCPUs, and a message through the GICv2m frame.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_payload::machine::Machine;
use porthole_runtime::entry::CPUS_MAX;
use porthole_runtime::exception::{self, Frame};
use porthole_runtime::mmio::Registers;
use porthole_runtime::{gic, reg, timer};

use crate::check;

/// Timer interrupts of each vCPU in each way of waiting.
const ROUNDS: u64 = 20;
/// Microseconds to a timer interrupt.
const MICROS: u64 = 500;
/// Seconds after which an interrupt counts as lost, whatever the host does meanwhile.
const LOST_SECONDS: u64 = 300;
/// SGIs from each vCPU to each other one.
const SGI_ROUNDS: u64 = 50;

/// Interrupts that a vCPU took, by kind.
#[derive(Default)]
struct Taken {
    timer: AtomicU64,
    sgi: [AtomicU64; 16],
    shared: AtomicU64,
}

static TAKEN: [Taken; CPUS_MAX] = [const {
    Taken {
        timer: AtomicU64::new(0),
        sgi: [const { AtomicU64::new(0) }; 16],
        shared: AtomicU64::new(0),
    }
}; CPUS_MAX];

fn on_irq(_: &mut Frame) -> bool {
    let intid = gic::acknowledge();
    let taken = &TAKEN[reg::cpu_index()];
    let counter = match intid {
        0..=15 => &taken.sgi[intid as usize],
        timer::INTID => {
            timer::disarm();
            &taken.timer
        }
        32..1020 => &taken.shared,
        1020.. => return true,
        _ => return false,
    };
    counter.fetch_add(1, Ordering::AcqRel);
    gic::end(intid);
    true
}

/// Sets up the distributor.
pub fn init(machine: &Machine) {
    exception::on_irq(Some(on_irq));
    machine.gic.init();
}

/// Sets up this vCPU's part.
pub fn init_cpu(machine: &Machine, cpu: usize) {
    machine.gic.init_cpu(cpu);
    machine.gic.enable_private(cpu, timer::INTID);
    for sgi in 0..16 {
        machine.gic.enable_private(cpu, sgi);
    }
    reg::irq_enable();
}

/// Waits until `happened`, asleep between interrupts if `asleep`. False if that takes too long; a sleeper cannot
/// notice that, so what wakes it must be sure to come or the run hangs until its caller's patience ends.
fn wait(asleep: bool, happened: impl Fn() -> bool) -> bool {
    let start = reg::counter();
    let limit = LOST_SECONDS * timer::frequency();
    while reg::counter() - start < limit {
        reg::irq_disable();
        let done = happened();
        if !done && asleep {
            reg::wfi();
        }
        reg::irq_enable();
        if done {
            return true;
        }
        reg::relax();
    }
    false
}

/// Sleeps for `ticks`.
pub fn sleep(ticks: u64) {
    let taken = &TAKEN[reg::cpu_index()].timer;
    let before = taken.load(Ordering::Acquire);
    let start = reg::counter();
    timer::arm(ticks);
    let woken = wait(true, || taken.load(Ordering::Acquire) > before);
    check!(woken, "the timer's interrupt did not come");
    let slept = reg::counter() - start;
    check!(slept >= ticks, "woken after {slept} of {ticks} ticks");
}

/// Timer interrupts: asleep, and in the middle of work; exactly one for each deadline.
pub fn timer(cpu: usize) {
    let taken = &TAKEN[cpu].timer;
    let ticks = timer::ticks(MICROS);
    let before = taken.load(Ordering::Acquire);
    for _ in 0..ROUNDS {
        sleep(ticks);
    }
    for round in 0..ROUNDS {
        let now = taken.load(Ordering::Acquire);
        timer::arm(ticks);
        let came = wait(false, || taken.load(Ordering::Acquire) > now);
        check!(
            came,
            "cpu {cpu}: no timer interrupt while busy, round {round}"
        );
    }
    let total = taken.load(Ordering::Acquire) - before;
    check!(
        total == 2 * ROUNDS,
        "cpu {cpu}: {total} timer interrupts for {} deadlines",
        2 * ROUNDS
    );
    taken_back(cpu);
}

/// A deadline that passes while interrupts are masked, and is then taken back: a hypervisor that had put the
/// interrupt into a list register already cannot know, so one may still come (Linux takes it for spurious), never two.
fn taken_back(cpu: usize) {
    let taken = &TAKEN[cpu].timer;
    let before = taken.load(Ordering::Acquire);
    reg::irq_disable();
    timer::arm(1);
    while !timer::expired() {
        reg::relax();
    }
    timer::disarm();
    reg::irq_enable();
    let start = reg::counter();
    wait(false, || reg::counter() - start >= timer::ticks(MICROS));
    let late = taken.load(Ordering::Acquire) - before;
    check!(
        late <= 1,
        "cpu {cpu}: {late} interrupts of a deadline that was taken back"
    );
}

/// Every vCPU sends SGI number `its own index` to every other one, and waits for as many as it should get.
pub fn sgis(machine: &Machine, cpu: usize) {
    let cpus = machine.cpus.len();
    let mine = &TAKEN[cpu].sgi;
    for round in 1..=SGI_ROUNDS {
        for to in (0..cpus).filter(|to| *to != cpu) {
            let answered = &TAKEN[to].sgi[cpu];
            gic::send_sgi(cpu as u32, 1 << to);
            // SGIs to one target merge while pending: the next one only after this one was taken.
            let came = wait(false, || answered.load(Ordering::Acquire) >= round);
            check!(came, "SGI {round} from cpu {cpu} to cpu {to} was lost");
        }
    }
    for from in (0..cpus).filter(|from| *from != cpu) {
        let all = wait(false, || mine[from].load(Ordering::Acquire) >= SGI_ROUNDS);
        check!(all, "cpu {cpu}: SGIs from cpu {from} are missing");
        let count = mine[from].load(Ordering::Acquire);
        check!(
            count == SGI_ROUNDS,
            "cpu {cpu}: {count} SGIs from cpu {from}, not {SGI_ROUNDS}"
        );
    }
    // One to itself.
    gic::send_sgi(15, 1 << cpu);
    let came = wait(false, || mine[15].load(Ordering::Acquire) == 1);
    check!(came, "cpu {cpu}: an SGI to itself was lost");
}

/// The frame's doorbell raises its interrupts for the guest's own writes too.
pub fn own_message(machine: &Machine) {
    let Some(frame) = machine.msi.filter(|f| f.count > 0) else {
        return;
    };
    let intid = frame.base + frame.count - 1;
    machine.gic.enable_spi(intid, 0, true);
    // SAFETY: `machine` mapped the frame as Device; the doorbell is one word.
    let doorbell = unsafe { Registers::new(frame.doorbell, 4) };
    for round in 1..=ROUNDS {
        doorbell.write32(0, intid);
        let came = wait(false, || TAKEN[0].shared.load(Ordering::Acquire) >= round);
        check!(came, "message {round} was lost");
    }
}
