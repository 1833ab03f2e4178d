//! The exercise guest: checks on all its vCPUs what a guest relies on, and ends with the number of checks that held.
//! The first that does not hold is printed and resets the machine. What is checked stands in the modules.
//! It runs on a bare machine too; what only Porthole promises is then left out.
#![no_std]
#![no_main]

mod calls;
mod check;
mod debug;
mod interrupts;
mod memory;
mod power;
mod state;

use core::sync::atomic::{AtomicUsize, Ordering};

use porthole_payload::fail;
use porthole_payload::machine::{self, Machine};
use porthole_runtime::{exception, println, psci, reg, smp};
use spin::Once;

porthole_runtime::entry!(main);

static MACHINE: Once<Machine> = Once::new();

fn machine() -> &'static Machine {
    match MACHINE.get() {
        Some(machine) => machine,
        None => fail!("no machine"),
    }
}

fn main(dtb: u64) -> ! {
    let machine = MACHINE.call_once(|| machine::start(dtb));
    println!(
        "exercise: {} cpus, {} ranges of free RAM",
        machine.cpus.len(),
        machine.free().len()
    );
    exception::on_sync(Some(debug::on_exception));
    interrupts::init(machine);
    power::before(machine);
    calls::all(machine);
    for (index, &mpidr) in machine.cpus.iter().enumerate().skip(1) {
        let result = smp::start(mpidr, index, secondary, index as u64);
        check!(result == 0, "CPU_ON of cpu {index} says {result}");
    }
    work(0);
    power::after(machine);
    interrupts::own_message(machine);
    println!("exercise: {} checks ok", check::count());
    psci::system_off()
}

extern "C" fn secondary(index: u64) -> ! {
    let cpu = reg::cpu_index();
    check!(cpu as u64 == index, "cpu {cpu} was started as {index}");
    work(cpu);
    power::off()
}

/// What every vCPU does at the same time as the others.
fn work(cpu: usize) {
    interrupts::init_cpu(machine(), cpu);
    meet();
    let state = state::State::set(cpu);
    state.check("at once");
    interrupts::timer(cpu);
    state.check("after the timer");
    meet();
    interrupts::sgis(machine(), cpu);
    state.check("after SGIs");
    meet();
    memory::fill(machine(), cpu);
    meet();
    memory::verify(machine(), cpu);
    state.check("after memory");
    debug::all(cpu);
    state.check("after debugging");
    state::exits(machine());
    state.check("after exits");
    meet();
}

/// Waits until every vCPU is here.
fn meet() {
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    let cpus = machine().cpus.len();
    let before = ARRIVED.fetch_add(1, Ordering::AcqRel);
    let all = (before / cpus + 1) * cpus;
    while ARRIVED.load(Ordering::Acquire) < all {
        reg::relax();
    }
}
