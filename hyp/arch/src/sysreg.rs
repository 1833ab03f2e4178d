//! Access to system registers that `aarch64-cpu` does not name, by their assembler names or encodings.
//! Registers that the crate does name go through it. Meaning of the bits stands with the users.

/// Reads a system register: `read_sysreg!("ich_vtr_el2")`, or `"S3_4_C12_C11_1"` where the assembler has no name.
macro_rules! read_sysreg {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading the register changes no memory; a register that this CPU lacks raises an undefined
        // instruction, which the callers exclude by the ID registers.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register. The caller orders it with an ISB where later code depends on it, and puts the call
/// in an `unsafe` block or function that says why the new value keeps memory safe.
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
    }};
}

pub(crate) use {read_sysreg, write_sysreg};
