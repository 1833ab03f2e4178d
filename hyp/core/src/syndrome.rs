//! Decoding of ESR_EL2, FAR_EL2 and HPFAR_EL2 (Arm ARM DDI 0487, D24.2): numbers into Rust types.
//! What follows from a syndrome is decided by the callers.

use crate::addr::Ipa;
use crate::hw::SysReg;

/// Exception classes that core knows (ESR_ELx.EC).
#[allow(missing_docs)]
pub mod ec {
    pub const UNKNOWN: u64 = 0x00;
    pub const WFX: u64 = 0x01;
    pub const CP15_32: u64 = 0x03;
    pub const CP15_64: u64 = 0x04;
    pub const CP14_32: u64 = 0x05;
    pub const CP14_LS: u64 = 0x06;
    pub const FP: u64 = 0x07;
    pub const VMRS: u64 = 0x08;
    pub const PAUTH: u64 = 0x09;
    pub const LS64: u64 = 0x0a;
    pub const CP14_64: u64 = 0x0c;
    pub const SVC64: u64 = 0x15;
    pub const HVC64: u64 = 0x16;
    pub const SMC64: u64 = 0x17;
    pub const SYSREG: u64 = 0x18;
    pub const SVE: u64 = 0x19;
    pub const ERET: u64 = 0x1a;
    pub const TSTART: u64 = 0x1b;
    pub const SME: u64 = 0x1d;
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    pub const SERROR: u64 = 0x2f;
}

/// A syndrome of EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(pub u64);

impl Syndrome {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Exception class.
    pub const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Immediate of an HVC or SMC.
    pub const fn immediate(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// For a trapped WFx: whether it is a WFI or WFIT, not a WFE.
    pub const fn is_wfi(self) -> bool {
        !self.bit(0)
    }

    /// Whether the access that aborted was a stage-1 table walk (S1PTW).
    pub const fn is_walk(self) -> bool {
        self.bit(7)
    }

    /// Whether a data abort comes from cache maintenance or address translation (CM).
    pub const fn is_cache_maintenance(self) -> bool {
        self.bit(8)
    }

    /// Whether a data abort was a write (WnR).
    pub const fn is_write(self) -> bool {
        self.bit(6)
    }

    /// Fault class of an abort.
    pub const fn fault(self) -> Fault {
        match self.0 & 0x3f {
            0x00..=0x03 | 0x29 => Fault::AddressSize,
            0x04..=0x07 | 0x2b => Fault::Translation,
            0x08..=0x0b => Fault::AccessFlag,
            0x0c..=0x0f => Fault::Permission,
            _ => Fault::Other,
        }
    }

    /// The access of a data abort, when the syndrome describes it (ISV).
    pub const fn access(self) -> Option<Access> {
        if !self.bit(24) {
            return None;
        }
        Some(Access {
            width_log2: (self.0 >> 22 & 3) as u8,
            sign_extend: self.bit(21),
            register: (self.0 >> 16 & 31) as u8,
            is_64: self.bit(15),
            write: self.is_write(),
        })
    }

    /// The access of a trapped MSR, MRS or system instruction.
    pub const fn sysreg(self) -> SysregAccess {
        let iss = self.0;
        SysregAccess {
            register: SysReg::new(
                (iss >> 20 & 3) as u8,
                (iss >> 14 & 7) as u8,
                (iss >> 10 & 15) as u8,
                (iss >> 1 & 15) as u8,
                (iss >> 17 & 7) as u8,
            ),
            rt: (iss >> 5 & 31) as u8,
            read: iss & 1 != 0,
        }
    }
}

/// Fault classes of IFSC and DFSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The address is beyond what the regime translates.
    AddressSize,
    /// Nothing is mapped there.
    Translation,
    /// The access flag is clear.
    AccessFlag,
    /// The mapping does not allow the access.
    Permission,
    /// External aborts, parity, alignment, TLB conflict, unsupported exclusive and the rest.
    Other,
}

/// One data access by a general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// log2 of its bytes, 0 to 3.
    pub width_log2: u8,
    /// The value read is sign-extended.
    pub sign_extend: bool,
    /// Register number, 31 for the zero register.
    pub register: u8,
    /// The register is 64 bits wide.
    pub is_64: bool,
    /// Direction.
    pub write: bool,
}

impl Access {
    /// Bytes, 1 to 8.
    pub const fn width(self) -> u64 {
        1 << (self.width_log2 & 3)
    }

    /// Mask of the bits that the access moves.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.width())
    }

    /// The register's new value after a read of `value`: masked, sign-extended as asked, cut to its width.
    pub const fn extend(self, value: u64) -> u64 {
        let value = value & self.mask();
        let shift = 64 - 8 * self.width();
        let value = if self.sign_extend {
            ((value << shift) as i64 >> shift) as u64
        } else {
            value
        };
        if self.is_64 {
            value
        } else {
            value & 0xffff_ffff
        }
    }
}

/// One access to a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysregAccess {
    /// Which.
    pub register: SysReg,
    /// General register, 31 for the zero register.
    pub rt: u8,
    /// Direction.
    pub read: bool,
}

/// The IPA that faulted: page from HPFAR_EL2.FIPA, offset from FAR_EL2 (both regimes have 4 KiB pages at
/// least, so the offset is that of the virtual address). For a fault of a table walk the offset means nothing.
pub const fn fault_ipa(far: u64, hpfar: u64) -> Ipa {
    Ipa::new((hpfar & 0x0000_0fff_ffff_fff0) << 8 | far & 0xfff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(width_log2: u8, sign_extend: bool, is_64: bool) -> Access {
        Access {
            width_log2,
            sign_extend,
            register: 0,
            is_64,
            write: false,
        }
    }

    #[test]
    fn reads_are_masked_then_extended_then_cut() {
        assert_eq!(access(0, false, true).extend(0x1ff), 0xff);
        assert_eq!(access(0, true, false).extend(0x180), 0xffff_ff80);
        assert_eq!(access(0, true, true).extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(access(1, true, true).extend(0x7fff), 0x7fff);
        assert_eq!(
            access(2, true, true).extend(0x8000_0000),
            0xffff_ffff_8000_0000
        );
        assert_eq!(access(2, false, false).extend(u64::MAX), 0xffff_ffff);
        assert_eq!(access(3, false, true).extend(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_data_abort_without_isv_has_no_access() {
        assert_eq!(Syndrome(0x24 << 26).access(), None);
        let esr = Syndrome(0x24 << 26 | 1 << 24 | 2 << 22 | 5 << 16 | 1 << 6 | 0x06);
        let access = esr.access().unwrap();
        assert_eq!(access.width(), 4);
        assert_eq!(access.register, 5);
        assert!(access.write);
        assert_eq!(esr.fault(), Fault::Translation);
    }

    #[test]
    fn a_sysreg_trap_names_its_register() {
        // MRS x3, ICC_SRE_EL1 = S3_0_C12_C12_5
        let esr = Syndrome(0x18 << 26 | 3 << 20 | 5 << 17 | 12 << 10 | 3 << 5 | 12 << 1 | 1);
        let access = esr.sysreg();
        assert_eq!(access.register, SysReg::new(3, 0, 12, 12, 5));
        assert_eq!((access.rt, access.read), (3, true));
    }

    #[test]
    fn the_ipa_joins_hpfar_and_far() {
        assert_eq!(
            fault_ipa(0xffff_0000_dead_b123, 0x8_0000 << 4),
            Ipa::new(0x8000_0123)
        );
    }
}
