//! PCI Express through ECAM: finding functions, their capabilities, and sizing and placing their BARs.
//! Everything read here is the host's word: it is checked where it is used, and nothing is ever accessed at an
//! address that does not lie in a range of the device tree. Source: PCI Local Bus 3.0, chapter 6; PCIe 5.0, 7.2.2.

pub mod msix;

use arrayvec::ArrayVec;
use porthole_abi::FunctionId;
use porthole_runtime::mmio::Registers;

use crate::machine::PciHost;

const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const HEADER_TYPE: u64 = 0x0e;
const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const MULTI_FUNCTION: u8 = 1 << 7;
const BAR_IO: u32 = 1 << 0;
const BAR_KIND: u32 = 3 << 1;
const BAR_64: u32 = 2 << 1;
/// Bytes of one function's configuration space.
const CONFIG_SIZE: u64 = 4096;
/// Capabilities that fit behind the header; a longer list runs in a circle.
const CAPABILITIES_MAX: usize = 48;
/// Most functions that are looked at.
pub const FUNCTIONS_MAX: usize = 32;

/// Why a function cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The capability list leaves its place or does not end.
    #[error("the capability list goes wrong at {0:#x}")]
    Capabilities(u64),
    /// A BAR of a kind that cannot exist.
    #[error("BAR {0} has a register that cannot be: {1:#x}")]
    Bar(usize, u32),
    /// No room for a BAR.
    #[error("no room for BAR {0} with {1:#x} bytes")]
    NoRoom(usize, u64),
    /// A structure in a BAR that is not there or too short.
    #[error("a structure at {1:#x} of BAR {0}, {2:#x} bytes: no such place")]
    NoPlace(u8, u32, u32),
    /// A BAR outside the range that the device tree has for it.
    #[error("BAR {0} at {1:#x} is outside the range for registers")]
    OutsideRange(u8, u64),
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// First address.
    pub address: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// A function's BARs, by register number.
pub type Bars = [Option<Bar>; 6];

/// A part of a BAR, as a capability names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// BAR number.
    pub bar: u8,
    /// Bytes from the BAR's start.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

impl Structure {
    /// Its first address, if it lies inside a BAR of `bars`.
    ///
    /// # Errors
    /// `NoPlace`.
    pub fn address(&self, bars: &Bars) -> Result<u64, PciError> {
        let end = u64::from(self.offset) + u64::from(self.length);
        bars.get(usize::from(self.bar))
            .copied()
            .flatten()
            .filter(|bar| end <= bar.size)
            .and_then(|bar| bar.address.checked_add(u64::from(self.offset)))
            .ok_or(PciError::NoPlace(self.bar, self.offset, self.length))
    }

    /// Its registers.
    ///
    /// # Errors
    /// `NoPlace`, `OutsideRange`.
    pub fn registers(&self, bars: &Bars, host: &PciHost) -> Result<Registers, PciError> {
        let address = self.address(bars)?;
        host.registers
            .part(address, u64::from(self.length))
            .ok_or(PciError::OutsideRange(self.bar, address))
    }
}

/// Where BARs that nobody placed go: the range for registers, from its end down.
#[derive(Debug)]
pub struct Space {
    start: u64,
    end: u64,
}

impl Space {
    /// All of the host's range for registers.
    pub fn new(host: &PciHost) -> Self {
        Self {
            start: host.registers.base(),
            end: host.registers.base() + host.registers.size(),
        }
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let at = self.end.checked_sub(size)? & !(size - 1);
        (at >= self.start).then(|| {
            self.end = at;
            at
        })
    }
}

/// A function on the bus.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Which.
    pub id: FunctionId,
    config: Registers,
}

/// All functions on the host's first bus.
pub fn functions(host: &PciHost) -> ArrayVec<Function, FUNCTIONS_MAX> {
    let mut found = ArrayVec::new();
    for device in 0..32u8 {
        for number in 0..8u8 {
            let offset = u64::from(device) << 15 | u64::from(number) << 12;
            let Some(config) = host.ecam.part(host.ecam.base() + offset, CONFIG_SIZE) else {
                return found;
            };
            let function = Function {
                id: FunctionId::new(0, host.bus, device, number),
                config,
            };
            if function.vendor() != 0xffff && found.try_push(function).is_err() {
                return found;
            }
            if number == 0 && !function.has_siblings() {
                break;
            }
        }
    }
    found
}

