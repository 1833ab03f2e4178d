//! Calls the assembly that enters a guest and returns at its next exception to EL2.
//! Switching registers beyond x0 to x30, ELR and SPSR is done in `switch`.

use core::arch::global_asm;
use core::mem::offset_of;

use porthole_core::context::VcpuContext;

/// A synchronous exception.
const EXIT_SYNC: u32 = 0;
/// IRQ or FIQ.
const EXIT_IRQ: u32 = 1;
/// SError.
const EXIT_SERROR: u32 = 2;

global_asm!(
    include_str!("enter.S"),
    CTX_X = const offset_of!(VcpuContext, x),
    CTX_PC = const offset_of!(VcpuContext, pc),
    EXIT_SYNC = const EXIT_SYNC,
    EXIT_IRQ = const EXIT_IRQ,
    EXIT_SERROR = const EXIT_SERROR,
);

// The assembly moves both with one instruction.
const _: () = assert!(offset_of!(VcpuContext, pstate) == offset_of!(VcpuContext, pc) + 8);

unsafe extern "C" {
    fn porthole_guest_enter(vcpu: *mut VcpuContext) -> u32;
    static porthole_guest_vectors: u8;
}

/// How the guest came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawExit {
    Sync,
    Irq,
    SError,
}

/// Address of the vectors that must be in VBAR_EL2 while a guest is loaded.
pub(super) fn vectors() -> u64 {
    (&raw const porthole_guest_vectors) as u64
}

/// PSTATE with which an ERET cannot end above EL1: M\[3\] clear for AArch64, User mode for AArch32.
const fn below_el2(pstate: u64) -> u64 {
    if pstate & 1 << 4 != 0 {
        pstate & !0xf
    } else {
        pstate & !(1 << 3)
    }
}

/// Runs the vCPU until its next exception to EL2.
///
/// # Safety
/// `vcpu` is loaded on this CPU: stage 2, traps and [`vectors`] are in force.
#[inline]
pub(super) unsafe fn enter(vcpu: &mut VcpuContext) -> RawExit {
    vcpu.pstate = below_el2(vcpu.pstate);
    // SAFETY: the caller's promise; the assembly takes its offsets from this very type, keeps the callee-saved
    // registers on EL2's stack and returns with the guest's registers in `vcpu`. The guest runs at EL1 or EL0 (see
    // `below_el2`) behind its stage 2, so it cannot touch what Rust sees.
    match unsafe { porthole_guest_enter(vcpu) } {
        EXIT_IRQ => RawExit::Irq,
        EXIT_SERROR => RawExit::SError,
        _ => RawExit::Sync,
    }
}
