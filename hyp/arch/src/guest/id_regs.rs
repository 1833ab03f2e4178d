//! Identification registers of this CPU by encoding, and the random number register.
//! Which of them a guest may see, and with which fields, is decided in `porthole-core`.

use core::arch::asm;

use porthole_core::hw::SysReg;

use crate::idregs;
use crate::sysreg::read_sysreg;

/// The value on this CPU; zero if `register` is not an identification register that every CPU has.
pub fn read(register: SysReg) -> u64 {
    const MIDR: SysReg = SysReg::new(3, 0, 0, 0, 0);
    const MPIDR: SysReg = SysReg::new(3, 0, 0, 0, 5);
    const REVIDR: SysReg = SysReg::new(3, 0, 0, 0, 6);
    const CCSIDR: SysReg = SysReg::new(3, 1, 0, 0, 0);
    const CLIDR: SysReg = SysReg::new(3, 1, 0, 0, 1);
    const AIDR: SysReg = SysReg::new(3, 1, 0, 0, 7);
    const CTR: SysReg = SysReg::new(3, 3, 0, 0, 1);
    const DCZID: SysReg = SysReg::new(3, 3, 0, 0, 7);
    match register {
        MIDR => read_sysreg!("midr_el1"),
        MPIDR => read_sysreg!("mpidr_el1"),
        REVIDR => read_sysreg!("revidr_el1"),
        CCSIDR => read_sysreg!("ccsidr_el1"),
        CLIDR => read_sysreg!("clidr_el1"),
        AIDR => read_sysreg!("aidr_el1"),
        CTR => read_sysreg!("ctr_el0"),
        DCZID => read_sysreg!("dczid_el0"),
        // Op0 3, Op1 0, CRn 0, CRm 1 to 7.
        _ => idregs::read(register),
    }
}

/// 64 random bits from RNDR, `None` when the generator has none at the moment. The CPU must have FEAT_RNG.
pub(super) fn rndr() -> Option<u64> {
    let (value, success): (u64, u64);
    // SAFETY: reads RNDR (S3_3_C2_C4_0), which the caller knows to exist; it sets the flags and nothing else.
    unsafe {
        asm!(
            "mrs {value}, S3_3_C2_C4_0",
            "cset {success}, ne",
            value = out(reg) value,
            success = out(reg) success,
            options(nomem, nostack),
        );
    }
    (success != 0).then_some(value)
}
