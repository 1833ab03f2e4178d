//! Accesses that may fault: each returns the syndrome instead of dying.
//! What an attacker tries first.

use core::arch::{asm, global_asm};

use crate::exception::Frame;

/// The exception that an access caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
}

impl Fault {
    /// Exception class.
    pub const fn class(self) -> u64 {
        (self.esr >> 26) & 0x3f
    }

    /// Fault status code (DFSC or IFSC).
    pub const fn status(self) -> u64 {
        self.esr & 0x3f
    }

    /// A translation fault of any level.
    pub const fn is_translation(self) -> bool {
        self.status() & 0x3c == 0x04
    }

    /// A synchronous external abort, on the access or on a table walk.
    pub const fn is_external(self) -> bool {
        self.status() == 0x10 || self.status() & 0x3c == 0x14
    }
}

// Each function: x0, x1 arguments; the instruction that may fault lies between runtime_probe_start and
// runtime_probe_end, and is followed by `mov x2, #0; ret`. A fault returns x2 = 1, x0 = ESR, x1 = FAR to x30.
global_asm!(
    r#"
    .section .text.runtime_probe, "ax"
    .arch_extension lse
    .global runtime_probe_start
runtime_probe_start:
    .macro probe name, insn:vararg
    .global \name
\name:
    \insn
    mov     x2, #0
    ret
    .endm
    probe runtime_probe_read8, ldrb w0, [x0]
    probe runtime_probe_read, ldr x0, [x0]
    probe runtime_probe_write, str x1, [x0]
    probe runtime_probe_ldxr, ldxr x0, [x0]
    probe runtime_probe_ldadd, ldadd x1, x0, [x0]
    probe runtime_probe_dc_civac, dc civac, x0
    probe runtime_probe_dc_ivac, dc ivac, x0
    probe runtime_probe_dc_zva, dc zva, x0
    probe runtime_probe_ic_ivau, ic ivau, x0
    probe runtime_probe_ldtr, ldtr x0, [x0]
    probe runtime_probe_defined, mrs x0, S3_1_C11_C0_2
    probe runtime_probe_ramindex, sys #0, c15, c4, #0, x0
    .global runtime_probe_exec
runtime_probe_exec:
    stp     x29, x30, [sp, #-16]!
    adr     x30, 1f
    br      x0
1:  ldp     x29, x30, [sp], #16
    mov     x2, #0
    ret
    .global runtime_probe_end
runtime_probe_end:
"#
);

unsafe extern "C" {
    static runtime_probe_start: u8;
    static runtime_probe_end: u8;
    static runtime_probe_exec: u8;
}

macro_rules! probe {
    ($(#[$m:meta])* $name:ident, $symbol:literal) => {
        $(#[$m])*
        ///
        /// # Errors
        /// The exception it caused.
        pub fn $name(addr: u64, value: u64) -> Result<u64, Fault> {
            let (mut x0, mut x1, x2): (u64, u64, u64);
            // SAFETY: a fault is caught by `fixup`. A write that succeeds goes to an address that the
            // program chose to attack: it knows that nothing of its own lies there.
            unsafe {
                asm!(concat!("bl ", $symbol), inout("x0") addr => x0, inout("x1") value => x1,
                    out("x2") x2, out("x30") _, clobber_abi("C"));
            }
            let _ = &mut x0;
            let _ = &mut x1;
            if x2 == 0 { Ok(x0) } else { Err(Fault { esr: x0, far: x1 }) }
        }
    };
}

probe!(
    /// Reads a byte. The second argument is ignored.
    read8, "runtime_probe_read8"
);
probe!(
    /// Reads 64 bits. The second argument is ignored.
    read, "runtime_probe_read"
);
probe!(
    /// Writes 64 bits.
    write, "runtime_probe_write"
);
probe!(
    /// Load exclusive. The second argument is ignored.
    load_exclusive, "runtime_probe_ldxr"
);
probe!(
    /// Atomic add (CPUs with LSE only).
    atomic_add, "runtime_probe_ldadd"
);
probe!(
    /// DC CIVAC.
    clean_invalidate, "runtime_probe_dc_civac"
);
probe!(
    /// DC IVAC.
    invalidate, "runtime_probe_dc_ivac"
);
probe!(
    /// DC ZVA.
    zero_line, "runtime_probe_dc_zva"
);
probe!(
    /// IC IVAU.
    invalidate_instruction, "runtime_probe_ic_ivau"
);
probe!(
    /// Unprivileged load.
    read_unprivileged, "runtime_probe_ldtr"
);
probe!(
    /// Reads a register that Arm leaves to implementations: L2CTLR_EL1 on Cortex-A72. The arguments are ignored.
    implementation_register, "runtime_probe_defined"
);
probe!(
    /// An instruction that Arm leaves to implementations: RAMINDEX on Cortex-A72. The second argument is ignored.
    implementation_instruction, "runtime_probe_ramindex"
);
probe!(
    /// Branches there; what stands there must return through x30.
    execute, "runtime_probe_exec"
);

global_asm!(
    r#"
    .section .text.runtime_el0, "ax"
    // x0: instruction's argument, x1: address of EL0 code. Comes back through an exception from EL0.
    .global runtime_el0_enter
runtime_el0_enter:
    msr     elr_el1, x1
    mov     x2, #0x3c0
    msr     spsr_el1, x2
    isb
    eret
    .global runtime_el0_leave
runtime_el0_leave:
    ret

    // What runs at EL0, one routine a page-relative offset apart.
    .balign 64
    .global runtime_el0_code
runtime_el0_code:
    ldr     x0, [x0]
    svc     #0
    .balign 16
    str     x0, [x0]
    svc     #0
    .balign 16
    hvc     #0
    svc     #0
    .balign 16
    smc     #0
    svc     #0
"#
);

unsafe extern "C" {
    static runtime_el0_leave: u8;
    static runtime_el0_code: u8;
}

/// What EL0 is to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum El0 {
    /// Read 64 bits at the address given.
    Read = 0,
    /// Write 64 bits there.
    Write = 1,
    /// `HVC #0`.
    Hvc = 2,
    /// `SMC #0`.
    Smc = 3,
}

/// Runs one instruction at EL0. `user_offset` is what to add to an address of this Image to find it mapped
/// for EL0 (see [`crate::mmu::Attr::User`]).
///
/// # Errors
/// The exception it caused.
pub fn at_el0(what: El0, user_offset: u64, addr: u64) -> Result<u64, Fault> {
    let code = (&raw const runtime_el0_code) as u64 + what as u64 * 16 + user_offset;
    let (x0, x1, x2): (u64, u64, u64);
    // SAFETY: EL0 runs one instruction and comes back by SVC or a fault (`fixup`), to the RET behind the
    // entry; it changes x0 to x2 only.
    unsafe {
        asm!("bl runtime_el0_enter", inout("x0") addr => x0, inout("x1") code => x1, out("x2") x2,
            out("x30") _, clobber_abi("C"));
    }
    if x2 == 0 {
        Ok(x0)
    } else {
        Err(Fault { esr: x0, far: x1 })
    }
}

/// AT S12E1R where available to EL1 is AT S1E1R: PAR_EL1 of a stage-1 translation, read side.
pub fn translate(addr: u64) -> u64 {
    // SAFETY: an address translation changes PAR_EL1 only.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) addr, options(nostack)) };
    crate::read_reg!("par_el1")
}

/// For the exception handler: was it a probe? Then it goes on behind it.
pub(crate) fn fixup(frame: &mut Frame) -> bool {
    let start = (&raw const runtime_probe_start) as u64;
    let exec = (&raw const runtime_probe_exec) as u64;
    let end = (&raw const runtime_probe_end) as u64;
    let fault = (frame.esr, frame.far);
    if frame.vector == 8 {
        let svc = frame.class() == 0x15;
        frame.pc = (&raw const runtime_el0_leave) as u64;
        frame.pstate = 0x3c5;
        frame.x[2] = u64::from(!svc);
        if !svc {
            (frame.x[0], frame.x[1]) = fault;
        }
        return true;
    }
    if (start..end).contains(&frame.pc) && frame.pc < exec {
        frame.pc = frame.x[30];
    } else if frame.x[30] >= exec
        && frame.x[30] < end
        && matches!(frame.class(), 0x00 | 0x21 | 0x22)
    {
        // A branch of `execute` that did not arrive: return to where it stands, which pops its frame;
        // x2 is then overwritten by `mov x2, #0`, so skip it by returning one level up ourselves.
        let saved = frame_of(frame);
        // SAFETY: `execute` pushed x29 and x30 on the stack that this frame was saved below.
        let (x29, x30) = unsafe { (saved.read_volatile(), saved.add(1).read_volatile()) };
        // The popped pair must not stay on the stack: the frame's restore adds 288, `execute` owes 16.
        frame.x[29] = x29;
        frame.x[30] = x30;
        frame.pc = (&raw const runtime_probe_pop) as u64;
    } else {
        return false;
    }
    frame.x[0] = fault.0;
    frame.x[1] = fault.1;
    frame.x[2] = 1;
    true
}

fn frame_of(frame: &Frame) -> *const u64 {
    ((core::ptr::from_ref(frame) as u64) + size_of::<Frame>() as u64) as *const u64
}

global_asm!(
    r#"
    .section .text.runtime_probe_pop, "ax"
    .global runtime_probe_pop
runtime_probe_pop:
    add     sp, sp, #16
    ret
"#
);

unsafe extern "C" {
    static runtime_probe_pop: u8;
}
