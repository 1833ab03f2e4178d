//! The host's side of a CPU: the EL2 registers under which it runs, the way into its EL1, and exceptions that
//! are delivered to it. What the host may do is decided in core; a guest's registers are the world switch's.

use core::arch::asm;

use aarch64_cpu::registers::*;
use porthole_core::addr::PhysAddr;
use porthole_core::hw::SysReg;

use crate::boot;
use crate::exceptions::Frame;
use crate::idregs::{self, field};
use crate::sysreg::{read_sysreg, write_sysreg};

mod hcr {
    pub const VM: u64 = 1 << 0;
    pub const SWIO: u64 = 1 << 1;
    pub const TID3: u64 = 1 << 18;
    pub const TSC: u64 = 1 << 19;
    pub const TIDCP: u64 = 1 << 20;
    pub const RW: u64 = 1 << 31;
    pub const E2H: u64 = 1 << 34;
    pub const APK: u64 = 1 << 40;
    pub const API: u64 = 1 << 41;
    pub const ENSCXT: u64 = 1 << 53;
    pub const ATA: u64 = 1 << 56;
}

/// HCRX_EL2 of the host: EnAS0, EnALS, EnASR, MSCEn, TCR2En, SCTLR2En; features without context of a guest's.
const HCRX: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 11 | 1 << 14 | 1 << 15;
/// HFGRTR_EL2 and HFGWTR_EL2 of the host: nACCDATA, nGCS_EL0, nGCS_EL1, nRCWMASK, nPIRE0, nPIR, nPOR_EL0, nPOR_EL1,
/// nS2POR, nMAIR2, nAMAIR2 (a zero traps). nTPIDR2 and nSMPRI stay zero with the rest of SME.
const FINE_GRAINED: u64 = 1 << 50
    | 1 << 52
    | 1 << 53
    | 1 << 56
    | 1 << 57
    | 1 << 58
    | 1 << 59
    | 1 << 60
    | 1 << 61
    | 1 << 62
    | 1 << 63;
/// CPTR_EL2 with E2H clear: RES1 bits, of which 12 (TSM) also traps SME where it exists.
const CPTR: u64 = 0x32ff;
/// CPTR_EL2.TZ, RES1 where there is no SVE.
const CPTR_TZ: u64 = 1 << 8;
/// CPTR_EL2.TTA: accesses to trace registers trap.
const CPTR_TTA: u64 = 1 << 20;
/// CPTR_EL2.TAM: activity monitors trap, which count guests too and which EL1 cannot be made to stop.
const CPTR_TAM: u64 = 1 << 30;
/// MPAM2_EL2.TRAPMPAM0EL1 and TRAPMPAM1EL1.
const MPAM_TRAPS: u64 = 1 << 48 | 1 << 49;
/// SCTLR_EL1 at reset: RES1 bits, MMU and caches off, little endian.
const SCTLR_RESET: u64 = 0x30d0_0800;
/// PSTATE at the host's entry: EL1h, all interrupts masked.
const PSTATE_ENTRY: u64 = 0x3c5;

/// Fields of identification registers that the host reads as zero: what EL2 does not switch between host and
/// guests, or keeps to itself: MPAM, activity monitors; SME, guarded control stacks, FPMR; trace, SPE, trace filter,
/// trace buffer, branch records.
const HIDDEN: [(SysReg, u64); 5] = [
    (idregs::ID_AA64PFR0, 0xf << 40 | 0xf << 44),
    (idregs::ID_AA64PFR1, 0xf << 16 | 0xf << 24 | 0xf << 44),
    (idregs::ID_AA64PFR2, 0xf << 32),
    (idregs::ID_AA64SMFR0, u64::MAX),
    (
        idregs::ID_AA64DFR0,
        0xf << 4 | 0xf << 32 | 0xf << 40 | 0xf << 44 | 0xf << 52 | 0xf << 56,
    ),
];

/// Stage 2 of the host.
#[derive(Clone, Copy, Debug)]
pub struct StageTwo {
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
}

/// What this CPU lacks of what the hypervisor needs, in words for the console.
pub fn missing_feature() -> Option<&'static str> {
    if field(idregs::ID_AA64PFR0, 24) == 0 {
        return Some("system-register access to a GICv3 (QEMU: gic-version=3)");
    }
    if field(idregs::ID_AA64MMFR0, 28) == 0xf {
        return Some("4 KiB translation granules");
    }
    if field(idregs::ID_AA64MMFR0, 0) < 2 {
        return Some("40-bit physical addresses");
    }
    if HCR_EL2.get() & hcr::E2H != 0 {
        return Some("an EL2 without VHE (FEAT_E2H0): HCR_EL2.E2H cannot be cleared");
    }
    None
}

