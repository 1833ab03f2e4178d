//! EL2's controls of what EL1 may do: the values that every guest runs with, and the host's while one is loaded.
//! A feature that is not switched is trapped; the order of writes is `switch`'s business.
//! Source: DDI 0487, D23.2 (registers) and D1.3.6 (traps).

use aarch64_cpu::registers::{
    CNTHCTL_EL2, HCR_EL2, MDCR_EL2, ReadWriteable, Readable, VBAR_EL2, VTCR_EL2, VTTBR_EL2,
    Writeable,
};
use porthole_core::context::VcpuContext;

use super::features::CpuFeatures;
use super::regs::*;

/// HCR_EL2.TID5 and TERR, TLOR by their feature; the rest by name below.
const HCR_GUEST: u64 = HCR_EL2::VM::SET.value
    | HCR_EL2::SWIO::SET.value
    | HCR_EL2::PTW::SET.value
    | HCR_EL2::FMO::SET.value
    | HCR_EL2::IMO::SET.value
    | HCR_EL2::AMO::SET.value
    | HCR_EL2::FB::SET.value
    | HCR_EL2::BSU::InnerShareable.value
    | HCR_EL2::TWI::SET.value
    | HCR_EL2::TID3::SET.value
    | HCR_EL2::TSC::SET.value
    | HCR_EL2::TIDCP::SET.value
    | HCR_EL2::TACR::SET.value
    | HCR_EL2::RW::EL1IsAarch64.value;

/// Debug and trace controls of a guest: all debug registers trap and are emulated by `debug`; the profiling and
/// trace buffers (E2PB, E2TB zero) are not EL1's.
const MDCR_GUEST: u64 =
    MDCR_EL2::TDA::SET.value | MDCR_EL2::TDOSA::SET.value | MDCR_EL2::TDRA::SET.value;

/// AArch32 EL0 of a guest: CP15 c15 is implementation defined and traps.
const HSTR_GUEST: u64 = 1 << 15;

/// SIMD and floating point trap until first used; SVE, SME, trace and activity monitors always.
pub const CPTR_GUEST: u64 = CPTR::RES1_LOW.mask
    | CPTR::TZ::SET.value
    | CPTR::RES1_MIDDLE::SET.value
    | CPTR::TFP::SET.value
    | CPTR::TSM::SET.value
    | CPTR::RES1_HIGH::SET.value
    | CPTR::TTA::SET.value;

/// EL2's controls of any guest on one CPU: what its features make of the constants above. Worked out once, since every
/// load of a vCPU needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestControls {
    hcr: u64,
    cptr: u64,
    mdcr: u64,
    /// Bits of MDCR_EL2 that stay the host's: the split of the counters. Without TPM it would be the guest's view.
    mdcr_kept: u64,
    hcrx: u64,
}

impl GuestControls {
    /// All zero: no guest may run with them.
    pub const fn new() -> Self {
        Self {
            hcr: 0,
            cptr: 0,
            mdcr: 0,
            mdcr_kept: 0,
            hcrx: 0,
        }
    }

    /// Those of a CPU with these features.
    pub fn of(features: &CpuFeatures) -> Self {
        let set = |feature: bool, bits: u64| if feature { bits } else { 0 };
        Self {
            hcr: HCR_GUEST
                | set(
                    features.pauth,
                    (HCR_EL2::API::SET + HCR_EL2::APK::SET).value,
                )
                | set(features.lor, HCR_EL2::TLOR::SET.value)
                | set(features.ras, HCR_EL2::TERR::SET.value)
                | set(features.mte, HCR_EL2::TID5::SET.value),
            cptr: CPTR_GUEST | set(features.amu, CPTR::TAM::SET.value),
            mdcr: MDCR_GUEST
                | set(
                    features.pmu,
                    (MDCR_EL2::TPM::SET + MDCR_EL2::TPMCR::SET).value,
                )
                | set(features.spe, MDCR_EL2::TPMS::SET.value)
                | set(features.trace_filter, MDCR_EL2::TTRF::SET.value),
            mdcr_kept: set(features.pmu, MDCR_EL2::HPMN.mask << MDCR_EL2::HPMN.shift),
            // TCR2, SCTLR2, GCS, FPMR, LS64 and their like are off and trapped; memory copies carry no state.
            hcrx: set(features.mops, HCRX::MSC_EN::SET.value),
        }
    }

