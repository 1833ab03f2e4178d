//! The hostile host: boots at EL1 in place of Linux and attacks the hypervisor.
//! Each attack is a named test; results go to the first UART; the end is PSCI SYSTEM_OFF.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_runtime::{console, entry, gic, mmu, println, probe, psci, reg, smp};

entry!(main);

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn other(argument: u64) -> ! {
    println!("cpu {} argument {argument:#x}", reg::cpu_index());
    SEEN.fetch_add(1, Ordering::Release);
    loop {
        reg::wfi();
    }
}

fn main(dtb: u64) -> ! {
    console::set(console::Uart::Pl011(0x0900_0000));
    println!("hello dtb {dtb:#x} image {:x?}", entry::image_range());
    mmu::map(0, 0, 1 << 30, mmu::Attr::Device);
    mmu::map(1 << 30, 1 << 30, 1 << 30, mmu::Attr::Normal);
    mmu::enable();
    psci::use_smc(false);
    println!("mmu on");
    println!("read bad: {:x?}", probe::read(0x80_0000_0000 - 8, 0));
    println!("exec bad: {:x?}", probe::execute(0x70_0000_0000, 0));
    println!("exec dev: {:x?}", probe::execute(0x0900_0000, 0));
    println!("read ok: {:x?}", probe::read(entry::image_range().start, 0));
    let r = smp::start(1, 1, other, 0x77);
    println!("start {r}");
    while SEEN.load(Ordering::Acquire) == 0 {}
    let g = gic::Gic {
        dist: 0x0800_0000,
        redist: 0x080a_0000,
    };
    g.init();
    g.init_cpu(0);
    println!("typer {:#x}", g.read_dist(4));
    psci::system_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("fatal: {info}");
    psci::system_off()
}