/// HCR_EL2 while the host runs on this CPU. TIDCP: what an implementation defines for EL1 is out of stage 2's reach;
/// Cortex-A72's RAMINDEX reads lines of the caches, whosever they are.
pub fn hcr() -> u64 {
    let mut value =
        hcr::VM | hcr::SWIO | hcr::TSC | hcr::TIDCP | hcr::RW | hcr::APK | hcr::API | hcr::ENSCXT;
    if field(idregs::ID_AA64PFR1, 8) >= 2 {
        value |= hcr::ATA;
    }
    if HIDDEN
        .iter()
        .any(|(register, mask)| idregs::read(*register) & mask != 0)
    {
        value |= hcr::TID3;
    }
    value
}

/// CPTR_EL2 while the host runs on this CPU: FP and SVE are its own.
pub fn cptr() -> u64 {
    let mut value = CPTR;
    if !has_sve() {
        value |= CPTR_TZ;
    }
    if field(idregs::ID_AA64DFR0, 4) != 0 {
        value |= CPTR_TTA;
    }
    if field(idregs::ID_AA64PFR0, 44) != 0 {
        value |= CPTR_TAM;
    }
    value
}

/// MDCR_EL2 while the host runs on this CPU: all PMU counters, none of which counts at EL2; no statistical
/// profiling, no trace.
pub fn mdcr() -> u64 {
    const HPMD: u64 = 1 << 17;
    const TPMS: u64 = 1 << 14;
    const TTRF: u64 = 1 << 19;
    let counters = match field(idregs::ID_AA64DFR0, 8) {
        0 | 0xf => 0,
        _ => (read_sysreg!("pmcr_el0") >> 11) & 0x1f,
    };
    HPMD | TPMS | TTRF | counters
}

fn has_sve() -> bool {
    field(idregs::ID_AA64PFR0, 32) != 0
}

/// Prepares this CPU for the host: every EL2 register that bears on EL1 but those of stage 2, and EL1's own at their
/// reset values. Once on each of its ways up.
pub fn prepare() {
    VMPIDR_EL2.set(MPIDR_EL1.get());
    CPTR_EL2.set(cptr());
    MDCR_EL2.set(mdcr());
    CNTHCTL_EL2.set(3);
    CNTVOFF_EL2.set(0);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    // SAFETY: these registers exist where the ID registers say so; they give the host the use of its own CPU
    // features, and EL2 uses none of them.
    unsafe {
        write_sysreg!("vpidr_el2", MIDR_EL1.get());
        write_sysreg!("hstr_el2", 0);
        write_sysreg!("actlr_el2", 0); // on Arm's cores: EL1 may not write their configuration registers
        write_sysreg!("S3_4_C12_C9_5", 0xf); // ICC_SRE_EL2: Enable, DIB, DFB, SRE
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
        write_sysreg!("S3_4_C12_C11_0", 0); // ICH_HCR_EL2
        if has_sve() {
            write_sysreg!("S3_4_C1_C2_0", 0xf); // ZCR_EL2: the longest vectors
        }
        if field(idregs::ID_AA64PFR0, 40) != 0 || field(idregs::ID_AA64PFR1, 16) != 0 {
            write_sysreg!("S3_4_C10_C5_0", MPAM_TRAPS); // MPAM2_EL2
        }
        if field(idregs::ID_AA64DFR0, 40) != 0 {
            write_sysreg!("S3_4_C1_C2_1", 0); // TRFCR_EL2: no trace of EL2
        }
        if field(idregs::ID_AA64MMFR1, 40) != 0 {
            write_sysreg!("S3_4_C1_C2_2", HCRX);
        }
        if field(idregs::ID_AA64MMFR0, 56) != 0 {
            write_sysreg!("S3_4_C1_C1_4", FINE_GRAINED); // HFGRTR_EL2
            write_sysreg!("S3_4_C1_C1_5", FINE_GRAINED); // HFGWTR_EL2
            write_sysreg!("S3_4_C1_C1_6", 0); // HFGITR_EL2
            write_sysreg!("S3_4_C3_C1_4", 0); // HDFGRTR_EL2
            write_sysreg!("S3_4_C3_C1_5", 0); // HDFGWTR_EL2
        }
        if field(idregs::ID_AA64MMFR0, 56) >= 2 {
            write_sysreg!("S3_4_C3_C1_0", 0); // HDFGRTR2_EL2
            write_sysreg!("S3_4_C3_C1_1", 0); // HDFGWTR2_EL2
            write_sysreg!("S3_4_C3_C1_2", 0); // HFGRTR2_EL2
            write_sysreg!("S3_4_C3_C1_3", 0); // HFGWTR2_EL2
            write_sysreg!("S3_4_C3_C1_7", 0); // HFGITR2_EL2
        }
        if field(idregs::ID_AA64DFR0, 52) != 0 {
            write_sysreg!("S2_4_C9_C0_0", 0); // BRBCR_EL2: no record of EL2's branches
        }
    }
    SCTLR_EL1.set(SCTLR_RESET);
    TCR_EL1.set(0);
    MAIR_EL1.set(0);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    VBAR_EL1.set(0);
    CPACR_EL1.set(0);
    CNTKCTL_EL1.set(0);
    MDSCR_EL1.set(0);
    CNTP_CTL_EL0.set(0);
    CNTV_CTL_EL0.set(0);
}

