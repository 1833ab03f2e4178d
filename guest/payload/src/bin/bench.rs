//! The bench guest: what five operations cost, with 2 vCPUs, measured as kvm-unit-tests' micro-bench does.
//! Ticks of the virtual counter become nanoseconds, which under QEMU's `-icount shift=0` are instructions.
//! Output: `bench NAME reps=N instructions=M`, M the mean (see README.md). Nothing is subtracted.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use porthole_payload::fail;
use porthole_payload::machine::{self, Machine};
use porthole_runtime::exception::{self, Frame};
use porthole_runtime::gic::{self, Gic};
use porthole_runtime::mmio::Registers;
use porthole_runtime::{println, psci, reg, smp, timer};
use spin::Once;

porthole_runtime::entry!(main);

/// The SGI that the boot vCPU sends.
const SGI: u32 = 1;
/// A function id of no service: bit 31 clear, owner 11 (kvm-unit-tests uses the same).
const UNKNOWN_FUNCTION: u64 = 0x4b00_0000;
/// INTID of "no interrupt": a write of it to EOIR does nothing.
const SPURIOUS: u32 = 1023;
/// GICD_IIDR.
const IIDR: u64 = 0x008;
/// PL031's first identification register, and what is in it.
const RTC_ID: (u64, u32) = (0xfe0, 0x31);
/// Looks at the flag until an interrupt counts as lost.
const PATIENCE: u32 = 1 << 28;

static GIC: Once<Gic> = Once::new();
static READY: AtomicBool = AtomicBool::new(false);
static RECEIVED: AtomicBool = AtomicBool::new(false);

fn main(dtb: u64) -> ! {
    let machine = machine::start(dtb);
    let reps = machine.args.number("reps", 65_536).max(1);
    println!(
        "bench: {} cpus, counter at {} Hz",
        machine.cpus.len(),
        timer::frequency()
    );
    let gic = *GIC.call_once(|| machine.gic);
    exception::on_irq(Some(on_irq));
    gic.init();
    gic.init_cpu(0);
    let distributor = part(gic.dist);
    let peer = start_peer(&machine);

    if hyp_call() != -1 {
        println!("bench: somebody answers function {UNKNOWN_FUNCTION:#x}");
    }
    measure("hyp_call", reps, || {
        hyp_call();
    });
    if let Some(rtc) = &machine.rtc {
        let id = rtc.read32(RTC_ID.0);
        if id != RTC_ID.1 {
            fail!("PL031 says {id:#x}, not {:#x}", RTC_ID.1);
        }
        measure("mmio_read_user", reps, || {
            rtc.read32(RTC_ID.0);
        });
    }
    measure("mmio_read_vgic", reps, || {
        distributor.read32(IIDR);
    });
    if peer {
        measure("ipi", reps, ipi);
    }
    measure("eoi", reps, || gic::end(SPURIOUS));
    psci::system_off()
}

/// The page of the distributor that has IIDR.
fn part(dist: u64) -> Registers {
    // SAFETY: `machine` mapped the distributor as Device.
    unsafe { Registers::new(dist, 0x1000) }
}

/// Brings the second vCPU to its idle loop. False if there is none.
fn start_peer(machine: &Machine) -> bool {
    let Some(&mpidr) = machine.cpus.get(1) else {
        return false;
    };
    let result = smp::start(mpidr, 1, secondary, 0);
    if result != 0 {
        fail!("CPU_ON of cpu 1: {result}");
    }
    while !READY.load(Ordering::Acquire) {
        reg::relax();
    }
    true
}

/// As in micro-bench, the receiver spins with interrupts on.
extern "C" fn secondary(_: u64) -> ! {
    if let Some(gic) = GIC.get() {
        gic.init_cpu(1);
        gic.enable_private(1, SGI);
    }
    reg::irq_enable();
    READY.store(true, Ordering::Release);
    loop {
        reg::relax();
    }
}

fn on_irq(_: &mut Frame) -> bool {
    let intid = gic::acknowledge();
    if intid != SPURIOUS {
        gic::end(intid);
        RECEIVED.store(true, Ordering::Release);
    }
    true
}

fn ipi() {
    RECEIVED.store(false, Ordering::Relaxed);
    gic::send_sgi(SGI, 1 << 1);
    for _ in 0..PATIENCE {
        if RECEIVED.load(Ordering::Acquire) {
            return;
        }
        reg::relax();
    }
    fail!("ipi: the interrupt did not arrive");
}

fn hyp_call() -> i64 {
    let result: i64;
    // SAFETY: SMCCC 1.2 lets the callee change x0 to x17; an unknown function does nothing else.
    unsafe {
        asm!("hvc #0", inout("x0") UNKNOWN_FUNCTION => result,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    result
}

/// Runs `operation` once, then `reps` times between two looks at the counter; prints the mean in hundredths.
fn measure(name: &str, reps: u64, operation: impl Fn()) {
    operation();
    let start = reg::counter();
    for _ in 0..reps {
        operation();
    }
    let ticks = reg::counter() - start;
    let hundredths =
        u128::from(ticks) * 100_000_000_000 / u128::from(timer::frequency()) / u128::from(reps);
    println!(
        "bench {name} reps={reps} instructions={}.{:02}",
        hundredths / 100,
        hundredths % 100
    );
}
