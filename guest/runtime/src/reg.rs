//! Reading and writing system registers by name, and barriers.
//! Only for programs that own their EL1; nothing here checks what is written.

/// Reads a system register by its assembler name.
#[macro_export]
macro_rules! read_reg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a system register of our own EL1 has no effect on memory.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register by its assembler name, then synchronises.
#[macro_export]
macro_rules! write_reg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the program owns its EL1; it names a register whose change it is prepared for.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

/// Index of this CPU as given at its start (0 is the boot CPU).
pub fn cpu_index() -> usize {
    (read_reg!("tpidr_el1") & 0xff) as usize
}

/// The virtual counter.
pub fn counter() -> u64 {
    // SAFETY: an ISB and a read of the counter.
    unsafe { core::arch::asm!("isb", options(nostack)) };
    read_reg!("cntvct_el0")
}

/// Full-system data barrier and instruction barrier.
pub fn barrier() {
    // SAFETY: barriers only.
    unsafe { core::arch::asm!("dsb sy", "isb", options(nostack)) };
}

/// Unmasks IRQs.
pub fn irq_enable() {
    // SAFETY: the vector table is installed at entry.
    unsafe { core::arch::asm!("msr daifclr, #2", options(nostack)) };
}

/// Masks IRQs.
pub fn irq_disable() {
    // SAFETY: masking interrupts is always allowed.
    unsafe { core::arch::asm!("msr daifset, #2", options(nostack)) };
}

/// Waits for an interrupt.
pub fn wfi() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack)) };
}

/// Lets another CPU have its turn: for loops that wait for one. (QEMU with one thread runs one CPU at a time and
/// goes to the next at this hint.)
pub fn relax() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nostack, nomem)) };
}
