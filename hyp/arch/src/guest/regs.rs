//! System registers that `aarch64-cpu` lacks or gives too few fields: encodings and fields only, as typed views.
//! Names and bit positions are those of the Arm ARM (DDI 0487) and of the GIC specification (IHI 0069).
//! When and in which order they are written stands with their users.

use core::arch::asm;

use aarch64_cpu::registers::{Readable, Writeable};
use tock_registers::register_bitfields;

register_bitfields! {u64,
    /// Architectural feature traps, layout for HCR_EL2.E2H = 0 (DDI 0487, D23.2.36).
    pub CPTR [
        /// Activity monitors.
        TAM OFFSET(30) NUMBITS(1) [],
        /// Trace registers.
        TTA OFFSET(20) NUMBITS(1) [],
        /// Bits 13, 9 and 7:0.
        RES1_HIGH OFFSET(13) NUMBITS(1) [],
        /// SME; RES1 without it.
        TSM OFFSET(12) NUMBITS(1) [],
        /// SIMD and floating point.
        TFP OFFSET(10) NUMBITS(1) [],
        /// RES1.
        RES1_MIDDLE OFFSET(9) NUMBITS(1) [],
        /// SVE; RES1 without it.
        TZ OFFSET(8) NUMBITS(1) [],
        /// RES1.
        RES1_LOW OFFSET(0) NUMBITS(8) [],
    ],
    /// Physical CPU interface control.
    pub ICC_CTLR [
        /// End of interrupt drops the priority only; ICC_DIR_EL1 deactivates.
        EOI_MODE OFFSET(1) NUMBITS(1) [],
    ],
    /// System register interface control.
    pub ICC_SRE [
        /// EL1 may access ICC_SRE_EL1.
        ENABLE OFFSET(3) NUMBITS(1) [],
        /// No IRQ bypass.
        DIB OFFSET(2) NUMBITS(1) [],
        /// No FIQ bypass.
        DFB OFFSET(1) NUMBITS(1) [],
        /// System register interface.
        SRE OFFSET(0) NUMBITS(1) [],
    ],
    /// Extended hypervisor configuration.
    pub HCRX [
        /// Memory copy and set instructions are enabled.
        MSC_EN OFFSET(11) NUMBITS(1) [],
    ],
    /// Performance monitors control.
    pub PMCR [
        /// Counters run.
        E OFFSET(0) NUMBITS(1) [],
    ],
    /// MPAM control of EL2.
    pub MPAM2 [
        /// Traps MPAM0_EL1.
        TRAPMPAM0EL1 OFFSET(49) NUMBITS(1) [],
        /// Traps MPAM1_EL1.
        TRAPMPAM1EL1 OFFSET(48) NUMBITS(1) [],
    ],
    /// OS lock status.
    pub OSLSR [
        /// The OS lock is locked.
        OSLK OFFSET(1) NUMBITS(1) [],
    ],
    /// Limits of the profiling and trace buffers: both have their enable in bit 0.
    pub LIMITR [
        /// The buffer is enabled.
        E OFFSET(0) NUMBITS(1) [],
    ],
}

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident: $encoding:literal, $fields:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[allow(non_camel_case_types)]
        pub struct $name;

        impl Readable for $name {
            type T = u64;
            type R = $fields;

            #[inline]
            fn get(&self) -> u64 {
                let value;
                // SAFETY: reads a register and touches no memory. On a CPU without the register it would be
                // undefined: every user asks `CpuFeatures` first, or the register is part of the base
                // architecture with GICv3.
                unsafe {
                    asm!(concat!("mrs {}, ", $encoding), out(reg) value, options(nostack, preserves_flags));
                }
                value
            }
        }

        impl Writeable for $name {
            type T = u64;
            type R = $fields;

            #[inline]
            fn set(&self, value: u64) {
                // SAFETY: none of these registers has a part in EL2's own translation or control flow; they
                // govern EL1, interrupts, debug and traps. Existence as for the read. Not `nomem`: the write
                // stays in order with the memory accesses around it.
                unsafe {
                    asm!(concat!("msr ", $encoding, ", {}"), in(reg) value, options(nostack, preserves_flags));
                }
            }
        }
    )*};
}