impl Function {
    /// Vendor.
    pub fn vendor(&self) -> u16 {
        self.config.read16(0)
    }

    /// Device.
    pub fn device(&self) -> u16 {
        self.config.read16(2)
    }

    fn has_siblings(&self) -> bool {
        self.vendor() != 0xffff && self.config.read8(HEADER_TYPE) & MULTI_FUNCTION != 0
    }

    /// Configuration space.
    pub fn config(&self) -> &Registers {
        &self.config
    }

    /// Id and offset of each capability.
    ///
    /// # Errors
    /// `Capabilities`.
    pub fn capabilities(&self) -> Result<ArrayVec<(u8, u64), CAPABILITIES_MAX>, PciError> {
        let mut found = ArrayVec::new();
        if self.config.read16(STATUS) & STATUS_CAPABILITIES == 0 {
            return Ok(found);
        }
        let mut at = u64::from(self.config.read8(CAPABILITIES)) & !3;
        while at != 0 {
            // 16 bytes are what the longest one that is looked at has before its own extra.
            let there = (0x40..=0xf0).contains(&at);
            if !there || found.try_push((self.config.read8(at), at)).is_err() {
                return Err(PciError::Capabilities(at));
            }
            at = u64::from(self.config.read8(at + 1)) & !3;
        }
        Ok(found)
    }

    /// Measures the BARs and places those that nobody has placed; then memory decode and messages are on.
    ///
    /// # Errors
    /// `Bar`, `NoRoom`; memory decode is then off.
    pub fn place_bars(&self, space: &mut Space) -> Result<Bars, PciError> {
        let command = self.config.read16(COMMAND);
        self.config.write16(COMMAND, command & !COMMAND_MEMORY);
        let mut bars = [None; 6];
        let mut n = 0;
        while n < bars.len() {
            let at = BAR0 + 4 * n as u64;
            let low = self.config.read32(at);
            let wide = low & (BAR_KIND | BAR_IO) == BAR_64;
            if wide && n == 5 || low & BAR_IO == 0 && !matches!(low & BAR_KIND, 0 | BAR_64) {
                return Err(PciError::Bar(n, low));
            }
            if low & BAR_IO == 0 {
                bars[n] = self.place_bar(n, wide, space)?;
            }
            n += 1 + usize::from(wide);
        }
        let on = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF;
        self.config.write16(COMMAND, command | on);
        Ok(bars)
    }

    fn place_bar(&self, n: usize, wide: bool, space: &mut Space) -> Result<Option<Bar>, PciError> {
        let at = BAR0 + 4 * n as u64;
        let flags = u64::from(self.config.read32(at)) & 0xf;
        let address = self.read_bar(at, wide) & !0xf;
        self.write_bar(at, wide, u64::MAX);
        let mask = self.read_bar(at, wide) & !0xf;
        self.write_bar(at, wide, address | flags);
        if mask as u32 == 0 && !wide || mask == 0 {
            return Ok(None);
        }
        let mask = if wide { mask } else { mask | 0xffff_ffff << 32 };
        let size = (!mask).wrapping_add(1);
        if !size.is_power_of_two() {
            return Err(PciError::Bar(n, mask as u32));
        }
        if address != 0 {
            return Ok(Some(Bar { address, size }));
        }
        let address = space.take(size).ok_or(PciError::NoRoom(n, size))?;
        self.write_bar(at, wide, address | flags);
        Ok(Some(Bar { address, size }))
    }

    fn read_bar(&self, at: u64, wide: bool) -> u64 {
        let high = if wide { self.config.read32(at + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(self.config.read32(at))
    }

    fn write_bar(&self, at: u64, wide: bool, value: u64) {
        self.config.write32(at, value as u32);
        if wide {
            self.config.write32(at + 4, (value >> 32) as u32);
        }
    }
}
