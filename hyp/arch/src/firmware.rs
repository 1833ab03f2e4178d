//! The firmware behind SMC: PSCI (Arm DEN 0022) through the `smccc` crate.
//! What may be asked on the host's behalf is decided in core.

use porthole_core::addr::PhysAddr;

/// PSCI_VERSION.
pub const PSCI_VERSION: u32 = 0x8400_0000;
/// CPU_OFF.
pub const CPU_OFF: u32 = 0x8400_0002;
/// CPU_ON, 64-bit.
pub const CPU_ON: u32 = 0xC400_0003;
/// CPU_SUSPEND, 32-bit and 64-bit.
pub const CPU_SUSPEND: [u32; 2] = [0x8400_0001, 0xC400_0001];
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// StateType of CPU_SUSPEND's power_state in the original format (DEN 0022, 5.4.2): set for power-down.
const POWER_DOWN: u64 = 1 << 16;

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// From EL2, or from EL1 where nothing is at EL2.
    Smc,
    /// From EL1 to someone else's EL2.
    Hvc,
}

/// Makes one SMC and returns x0 to x3.
///
/// A CPU_SUSPEND that asks for power-down is turned into a standby: PSCI lets an implementation do so (DEN 0022,
/// 5.4.1), and a CPU that lost its state would wake up at an address of the caller's, in EL2.
pub fn call(function: u32, args: [u64; 3]) -> [u64; 4] {
    if CPU_SUSPEND.contains(&function) && args[0] & POWER_DOWN != 0 {
        aarch64_cpu::asm::wfi();
        return [0; 4];
    }
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    let result = smccc::smc64(function, all);
    [result[0], result[1], result[2], result[3]]
}

/// PSCI CPU_ON of the CPU with this affinity, at this image's entry. Returns the PSCI result.
pub fn cpu_on(affinity: u64, entry: PhysAddr, context: u64) -> i64 {
    call(CPU_ON, [affinity, entry.raw(), context])[0] as i64
}

/// Switches this CPU off; if the firmware will not, it stops here.
pub fn cpu_off() -> ! {
    call(CPU_OFF, [0; 3]);
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Powers the machine off; if the firmware will not, this CPU stops here.
pub fn system_off(conduit: Conduit) -> ! {
    match conduit {
        Conduit::Smc => smccc::smc64(SYSTEM_OFF, [0; 17]),
        Conduit::Hvc => smccc::hvc64(SYSTEM_OFF, [0; 17]),
    };
    loop {
        aarch64_cpu::asm::wfi();
    }
}