registers! {
    /// Traps of SIMD, SVE, trace and activity monitors.
    CPTR_EL2: "CPTR_EL2", CPTR::Register;
    /// Traps of AArch32 System register groups.
    HSTR_EL2: "HSTR_EL2", ();
    /// What EL1 reads as MPIDR_EL1.
    VMPIDR_EL2: "VMPIDR_EL2", ();
    /// Extended configuration (FEAT_HCX).
    HCRX_EL2: "S3_4_C1_C2_2", HCRX::Register;
    /// Virtual deferred SError status (FEAT_RAS).
    VDISR_EL2: "S3_4_C12_C1_1", ();
    /// Virtual SError syndrome (FEAT_RAS).
    VSESR_EL2: "S3_4_C5_C2_3", ();
    /// MPAM control (FEAT_MPAM).
    MPAM2_EL2: "S3_4_C10_C5_0", MPAM2::Register;
    /// Fine-grained read traps (FEAT_FGT).
    HFGRTR_EL2: "S3_4_C1_C1_4", ();
    /// Fine-grained write traps (FEAT_FGT).
    HFGWTR_EL2: "S3_4_C1_C1_5", ();
    /// Fine-grained instruction traps (FEAT_FGT).
    HFGITR_EL2: "S3_4_C1_C1_6", ();
    /// Fine-grained debug read traps (FEAT_FGT).
    HDFGRTR_EL2: "S3_4_C3_C1_4", ();
    /// Fine-grained debug write traps (FEAT_FGT).
    HDFGWTR_EL2: "S3_4_C3_C1_5", ();
    /// Fine-grained debug read traps 2 (FEAT_FGT2).
    HDFGRTR2_EL2: "S3_4_C3_C1_0", ();
    /// Fine-grained debug write traps 2 (FEAT_FGT2).
    HDFGWTR2_EL2: "S3_4_C3_C1_1", ();
    /// Fine-grained read traps 2 (FEAT_FGT2).
    HFGRTR2_EL2: "S3_4_C3_C1_2", ();
    /// Fine-grained write traps 2 (FEAT_FGT2).
    HFGWTR2_EL2: "S3_4_C3_C1_3", ();
    /// Fine-grained instruction traps 2 (FEAT_FGT2).
    HFGITR2_EL2: "S3_4_C3_C1_7", ();

    /// Performance monitors control (FEAT_PMUv3).
    PMCR_EL0: "S3_3_C9_C12_0", PMCR::Register;
    /// Statistical profiling control (FEAT_SPE).
    PMSCR_EL1: "S3_0_C9_C9_0", ();
    /// Profiling buffer limit (FEAT_SPE).
    PMBLIMITR_EL1: "S3_0_C9_C10_0", LIMITR::Register;
    /// Trace filter (FEAT_TRF).
    TRFCR_EL1: "S3_0_C1_C2_1", ();
    /// Trace buffer limit (FEAT_TRBE).
    TRBLIMITR_EL1: "S3_0_C9_C11_0", LIMITR::Register;
    /// Branch record control (FEAT_BRBE).
    BRBCR_EL1: "S2_1_C9_C0_0", ();

    /// OS lock access.
    OSLAR_EL1: "S2_0_C1_C0_4", ();
    /// OS lock status.
    OSLSR_EL1: "S2_0_C1_C1_4", OSLSR::Register;

    /// Pointer-authentication instruction key A, low half (FEAT_PAuth).
    APIAKEYLO_EL1: "S3_0_C2_C1_0", ();
    /// Pointer-authentication instruction key A, high half.
    APIAKEYHI_EL1: "S3_0_C2_C1_1", ();
    /// Pointer-authentication instruction key B, low half (FEAT_PAuth).
    APIBKEYLO_EL1: "S3_0_C2_C1_2", ();
    /// Pointer-authentication instruction key B, high half.
    APIBKEYHI_EL1: "S3_0_C2_C1_3", ();
    /// Pointer-authentication data key A, low half (FEAT_PAuth).
    APDAKEYLO_EL1: "S3_0_C2_C2_0", ();
    /// Pointer-authentication data key A, high half.
    APDAKEYHI_EL1: "S3_0_C2_C2_1", ();
    /// Pointer-authentication data key B, low half (FEAT_PAuth).
    APDBKEYLO_EL1: "S3_0_C2_C2_2", ();
    /// Pointer-authentication data key B, high half.
    APDBKEYHI_EL1: "S3_0_C2_C2_3", ();
    /// Pointer-authentication generic key, low half (FEAT_PAuth).
    APGAKEYLO_EL1: "S3_0_C2_C3_0", ();
    /// Pointer-authentication generic key, high half.
    APGAKEYHI_EL1: "S3_0_C2_C3_1", ();

    /// Priority mask of the physical CPU interface.
    ICC_PMR_EL1: "S3_0_C4_C6_0", ();
    /// Acknowledge, Group 1.
    ICC_IAR1_EL1: "S3_0_C12_C12_0", ();
    /// End of interrupt, Group 1.
    ICC_EOIR1_EL1: "S3_0_C12_C12_1", ();
    /// Highest priority pending, Group 1.
    ICC_HPPIR1_EL1: "S3_0_C12_C12_2", ();
    /// Control of the physical CPU interface.
    ICC_CTLR_EL1: "S3_0_C12_C12_4", ICC_CTLR::Register;
    /// Group 1 enable.
    ICC_IGRPEN1_EL1: "S3_0_C12_C12_7", ();
    /// Deactivate.
    ICC_DIR_EL1: "S3_0_C12_C11_1", ();
    /// Generates a Group 1 SGI.
    ICC_SGI1R_EL1: "S3_0_C12_C11_5", ();
    /// System register interface control of EL2.
    ICC_SRE_EL2: "S3_4_C12_C9_5", ICC_SRE::Register;
    /// Pending physical interrupts.
    ISR_EL1: "S3_0_C12_C1_0", ();
}
