//! PSCI (Arm DEN 0022): versions, states, starting vCPUs twice, and what it must refuse.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_payload::machine::Machine;
use porthole_runtime::psci::{AFFINITY_INFO, CPU_OFF, CPU_ON, FEATURES, SYSTEM_OFF, VERSION, psci};
use porthole_runtime::{reg, smp, timer};

use crate::check;

const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON: i64 = 0;
const OFF: i64 = 1;
/// An affinity that no machine here has.
const NOBODY: u64 = 0xff_00ff_ffff;
/// Seconds for a vCPU to come or go.
const SECONDS: u64 = 300;

static SECOND_LIVES: AtomicU64 = AtomicU64::new(0);

/// Before any other vCPU was started.
pub fn before(machine: &Machine) {
    let version = psci(VERSION, 0, 0, 0);
    check!(version >= 0x1_0000, "PSCI_VERSION says {version:#x}");
    for function in [CPU_ON, CPU_OFF, AFFINITY_INFO, SYSTEM_OFF] {
        let result = psci(FEATURES, u64::from(function), 0, 0);
        check!(result >= 0, "PSCI_FEATURES of {function:#x} says {result}");
    }
    let result = psci(CPU_ON, machine.cpus[0], smp::entry_point(), 0);
    check!(
        result == ALREADY_ON,
        "CPU_ON of a running vCPU says {result}"
    );
    let result = psci(CPU_ON, NOBODY, smp::entry_point(), 0);
    check!(
        result == INVALID_PARAMETERS,
        "CPU_ON of nobody says {result}"
    );
    for (index, &mpidr) in machine.cpus.iter().enumerate() {
        let expected = if index == 0 { ON } else { OFF };
        let state = psci(AFFINITY_INFO, mpidr, 0, 0);
        check!(
            state == expected,
            "AFFINITY_INFO of cpu {index} says {state}, not {expected}"
        );
    }
}

/// Switches this vCPU off.
pub fn off() -> ! {
    psci(CPU_OFF, 0, 0, 0);
    porthole_payload::fail!("CPU_OFF came back on cpu {}", reg::cpu_index());
}

/// Waits for it; false if it takes too long.
fn becomes(happened: impl Fn() -> bool) -> bool {
    let start = reg::counter();
    while reg::counter() - start < SECONDS * timer::frequency() {
        if happened() {
            return true;
        }
        reg::relax();
    }
    false
}

fn becomes_off(mpidr: u64) -> bool {
    becomes(|| psci(AFFINITY_INFO, mpidr, 0, 0) == OFF)
}

extern "C" fn second_life(argument: u64) -> ! {
    let cpu = reg::cpu_index();
    check!(
        argument == !(cpu as u64),
        "cpu {cpu}: a second life with argument {argument:#x}"
    );
    SECOND_LIVES.fetch_add(1, Ordering::AcqRel);
    off()
}

/// When the others switch themselves off: each starts again, and goes again.
pub fn after(machine: &Machine) {
    for (index, &mpidr) in machine.cpus.iter().enumerate().skip(1) {
        check!(becomes_off(mpidr), "cpu {index} is not off");
        let result = smp::start(mpidr, index, second_life, !(index as u64));
        check!(
            result == 0,
            "the second CPU_ON of cpu {index} says {result}"
        );
        let lived = becomes(|| SECOND_LIVES.load(Ordering::Acquire) == index as u64);
        check!(lived, "cpu {index} had no second life");
        check!(becomes_off(mpidr), "cpu {index} is not off again");
    }
}
