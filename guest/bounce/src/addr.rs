//! The pool's units and small types: slot and page sizes, bus addresses, directions.
//! No state, no memory access; the allocator and the pool build on these.
//! Numbers are those of Linux's swiotlb, so that a VMM sees the same shape of traffic from both.

use core::fmt;

/// log2 of [`SLOT_SIZE`] (Linux: `IO_TLB_SHIFT`).
pub const SLOT_SHIFT: u32 = 11;

/// Bytes in one slot, the unit of streaming mappings (Linux: `IO_TLB_SIZE`).
pub const SLOT_SIZE: usize = 1 << SLOT_SHIFT;

/// Slots one streaming mapping may span (Linux: `IO_TLB_SEGSIZE`): 256 KiB.
pub const MAX_MAPPING_SLOTS: usize = 128;

/// Bytes one streaming mapping may span, whatever the size of the window.
pub const MAX_MAPPING_SIZE: usize = MAX_MAPPING_SLOTS * SLOT_SIZE;

/// Bytes in a page, the unit and the alignment of coherent allocations and of windows.
pub const PAGE_SIZE: usize = 4096;

/// Slots in a page.
pub const SLOTS_PER_PAGE: usize = PAGE_SIZE / SLOT_SIZE;

/// An address as the device uses it: inside the BAR that holds the window, in bytes.
///
/// Not an address the guest may load from or store to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr(u64);

impl BusAddr {
    /// Wraps a raw bus address.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw bus address, as it goes into a descriptor.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This address plus `bytes`, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: usize) -> Option<Self> {
        self.0.checked_add(u64::try_from(bytes).ok()?).map(Self)
    }

    /// Bytes from `base` up to this address, or `None` if it lies below `base`.
    pub fn offset_from(self, base: Self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(base.0)?).ok()
    }
}

impl fmt::Display for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Who writes a mapped buffer, seen from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device reads: the buffer is copied into the window on map, never back.
    ToDevice,
    /// The device writes: the window shows zeroes on map, the buffer is filled on unmap.
    FromDevice,
    /// Both: copied in on map and back on unmap.
    Bidirectional,
}

impl Direction {
    /// Whether the buffer's content is shown to the device.
    pub const fn copies_in(self) -> bool {
        matches!(self, Self::ToDevice | Self::Bidirectional)
    }

    /// Whether what the device wrote is copied to the buffer.
    pub const fn copies_back(self) -> bool {
        matches!(self, Self::FromDevice | Self::Bidirectional)
    }
}
