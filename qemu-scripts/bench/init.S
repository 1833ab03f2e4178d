// First process of the boot benchmark: switches the machine off. The plugin sees its first instruction; nothing else
// of it counts. Linux arm64 system calls: number in x8, arguments from x0 (include/uapi/asm-generic/unistd.h).

        .equ    NR_REBOOT, 142
        .equ    MAGIC1, 0xfee1dead
        .equ    MAGIC2, 672274793
        .equ    CMD_POWER_OFF, 0x4321fedc

        .globl  _start
_start: ldr     x0, =MAGIC1
        ldr     x1, =MAGIC2
        ldr     x2, =CMD_POWER_OFF
        mov     x8, #NR_REBOOT
        svc     #0
        b       .
