// Entry of the image at EL2: header, relocation, .bss, stacks, MMU. Rust takes over in porthole_boot (boot CPU)
// and porthole_secondary (all others). Nothing here touches EL1 state.

    .macro  adr_l reg, symbol
    adrp    \reg, \symbol
    add     \reg, \reg, :lo12:\symbol
    .endm

    // Top of the stack of slot \index, a register; clobbers \scratch.
    .macro  set_stack index, scratch
    adr_l   \scratch, __stacks_start
    mov     sp, \scratch
    mov     \scratch, #{STACK_SLOT}
    madd    \scratch, \index, \scratch, \scratch
    add     sp, sp, \scratch
    .endm

    // The state in which EL2 code runs: interrupts masked, no VHE, EL1 is AArch64.
    .macro  el2_basics
    msr     daifset, #0xf
    msr     spsel, #1
    mov     x9, #(1 << 31)
    msr     hcr_el2, x9
    adr_l   x9, porthole_host_vectors
    msr     vbar_el2, x9
    isb
    .endm

    // Header of an arm64 Image (Linux Documentation/arch/arm64/booting.rst).
    .section .head.text, "ax"
    .global _start
_start:
    b       entry
    nop
    .quad   0                       // text_offset: any 2 MiB boundary
    .quad   __image_size
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

    // x0: device tree. MMU off.
entry:
    mov     x19, x0
    adr_l   x20, _start

    // The image is linked at 0: add the load address to every absolute pointer.
    adr_l   x1, __rela_start
    adr_l   x2, __rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027               // R_AARCH64_RELATIVE
    b.ne    1b
    add     x5, x5, x20
    str     x5, [x3, x20]
    b       1b

2:  adr_l   x1, __bss_start
    adr_l   x2, __image_end
3:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    3b

    mov     x21, xzr
    set_stack x21, x9
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.eq    4f
    mov     x0, x19
    bl      porthole_wrong_level
4:  el2_basics
    msr     tpidr_el2, xzr

    // What was written with caches off must not be hidden by stale lines.
    mov     x0, x20
    adr_l   x1, __image_end
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x3, x3, x2
    dsb     sy
5:  dc      ivac, x0
    add     x0, x0, x3
    cmp     x0, x1
    b.lo    5b
    dsb     sy

    mov     x0, x19
    bl      porthole_early_map
    bl      enable_mmu
    mov     x0, x19
    bl      porthole_boot
    b       park

    // Where PSCI CPU_ON starts a CPU. x0: stack slot in bits 15:8, CPU index in bits 7:0. MMU off.
    .section .text.entry, "ax"
    .global porthole_secondary_entry
porthole_secondary_entry:
    mov     x19, x0
    el2_basics
    ubfx    x1, x19, #8, #8
    set_stack x1, x9
    and     x1, x19, #0xff
    msr     tpidr_el2, x1
    bl      enable_mmu
    bl      porthole_secondary
park:
    wfi
    b       park

    // Turns on the map that porthole_early_map described. Only x9 to x13 change.
enable_mmu:
    adr_l   x9, {TRANSLATION}
    ldp     x10, x11, [x9]          // TTBR0, TCR
    ldp     x12, x13, [x9, #16]     // MAIR, SCTLR
    msr     ttbr0_el2, x10
    msr     tcr_el2, x11
    msr     mair_el2, x12
    dsb     nshst
    tlbi    alle2
    tlbi    alle1
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x13
    isb
    ret
