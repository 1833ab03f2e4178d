//! Self-test of the world switch, alone at EL2 on QEMU's virt machine (virtualization=on, gic-version=3): small
//! guests in assembly run behind an identity stage 2, and the test plays core and host. Prints one line per test,
//! then powers off. Nothing of the real hypervisor's boot is used.
#![no_std]
#![no_main]

mod cases;
mod machine;

use core::arch::global_asm;

use porthole_arch::exceptions::{Frame, Kind, Syndrome};

global_asm!(include_str!("boot.S"));
global_asm!(include_str!("guests.S"));

#[unsafe(no_mangle)]
extern "C" fn selftest_main() -> ! {
    machine::set_up();
    let passed = cases::run();
    if !passed {
        println!("selftest: FAIL");
        machine::power_off()
    }
    cases::fault_under_guest_vectors()
}

#[unsafe(no_mangle)]
extern "C" fn porthole_el2_fault(frame: &Frame, kind: u64) -> ! {
    if machine::fault_expected() && kind == 0 && Syndrome::read().class() == 0 {
        println!("test a_fault_of_el2_is_no_exit_of_the_guest ... ok");
        println!("selftest: PASS");
        machine::power_off()
    }
    println!(
        "fault of EL2 ({:?}): {:x?} {frame:x?}",
        Kind::from_vector(kind),
        Syndrome::read()
    );
    println!("selftest: FAIL");
    machine::power_off()
}

#[unsafe(no_mangle)]
extern "C" fn porthole_host_sync(frame: &mut Frame) {
    porthole_el2_fault(frame, 0)
}

#[unsafe(no_mangle)]
extern "C" fn porthole_host_unexpected(frame: &Frame, kind: u64) -> ! {
    porthole_el2_fault(frame, kind)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    println!("selftest: FAIL");
    machine::power_off()
}
