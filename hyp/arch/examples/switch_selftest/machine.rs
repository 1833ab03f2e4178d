//! What the tests need of QEMU's virt machine: UART, power, GIC, and a stage 2 for the guests.
//! Addresses are those of the virt machine; no device tree is read.

use core::arch::asm;
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use porthole_arch::guest::Redistributor;
use porthole_core::context::VcpuContext;

const UART: *mut u32 = 0x0900_0000 as *mut u32;
const GICD: usize = 0x0800_0000;
const GICR: usize = 0x080a_0000;
const GICR_WAKER: usize = 0x14;
const GICR_SGI: usize = 0x1_0000;
const GICR_IGROUPR0: usize = GICR_SGI + 0x80;
const GICR_ISENABLER0: usize = GICR_SGI + 0x100;
const GICR_ISPENDR0: usize = GICR_SGI + 0x200;
const GICR_ICPENDR0: usize = GICR_SGI + 0x280;
const GICR_ISACTIVER0: usize = GICR_SGI + 0x300;

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            // SAFETY: the PL011's data register; QEMU's never fills.
            unsafe { UART.write_volatile(u32::from(byte)) };
        }
        Ok(())
    }
}

pub fn print(args: fmt::Arguments<'_>) {
    let _ = Uart.write_fmt(args);
}

/// Prints one line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::machine::print(format_args!("{}\n", format_args!($($arg)*))) };
}

static FAULT_EXPECTED: AtomicBool = AtomicBool::new(false);

/// The next fault of EL2 is what a test wants.
pub fn expect_fault() {
    FAULT_EXPECTED.store(true, Ordering::Relaxed);
}

pub fn fault_expected() -> bool {
    FAULT_EXPECTED.load(Ordering::Relaxed)
}

/// PSCI SYSTEM_OFF through the conduit of the virt machine with EL2, SMC.
pub fn power_off() -> ! {
    // SAFETY: does not return.
    unsafe { asm!("smc #0", in("x0") 0x8400_0008u64, options(noreturn)) }
}

fn mmio(base: usize, offset: usize) -> *mut u32 {
    (base + offset) as *mut u32
}

fn write(base: usize, offset: usize, value: u32) {
    // SAFETY: registers of the GIC at the machine's fixed addresses.
    unsafe { mmio(base, offset).write_volatile(value) }
}

fn read(base: usize, offset: usize) -> u32 {
    // SAFETY: as above.
    unsafe { mmio(base, offset).read_volatile() }
}

/// A PPI or SGI made pending, as a device of the host would.
pub fn set_pending(intid: u32) {
    write(GICR, GICR_ISENABLER0, 1 << intid);
    write(GICR, GICR_ISPENDR0, 1 << intid);
}

pub fn clear_pending(intid: u32) {
    write(GICR, GICR_ICPENDR0, 1 << intid);
}

pub fn is_pending(intid: u32) -> bool {
    read(GICR, GICR_ISPENDR0) & 1 << intid != 0
}

pub fn is_active(intid: u32) -> bool {
    read(GICR, GICR_ISACTIVER0) & 1 << intid != 0
}

pub fn enabled() -> u32 {
    read(GICR, GICR_ISENABLER0)
}

pub fn redistributor() -> Redistributor {
    let base = NonNull::new(GICR as *mut u8).expect("not null");
    // SAFETY: the virt machine's first redistributor; the MMU is off, so all of it is Device memory.
    unsafe { Redistributor::new(base) }
}

pub fn set_up() {
    // SAFETY: EL2's controls as a boot would set them: EL1 is AArch64, nothing trapped, stage 2 off, SVE at its
    // longest; FP only in the test's own assembly.
    unsafe {
        asm!(
            "msr hcr_el2, {hcr}",
            "msr cptr_el2, {cptr}",
            "msr cnthctl_el2, {cnthctl}",
            "isb",
            hcr = in(reg) 1u64 << 31,
            cptr = in(reg) 0x32ffu64,
            cnthctl = in(reg) 3u64,
        );
        if porthole_arch::guest::CpuFeatures::read().sve {
            asm!("msr S3_4_C1_C2_0, {}", "isb", in(reg) 0xfu64);
        }
    }
    write(GICR, GICR_WAKER, 0);
    while read(GICR, GICR_WAKER) & 4 != 0 {}
    write(GICD, 0, 1 << 4 | 1 << 1);
    write(GICR, GICR_IGROUPR0, u32::MAX);
}

/// A stage-2 root: entries of 1 GiB, level 1.
#[repr(C, align(4096))]
pub struct Stage2([u64; 512]);

/// Identity for the gigabyte of RAM at 1 GiB; everything else is a hole.
static STAGE2: Stage2 = {
    let mut table = [0; 512];
    table[1] = 0x4000_0000 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 1;
    Stage2(table)
};

/// A vCPU that starts at `entry`.
pub fn vcpu(entry: unsafe extern "C" fn()) -> VcpuContext {
    let mut vcpu = VcpuContext::default();
    vcpu.pc = entry as usize as u64;
    vcpu.pstate = 0x3c5;
    vcpu.vttbr = 1 << 48 | (&raw const STAGE2) as u64;
    vcpu.vtcr = 1 << 31 | 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 28;
    vcpu.vmpidr = 1 << 31;
    vcpu.el1.sctlr = 0x30d0_0800;
    vcpu.gic.hcr = 1;
    vcpu
}
