//! A guest on strings: it fetches an instruction and six registers by MMIO reads, executes the instruction,
//! and reports x0 to x3 and any exception by MMIO writes. So a test makes a guest do anything at all.

use core::arch::global_asm;

/// Where the puppet's strings hang: unclaimed guest addresses, so every access exits to the host.
pub const STRINGS: u64 = 0x0a00_0000;
/// Offset of the report "done".
pub const DONE: u64 = 0x78;
/// Offset at which the puppet's IRQ handler reports the INTID it acknowledged.
pub const IRQ: u64 = 0x80;

/// Offset in the puppet's RAM of a page that it does not use itself.
pub const FREE: u64 = 0x8000;

global_asm!(
    r#"
    .section .rodata.puppet, "a"
    .balign 4096
    .global puppet_start
puppet_start:
    adr     x19, puppet_vectors
    msr     vbar_el1, x19
    mov     x19, #(3 << 20)
    msr     cpacr_el1, x19
    isb
    adr     x20, puppet_start
    add     x20, x20, #0x7000
    mov     sp, x20
    mov     x21, #{strings}
puppet_loop:
    ldr     x22, [x21]
    adr     x23, puppet_scratch
    str     w22, [x23]
    dc      cvau, x23
    dsb     sy
    ic      ivau, x23
    dsb     sy
    isb
    ldr     x0, [x21, #8]
    ldr     x1, [x21, #16]
    ldr     x2, [x21, #24]
    ldr     x3, [x21, #32]
    ldr     x4, [x21, #40]
    ldr     x5, [x21, #48]
    mov     x24, #0
    mov     x25, #0
    blr     x23
puppet_report:
    str     x0, [x21, #0x40]
    str     x1, [x21, #0x48]
    str     x2, [x21, #0x50]
    str     x3, [x21, #0x58]
    str     x24, [x21, #0x60]
    str     x25, [x21, #0x68]
    str     xzr, [x21, #{done}]
    b       puppet_loop

    .balign 2048
puppet_vectors:
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_irq
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_irq
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_irq
    .balign 128
    b       puppet_fault
    .balign 128
    b       puppet_fault
    .balign 2048
puppet_fault:
    mrs     x24, esr_el1
    mrs     x25, far_el1
    adr     x26, puppet_report
    msr     elr_el1, x26
    mov     x26, #0x3c5
    msr     spsr_el1, x26
    eret
puppet_irq:
    mrs     x27, S3_0_C12_C12_0
    str     x27, [x21, #{irq}]
    msr     S3_0_C12_C12_1, x27
    eret
    // The instruction under test; it may be replaced while the code above is read-only to no one.
    .balign 64
puppet_scratch:
    nop
    ret
    .balign 4096
    .global puppet_end
puppet_end:
"#,
    strings = const STRINGS,
    done = const DONE,
    irq = const IRQ,
);

unsafe extern "C" {
    static puppet_start: u8;
    static puppet_end: u8;
}

/// Address and size of the puppet's code, whole pages.
pub fn code() -> (u64, u64) {
    let start = (&raw const puppet_start) as u64;
    (start, (&raw const puppet_end) as u64 - start)
}

/// Instructions for the puppet.
pub mod insn {
    /// `ldr x0, [x0]`
    pub const LOAD: u32 = 0xf940_0000;
    /// `str x1, [x0]`
    pub const STORE: u32 = 0xf900_0001;
    /// `hvc #0`
    pub const HVC: u32 = 0xd400_0002;
    /// `smc #0`
    pub const SMC: u32 = 0xd400_0003;
    /// `br x0`: goes there; x30 returns to the puppet.
    pub const BRANCH: u32 = 0xd61f_0000;
    /// `wfi`
    pub const WFI: u32 = 0xd503_207f;
    /// `nop`
    pub const NOP: u32 = 0xd503_201f;
    /// `ldp x1, x2, [x0]`: a load without a syndrome.
    pub const LOAD_PAIR: u32 = 0xa940_0801;
    /// `ldr x1, [x0], #8`: a load with write-back, without a syndrome.
    pub const LOAD_WRITE_BACK: u32 = 0xf840_8401;
    /// `dc civac, x0`
    pub const DC_CIVAC: u32 = 0xd50b_7e20;
    /// `ldrb w0, [x0]`
    pub const LOAD_BYTE: u32 = 0x3940_0000;
    /// `ldrsh x0, [x0]`
    pub const LOAD_SIGNED_HALF: u32 = 0x7980_0000;
    /// `strb w1, [x0]`
    pub const STORE_BYTE: u32 = 0x3900_0001;

    /// `mrs x0, S<op0>_<op1>_C<crn>_C<crm>_<op2>`
    pub const fn mrs(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
        0xd530_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    }

    /// `msr S<op0>_<op1>_C<crn>_C<crm>_<op2>, x0`
    pub const fn msr(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
        0xd510_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    }
}