/// Turns the host's stage 2 on and leaves EL2 for its EL1 at `pc` with `argument` in x0, all other registers zero and
/// EL2's stack empty.
///
/// # Safety
/// [`prepare`] has run on this CPU; `stage2` names tables that keep the host away from what is not its own; nothing on
/// this CPU's stack is needed any more.
pub unsafe fn enter(stage2: StageTwo, pc: PhysAddr, argument: u64) -> ! {
    VTCR_EL2.set(stage2.vtcr);
    VTTBR_EL2.set(stage2.vttbr);
    HCR_EL2.set(hcr());
    // SAFETY: invalidation only; entries from before stage 2 must not be used under it.
    unsafe {
        asm!(
            "isb",
            "dsb nshst",
            "tlbi vmalls12e1",
            "dsb nsh",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        );
    }
    ELR_EL2.set(pc.raw());
    SPSR_EL2.set(PSTATE_ENTRY);
    let top = boot::stack_top(SP.get());
    // SAFETY: the caller's promise; `top` is the end of the stack that this CPU runs on.
    unsafe {
        asm!(
            "mov sp, {top}",
            "mov x0, {argument}",
            "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr", "mov x6, xzr",
            "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr", "mov x11, xzr", "mov x12, xzr",
            "mov x13, xzr", "mov x14, xzr", "mov x15, xzr", "mov x16, xzr", "mov x17, xzr", "mov x18, xzr",
            "mov x19, xzr", "mov x20, xzr", "mov x21, xzr", "mov x22, xzr", "mov x23, xzr", "mov x24, xzr",
            "mov x25, xzr", "mov x26, xzr", "mov x27, xzr", "mov x28, xzr", "mov x29, xzr", "mov x30, xzr",
            "isb",
            "eret",
            "dsb nsh",
            "isb",
            top = in(reg) top,
            argument = in(reg) argument,
            options(noreturn)
        );
    }
}

/// What the host reads from an identification register that HCR_EL2.TID3 traps.
pub fn id_register(register: SysReg) -> u64 {
    let hidden = HIDDEN
        .iter()
        .find(|(r, _)| *r == register)
        .map_or(0, |(_, mask)| *mask);
    idregs::read(register) & !hidden
}

/// Exception class of an undefined instruction, with IL set.
pub const ESR_UNDEFINED: u64 = 1 << 25;

/// Makes the host take a synchronous exception at EL1, as its own CPU would (Arm ARM D1.3.2, D1.3.5): on its return
/// it finds itself at its vector, with ESR_EL1 and, if given, FAR_EL1 set.
pub fn inject(frame: &mut Frame, esr: u64, far: Option<u64>) {
    const KEPT: u64 = 0xf << 28 | 1 << 24 | 1 << 22; // NZCV, DIT, PAN
    const PAN: u64 = 1 << 22;
    const TCO: u64 = 1 << 25;
    const SSBS: u64 = 1 << 12;
    const DAIF: u64 = 0xf << 6;
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;
    let sctlr = SCTLR_EL1.get();
    let mut pstate = frame.pstate & KEPT | DAIF | 0b0101;
    if field(idregs::ID_AA64MMFR1, 20) != 0 && sctlr & SCTLR_SPAN == 0 {
        pstate |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        pstate |= SSBS;
    }
    if field(idregs::ID_AA64PFR1, 8) >= 2 {
        pstate |= TCO;
    }
    let offset = match frame.pstate & 0x1f {
        0b00100 => 0x000,
        0b00101 => 0x200,
        0b00000 => 0x400,
        _ => 0x600,
    };
    ESR_EL1.set(esr);
    if let Some(far) = far {
        FAR_EL1.set(far);
    }
    ELR_EL1.set(frame.pc);
    SPSR_EL1.set(frame.pstate);
    frame.pc = (VBAR_EL1.get() & !0x7ff).wrapping_add(offset);
    frame.pstate = pstate;
}

/// Whether the exception in `frame` came from the host's EL0.
pub fn from_el0(frame: &Frame) -> bool {
    frame.pstate & 0xf == 0
}

/// Waits for an interrupt; for CPUs that have nothing left to do.
pub fn wait() {
    aarch64_cpu::asm::wfi();
}
