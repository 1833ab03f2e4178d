//! Device registers: accesses of one width by one instruction each.
//! Written in assembly because a volatile access may be compiled to a form with write-back, for which the CPU gives
//! a hypervisor no syndrome (Arm ARM, ESR_ELx.ISV); which registers mean what is the drivers' business.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $load:literal, $store:literal, $bits:literal) => {
        #[doc = concat!("Reads ", $bits, " bits.")]
        ///
        /// # Safety
        /// `at` is a device register of this width, mapped as Device, and reading it harms no memory of the program.
        pub unsafe fn $read(at: u64) -> $type {
            let value: u64;
            // SAFETY: the caller's promise.
            unsafe { asm!($load, out(reg) value, in(reg) at, options(nostack)) };
            value as $type
        }

        #[doc = concat!("Writes ", $bits, " bits.")]
        ///
        /// # Safety
        /// As for reading; and the program is prepared for what the write makes the device do.
        pub unsafe fn $write(at: u64, value: $type) {
            // SAFETY: the caller's promise.
            unsafe { asm!($store, in(reg) u64::from(value), in(reg) at, options(nostack)) };
        }
    };
}

access!(
    read8,
    write8,
    u8,
    "ldrb {0:w}, [{1}]",
    "strb {0:w}, [{1}]",
    "8"
);
access!(
    read16,
    write16,
    u16,
    "ldrh {0:w}, [{1}]",
    "strh {0:w}, [{1}]",
    "16"
);
access!(
    read32,
    write32,
    u32,
    "ldr {0:w}, [{1}]",
    "str {0:w}, [{1}]",
    "32"
);
access!(
    read64,
    write64,
    u64,
    "ldr {0}, [{1}]",
    "str {0}, [{1}]",
    "64"
);

/// A range of device registers, all mapped as Device. Offsets are checked: one outside it, or not a multiple of the
/// access's width, is a mistake of the program and panics.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: u64,
    len: u64,
}

macro_rules! checked {
    ($read:ident, $write:ident, $type:ty, $bits:literal) => {
        #[doc = concat!("Reads ", $bits, " bits at `offset` bytes into the range.")]
        ///
        /// # Panics
        /// When that is outside the range or unaligned.
        pub fn $read(&self, offset: u64) -> $type {
            let at = self.at(offset, size_of::<$type>() as u64);
            // SAFETY: inside a range whose creator promised device registers.
            unsafe { $read(at) }
        }

        #[doc = concat!("Writes ", $bits, " bits at `offset` bytes into the range.")]
        ///
        /// # Panics
        /// When that is outside the range or unaligned.
        pub fn $write(&self, offset: u64, value: $type) {
            let at = self.at(offset, size_of::<$type>() as u64);
            // SAFETY: as for reading.
            unsafe { $write(at, value) };
        }
    };
}

impl Registers {
    /// The `len` bytes from `base`.
    ///
    /// # Safety
    /// All of them are mapped as Device memory for the life of the program and hold device registers or nothing, so
    /// that no access touches memory that Rust code owns.
    pub const unsafe fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// First address.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.len
    }

    /// The `len` bytes from `address`, if all of them lie in this range.
    pub fn part(&self, address: u64, len: u64) -> Option<Self> {
        let offset = address.checked_sub(self.base)?;
        let end = offset.checked_add(len)?;
        (end <= self.len).then_some(Self { base: address, len })
    }

    fn at(&self, offset: u64, width: u64) -> u64 {
        let at = offset.checked_add(width).filter(|end| *end <= self.len);
        assert!(
            at.is_some() && (self.base + offset).is_multiple_of(width),
            "register at {offset:#x} of {:#x}, {} bytes",
            self.base,
            self.len
        );
        self.base + offset
    }

    checked!(read8, write8, u8, "8");
    checked!(read16, write16, u16, "16");
    checked!(read32, write32, u32, "32");
    checked!(read64, write64, u64, "64");
}
