//! The end of the road: faults of EL2 itself, exceptions that cannot come, panics. Each is reported on all consoles
//! with ESR, FAR, ELR, CPU and the last call, then the machine is switched off: nothing runs on without EL2.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_arch::exceptions::{Frame, Kind, Syndrome};
use porthole_arch::firmware::{self, Conduit};
use porthole_arch::percpu::{self, CPUS_MAX, PerCpu};

use crate::console;

/// Function id of the host's last hypercall or SMC on each CPU, for reports; `u64::MAX` before the first.
static LAST_CALL: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(u64::MAX) }; CPUS_MAX]);
/// A report is being written: whoever fails while writing it is not reported again.
static REPORTING: AtomicBool = AtomicBool::new(false);

/// Notes the call that this CPU is about to serve.
pub fn note_call(function: u64) {
    LAST_CALL.this().store(function, Ordering::Relaxed);
}

/// Says what is wrong, in one line, and switches the machine off.
pub fn stop(line: fmt::Arguments<'_>) -> ! {
    report(|| console::fatal(line))
}

fn report(write: impl FnOnce()) -> ! {
    if REPORTING.swap(true, Ordering::AcqRel) {
        loop {
            porthole_arch::host::wait();
        }
    }
    write();
    firmware::system_off(Conduit::Smc)
}

/// The report itself. `who` says what ran when it happened.
fn write_report(who: &str, kind: Kind, frame: &Frame, sp: Option<u64>) {
    let syndrome = Syndrome::read();
    let line = |text: fmt::Arguments<'_>| console::fatal(text);
    line(format_args!(
        "fatal: {kind:?} exception from {who} on CPU {}, last call {:#x}",
        percpu::id().0,
        LAST_CALL.this().load(Ordering::Relaxed)
    ));
    line(format_args!(
        "  ESR {:#010x} (class {:#04x})  FAR {:#018x}  HPFAR {:#x}",
        syndrome.esr,
        syndrome.class(),
        syndrome.far,
        syndrome.hpfar
    ));
    line(format_args!(
        "  ELR {:#018x} (image + {:#x})  SPSR {:#x}  SP {:#x}",
        frame.pc,
        frame
            .pc
            .wrapping_sub(porthole_arch::boot::image().start.raw()),
        frame.pstate,
        sp.unwrap_or(0)
    ));
    // EL2's general registers may hold what a guest had in its own: they are not for the host's console.
    if cfg!(debug_assertions) {
        for (row, values) in frame.x.chunks(4).enumerate() {
            let value = |n: usize| values.get(n).copied().unwrap_or(0);
            line(format_args!(
                "  x{:<2} {:#018x} {:#018x} {:#018x} {:#018x}",
                row * 4,
                value(0),
                value(1),
                value(2),
                value(3)
            ));
        }
    }
    line(format_args!("the machine is switched off"));
}

#[unsafe(no_mangle)]
extern "C" fn porthole_el2_fault(frame: &Frame, kind: u64) -> ! {
    report(|| write_report("EL2", Kind::from_vector(kind), frame, Some(frame.sp)))
}

#[unsafe(no_mangle)]
extern "C" fn porthole_host_unexpected(frame: &Frame, kind: u64) -> ! {
    report(|| write_report("the host", Kind::from_vector(kind), frame, None))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    report(|| {
        console::fatal(format_args!(
            "fatal: CPU {}, last call {:#x}: {info}",
            percpu::id().0,
            LAST_CALL.this().load(Ordering::Relaxed)
        ));
        console::fatal(format_args!("the machine is switched off"));
    })
}
