//! The hostile host: boots at EL1 in place of Linux and attacks the hypervisor.
//! Each attack is a named test (ids of the project's list of attacks); results go to the first UART.
//! It ends with PSCI SYSTEM_RESET and, the second time, SYSTEM_OFF; a run without its last line has failed.
#![no_std]
#![no_main]

mod arena;
mod calls;
mod confine;
mod dma;
mod edu;
mod guests;
mod harness;
mod hyp;
mod interrupts;
mod its;
mod life;
mod memory;
mod open;
mod puppet;
mod races;
mod ranges;
mod reset;
mod vcpus;
mod vm;
mod window_life;
mod windows;

use porthole_runtime::{console, entry, mmu, println, psci};

entry!(main);

fn main(_dtb: u64) -> ! {
    psci::use_smc(true);
    mmu::map(0, 0, 1 << 30, mmu::Attr::Device);
    mmu::map(1 << 30, 1 << 30, 4 << 30, mmu::Attr::Normal);
    mmu::enable();
    console::set(console::Uart::Pl011(0x0900_0000));
    reset::look_back();
    harness::start_workers();
    harness::run(&[
        memory::TESTS,
        ranges::TESTS,
        life::TESTS,
        races::TESTS,
        windows::TESTS,
        window_life::TESTS,
        open::TESTS,
        vcpus::TESTS,
        guests::TESTS,
        calls::TESTS,
        interrupts::TESTS,
        its::TESTS,
        its::races::TESTS,
        dma::TESTS,
        confine::TESTS,
    ])
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("fatal: {info}");
    psci::system_off()
}
