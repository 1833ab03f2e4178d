    .section .text.selftest_entry, "ax"
    .global selftest_start
selftest_start:
    msr     daifset, #0xf
    msr     tpidr_el2, xzr
    adrp    x0, porthole_host_vectors
    add     x0, x0, :lo12:porthole_host_vectors
    msr     vbar_el2, x0
    ldr     x0, =stack_end
    mov     sp, x0
    ldr     x0, =bss_start
    ldr     x1, =bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  bl      selftest_main
3:  wfi
    b       3b
    .ltorg

    .text