    /// CPTR_EL2.
    pub fn cptr(&self) -> u64 {
        self.cptr
    }
}

macro_rules! host_controls {
    ($($field:ident $register:ident $(if $feature:ident)?;)*) => {
        /// EL2's controls as the host runs with them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct HostControls { $($field: u64,)* }

        impl HostControls {
            /// All zero.
            pub const fn new() -> Self {
                Self { $($field: 0,)* }
            }

            /// Saves them.
            pub fn save(&mut self, features: &CpuFeatures) {
                let _ = features;
                $(host_controls!(@when features $($feature)? => self.$field = $register.get());)*
            }

            /// Loads them. Stage 2 becomes the host's: no walk of EL1's stage 1 may be possible meanwhile.
            pub fn load(&self, features: &CpuFeatures) {
                let _ = features;
                $(host_controls!(@when features $($feature)? => $register.set(self.$field));)*
            }
        }
    };
    (@when $features:ident => $action:expr) => { $action };
    (@when $features:ident $feature:ident => $action:expr) => {
        if $features.$feature { $action }
    };
}

host_controls! {
    vbar VBAR_EL2;
    hcr HCR_EL2;
    cptr CPTR_EL2;
    mdcr MDCR_EL2;
    hstr HSTR_EL2;
    cnthctl CNTHCTL_EL2;
    vttbr VTTBR_EL2;
    vtcr VTCR_EL2;
    vmpidr VMPIDR_EL2;
    hcrx HCRX_EL2 if hcx;
    mpam2 MPAM2_EL2 if mpam;
    hfgrtr HFGRTR_EL2 if fgt;
    hfgwtr HFGWTR_EL2 if fgt;
    hfgitr HFGITR_EL2 if fgt;
    hdfgrtr HDFGRTR_EL2 if fgt;
    hdfgwtr HDFGWTR_EL2 if fgt;
    hfgrtr2 HFGRTR2_EL2 if fgt2;
    hfgwtr2 HFGWTR2_EL2 if fgt2;
    hfgitr2 HFGITR2_EL2 if fgt2;
    hdfgrtr2 HDFGRTR2_EL2 if fgt2;
    hdfgwtr2 HDFGWTR2_EL2 if fgt2;
}

impl HostControls {
    /// Loads a guest's controls over these, which were saved. Stage 2 becomes the guest's: no walk of EL1's stage 1
    /// may be possible meanwhile.
    pub fn load_guest(
        &self,
        vcpu: &VcpuContext,
        features: &CpuFeatures,
        guest: &GuestControls,
        vectors: u64,
    ) {
        VBAR_EL2.set(vectors);
        CPTR_EL2.set(guest.cptr);
        MDCR_EL2.set(guest.mdcr | self.mdcr & guest.mdcr_kept);
        HSTR_EL2.set(HSTR_GUEST);
        // Neither the physical timer nor its counter: EL1PCEN and EL1PCTEN are zero, as is every bit of FEAT_ECV.
        CNTHCTL_EL2.set(0);
        if features.hcx {
            HCRX_EL2.set(guest.hcrx);
        }
        if features.mpam {
            MPAM2_EL2.modify(MPAM2::TRAPMPAM0EL1::SET + MPAM2::TRAPMPAM1EL1::SET);
        }
        // Zero means no trap for what the base architecture has, and a trap for each later feature with registers
        // of its own (the fields whose names start with n): TPIDR2, PIR, POR, GCS, ACCDATA, BRBE.
        if features.fgt {
            HFGRTR_EL2.set(0);
            HFGWTR_EL2.set(0);
            HFGITR_EL2.set(0);
            HDFGRTR_EL2.set(0);
            HDFGWTR_EL2.set(0);
        }
        if features.fgt2 {
            HFGRTR2_EL2.set(0);
            HFGWTR2_EL2.set(0);
            HFGITR2_EL2.set(0);
            HDFGRTR2_EL2.set(0);
            HDFGWTR2_EL2.set(0);
        }
        VMPIDR_EL2.set(vcpu.vmpidr);
        VTCR_EL2.set(vcpu.vtcr);
        VTTBR_EL2.set(vcpu.vttbr);
        HCR_EL2.set(guest.hcr | vcpu.hcr_extra);
    }
}
