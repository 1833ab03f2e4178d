/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The guest of driver_test: one page of position-independent code without a
 * stack. x0, which FINALIZE sets, picks the routine. What it has to say it
 * writes to the console address, which nobody claims, so it exits to the test.
 */
	.arch	armv8-a

	.equ	CONSOLE, 0x09000000
	.equ	GICD, 0x08000000
	.equ	GICR_SGI, 0x080b0000	/* SGI frame of vCPU 0's redistributor */
	.equ	GICR, 0x080a0000
	.equ	WINDOW, 0x10000000
	.equ	RAM_FAR, 0x80800000
	.equ	RAM_END, 0x81000000
	.equ	SPI, 40

	.equ	CPU_OFF, 0x84000002
	.equ	CPU_ON, 0xc4000003
	.equ	AFFINITY_INFO, 0xc4000004
	.equ	SYSTEM_OFF, 0x84000008
	.equ	SYSTEM_RESET, 0x84000009

	.macro	constant, register, value
	movz	\register, #((\value) & 0xffff)
	movk	\register, #(((\value) >> 16) & 0xffff), lsl #16
	.endm

	.section .rodata, "a"
	.balign	16
	.globl	guest_start
guest_start:
	constant x19, CONSOLE
	constant x20, WINDOW
	adr	x9, table
	ldr	w10, [x9, x0, lsl #2]
	add	x9, x9, w10, sxtw
	br	x9
table:
	.word	off - table		/* 0 */
	.word	mmio - table		/* 1 */
	.word	touch - table		/* 2 */
	.word	window - table		/* 3 */
	.word	spin - table		/* 4 */
	.word	timer - table		/* 5 */
	.word	interrupt - table	/* 6 */
	.word	second - table		/* 7 */
	.word	reset - table		/* 8 */
	.word	lost - table		/* 9 */
	.word	kicks - table		/* 10 */
	.word	sleep - table		/* 11 */
	.word	pings - table		/* 12 */
	.word	race - table		/* 13 */
	.word	tail - table		/* 14 */

off:
	constant x0, SYSTEM_OFF
	hvc	#0
	b	.

reset:
	constant x0, SYSTEM_RESET
	hvc	#0
	b	.

	/* An instruction fetch from where nothing is, the vectors included. */
lost:
	br	x19

spin:
	b	.

	/* Every width both ways; the values read are written back plus one. */
mmio:
	mov	w1, #0xa5
	strb	w1, [x19, #1]
	ldrh	w1, [x19, #2]
	add	w1, w1, #1
	strh	w1, [x19, #2]
	ldr	w1, [x19, #4]
	add	w1, w1, #1
	str	w1, [x19, #4]
	ldr	x1, [x19, #8]
	add	x1, x1, #1
	str	x1, [x19, #8]
	b	off

	/* Memory that was never loaded is zero, and keeps what is put there. */
touch:
	constant x2, RAM_FAR
	ldr	x1, [x2, #0x100]
	str	x1, [x19]
	mov	x3, #0x1234
	str	x3, [x2, #0x100]
	ldr	x1, [x2, #0x100]
	str	x1, [x19]
	b	off

	/* Word 0 of the window plus one goes to word 1; then again, once told to. */
window:
	ldr	x1, [x20]
	add	x1, x1, #1
	str	x1, [x20, #8]
	ldr	x2, [x19]	/* the test moves the window; answers its address */
	ldr	x1, [x2]
	add	x1, x1, #1
	str	x1, [x2, #8]
	ldr	x2, [x19]	/* the test destroys it */
	ldr	x1, [x20]	/* an exit now */
	str	x1, [x19]
	b	off

	/* Three writes that a test may hang on eventfds. */
kicks:
	mov	w1, #1
	str	w1, [x19, #0x20]
	mov	w1, #2
	str	w1, [x19, #0x20]
	strh	w1, [x19, #0x30]
	b	off

gic:
	constant x9, GICD
	mov	w10, #0x12		/* ARE, group 1 */
	str	w10, [x9]
	mov	w10, #-1
	str	w10, [x9, #0x84]	/* GICD_IGROUPR1 */
	mov	w10, #(2 << 16)
	str	w10, [x9, #0xc08]	/* GICD_ICFGR2: SPI 40 is an edge */
	mov	w10, #(1 << (SPI - 32))
	str	w10, [x9, #0x104]	/* GICD_ISENABLER1 */
	constant x9, GICR
	str	wzr, [x9, #0x14]	/* GICR_WAKER: awake */
	constant x9, GICR_SGI
	mov	w10, #-1
	str	w10, [x9, #0x80]	/* GICR_IGROUPR0 */
	mov	w10, #(1 << 27)
	str	w10, [x9, #0x100]	/* GICR_ISENABLER0: the virtual timer */
	mov	x10, #7
	msr	s3_0_c12_c12_5, x10	/* ICC_SRE_EL1 */
	isb
	mov	x10, #0xff
	msr	s3_0_c4_c6_0, x10	/* ICC_PMR_EL1 */
	mov	x10, #1
	msr	s3_0_c12_c12_7, x10	/* ICC_IGRPEN1_EL1 */
	isb
	ret

	/* Waits for one interrupt, says which, and ends. */
take:
	wfi
	mrs	x1, s3_0_c12_c12_0	/* ICC_IAR1_EL1 */
	cmp	x1, #1020
	b.hs	take
	msr	cntv_ctl_el0, xzr
	isb
	msr	s3_0_c12_c12_1, x1	/* ICC_EOIR1_EL1 */
	str	x1, [x19]
	b	off

	/* A timer interrupt in a fifth of a second. */
timer:
	bl	gic
	mrs	x1, cntfrq_el0
	mov	x2, #5
	udiv	x1, x1, x2
	mrs	x2, cntvct_el0
	add	x1, x1, x2
	msr	cntv_cval_el0, x1
	mov	x1, #1
	msr	cntv_ctl_el0, x1
	isb
	b	take

interrupt:
	bl	gic
	str	x19, [x19]
	b	take

	/* Takes interrupts for ever and says which; asks for each by a write of 0. */
pings:
	bl	gic
1:	str	xzr, [x19]
2:	wfi
	mrs	x1, s3_0_c12_c12_0	/* ICC_IAR1_EL1 */
	cmp	x1, #1020
	b.hs	2b
	msr	s3_0_c12_c12_1, x1	/* ICC_EOIR1_EL1 */
	str	x1, [x19]
	b	1b

	/* Sleeps without anything that could end it. */
sleep:
	wfi
	b	sleep

	/* Starts vCPU 1 three times and waits for its end each time. */
second:
	mov	x21, #3
1:	constant x0, CPU_ON
	mov	x1, #1
	adr	x2, other
	mov	x3, x21
	hvc	#0
	str	x0, [x19]
2:	constant x0, AFFINITY_INFO
	mov	x1, #1
	mov	x2, #0
	hvc	#0
	cmp	x0, #1			/* OFF */
	b.ne	2b
	subs	x21, x21, #1
	b.ne	1b
	b	off
other:
	constant x19, CONSOLE
	str	x0, [x19, #0x40]
	constant x0, CPU_OFF
	hvc	#0
	b	.

	/* Both vCPUs touch every page of the far half; says how many hold both marks. */
race:
	constant x0, CPU_ON
	mov	x1, #1
	adr	x2, racer
	mov	x3, #8
	hvc	#0
	mov	x0, #0
	bl	mark
1:	constant x0, AFFINITY_INFO
	mov	x1, #1
	mov	x2, #0
	hvc	#0
	cmp	x0, #1
	b.ne	1b
	constant x9, RAM_FAR
	constant x10, RAM_END
	mov	x11, #0
2:	ldp	x1, x2, [x9]
	add	x9, x9, #4096
	add	x3, x1, #8
	cmp	x2, x3
	cinc	x11, x11, eq
	cmp	x9, x10
	b.ne	2b
	str	x11, [x19]
	b	off
racer:
	bl	mark
	constant x0, CPU_OFF
	hvc	#0
	b	.

	/* Writes address plus offset at that offset (x0) of each page. */
mark:
	constant x9, RAM_FAR
	constant x10, RAM_END
1:	add	x1, x9, x0
	str	x1, [x9, x0]
	add	x9, x9, #4096
	cmp	x9, x10
	b.ne	1b
	ret

	/* Says what there is behind this code in its page: any bit that is not zero. */
tail:
	adr	x1, guest_end
	adr	x2, guest_start
	mov	x4, #4096
	add	x2, x2, x4
	mov	x5, #0
1:	ldrb	w3, [x1], #1
	orr	x5, x5, x3
	cmp	x1, x2
	b.ne	1b
	str	x5, [x19]
	b	off

	.globl	guest_end
guest_end:
	.section .note.GNU-stack, "", %progbits
