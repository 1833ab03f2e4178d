//! Entry of the Image: header, relocation, BSS, stacks, floating point, vectors; then the program's `main`.
//! Secondary CPUs come in through `secondary_entry` (see `smp`).

use core::arch::global_asm;

/// CPUs that a program can use.
pub const CPUS_MAX: usize = 8;
/// Bytes of stack of each CPU.
pub const STACK_SIZE: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stacks([[u8; STACK_SIZE]; CPUS_MAX]);

#[unsafe(no_mangle)]
static mut RUNTIME_STACKS: Stacks = Stacks([[0; STACK_SIZE]; CPUS_MAX]);

/// Names the program's main function: `fn(dtb: u64) -> !`, the device tree's physical address in `dtb`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn runtime_main(dtb: u64) -> ! {
            let main: fn(u64) -> ! = $main;
            main(dtb)
        }
    };
}

// The Image header is that of Linux' Documentation/arch/arm64/booting.rst. Everything runs with MMU and
// caches off until the program calls `mmu::enable`.
global_asm!(
    r#"
    .section .head, "ax"
    .global _head
_head:
    b       0f
    .long   0
    .quad   0                       // text_offset
    .quad   __image_end             // image_size: linked at 0
    .quad   0xa                     // 4 KiB pages, little-endian, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0
0:
    msr     daifset, #0xf
    adr     x20, _head              // where we were loaded
    mov     x21, x0                 // device tree
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16       // r_offset, r_info
    ldr     x5, [x1], #8            // r_addend
    cmp     w4, #1027               // R_AARCH64_RELATIVE
    b.ne    1b
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       1b
2:
    adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b
4:
    mov     x0, #0
    bl      runtime_cpu_setup
    mov     x0, x21
    bl      runtime_main
    b       .

// x0: CPU index. Sets SP, VBAR, FP access. Keeps x19 to x28.
runtime_cpu_setup:
    adrp    x1, RUNTIME_STACKS
    add     x1, x1, :lo12:RUNTIME_STACKS
    add     x2, x0, #1
    mov     x3, #{stack}
    madd    x1, x2, x3, x1
    msr     spsel, #1
    mov     sp, x1
    msr     tpidr_el1, x0
    adrp    x1, runtime_vectors
    add     x1, x1, :lo12:runtime_vectors
    msr     vbar_el1, x1
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1
    isb
    ret

// PSCI CPU_ON: x0 points to {{ index, ttbr0, tcr, mair, sctlr, function, argument }}.
    .global runtime_secondary
runtime_secondary:
    msr     daifset, #0xf
    mov     x19, x0
    ldr     x0, [x19]
    bl      runtime_cpu_setup
    ldp     x1, x2, [x19, #8]
    ldp     x3, x4, [x19, #24]
    msr     ttbr0_el1, x1
    msr     ttbr1_el1, x1
    msr     tcr_el1, x2
    msr     mair_el1, x3
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x4
    isb
    ldp     x1, x0, [x19, #40]
    blr     x1
    b       .
"#,
    stack = const STACK_SIZE,
);

unsafe extern "C" {
    /// First byte of the Image.
    static _head: u8;
    /// First byte behind the Image and its BSS.
    static __image_end: u8;
    /// Where secondary CPUs start.
    pub(crate) fn runtime_secondary();
}

/// Address range that the running Image occupies, BSS and stacks included.
pub fn image_range() -> core::ops::Range<u64> {
    (&raw const _head) as u64..(&raw const __image_end) as u64
}
