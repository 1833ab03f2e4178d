//! Takes an exception to a loaded guest's EL1, as its CPU would have: DDI 0487, AArch64.TakeException.
//! Which exception and why is core's decision.

use aarch64_cpu::registers::*;
use porthole_core::context::VcpuContext;
use porthole_core::hw::GuestException;

use crate::idregs;

// PSTATE as it stands in SPSR_EL2 (DDI 0487, C5.2.20).
const NZCV: u64 = 0xf << 28;
const DIT: u64 = 1 << 24;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 12;
const DAIF: u64 = 0xf << 6;
const AARCH32: u64 = 1 << 4;
const EL_AND_SP: u64 = 0xf;
const EL1T: u64 = 0b0100;
const EL1H: u64 = 0b0101;

// SCTLR_EL1 (DDI 0487, D23.2.148).
const SCTLR_DSSBS: u64 = 1 << 44;
const SCTLR_SPAN: u64 = 1 << 23;

// ESR_EL1.
const EC_SHIFT: u32 = 26;
const EC_UNKNOWN: u64 = 0;
const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_INSTRUCTION_ABORT_SAME: u64 = 0x21;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
const EC_DATA_ABORT_SAME: u64 = 0x25;
const IL: u64 = 1 << 25;
/// Fault status code: synchronous external abort, not on a table walk.
const SYNCHRONOUS_EXTERNAL_ABORT: u64 = 0x10;

/// Makes the guest go on at its own exception vector.
pub(super) fn inject(vcpu: &mut VcpuContext, exception: GuestException) {
    let old = vcpu.pstate;
    let mode = old & EL_AND_SP;
    let from_aarch32 = old & AARCH32 != 0;
    let from_el1 = !from_aarch32 && (mode == EL1T || mode == EL1H);
    let abort_class = |same: u64, lower: u64| if from_el1 { same } else { lower };
    let (syndrome, far) = match exception {
        GuestException::Undefined => (EC_UNKNOWN << EC_SHIFT, None),
        GuestException::DataAbort { far } => (
            abort_class(EC_DATA_ABORT_SAME, EC_DATA_ABORT_LOWER) << EC_SHIFT
                | SYNCHRONOUS_EXTERNAL_ABORT,
            Some(far),
        ),
        GuestException::InstructionAbort { far } => (
            abort_class(EC_INSTRUCTION_ABORT_SAME, EC_INSTRUCTION_ABORT_LOWER) << EC_SHIFT
                | SYNCHRONOUS_EXTERNAL_ABORT,
            Some(far),
        ),
    };
    ESR_EL1.set(syndrome | IL);
    if let Some(far) = far {
        FAR_EL1.set(far);
    }
    ELR_EL1.set(vcpu.pc);
    SPSR_EL1.set(old);
    let offset = match mode {
        _ if from_aarch32 => 0x600,
        EL1T => 0,
        EL1H => 0x200,
        _ => 0x400,
    };
    vcpu.pc = (VBAR_EL1.get() & !0x7ff).wrapping_add(offset);
    vcpu.pstate = handler_pstate(old, SCTLR_EL1.get());
}

/// PSTATE on entry to EL1: flags, DIT and PAN stay, PAN and SSBS follow SCTLR_EL1, everything else (UAO, TCO, BTYPE,
/// IL, single step) is clear. Without FEAT_PAN or FEAT_SSBS the bits are RES0: SCTLR_EL1's then say nothing.
fn handler_pstate(old: u64, sctlr: u64) -> u64 {
    let mut new = EL1H | DAIF | (old & (NZCV | DIT | PAN));
    let has_pan = idregs::field(idregs::ID_AA64MMFR1, 20) != 0;
    let has_ssbs = idregs::field(idregs::ID_AA64PFR1, 4) != 0;
    if has_pan && sctlr & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if has_ssbs && sctlr & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    new
}
