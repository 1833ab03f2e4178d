// Entry into a guest and the exception vectors that are in force while one is loaded.
//
// Stack of EL2 while the guest runs:
//   [sp, #0]    room for the guest's x0 and x1 at the exit
//   [sp, #16]   the vCPU's context
//   [sp, #32]   x19 to x30 of EL2

    .equ    GUEST_FRAME, 128

    .section .text.guest_vectors, "ax"
    .balign 2048
    .global porthole_guest_vectors
porthole_guest_vectors:
    // From EL2 itself: never an exit of the guest. The host's vectors know how to report it.
    .macro  from_el2_itself target
    .balign 128
    b       \target
    .endm
    from_el2_itself porthole_el2_sync
    from_el2_itself porthole_el2_irq
    from_el2_itself porthole_el2_fiq
    from_el2_itself porthole_el2_serror
    from_el2_itself porthole_el2_sync
    from_el2_itself porthole_el2_irq
    from_el2_itself porthole_el2_fiq
    from_el2_itself porthole_el2_serror

    .macro  from_guest kind
    .balign 128
    stp     x0, x1, [sp]
    mov     w1, #\kind
    b       guest_exit
    .endm
    // AArch64
    from_guest {EXIT_SYNC}
    from_guest {EXIT_IRQ}
    from_guest {EXIT_IRQ}
    from_guest {EXIT_SERROR}
    // AArch32 (EL0 of a guest)
    from_guest {EXIT_SYNC}
    from_guest {EXIT_IRQ}
    from_guest {EXIT_IRQ}
    from_guest {EXIT_SERROR}

    .balign 128
guest_exit:
    ldr     x0, [sp, #16]
    stp     x2, x3, [x0, #{CTX_X} + 16]
    ldp     x2, x3, [sp]
    stp     xzr, xzr, [sp]              // the guest's x0 and x1 do not stay here
    stp     x4, x5, [x0, #{CTX_X} + 32]
    stp     x6, x7, [x0, #{CTX_X} + 48]
    stp     x8, x9, [x0, #{CTX_X} + 64]
    stp     x10, x11, [x0, #{CTX_X} + 80]
    stp     x12, x13, [x0, #{CTX_X} + 96]
    stp     x14, x15, [x0, #{CTX_X} + 112]
    stp     x16, x17, [x0, #{CTX_X} + 128]
    stp     x18, x19, [x0, #{CTX_X} + 144]
    stp     x20, x21, [x0, #{CTX_X} + 160]
    stp     x22, x23, [x0, #{CTX_X} + 176]
    stp     x24, x25, [x0, #{CTX_X} + 192]
    stp     x26, x27, [x0, #{CTX_X} + 208]
    stp     x28, x29, [x0, #{CTX_X} + 224]
    str     x30, [x0, #{CTX_X} + 240]
    stp     x2, x3, [x0, #{CTX_X}]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #{CTX_PC}]
    mov     w0, w1
    ldp     x19, x20, [sp, #32]
    ldp     x21, x22, [sp, #48]
    ldp     x23, x24, [sp, #64]
    ldp     x25, x26, [sp, #80]
    ldp     x27, x28, [sp, #96]
    ldp     x29, x30, [sp, #112]
    add     sp, sp, #GUEST_FRAME
    ret

// x0: VcpuContext, loaded on this CPU. Returns the kind of exit in w0.
    .global porthole_guest_enter
    .type   porthole_guest_enter, %function
porthole_guest_enter:
    sub     sp, sp, #GUEST_FRAME
    stp     x19, x20, [sp, #32]
    stp     x21, x22, [sp, #48]
    stp     x23, x24, [sp, #64]
    stp     x25, x26, [sp, #80]
    stp     x27, x28, [sp, #96]
    stp     x29, x30, [sp, #112]
    str     x0, [sp, #16]
    ldp     x2, x3, [x0, #{CTX_PC}]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [x0, #{CTX_X} + 16]
    ldp     x4, x5, [x0, #{CTX_X} + 32]
    ldp     x6, x7, [x0, #{CTX_X} + 48]
    ldp     x8, x9, [x0, #{CTX_X} + 64]
    ldp     x10, x11, [x0, #{CTX_X} + 80]
    ldp     x12, x13, [x0, #{CTX_X} + 96]
    ldp     x14, x15, [x0, #{CTX_X} + 112]
    ldp     x16, x17, [x0, #{CTX_X} + 128]
    ldp     x18, x19, [x0, #{CTX_X} + 144]
    ldp     x20, x21, [x0, #{CTX_X} + 160]
    ldp     x22, x23, [x0, #{CTX_X} + 176]
    ldp     x24, x25, [x0, #{CTX_X} + 192]
    ldp     x26, x27, [x0, #{CTX_X} + 208]
    ldp     x28, x29, [x0, #{CTX_X} + 224]
    ldr     x30, [x0, #{CTX_X} + 240]
    ldp     x0, x1, [x0, #{CTX_X}]
    eret
    dsb     nsh                     // nothing behind an ERET is executed speculatively
    isb
    .purgem from_el2_itself
    .purgem from_guest
    .text
