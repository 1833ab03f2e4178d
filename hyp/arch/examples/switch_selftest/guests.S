// Small guests. They run at EL1 with the MMU off; HVC #0 asks the test for something, HVC #1 ends.
    .section .text.guests, "ax"
    .arch_extension fp
    .arch_extension simd

    .global guest_hvc_loop
guest_hvc_loop:
1:  hvc     #0
    b       1b

    .macro  each_x insn
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    \insn   \n
    .endr
    .endm
    .macro  set_x n
    movz    x\n, #0x1000 + \n
    .endm

    // Every general register out, then every one back in, changed by the test: x<n> = 0x2000 + n.
    .global guest_registers
guest_registers:
    each_x  set_x
    hvc     #0
    .macro  check_x n
    eor     x\n, x\n, #0x2000
    .endm
    each_x  check_x
    hvc     #1

    // First use of FP: registers must be this guest's (zero). Then fills them; after the next entry checks them.
    .global guest_fp
guest_fp:
    mov     x0, #3 << 20
    msr     cpacr_el1, x0
    isb
    fmov    x0, d0
    fmov    x1, v31.d[1]
    hvc     #0
    mov     x0, #0x1111
    dup     v0.2d, x0
    mov     x0, #0x3131
    dup     v31.2d, x0
    mov     x0, #1 << 24
    msr     fpcr, x0
    hvc     #0
    fmov    x0, d0
    fmov    x1, v31.d[1]
    mrs     x2, fpcr
    hvc     #1

    // Every EL1 register that the test may name gets x0.
    .global guest_el1
guest_el1:
    msr     ttbr0_el1, x0
    msr     ttbr1_el1, x0
    msr     mair_el1, x0
    msr     amair_el1, x0
    msr     esr_el1, x0
    msr     far_el1, x0
    msr     afsr0_el1, x0
    msr     vbar_el1, x0
    msr     contextidr_el1, x0
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x0
    msr     tpidr_el1, x0
    msr     sp_el0, x0
    mov     sp, x0
    msr     elr_el1, x0
    msr     cntv_cval_el0, x0
    mov     x1, #0x3
    msr     cntkctl_el1, x1
    msr     cpacr_el1, xzr
    hvc     #0
    mrs     x1, ttbr0_el1
    mrs     x2, tpidr_el1
    mrs     x3, sp_el0
    mov     x4, sp
    mrs     x5, elr_el1
    mrs     x6, cntv_cval_el0
    hvc     #1

    // The register that a trap is wanted for is read by the instruction at the label that the test picks.
    .macro  trap_read name, reg
    .global \name
\name:
    mrs     x0, \reg
    hvc     #1
    .endm
    trap_read guest_read_pmcr, pmcr_el0
    trap_read guest_read_cntpct, cntpct_el0
    trap_read guest_read_cntp_ctl, cntp_ctl_el0
    trap_read guest_read_id, id_aa64pfr0_el1
    trap_read guest_read_actlr, actlr_el1
    trap_read guest_read_zcr, S3_0_C1_C2_0
    trap_read guest_read_tpidr2, S3_3_C13_C0_5
    trap_read guest_read_gcr, S3_0_C1_C0_6
    trap_read guest_read_tcr2, S3_0_C2_C0_3
    trap_read guest_read_pir, S3_0_C10_C2_3
    trap_read guest_read_lorid, S3_0_C10_C4_7
    trap_read guest_read_erridr, S3_0_C5_C3_0
    .global guest_smc
guest_smc:
    smc     #0
    hvc     #1
    .global guest_wfi
guest_wfi:
    wfi
    hvc     #1
    .global guest_sgi
guest_sgi:
    msr     S3_0_C12_C11_5, xzr
    hvc     #1

    // Debug. Vectors of the guest report: x10 = ESR, x11 = ELR, x12 = FAR, x13 = SPSR, x14 = vector offset.
    .balign 2048
    .global guest_vectors
