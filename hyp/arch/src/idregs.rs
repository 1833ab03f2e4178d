//! Reads of identification registers by encoding, and what this CPU can do.
//! What a guest gets to see of them is decided in core; what the host does not, in [`crate::host`].

use porthole_core::hw::SysReg;

use crate::sysreg::read_sysreg;

/// ID_AA64PFR0_EL1.
pub const ID_AA64PFR0: SysReg = SysReg::new(3, 0, 0, 4, 0);
/// ID_AA64PFR1_EL1.
pub const ID_AA64PFR1: SysReg = SysReg::new(3, 0, 0, 4, 1);
/// ID_AA64PFR2_EL1.
pub const ID_AA64PFR2: SysReg = SysReg::new(3, 0, 0, 4, 2);
/// ID_AA64SMFR0_EL1.
pub const ID_AA64SMFR0: SysReg = SysReg::new(3, 0, 0, 4, 5);
/// ID_AA64DFR0_EL1.
pub const ID_AA64DFR0: SysReg = SysReg::new(3, 0, 0, 5, 0);
/// ID_AA64ISAR0_EL1.
pub const ID_AA64ISAR0: SysReg = SysReg::new(3, 0, 0, 6, 0);
/// ID_AA64MMFR0_EL1.
pub const ID_AA64MMFR0: SysReg = SysReg::new(3, 0, 0, 7, 0);
/// ID_AA64MMFR1_EL1.
pub const ID_AA64MMFR1: SysReg = SysReg::new(3, 0, 0, 7, 1);
/// ID_AA64MMFR2_EL1.
pub const ID_AA64MMFR2: SysReg = SysReg::new(3, 0, 0, 7, 2);
/// ID_AA64MMFR3_EL1.
pub const ID_AA64MMFR3: SysReg = SysReg::new(3, 0, 0, 7, 3);

/// The value of an identification register in the space Op0 3, Op1 0, CRn 0, CRm 1 to 7, which is what
/// HCR_EL2.TID3 traps; unallocated ones read as zero there (Arm ARM D23.3.1). Zero for any other encoding.
pub fn read(register: SysReg) -> u64 {
    macro_rules! registers {
        ($($crm:literal: $($op2:literal)*;)*) => {
            match register {
                $($(
                    e if e == SysReg::new(3, 0, 0, $crm, $op2) => {
                        read_sysreg!(concat!("S3_0_C0_C", $crm, "_", $op2))
                    }
                )*)*
                _ => 0,
            }
        };
    }
    registers! {
        1: 0 1 2 3 4 5 6 7;
        2: 0 1 2 3 4 5 6 7;
        3: 0 1 2 3 4 5 6 7;
        4: 0 1 2 3 4 5 6 7;
        5: 0 1 2 3 4 5 6 7;
        6: 0 1 2 3 4 5 6 7;
        7: 0 1 2 3 4 5 6 7;
    }
}

/// The four-bit field of `register` that starts at `shift`.
pub fn field(register: SysReg, shift: u32) -> u64 {
    (read(register) >> shift) & 0xf
}
