//! A bounce pool over one Porthole window, and the pool as the `Hal` of virtio-drivers.
//!
//! A protected guest shares nothing with its host but *windows*: ranges of a virtio-pci device's BAR
//! that are backed by host memory (`VIRTIO_F_SWIOTLB`, bit 27, and `VIRTIO_PCI_CAP_SWIOTLB`). Every
//! ring and every buffer a device is to reach must lie in its window. This crate hands out the
//! window's memory and copies ("bounces") buffers in and out, as swiotlb does in Linux.
//!
//! # Layout
//! ```text
//!  guest private memory                     window (host-visible, 4 KiB aligned)
//! +---------------------------+             bus base                        bus base + length
//! | SlotGroup  SlotGroup  ... |  describes  |                                              |
//! | 64 slots   64 slots       | ----------> +--+--+--+--+--+--+--+-- - - - --+--+--+--+--+--+
//! | free bits, what starts    |             |a |b    |  |c |  |  |            |used |desc,avl|
//! | where, how long, which way|             +--+--+--+--+--+--+--+-- - - - --+--+--+--+--+--+
//! |                           |              2 KiB slots
//! | driver's buffers          | <= copies => streaming mappings: lowest fit -->
//! +---------------------------+              1 to 128 slots (256 KiB)      <-- coherent: highest
//!                                                                           fit, whole pages
//! ```
//! * **Streaming mappings** ([`BouncePool::map`], [`unmap`](BouncePool::unmap),
//!   [`sync_for_cpu`](BouncePool::sync_for_cpu), [`sync_for_device`](BouncePool::sync_for_device))
//!   take the lowest run of slots that fits. One slot is [`SLOT_SIZE`] = 2 KiB, a mapping spans at
//!   most [`MAX_MAPPING_SIZE`] = 256 KiB; [`BouncePool::max_mapping_size`] says how much a driver
//!   may ask for at once.
//! * **Coherent allocations** ([`BouncePool::alloc_coherent`]) are whole zeroed pages for rings,
//!   taken from the other end, so that what lives for ever does not cut up what comes and goes.
//!
//! The allocator is a bitmap with a hint below which nothing is free: with slots free at the hint,
//! which is the ordinary case, a mapping costs a few word operations. A mapping of up to 64 slots
//! costs at worst one look at each word of the bitmap (16 for 2 MiB) however fragmented it is; a
//! longer or more aligned one, one step for every taken slot that spoils a place. Lowest-first
//! reuses the slots that are still in the cache of both sides. `cargo bench` has the figures.
//!
//! # What the host can do, and what not
//! The host reads and writes every byte of the window at any time. So:
//! * no bookkeeping is in the window: the caller gives [`SlotGroup`]s of private memory. The host can
//!   change data in flight, nothing else; no content of the window makes a call fail or panic.
//! * a mapping writes all of its slots: the buffer, or zeroes where the device is to write, then
//!   zeroes to the end. No byte but those of `ToDevice` and `Bidirectional` buffers ever enters.
//! * what is copied back is copied once and is then a private, stable, *untrusted* value.
//! * addresses come back from the caller, not from the window; even so every one is checked, and a
//!   wrong one (twice, another length, another direction, outside) is an [`Error`], never a panic.
//! * a device that writes less than it was given leaves zeroes, not the buffer's old content. (Linux
//!   keeps the old content, by showing it to the device.)
//!
//! # Set-up
//! ```no_run
//! # #[cfg(feature = "virtio-drivers")]
//! # mod example {
//! use core::ptr::NonNull;
//! use porthole_bounce::{
//!     Binding, BounceHal, BouncePool, BusAddr, MmioAperture, SetupError, SlotGroup, Window,
//!     bounce_pool,
//! };
//!
//! bounce_pool! { pub ConsolePool }
//! type ConsoleHal = BounceHal<ConsolePool>;
//!
//! /// The guest has found the capability, compared it with the hypervisor's enumeration of its
//! /// windows, and mapped `bus..bus + len` at `base` as Normal write-back memory.
//! fn set_up(
//!     base: NonNull<u8>,
//!     bus: u64,
//!     len: usize,
//!     apertures: &'static [MmioAperture],
//! ) -> Result<(), SetupError> {
//!     // SAFETY: see above; nothing else uses this range.
//!     let window = unsafe { Window::new(base, BusAddr::new(bus), len) }?;
//!     let groups = vec![SlotGroup::NEW; SlotGroup::needed_for(len)].leak();
//!     let pool = BouncePool::new(window, groups)?;
//!     ConsolePool::install(Binding { pool, apertures })?;
//!     // Then: VirtIOConsole::<ConsoleHal, _>::new(transport)
//!     Ok(())
//! }
//! # }
//! ```
//! A full pool shows up in a driver as lost packets or I/O errors that never name it: read
//! [`BouncePool::stats`], which counts and names it and has the high-water mark to size the window
//! by. One 4 KiB block read costs 5 slots here: header, status and indirect table one each, data two.
//!
//! Features: `virtio-drivers` (default) adds `BounceHal` and what belongs to it. No heap is needed.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod addr;
mod counters;
mod error;
#[cfg(feature = "virtio-drivers")]
mod hal;
mod pool;
mod raw;
mod slots;
#[cfg(test)]
mod tests;

pub use addr::{
    BusAddr, Direction, MAX_MAPPING_SIZE, MAX_MAPPING_SLOTS, PAGE_SIZE, SLOT_SHIFT, SLOT_SIZE,
    SLOTS_PER_PAGE,
};
pub use counters::Stats;
pub use error::{Error, SetupError};
#[cfg(feature = "virtio-drivers")]
pub use hal::{Binding, BindingCell, BounceHal, Operation, PoolProvider, UNMAPPED};
pub use pool::{BouncePool, Coherent};
pub use raw::{MmioAperture, Window};
pub use slots::{Releasing, SLOTS_PER_GROUP, SlotAllocator, SlotGroup, SlotIndex};
