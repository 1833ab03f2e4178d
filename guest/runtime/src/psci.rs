//! PSCI calls (Arm DEN 0022) through a conduit that the program chooses once.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::call::{Args, hvc, smc};

static USE_SMC: AtomicBool = AtomicBool::new(false);

/// Chooses SMC (a host under QEMU `virt` with EL2) or HVC (a guest; the default).
pub fn use_smc(yes: bool) {
    USE_SMC.store(yes, Ordering::Relaxed);
}

/// Any PSCI or SMCCC call: x0 of the answer.
pub fn psci(function: u32, a: u64, b: u64, c: u64) -> i64 {
    let mut args: Args = [0; 18];
    args[0] = u64::from(function);
    args[1] = a;
    args[2] = b;
    args[3] = c;
    let r = if USE_SMC.load(Ordering::Relaxed) {
        smc(args)
    } else {
        hvc(args)
    };
    r[0].cast_signed()
}

/// CPU_ON, 64-bit.
pub const CPU_ON: u32 = 0xC400_0003;
/// CPU_OFF.
pub const CPU_OFF: u32 = 0x8400_0002;
/// AFFINITY_INFO, 64-bit.
pub const AFFINITY_INFO: u32 = 0xC400_0004;
/// PSCI_VERSION.
pub const VERSION: u32 = 0x8400_0000;
/// PSCI_FEATURES.
pub const FEATURES: u32 = 0x8400_000A;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u32 = 0x8400_0009;

/// Switches the machine off.
pub fn system_off() -> ! {
    psci(SYSTEM_OFF, 0, 0, 0);
    loop {
        crate::reg::wfi();
    }
}

/// Asks for a reset: for a program that failed, so that whoever runs it can tell.
pub fn system_reset() -> ! {
    psci(SYSTEM_RESET, 0, 0, 0);
    loop {
        crate::reg::wfi();
    }
}
