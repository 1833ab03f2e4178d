// Vectors of EL2 while the host runs or EL2 itself does. A guest has its own vectors, which send faults of EL2
// code to porthole_el2_sync and its neighbours here.

    .equ    FRAME, 272              // exceptions.rs: Frame

    .macro  save_frame
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
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x30, x2, [sp, #240]
    str     x3, [sp, #256]
    .endm

    .macro  from_host target
    .balign 128
    sub     sp, sp, #FRAME
    stp     x0, x1, [sp]
    b       \target
    .endm

    .macro  from_el2 target
    .balign 128
    b       \target
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global porthole_host_vectors
porthole_host_vectors:
    from_el2 porthole_el2_sync
    from_el2 porthole_el2_irq
    from_el2 porthole_el2_fiq
    from_el2 porthole_el2_serror
    from_el2 porthole_el2_sync
    from_el2 porthole_el2_irq
    from_el2 porthole_el2_fiq
    from_el2 porthole_el2_serror
    from_host host_sync             // AArch64
    from_host host_irq
    from_host host_fiq
    from_host host_serror
    from_host host_sync             // AArch32 (EL0 of the host)
    from_host host_irq
    from_host host_fiq
    from_host host_serror

host_sync:
    save_frame
    mov     x0, sp
    bl      porthole_host_sync
    ldp     x30, x2, [sp, #240]
    ldr     x3, [sp, #256]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x0, x1, [sp]
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
    add     sp, sp, #FRAME
    eret
    dsb     nsh                     // nothing behind an ERET is fetched speculatively
    isb

host_irq:
    mov     x1, #1
    b       host_unexpected
host_fiq:
    mov     x1, #2
    b       host_unexpected
host_serror:
    mov     x1, #3
host_unexpected:
    save_frame
    mov     x0, sp
    bl      porthole_host_unexpected
1:  wfi
    b       1b

    // A fault of EL2 itself never returns, so EL1's registers serve as scratch, and the stack is one of its own:
    // the fault may be the stack's.
    .macro  el2_fault name, kind
    .global \name
\name:
    msr     sp_el0, x0
    mov     x0, #\kind
    b       el2_fault_common
    .endm
    el2_fault porthole_el2_sync, 0
    el2_fault porthole_el2_irq, 1
    el2_fault porthole_el2_fiq, 2
    el2_fault porthole_el2_serror, 3

el2_fault_common:
    msr     elr_el1, x1
    mov     x1, sp
    msr     tpidr_el1, x1
    mrs     x1, tpidr_el2
    and     x1, x1, #{CPU_MASK}
    add     x1, x1, #1
    lsl     x1, x1, #{FAULT_STACK_SHIFT}
    mov     sp, x1
    adrp    x1, {FAULT_STACKS}
    add     x1, x1, :lo12:{FAULT_STACKS}
    add     sp, sp, x1
    sub     sp, sp, #FRAME
    save_frame
    mrs     x2, sp_el0
    mrs     x3, elr_el1
    stp     x2, x3, [sp]
    mrs     x2, tpidr_el1
    str     x2, [sp, #264]
    mov     x1, x0
    mov     x0, sp
    bl      porthole_el2_fault
1:  wfi
    b       1b
