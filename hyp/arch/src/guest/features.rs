//! What this CPU has of the features that the world switch must know, read once from its ID registers.
//! Which features a guest sees is decided in `porthole-core`; here is only what must be saved or trapped.

use aarch64_cpu::registers::{ICH_VTR_EL2, Readable};
use aarch64_cpu::registers::{
    ID_AA64DFR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1,
};

use super::id_regs;
use porthole_core::hw::SysReg;

/// Features of one CPU that decide what is switched and what is trapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// FEAT_PAuth with any algorithm: keys are switched, HCR_EL2.API and APK set.
    pub pauth: bool,
    /// FEAT_SVE: the host's vectors are saved at full length.
    pub sve: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_MTE2 or later: tag registers are trapped.
    pub mte: bool,
    /// FEAT_MPAM in any version.
    pub mpam: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_LOR.
    pub lor: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_MOPS.
    pub mops: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_PMUv3.
    pub pmu: bool,
    /// FEAT_SPE.
    pub spe: bool,
    /// FEAT_TRF.
    pub trace_filter: bool,
    /// FEAT_TRBE.
    pub trace_buffer: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
    /// FEAT_RNG.
    pub rng: bool,
    /// Hardware breakpoints, 2 to 16.
    pub breakpoints: u8,
    /// Hardware watchpoints, 2 to 16.
    pub watchpoints: u8,
    /// List registers, 1 to 16.
    pub list_registers: u8,
    /// Active-priority registers for each group: 1, 2 or 4.
    pub active_priorities: u8,
}

/// One 4-bit field of an ID register.
const fn field(value: u64, shift: u32) -> u64 {
    (value >> shift) & 0xf
}

impl CpuFeatures {
    /// Nothing: the state before [`Self::read`].
    pub const NONE: Self = Self {
        pauth: false,
        sve: false,
        ras: false,
        mte: false,
        mpam: false,
        amu: false,
        lor: false,
        hcx: false,
        mops: false,
        fgt: false,
        fgt2: false,
        pmu: false,
        spe: false,
        trace_filter: false,
        trace_buffer: false,
        brbe: false,
        rng: false,
        breakpoints: 0,
        watchpoints: 0,
        list_registers: 0,
        active_priorities: 0,
    };

    /// Reads the ID registers of the CPU that runs this (DDI 0487, D23.2).
    pub fn read() -> Self {
        let id = |crm, op2| id_regs::read(SysReg::new(3, 0, 0, crm, op2));
        let (pfr0, pfr1) = (ID_AA64PFR0_EL1.get(), id(4, 1));
        let dfr0 = ID_AA64DFR0_EL1.get();
        let (isar0, isar1, isar2) = (id(6, 0), id(6, 1), id(6, 2));
        let (mmfr0, mmfr1) = (ID_AA64MMFR0_EL1.get(), ID_AA64MMFR1_EL1.get());
        let vtr = ICH_VTR_EL2.extract();
        let pmu = field(dfr0, 8);
        let preemption_bits = vtr.read(aarch64_cpu::registers::ICH_VTR_EL2::PREbits) + 1;
        Self {
            pauth: isar1 & 0xff0 != 0 || field(isar2, 12) != 0,
            sve: field(pfr0, 32) != 0,
            ras: field(pfr0, 28) != 0,
            mte: field(pfr1, 8) >= 2,
            mpam: field(pfr0, 40) != 0 || field(pfr1, 16) != 0,
            amu: field(pfr0, 44) != 0,
            lor: field(mmfr1, 16) != 0,
            hcx: field(mmfr1, 40) != 0,
            mops: field(isar2, 16) != 0,
            fgt: field(mmfr0, 56) != 0,
            fgt2: field(mmfr0, 56) >= 2,
            // 0xf stands for a PMU that is not the architecture's.
            pmu: pmu != 0 && pmu != 0xf,
            spe: field(dfr0, 32) != 0,
            trace_filter: field(dfr0, 40) != 0,
            trace_buffer: field(dfr0, 44) != 0,
            brbe: field(dfr0, 52) != 0,
            rng: field(isar0, 60) != 0,
            breakpoints: field(dfr0, 12) as u8 + 1,
            watchpoints: field(dfr0, 20) as u8 + 1,
            list_registers: (vtr.read(aarch64_cpu::registers::ICH_VTR_EL2::ListRegs) as u8 + 1)
                .min(16),
            active_priorities: match preemption_bits {
                0..=5 => 1,
                6 => 2,
                _ => 4,
            },
        }
    }
}
