//! What must survive every exit: FP and SIMD registers, EL1 and EL0 system registers, pointer-authentication keys.
//! Each vCPU has values of its own, so a mix-up of two vCPUs shows too.

use core::arch::{asm, global_asm};

use porthole_payload::machine::Machine;
use porthole_runtime::{call, read_reg, timer, write_reg};

use crate::{check, interrupts};

// The guests are built without FP code, so nothing but these routines touches the registers.
// Both take a seed in x0: q0 holds it in both halves, each next register the seed plus one more step.
global_asm!(
    r#"
    .section .text.exercise_fp, "ax"
    .arch_extension fp
    .arch_extension simd
    .global exercise_fp_set
exercise_fp_set:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    dup     v\n\().2d, x0
    add     x0, x0, #0x111
    .endr
    ret
    // Returns how many of the 64 halves differ.
    .global exercise_fp_compare
exercise_fp_compare:
    mov     x2, #0
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    umov    x1, v\n\().d[0]
    cmp     x1, x0
    cinc    x2, x2, ne
    umov    x1, v\n\().d[1]
    cmp     x1, x0
    cinc    x2, x2, ne
    add     x0, x0, #0x111
    .endr
    mov     x0, x2
    ret
    .arch_extension nosimd
    .arch_extension nofp
"#
);

// The assembler for a target without FP knows FPCR and FPSR by their numbers only: S3_3_C4_C4_0 and _1.
/// FPCR: default NaN, flush to zero, rounding towards zero.
const FPCR: u64 = 1 << 25 | 1 << 24 | 3 << 22;
/// FPSR: all cumulative exception flags that every CPU has.
const FPSR: u64 = 0x1f;

fn fp_set(seed: u64) {
    // SAFETY: FP access is on since entry, and no other code of this program uses these registers.
    unsafe {
        asm!("bl exercise_fp_set", inout("x0") seed => _, out("x1") _, out("x2") _, out("x30") _,
            options(nomem, nostack));
    }
    write_reg!("S3_3_C4_C4_0", FPCR);
    write_reg!("S3_3_C4_C4_1", FPSR);
}

fn fp_compare(seed: u64) -> u64 {
    let differing;
    // SAFETY: as in `fp_set`; this only reads them.
    unsafe {
        asm!("bl exercise_fp_compare", inout("x0") seed => differing, out("x1") _, out("x2") _,
            out("x30") _, options(nomem, nostack));
    }
    differing
}

/// What this vCPU has put into its registers.
#[derive(Clone, Copy)]
pub struct State {
    cpu: usize,
    seed: u64,
    keys: bool,
}

/// Whether the CPU has pointer authentication (ID_AA64ISAR1_EL1: APA, API, GPA, GPI).
fn has_keys() -> bool {
    read_reg!("id_aa64isar1_el1") & (0xff << 4 | 0xff << 24) != 0
}

impl State {
    /// Fills the registers.
    pub fn set(cpu: usize) -> Self {
        let state = Self {
            cpu,
            seed: 0x5eed_0000_0000_0001u64.wrapping_mul(cpu as u64 + 1),
            keys: has_keys(),
        };
        fp_set(state.seed);
        write_reg!("tpidr_el0", state.seed ^ 1);
        write_reg!("tpidrro_el0", state.seed ^ 2);
        write_reg!("contextidr_el1", state.narrow());
        write_reg!("cntkctl_el1", state.enables());
        write_reg!("csselr_el1", cpu as u64 & 1);
        if state.keys {
            write_reg!("S3_0_C2_C1_0", state.seed ^ 3); // APIAKeyLo_EL1
            write_reg!("S3_0_C2_C3_1", state.seed ^ 4); // APGAKeyHi_EL1
        }
        state
    }

    fn narrow(self) -> u64 {
        0xc0de_0000 | self.cpu as u64
    }

    /// CNTKCTL_EL1: EL0VCTEN, EL0PCTEN, and event bits that differ by CPU.
    fn enables(self) -> u64 {
        3 | (self.cpu as u64) << 4
    }

    /// Compares them.
    pub fn check(&self, when: &str) {
        let cpu = self.cpu;
        let differing = fp_compare(self.seed);
        check!(
            differing == 0,
            "cpu {cpu}: {differing} halves of FP registers differ {when}"
        );
        for (name, is, was) in [
            ("FPCR", read_reg!("S3_3_C4_C4_0"), FPCR),
            ("FPSR", read_reg!("S3_3_C4_C4_1"), FPSR),
            ("TPIDR_EL0", read_reg!("tpidr_el0"), self.seed ^ 1),
            ("TPIDRRO_EL0", read_reg!("tpidrro_el0"), self.seed ^ 2),
            ("TPIDR_EL1", read_reg!("tpidr_el1"), cpu as u64),
            ("CONTEXTIDR_EL1", read_reg!("contextidr_el1"), self.narrow()),
            ("CNTKCTL_EL1", read_reg!("cntkctl_el1"), self.enables()),
            ("CSSELR_EL1", read_reg!("csselr_el1"), cpu as u64 & 1),
        ] {
            check!(
                is == was,
                "cpu {cpu}: {name} is {is:#x}, not {was:#x}, {when}"
            );
        }
        if self.keys {
            for (name, is, was) in [
                ("APIAKeyLo_EL1", read_reg!("S3_0_C2_C1_0"), self.seed ^ 3),
                ("APGAKeyHi_EL1", read_reg!("S3_0_C2_C3_1"), self.seed ^ 4),
            ] {
                check!(
                    is == was,
                    "cpu {cpu}: {name} is {is:#x}, not {was:#x}, {when}"
                );
            }
        }
    }
}

/// Leaves the guest in every way that comes back: hypercall, VMM, vGIC, sleep.
pub fn exits(machine: &Machine) {
    for _ in 0..50 {
        call::hvc_with(0x4b00_0000, &[1, 2, 3]);
        if let Some(rtc) = &machine.rtc {
            let id = rtc.read32(0xfe0);
            check!(id == 0x31, "PL031 says {id:#x}");
        }
        let _ = machine.gic.read_dist(8);
        interrupts::sleep(timer::ticks(100));
    }
}
