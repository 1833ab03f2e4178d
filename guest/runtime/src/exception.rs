//! Exception vectors: every exception saves all general registers and comes to `runtime_exception`.
//! A fault of a [`crate::probe`] goes on at its fixup; IRQs go to the program's handler; the rest is fatal
//! unless the program has set a handler for synchronous exceptions.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::{println, read_reg, reg};

/// Registers at an exception, in the order that the vectors save them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// ELR_EL1.
    pub pc: u64,
    /// SPSR_EL1.
    pub pstate: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// Vector number 0 to 15.
    pub vector: u64,
}

impl Frame {
    /// Exception class, ESR_EL1.EC.
    pub fn class(&self) -> u64 {
        (self.esr >> 26) & 0x3f
    }
}

global_asm!(
    r#"
    .macro  runtime_vector n
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x0, #\n
    b       runtime_save
    .endm

    .section .text.runtime_vectors, "ax"
    .balign 2048
    .global runtime_vectors
runtime_vectors:
    runtime_vector 0
    runtime_vector 1
    runtime_vector 2
    runtime_vector 3
    runtime_vector 4
    runtime_vector 5
    runtime_vector 6
    runtime_vector 7
    runtime_vector 8
    runtime_vector 9
    runtime_vector 10
    runtime_vector 11
    runtime_vector 12
    runtime_vector 13
    runtime_vector 14
    runtime_vector 15

runtime_save:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x1, elr_el1
    stp     x30, x1, [sp, #240]
    mrs     x1, spsr_el1
    mrs     x2, esr_el1
    stp     x1, x2, [sp, #256]
    mrs     x1, far_el1
    stp     x1, x0, [sp, #272]
    mov     x0, sp
    bl      runtime_exception
    ldp     x30, x1, [sp, #240]
    msr     elr_el1, x1
    ldr     x1, [sp, #256]
    msr     spsr_el1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldp     x0, x1, [sp]
    add     sp, sp, #288
    eret
"#
);

/// A program's handler: returns whether it dealt with the exception.
pub type Handler = fn(&mut Frame) -> bool;

static IRQ: AtomicUsize = AtomicUsize::new(0);
static SYNC: AtomicUsize = AtomicUsize::new(0);

fn call(slot: &AtomicUsize, frame: &mut Frame) -> bool {
    let raw = slot.load(Ordering::Acquire);
    if raw == 0 {
        return false;
    }
    // SAFETY: the slots hold 0 or a `Handler` that `on_irq` or `on_sync` stored.
    let handler = unsafe { core::mem::transmute::<usize, Handler>(raw) };
    handler(frame)
}

/// Sets the handler of IRQs (all CPUs).
pub fn on_irq(handler: Option<Handler>) {
    IRQ.store(handler.map_or(0, |h| h as usize), Ordering::Release);
}

/// Sets the handler of synchronous exceptions that no probe expects (all CPUs).
pub fn on_sync(handler: Option<Handler>) {
    SYNC.store(handler.map_or(0, |h| h as usize), Ordering::Release);
}

#[unsafe(no_mangle)]
extern "C" fn runtime_exception(frame: &mut Frame) {
    let dealt = match frame.vector & 3 {
        0 => crate::probe::fixup(frame) || call(&SYNC, frame),
        1 | 2 => call(&IRQ, frame),
        _ => crate::probe::fixup(frame),
    };
    if dealt {
        return;
    }
    println!(
        "fatal: unexpected exception: vector {} cpu {} esr {:#x} far {:#x} pc {:#x} (image {:#x}) lr {:#x} mpidr {:#x}",
        frame.vector,
        reg::cpu_index(),
        frame.esr,
        frame.far,
        frame.pc,
        crate::entry::image_range().start,
        frame.x[30],
        read_reg!("mpidr_el1"),
    );
    crate::psci::system_off();
}
