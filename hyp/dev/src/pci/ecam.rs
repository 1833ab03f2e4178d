//! Configuration space in memory (PCI Express Base Specification 5.0, 7.2.2): 4 KiB for each function.
//! Where it is stands in the device tree; what is read and written there is decided elsewhere.

use core::ops::RangeInclusive;
use core::ptr::NonNull;

use porthole_core::addr::PhysAddr;

use super::{Config, Function};

/// Bytes of a function.
const FUNCTION_BYTES: u16 = 4096;

/// The configuration space of a PCI root.
#[derive(Debug)]
pub struct Ecam {
    base: NonNull<u8>,
    buses: RangeInclusive<u8>,
}

impl Ecam {
    /// Bytes of a bus.
    pub const BUS_BYTES: u64 = 256 * FUNCTION_BYTES as u64;

    /// The root whose first bus has its registers at `base`; `None` for address 0.
    ///
    /// # Safety
    /// The device tree says that all `buses` of a root are there ([`Self::BUS_BYTES`] each), EL2 reaches them as device
    /// memory as long as the value lives, and nobody else uses them in this time.
    pub unsafe fn new(base: PhysAddr, buses: RangeInclusive<u8>) -> Option<Self> {
        NonNull::new(base.raw() as *mut u8).map(|base| Self { base, buses })
    }

    fn register(&self, at: Function, offset: u16) -> Option<*mut u32> {
        if !self.buses.contains(&at.bus) || offset >= FUNCTION_BYTES || !offset.is_multiple_of(4) {
            return None;
        }
        let bus = usize::from(at.bus - self.buses.start());
        let at = bus << 20 | usize::from(at.devfn) << 12 | usize::from(offset);
        Some(self.base.as_ptr().wrapping_add(at).cast())
    }
}

impl Config for Ecam {
    fn read(&self, at: Function, offset: u16) -> u32 {
        // SAFETY: a register inside a bus of this root, by `new`'s contract.
        self.register(at, offset)
            .map_or(u32::MAX, |register| unsafe { register.read_volatile() })
    }

    fn write(&self, at: Function, offset: u16, value: u32) {
        if let Some(register) = self.register(at, offset) {
            // SAFETY: as above.
            unsafe { register.write_volatile(value) }
        }
    }
}
