//! What a guest reads from the CPU's ID registers: an allow-list of fields, each with the highest value shown.
//! A field that is not here reads as zero, so a feature that the switch does not know cannot be found.
//! Field names are those of the Arm ARM (DDI 0487, D24.2); values come from the machine.

use crate::hw::SysReg;

/// How a field is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    /// The machine's value, at most this.
    UpTo(u64),
    /// The machine's value as it is: the field is not ordered, or 0xF means "absent".
    Machine,
    /// This value on every machine.
    Always(u64),
}

use Show::{Always, Machine, UpTo};

/// One field of four bits.
struct Field {
    /// Name in the Arm ARM.
    #[cfg_attr(not(test), expect(dead_code, reason = "names the table's rows"))]
    name: &'static str,
    shift: u32,
    show: Show,
}

const fn field(name: &'static str, shift: u32, show: Show) -> Field {
    Field { name, shift, show }
}

const fn id(crm: u8, op2: u8) -> SysReg {
    SysReg::new(3, 0, 0, crm, op2)
}

/// PARange: 36 bits, which is what a guest's stage 2 translates.
const PA_RANGE_36: u64 = 1;
/// DebugVer: Armv8.2, the registers that the switch keeps.
const DEBUG_V8P2: u64 = 8;
/// DoubleLock: not implemented.
const NO_DOUBLE_LOCK: u64 = 0xf;

const TABLE: &[(SysReg, &[Field])] = &[
    (
        // ID_AA64PFR0_EL1. Not shown: EL2, EL3, RAS, SVE, SEL2, MPAM, AMU, RME; AArch32 at EL0.
        id(4, 0),
        &[
            field("EL0", 0, Always(1)),
            field("EL1", 4, Always(1)),
            field("FP", 16, Machine),
            field("AdvSIMD", 20, Machine),
            field("GIC", 24, UpTo(1)),
            field("DIT", 48, UpTo(1)),
            field("CSV2", 56, UpTo(1)),
            field("CSV3", 60, UpTo(1)),
        ],
    ),
    (
        // ID_AA64PFR1_EL1. Not shown: MTE, SME, NMI, GCS and later ones.
        id(4, 1),
        &[field("BT", 0, UpTo(1)), field("SSBS", 4, UpTo(2))],
    ),
    (
        // ID_AA64DFR0_EL1. Not shown: PMU, SPE, trace, BRBE.
        id(5, 0),
        &[
            field("DebugVer", 0, UpTo(DEBUG_V8P2)),
            field("BRPs", 12, Machine),
            field("WRPs", 20, Machine),
            field("CTX_CMPs", 28, Machine),
            field("DoubleLock", 36, Always(NO_DOUBLE_LOCK)),
        ],
    ),
    (
        // ID_AA64ISAR0_EL1. Not shown: TME.
        id(6, 0),
        &[
            field("AES", 4, UpTo(2)),
            field("SHA1", 8, UpTo(1)),
            field("SHA2", 12, UpTo(2)),
            field("CRC32", 16, UpTo(1)),
            field("Atomic", 20, UpTo(2)),
            field("RDM", 28, UpTo(1)),
            field("SHA3", 32, UpTo(1)),
            field("SM3", 36, UpTo(1)),
            field("SM4", 40, UpTo(1)),
            field("DP", 44, UpTo(1)),
            field("FHM", 48, UpTo(1)),
            field("TS", 52, UpTo(2)),
            field("TLB", 56, UpTo(2)),
            field("RNDR", 60, UpTo(1)),
        ],
    ),
    (
        // ID_AA64ISAR1_EL1. Not shown: XS and LS64, which EL2 would have to enable.
        id(6, 1),
        &[
            field("DPB", 0, UpTo(2)),
            field("APA", 4, Machine),
            field("API", 8, Machine),
            field("JSCVT", 12, UpTo(1)),
            field("FCMA", 16, UpTo(1)),
            field("LRCPC", 20, UpTo(3)),
            field("GPA", 24, UpTo(1)),
            field("GPI", 28, UpTo(1)),
            field("FRINTTS", 32, UpTo(1)),
            field("SB", 36, UpTo(1)),
            field("SPECRES", 40, UpTo(1)),
            field("BF16", 44, UpTo(1)),
            field("DGH", 48, UpTo(1)),
            field("I8MM", 52, UpTo(1)),
        ],
    ),
    (
        // ID_AA64ISAR2_EL1. Not shown: WFxT (a wait has one deadline, the timer's), MOPS, SYSREG_128.
        id(6, 2),
        &[
            field("RPRES", 4, UpTo(1)),
            field("GPA3", 8, UpTo(1)),
            field("APA3", 12, Machine),
            field("BC", 20, UpTo(1)),
            field("PAC_frac", 24, UpTo(1)),
            field("CLRBHB", 28, UpTo(1)),
            field("RPRFM", 48, UpTo(1)),
            field("CSSC", 52, UpTo(1)),
        ],
    ),
    (
        // ID_AA64MMFR0_EL1. Not shown: secure memory, stage-2 granules, ExS, FGT, ECV.
        id(7, 0),
        &[
            field("PARange", 0, UpTo(PA_RANGE_36)),
            field("ASIDBits", 4, UpTo(2)),
            field("BigEnd", 8, UpTo(1)),
            field("BigEndEL0", 16, UpTo(1)),
            field("TGran16", 20, UpTo(1)),
            field("TGran64", 24, Machine),
            field("TGran4", 28, Always(0)),
        ],
    ),
    (
        // ID_AA64MMFR1_EL1. Not shown: VMIDBits, VH, LO, XNX, TWED, HCX, TIDCP1, CMOW.
        id(7, 1),
        &[
            field("HAFDBS", 0, UpTo(2)),
            field("HPDS", 12, UpTo(2)),
            field("PAN", 20, UpTo(3)),
            field("ETS", 36, UpTo(2)),
            field("AFP", 44, UpTo(1)),
        ],
    ),
    (
        // ID_AA64MMFR2_EL1. Not shown: LSM, IESB, NV, IDS, FWB, EVT.
        id(7, 2),
        &[
            field("CnP", 0, UpTo(1)),
            field("UAO", 4, UpTo(1)),
            field("VARange", 16, UpTo(1)),
            field("CCIDX", 20, UpTo(1)),
            field("ST", 28, UpTo(1)),
            field("AT", 32, UpTo(1)),
            field("TTL", 48, UpTo(1)),
            field("BBM", 52, UpTo(2)),
            field("E0PD", 60, UpTo(1)),
        ],
    ),
];