guest_vectors:
    .macro  report_entry offset
    .balign 128
    mov     x14, #\offset
    b       report
    .endm
    report_entry 0x000
    report_entry 0x080
    report_entry 0x100
    report_entry 0x180
    report_entry 0x200
    report_entry 0x280
    report_entry 0x300
    report_entry 0x380
    report_entry 0x400
    report_entry 0x480
    report_entry 0x500
    report_entry 0x580
    .balign 128
report:
    mrs     x10, esr_el1
    mrs     x11, elr_el1
    mrs     x12, far_el1
    mrs     x13, spsr_el1
    hvc     #0
    eret

    // x0: MDSCR, x1: address of the watchpoint. Breakpoint 0 at breakpoint_here.
    .global guest_debug, breakpoint_here, guest_debug_watch, watchpoint_here, guest_debug_step, step_here
guest_debug:
    adr     x2, guest_vectors
    msr     vbar_el1, x2
    msr     S2_0_C1_C0_4, xzr       // OSLAR
    msr     S2_0_C0_C2_2, x0        // MDSCR
    adr     x3, breakpoint_here
    msr     S2_0_C0_C0_4, x3
    mov     x4, #0x1e3              // BAS all, PMC EL1, enabled; PMC = 0b01
    msr     S2_0_C0_C0_5, x4
    isb
    msr     daifclr, #8
breakpoint_here:
    nop
    msr     S2_0_C0_C0_5, xzr
    isb
    mrs     x5, S2_0_C0_C0_4
    mrs     x6, S2_0_C1_C1_4
    hvc     #1
guest_debug_watch:
    msr     S2_0_C0_C0_6, x1
    mov     x4, #0x1fff             // BAS all, load and store, PAC EL1 and EL0, enabled
    msr     S2_0_C0_C0_7, x4
    isb
watchpoint_here:
    ldr     x7, [x1]
    msr     S2_0_C0_C0_7, xzr
    isb
    hvc     #1
    // Software step of EL0: SPSR.SS and MDSCR.SS.
guest_debug_step:
    msr     S2_0_C0_C2_2, x0
    adr     x2, step_here
    msr     elr_el1, x2
    mov     x3, #1 << 21            // EL0t, step
    msr     spsr_el1, x3
    eret
step_here:
    nop
    nop
    nop
    b       .

    .global guest_abort, abort_here
guest_abort:
    adr     x2, guest_vectors
    msr     vbar_el1, x2
    mov     x1, #0x80000000
abort_here:
    ldr     x0, [x1, #8]
    hvc     #1

    // Enables its interface; takes one interrupt; acknowledges and ends it.
    .global guest_irq
guest_irq:
    adr     x2, guest_irq_vectors
    msr     vbar_el1, x2
    mov     x0, #0xff
    msr     S3_0_C4_C6_0, x0
    mov     x0, #1
    msr     S3_0_C12_C12_7, x0
    isb
    msr     daifclr, #2
1:  b       1b
    .global guest_timer
guest_timer:
    adr     x2, guest_irq_vectors
    msr     vbar_el1, x2
    mov     x0, #0xff
    msr     S3_0_C4_C6_0, x0
    mov     x0, #1
    msr     S3_0_C12_C12_7, x0
    mrs     x0, cntvct_el0
    add     x1, x0, #0x800
    msr     cntv_cval_el0, x1
    mov     x2, #1
    msr     cntv_ctl_el0, x2
    isb
    msr     daifclr, #2
1:  b       1b
    .balign 2048
guest_irq_vectors:
    .zero   0x280
    mrs     x20, S3_0_C12_C12_0
    mov     x21, #3
    msr     cntv_ctl_el0, x21
    isb
    hvc     #0
    msr     S3_0_C12_C12_1, x20
    isb
    hvc     #1

    .arch_extension nosimd
    .arch_extension nofp
    .text
