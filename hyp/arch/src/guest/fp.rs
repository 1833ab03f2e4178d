//! Lazy switch of the SIMD and floating-point registers: a guest's first use traps, and only then does the host's
//! state (with SVE at full vector length) make room. EL2 itself is built without FP. SME is not switched: the boot
//! code hides it from the host, and it is trapped for guests.

use core::arch::global_asm;
use core::mem::offset_of;

use aarch64_cpu::asm::barrier::{SY, isb};
use aarch64_cpu::registers::{ReadWriteable, Writeable};
use porthole_core::context::FpRegs;

use super::regs::{CPTR, CPTR_EL2};

/// Longest SVE vector of the architecture, in bytes.
const VECTOR_BYTES_MAX: usize = 256;
/// 32 vectors, 16 predicates and FFR, at most.
const SVE_BYTES_MAX: usize = 32 * VECTOR_BYTES_MAX + 17 * VECTOR_BYTES_MAX / 8;

/// The host's SVE registers, packed by the vector length at EL2.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct SveRegs {
    registers: [u8; SVE_BYTES_MAX],
    fpcr: u64,
    fpsr: u64,
}

/// Where the host's FP registers wait while a guest has the hardware.
#[derive(Clone, Copy)]
pub struct HostFp {
    sve: SveRegs,
    fp: FpRegs,
}

global_asm!(
    include_str!("fp.S"),
    FP_FPCR = const offset_of!(FpRegs, fpcr),
    FP_FPSR = const offset_of!(FpRegs, fpsr),
    SVE_FPCR = const offset_of!(SveRegs, fpcr),
    SVE_FPSR = const offset_of!(SveRegs, fpsr),
);

unsafe extern "C" {
    fn porthole_fp_save(to: *mut FpRegs);
    fn porthole_fp_load(from: *const FpRegs);
    fn porthole_sve_save(to: *mut SveRegs);
    fn porthole_sve_load(from: *const SveRegs);
}

/// Lets EL2 use FP and SVE instructions until [`CPTR_EL2`] is written again.
fn open() {
    CPTR_EL2.modify(CPTR::TFP::CLEAR + CPTR::TZ::CLEAR);
    isb(SY);
}

impl HostFp {
    /// Nothing saved.
    pub const fn new() -> Self {
        Self {
            sve: SveRegs {
                registers: [0; SVE_BYTES_MAX],
                fpcr: 0,
                fpsr: 0,
            },
            fp: FpRegs {
                v: [0; 32],
                fpcr: 0,
                fpsr: 0,
            },
        }
    }

    /// Puts the host's registers away, loads a guest's and lets it use them; SVE stays trapped.
    pub fn give_to_guest(&mut self, guest: &FpRegs, cptr: u64, sve: bool) {
        open();
        // SAFETY: `open` allowed the instructions, SVE only where the CPU has it; the areas are of the layout that
        // the assembly takes its offsets from, and `SveRegs` has room for the longest vectors. EL2's own code
        // keeps nothing in these registers.
        unsafe {
            if sve {
                porthole_sve_save(&raw mut self.sve);
            } else {
                porthole_fp_save(&raw mut self.fp);
            }
            porthole_fp_load(guest);
        }
        CPTR_EL2.set(cptr & !CPTR::TFP::SET.value);
    }

    /// Saves the guest's registers and brings the host's back. CPTR_EL2 is left open for the caller to set.
    pub fn take_back(&self, guest: &mut FpRegs, sve: bool) {
        open();
        // SAFETY: as in `give_to_guest`, which filled the area at the same vector length: nothing writes ZCR_EL2
        // while a guest is loaded.
        unsafe {
            porthole_fp_save(guest);
            if sve {
                porthole_sve_load(&raw const self.sve);
            } else {
                porthole_fp_load(&raw const self.fp);
            }
        }
    }
}
