//! Exception vectors for traps of the host and for faults of EL2 itself, and the frame that they save.
//! `porthole-hyp` defines the handlers: `porthole_host_sync(&mut Frame)`, `porthole_host_unexpected(&Frame, kind)`
//! and `porthole_el2_fault(&Frame, kind)`; guests have vectors of their own in the world switch.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};

use crate::percpu::CPUS_MAX;

/// Bytes of the stack on which a CPU reports a fault of EL2.
const FAULT_STACK_BYTES: usize = 1 << FAULT_STACK_SHIFT;
const FAULT_STACK_SHIFT: u32 = 13;

global_asm!(
    include_str!("exceptions.S"),
    CPU_MASK = const CPUS_MAX - 1,
    FAULT_STACK_SHIFT = const FAULT_STACK_SHIFT,
    FAULT_STACKS = sym FAULT_STACKS,
);

#[repr(C, align(16))]
struct FaultStacks(UnsafeCell<[[u8; FAULT_STACK_BYTES]; CPUS_MAX]>);

// SAFETY: only the vectors use it, each CPU its own part.
unsafe impl Sync for FaultStacks {}

static FAULT_STACKS: FaultStacks = FaultStacks(UnsafeCell::new([[0; FAULT_STACK_BYTES]; CPUS_MAX]));

/// Registers at an exception, as `exceptions.S` saves them.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// ELR_EL2: where the exception came from, or returns to.
    pub pc: u64,
    /// SPSR_EL2: the interrupted PSTATE.
    pub pstate: u64,
    /// SP_EL2 at a fault of EL2; else undefined.
    pub sp: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

impl Frame {
    /// Steps over the instruction that trapped, which was done for whom it trapped from: its single step (PSTATE.SS)
    /// is at its end, and it was no branch (BTYPE).
    pub fn step_over(&mut self) {
        const SS: u64 = 1 << 21;
        const BTYPE: u64 = 3 << 10;
        self.pc = self.pc.wrapping_add(4);
        self.pstate &= !(SS | BTYPE);
    }
}

/// Kind of an exception, by its place in the vector table (Arm ARM D1.3.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Synchronous.
    Synchronous,
    /// IRQ.
    Irq,
    /// FIQ.
    Fiq,
    /// SError.
    SError,
}

impl Kind {
    /// The kind that the vectors number so.
    pub const fn from_vector(number: u64) -> Self {
        match number {
            0 => Self::Synchronous,
            1 => Self::Irq,
            2 => Self::Fiq,
            _ => Self::SError,
        }
    }
}

/// Syndrome registers of the exception being handled.
#[derive(Clone, Copy, Debug)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

impl Syndrome {
    /// Reads them; valid until the next exception to EL2.
    pub fn read() -> Self {
        Self {
            esr: ESR_EL2.get(),
            far: FAR_EL2.get(),
            hpfar: HPFAR_EL2.get(),
        }
    }

    /// Exception class, ESR\[31:26\].
    pub const fn class(&self) -> u64 {
        (self.esr >> 26) & 0x3f
    }
}
