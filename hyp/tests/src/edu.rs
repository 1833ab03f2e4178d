//! QEMU's `edu` device, driven as a hostile host would: found in config space, given a BAR, told to copy between its
//! buffer and any address at all (QEMU, docs/specs/edu.rst). A copy takes it 100 ms.

use porthole_abi::FunctionId;
use porthole_runtime::mmio::Registers;
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::reg;

use crate::arena;

/// Configuration space of QEMU's `virt`, and its window for 32-bit BARs.
const ECAM: u64 = 0x40_1000_0000;
const BAR: u64 = 0x1000_0000;
const BAR_BYTES: u64 = 1 << 20;
/// Device and vendor.
const ID: u32 = 0x11e8_1234;
/// The device's buffer, as it sees it.
const BUFFER: u64 = 0x4_0000;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const START: u64 = 1;
const TO_MEMORY: u64 = 1 << 1;
/// What [`Edu::fetch`] finds where nothing came.
pub const NOTHING: [u64; 2] = [0xeded_eded_eded_eded, 0];

/// The device.
pub struct Edu {
    registers: Registers,
    /// The page through which words go in and out; a device that is confined needs one of its region.
    pub page: u64,
    /// Its PCI function.
    pub function: FunctionId,
}

impl Edu {
    /// Finds the device on bus 0 and switches it on.
    ///
    /// # Panics
    /// When there is none: the machine was started without `-device edu,dma_mask=0xffffffffffffffff`.
    pub fn new() -> Self {
        mmu::map(ECAM, ECAM, 2 << 20, Attr::Device);
        for slot in 0..32u8 {
            // SAFETY: configuration space of bus 0, mapped as Device.
            let config = unsafe { Registers::new(ECAM + (u64::from(slot) << 15), 0x1000) };
            if config.read32(0) != ID {
                continue;
            }
            config.write32(0x10, BAR as u32);
            // Memory accesses and bus mastering.
            config.write32(4, 6);
            return Self {
                // SAFETY: the BAR was put there, in a window that holds devices only, mapped as Device.
                registers: unsafe { Registers::new(BAR, BAR_BYTES) },
                page: arena::page(),
                function: FunctionId::new(0, 0, slot, 0),
            };
        }
        panic!("no edu device on bus 0");
    }

    fn copy(&self, from: u64, to: u64, command: u64) {
        self.registers.write64(SOURCE, from);
        self.registers.write64(DESTINATION, to);
        self.registers.write64(COUNT, 8);
        reg::barrier();
        self.registers.write64(COMMAND, command | START);
        while self.registers.read64(COMMAND) & START != 0 {
            reg::relax();
        }
        reg::barrier();
    }

    /// Writes a word to memory.
    pub fn store(&self, address: u64, value: u64) {
        arena::poke(self.page, value);
        self.copy(self.page, BUFFER, 0);
        self.copy(BUFFER, address, TO_MEMORY);
    }

    /// Reads a word of memory; one of [`NOTHING`] if the read was refused.
    pub fn fetch(&self, address: u64) -> u64 {
        arena::poke(self.page, NOTHING[0]);
        self.copy(self.page, BUFFER, 0);
        self.copy(address, BUFFER, 0);
        self.copy(BUFFER, self.page, TO_MEMORY);
        arena::peek(self.page)
    }
}
