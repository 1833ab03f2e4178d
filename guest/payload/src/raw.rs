//! A virtio function without a driver: its registers one by one, and its window as memory that anything may be
//! written to. For programs that break the rules; nothing is checked here but that accesses stay in registers and
//! window. Drivers that keep to the rules use `transport`.

use porthole_runtime::mmio::Registers;
use porthole_runtime::reg;

use crate::machine::PciHost;
use crate::pci::{Bars, Function, PciError, Structure};
use crate::transport::{
    DEVICE_FEATURE, DEVICE_FEATURE_SELECT, DRIVER_FEATURE, DRIVER_FEATURE_SELECT, Layout,
    QUEUE_COUNT, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_ENABLE, QUEUE_NOTIFY_OFF,
    QUEUE_SELECT, QUEUE_SIZE, STATUS,
};

/// Looks at the status until a reset is given up.
const PATIENCE: u32 = 1 << 20;

/// A window, by offset. Accesses outside it panic: they are mistakes of the program.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: u64,
    len: u64,
}

impl Memory {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// They are mapped as ordinary memory for the life of the program, outside every Rust allocation, and accessed
    /// through values of this type only.
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

    /// First address behind it.
    pub const fn end(&self) -> u64 {
        self.base + self.len
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        let width = size_of::<T>() as u64;
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.len);
        assert!(
            inside && offset.is_multiple_of(width),
            "{width} bytes at {offset:#x} of a window of {:#x}",
            self.len
        );
        (self.base + offset) as *mut T
    }

    /// Reads a value of 1, 2, 4 or 8 bytes.
    pub fn read<T: zerocopy::FromBytes>(&self, offset: u64) -> T {
        // SAFETY: `at` checked place and alignment; every bit pattern is a `T`; the host may change it meanwhile,
        // which a volatile access allows for.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes a value of 1, 2, 4 or 8 bytes.
    pub fn write<T: zerocopy::IntoBytes>(&self, offset: u64, value: T) {
        // SAFETY: as for reading.
        unsafe { self.at::<T>(offset).write_volatile(value) };
    }

    /// Copies `bytes` to `offset`.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) {
        (offset..)
            .zip(bytes)
            .for_each(|(at, byte)| self.write(at, *byte));
    }

    /// Copies from `offset` to `bytes`.
    pub fn copy_out(&self, offset: u64, bytes: &mut [u8]) {
        (offset..)
            .zip(bytes)
            .for_each(|(at, byte)| *byte = self.read(at));
    }

    /// Writes `word` over `len` bytes from `offset`, both multiples of 8.
    pub fn fill(&self, offset: u64, len: u64, word: u64) {
        (offset..offset + len)
            .step_by(8)
            .for_each(|at| self.write(at, word));
    }

    /// Offset of the first of `len` bytes from `offset` (both multiples of 8) that does not hold `word`.
    pub fn find_other(&self, offset: u64, len: u64, word: u64) -> Option<u64> {
        (offset..offset + len)
            .step_by(8)
            .find(|at| self.read::<u64>(*at) != word)
    }
}

/// A function with its registers and window.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    /// The function.
    pub function: Function,
    /// All of BAR 0, where all of these are.
    pub registers: Registers,
    /// Common configuration (VIRTIO 1.2, 4.1.4.3).
    pub common: Registers,
    /// Doorbells.
    pub notify: Registers,
    /// Device configuration, where there is one.
    pub config: Option<Registers>,
    /// Its window.
    pub window: Memory,
    notify_multiplier: u32,
}

impl Raw {
    /// A function whose BARs are placed.
    ///
    /// # Errors
    /// Those of [`crate::pci::Structure::registers`].
    pub fn new(
        function: Function,
        layout: &Layout,
        (bars, host): (&Bars, &PciHost),
        window: Memory,
    ) -> Result<Self, PciError> {
        Ok(Self {
            function,
            registers: Structure {
                bar: 0,
                offset: 0,
                length: bars[0].map_or(0, |bar| bar.size as u32),
            }
            .registers(bars, host)?,
            common: layout.common.registers(bars, host)?,
            notify: layout.notify.registers(bars, host)?,
            config: layout.config.map(|c| c.registers(bars, host)).transpose()?,
            window,
            notify_multiplier: layout.notify_multiplier,
        })
    }

    /// The status byte.
    pub fn status(&self) -> u8 {
        self.common.read8(STATUS)
    }

    /// Writes it.
    pub fn set_status(&self, status: u8) {
        self.common.write8(STATUS, status);
    }

    /// Writes 0 to it; whether the device then says 0.
    pub fn reset(&self) -> bool {
        self.set_status(0);
        (0..PATIENCE).any(|_| {
            reg::relax();
            self.status() == 0
        })
    }

    /// Features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |n| {
            self.common.write32(DEVICE_FEATURE_SELECT, n);
            u64::from(self.common.read32(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Writes the driver's features.
    pub fn accept(&self, features: u64) {
        for (n, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write32(DRIVER_FEATURE_SELECT, n);
            self.common.write32(DRIVER_FEATURE, half);
        }
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> u16 {
        self.common.read16(QUEUE_COUNT)
    }

    /// Chooses the queue that the registers below are about.
    pub fn select(&self, queue: u16) {
        self.common.write16(QUEUE_SELECT, queue);
    }

    /// Entries of the chosen queue.
    pub fn queue_size(&self) -> u16 {
        self.common.read16(QUEUE_SIZE)
    }

    /// Writes them.
    pub fn set_queue_size(&self, entries: u16) {
        self.common.write16(QUEUE_SIZE, entries);
    }

    /// Whether the chosen queue is enabled.
    pub fn enabled(&self) -> bool {
        self.common.read16(QUEUE_ENABLE) == 1
    }

    /// Enables it.
    pub fn enable(&self) {
        self.common.write16(QUEUE_ENABLE, 1);
    }

    /// Addresses of its descriptor table, available and used ring.
    pub fn rings(&self) -> [u64; 3] {
        [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].map(|field| {
            let half = |at| u64::from(self.common.read32(at));
            half(field) | half(field + 4) << 32
        })
    }

    /// Writes them.
    pub fn set_rings(&self, rings: [u64; 3]) {
        for (field, ring) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE]
            .into_iter()
            .zip(rings)
        {
            self.common.write32(field, ring as u32);
            self.common.write32(field + 4, (ring >> 32) as u32);
        }
    }

    /// Offset of the doorbell of the chosen queue among the doorbells.
    pub fn doorbell(&self) -> u64 {
        u64::from(self.common.read16(QUEUE_NOTIFY_OFF)) * u64::from(self.notify_multiplier)
    }

    /// Rings a doorbell.
    pub fn ring(&self, doorbell: u64, queue: u16) {
        reg::barrier();
        self.notify.write16(doorbell, queue);
    }
}