/// Whether this is one of the registers that HCR_EL2.TID3 traps: Op0 3, Op1 0, CRn 0, CRm 1 to 7.
pub fn is_id_register(register: SysReg) -> bool {
    (1..8).any(|crm| (0..8).any(|op2| id(crm, op2) == register))
}

/// What the guest reads from an ID register whose value on the machine is `machine`.
pub fn guest_value(register: SysReg, machine: u64) -> u64 {
    let Some((_, fields)) = TABLE.iter().find(|(r, _)| *r == register) else {
        return 0;
    };
    fields.iter().fold(0, |value, field| {
        let hardware = machine >> field.shift & 0xf;
        let shown = match field.show {
            UpTo(most) => hardware.min(most),
            Machine => hardware,
            Always(fixed) => fixed,
        };
        value | shown << field.shift
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a44_what_is_not_switched_is_hidden() {
        // Every field of every register at its highest: only the table shows through.
        let pfr0 = guest_value(id(4, 0), 0x1111_1111_1111_2222);
        for (name, shift) in [
            ("EL2", 8),
            ("EL3", 12),
            ("RAS", 28),
            ("SVE", 32),
            ("SEL2", 36),
            ("MPAM", 40),
            ("AMU", 44),
            ("RME", 52),
        ] {
            assert_eq!(pfr0 >> shift & 0xf, 0, "{name}");
        }
        assert_eq!(pfr0 & 0xff, 0x11, "EL0 and EL1 in AArch64 only");
        assert_eq!(guest_value(id(4, 1), u64::MAX), 0x21);
        let dfr0 = guest_value(id(5, 0), 0x1111_1111_1111_1116);
        assert_eq!(dfr0 >> 8 & 0xf, 0, "PMUVer");
        assert_eq!(dfr0 >> 32 & 0xf, 0, "PMSVer");
        assert_eq!(dfr0 >> 36 & 0xf, 0xf, "DoubleLock");
    }

    #[test]
    fn registers_without_a_row_read_as_zero() {
        for crm in 1..8 {
            for op2 in 0..8 {
                let register = id(crm, op2);
                assert!(is_id_register(register));
                if !TABLE.iter().any(|(r, _)| *r == register) {
                    assert_eq!(guest_value(register, u64::MAX), 0, "{register:?}");
                }
            }
        }
        assert!(!is_id_register(id(0, 0)));
        assert!(!is_id_register(SysReg::new(3, 3, 0, 4, 0)));
    }

    #[test]
    fn fields_are_shown_as_the_machine_has_them_up_to_the_limit() {
        assert_eq!(guest_value(id(7, 0), 5) & 0xf, PA_RANGE_36);
        assert_eq!(guest_value(id(7, 0), 0) & 0xf, 0);
        assert_eq!(guest_value(id(6, 0), 3 << 20) >> 20 & 0xf, 2, "no LSE128");
        assert_eq!(
            guest_value(id(4, 0), 0x00ff_0000) >> 16 & 0xff,
            0xff,
            "no FP"
        );
    }

    #[test]
    fn rows_do_not_overlap() {
        for (register, fields) in TABLE {
            for (i, a) in fields.iter().enumerate() {
                assert_eq!(a.shift % 4, 0);
                assert!(!a.name.is_empty());
                assert!(
                    fields.iter().skip(i + 1).all(|b| a.shift != b.shift),
                    "{register:?} {}",
                    a.name
                );
            }
        }
    }
}
