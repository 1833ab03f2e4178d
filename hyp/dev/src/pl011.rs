//! The PL011 UART (Arm DDI 0183), output only and polled. The firmware has set its line up; nothing is configured.

use core::fmt;
use core::ptr::NonNull;

use porthole_core::addr::PhysAddr;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, WriteOnly};
use tock_registers::{register_bitfields, register_structs};

register_bitfields![u32,
    Flags [
        /// The transmit FIFO is full.
        TXFF OFFSET(5) NUMBITS(1) [],
        /// The UART is sending.
        BUSY OFFSET(3) NUMBITS(1) [],
    ]
];

register_structs! {
    #[allow(non_snake_case)]
    Registers {
        (0x000 => data: WriteOnly<u32>),
        (0x004 => _reserved0),
        (0x018 => flags: ReadOnly<u32, Flags::Register>),
        (0x01c => @END),
    }
}

/// Bytes of its register frame.
pub const FRAME_BYTES: u64 = 0x1000;
/// How often the FIFO is looked at before a byte is given up: a UART that never drains must not hang EL2.
const PATIENCE: u32 = 1_000_000;

/// One PL011.
pub struct Pl011 {
    registers: NonNull<Registers>,
}

// SAFETY: the registers are device memory at a fixed address; any CPU may write them, bytes just interleave.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// The UART whose registers are at `base`.
    ///
    /// # Safety
    /// `base` is the register frame of a PL011, and EL2 reaches it there (device memory, or the MMU off) as long
    /// as the value lives.
    pub unsafe fn new(base: PhysAddr) -> Option<Self> {
        NonNull::new(base.raw() as *mut Registers).map(|registers| Self { registers })
    }

    fn registers(&self) -> &Registers {
        // SAFETY: `new`'s contract.
        unsafe { self.registers.as_ref() }
    }

    /// Sends one byte, waiting for room.
    pub fn send(&mut self, byte: u8) {
        let registers = self.registers();
        for _ in 0..PATIENCE {
            if !registers.flags.is_set(Flags::TXFF) {
                registers.data.set(u32::from(byte));
                return;
            }
        }
    }

    /// Waits until all bytes are out.
    pub fn drain(&mut self) {
        for _ in 0..PATIENCE {
            if !self.registers().flags.is_set(Flags::BUSY) {
                return;
            }
        }
    }
}

impl fmt::Write for Pl011 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
