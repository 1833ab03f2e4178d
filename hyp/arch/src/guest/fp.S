// SIMD, floating-point and SVE registers to and from memory. The caller has opened CPTR_EL2.

    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

    .section .text.porthole_fp, "ax"

// x0: FpRegs
    .global porthole_fp_save
    .type   porthole_fp_save, %function
porthole_fp_save:
    stp     q0, q1, [x0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpcr
    mrs     x2, fpsr
    str     x1, [x0, #{FP_FPCR}]
    str     x2, [x0, #{FP_FPSR}]
    ret

// x0: FpRegs
    .global porthole_fp_load
    .type   porthole_fp_load, %function
porthole_fp_load:
    ldp     q0, q1, [x0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    ldr     x1, [x0, #{FP_FPCR}]
    ldr     x2, [x0, #{FP_FPSR}]
    msr     fpcr, x1
    msr     fpsr, x2
    ret

    .altmacro
    .macro  each_z insn
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \insn   z\n, [x0, #\n, mul vl]
    .endr
    .endm
    .macro  each_p insn
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \insn   p\n, [x1, #\n, mul vl]
    .endr
    .endm

// x0: SveRegs. Vectors lie one behind the other at the vector length of EL2, then predicates, then FFR.
    .global porthole_sve_save
    .type   porthole_sve_save, %function
porthole_sve_save:
    mrs     x1, fpcr
    mrs     x2, fpsr
    str     x1, [x0, #{SVE_FPCR}]
    str     x2, [x0, #{SVE_FPSR}]
    each_z  str
    addvl   x1, x0, #31
    addvl   x1, x1, #1
    each_p  str
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ret

// x0: SveRegs
    .global porthole_sve_load
    .type   porthole_sve_load, %function
porthole_sve_load:
    each_z  ldr
    addvl   x1, x0, #31
    addvl   x1, x1, #1
    ldr     p0, [x1, #16, mul vl]
    wrffr   p0.b
    each_p  ldr
    ldr     x1, [x0, #{SVE_FPCR}]
    ldr     x2, [x0, #{SVE_FPSR}]
    msr     fpcr, x1
    msr     fpsr, x2
    ret

    .purgem each_z
    .purgem each_p
    .noaltmacro
    .arch_extension nosve
    .arch_extension nosimd
    .arch_extension nofp
    .text
