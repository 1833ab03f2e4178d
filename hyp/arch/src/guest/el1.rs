//! EL1 system registers of host and guest, moved between hardware and memory, and pointer-authentication keys.
//! SCTLR_EL1 and TCR_EL1 have an order of their own and are moved by `switch`; ACTLR_EL1 is never a guest's:
//! HCR_EL2.TACR traps it.

use aarch64_cpu::registers::{
    AFSR0_EL1, AFSR1_EL1, AMAIR_EL1, CNTKCTL_EL1, CONTEXTIDR_EL1, CPACR_EL1, CSSELR_EL1, ELR_EL1,
    ESR_EL1, FAR_EL1, MAIR_EL1, PAR_EL1, Readable, SP_EL0, SP_EL1, SPSR_EL1, TPIDR_EL0, TPIDR_EL1,
    TPIDRRO_EL0, TTBR0_EL1, TTBR1_EL1, VBAR_EL1, Writeable,
};
use porthole_core::context::{El1Regs, PauthKeys};

use super::regs::*;

macro_rules! for_each_register {
    ($apply:ident, $regs:expr) => {
        $apply! { $regs,
            cpacr CPACR_EL1,
            ttbr0 TTBR0_EL1,
            ttbr1 TTBR1_EL1,
            mair MAIR_EL1,
            amair AMAIR_EL1,
            esr ESR_EL1,
            far FAR_EL1,
            afsr0 AFSR0_EL1,
            afsr1 AFSR1_EL1,
            vbar VBAR_EL1,
            contextidr CONTEXTIDR_EL1,
            tpidr_el0 TPIDR_EL0,
            tpidrro_el0 TPIDRRO_EL0,
            tpidr_el1 TPIDR_EL1,
            cntkctl CNTKCTL_EL1,
            par PAR_EL1,
            sp_el0 SP_EL0,
            sp_el1 SP_EL1,
            elr ELR_EL1,
            spsr SPSR_EL1,
            csselr CSSELR_EL1,
        }
    };
}

macro_rules! save_all {
    ($regs:expr, $($field:ident $register:ident,)*) => { $($regs.$field = $register.get();)* };
}

macro_rules! load_all {
    ($regs:expr, $($field:ident $register:ident,)*) => { $($register.set($regs.$field);)* };
}

/// Saves everything but `sctlr`, `tcr` and `actlr`.
pub(super) fn save(regs: &mut El1Regs) {
    for_each_register!(save_all, regs);
}

/// Loads everything but `sctlr`, `tcr` and `actlr`. No walk of EL1's stage 1 may be possible meanwhile.
pub(super) fn load(regs: &El1Regs) {
    for_each_register!(load_all, regs);
}

macro_rules! for_each_key {
    ($apply:ident, $keys:expr) => {
        $apply! { $keys,
            0 APIAKEYLO_EL1, 1 APIAKEYHI_EL1,
            2 APIBKEYLO_EL1, 3 APIBKEYHI_EL1,
            4 APDAKEYLO_EL1, 5 APDAKEYHI_EL1,
            6 APDBKEYLO_EL1, 7 APDBKEYHI_EL1,
            8 APGAKEYLO_EL1, 9 APGAKEYHI_EL1,
        }
    };
}

macro_rules! save_keys {
    ($keys:expr, $($index:literal $register:ident,)*) => { $($keys.0[$index] = $register.get();)* };
}

macro_rules! load_keys {
    ($keys:expr, $($index:literal $register:ident,)*) => { $($register.set($keys.0[$index]);)* };
}

/// Saves the keys; the CPU has FEAT_PAuth. EL2 itself signs no pointer, so keys may change at any time.
pub(super) fn save_pauth(keys: &mut PauthKeys) {
    for_each_key!(save_keys, keys);
}

/// Loads the keys; the CPU has FEAT_PAuth.
pub(super) fn load_pauth(keys: &PauthKeys) {
    for_each_key!(load_keys, keys);
}
