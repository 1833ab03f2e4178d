//! The bounce pool: streaming mappings and coherent allocations in one window, with copies.
//! Decides under its lock, copies outside it; bookkeeping is private, so whatever the host writes
//! into the window changes data and nothing else. No knowledge of virtio here.
#![forbid(unsafe_code)]

use core::ptr::NonNull;

use spin::mutex::TicketMutex;

use crate::addr::{BusAddr, Direction, PAGE_SIZE, SLOT_SIZE};
use crate::counters::{Stats, bump};
use crate::error::{Error, SetupError};
use crate::raw::Window;
use crate::slots::{Releasing, SlotAllocator, SlotGroup, SlotIndex};

/// A coherent allocation: pages that driver and device use at the same time, such as a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coherent {
    /// Where the device finds it; page-aligned.
    pub bus: BusAddr,
    /// Where the guest has it mapped; page-aligned. The host may change it at any time: read it
    /// with volatile or atomic accesses, once, and check what was read.
    pub ptr: NonNull<u8>,
    /// Its length in pages of 4 KiB.
    pub pages: usize,
}

/// A pool of bounce slots over one window.
///
/// All methods take `&self` and may be called from any CPU. The lock is a ticket lock, held for the
/// bookkeeping only, never during a copy. It is not safe against interrupts: code that maps in an
/// interrupt handler must keep that interrupt masked in all other calls to the pool.
///
/// Ordering: a copy into the window is ordered before the device's look at it by whatever publishes
/// the address (the write of the available index, with its barrier), not by the pool; likewise for
/// the device's writes and the read of the used index.
#[derive(Debug)]
pub struct BouncePool<'a> {
    window: Window,
    state: TicketMutex<State<'a>>,
}

/// Lock order: leaf; nothing is called with it held.
#[derive(Debug)]
struct State<'a> {
    slots: SlotAllocator<'a>,
    stats: Stats,
}

impl State<'_> {
    /// Counts a refusal on its way to the caller. `bytes`: what was asked for.
    fn count<T>(&mut self, bytes: usize, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = result {
            let free = self.slots.total() - self.slots.used();
            self.stats.refused(error, bytes.div_ceil(SLOT_SIZE) <= free);
        }
        result
    }
}

impl<'a> BouncePool<'a> {
    /// A pool over `window`, with its bookkeeping in `groups`:
    /// [`SlotGroup::needed_for`]`(window.size())` of them, in private memory.
    ///
    /// # Errors
    /// `TooLittleBookkeeping`.
    pub fn new(window: Window, groups: &'a mut [SlotGroup]) -> Result<Self, SetupError> {
        let slots = SlotAllocator::new(groups, window.bus(), window.size())?;
        let stats = Stats::default();
        Ok(Self {
            window,
            state: TicketMutex::new(State { slots, stats }),
        })
    }

    /// The most bytes one streaming mapping may have: 256 KiB, or the window if that is smaller.
    /// A driver must split larger requests (Linux: `virtio_max_dma_size`).
    pub fn max_mapping_size(&self) -> usize {
        self.state.lock().slots.max_mapping_size()
    }

    /// Whether `len` bytes from `addr` all lie in the window.
    pub fn contains(&self, addr: BusAddr, len: usize) -> bool {
        self.window
            .offset_of(addr)
            .is_ok_and(|offset| self.window.at(offset, len).is_ok())
    }

    /// Whether any of `len` bytes from `addr` lies in the window (or past the address space's end).
    pub fn overlaps(&self, addr: BusAddr, len: usize) -> bool {
        match (
            addr.checked_add(len),
            self.window.bus().checked_add(self.window.size()),
        ) {
            (Some(end), Some(window_end)) => addr < window_end && self.window.bus() < end,
            _ => true,
        }
    }

    /// The counters and the fill level now.
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            slots_total: state.slots.total(),
            slots_used: state.slots.used(),
            slots_high_water: state.slots.high_water(),
            ..state.stats
        }
    }

    /// Bytes in the longest run of free slots. Looks at every slot under the lock: for reports.
    pub fn largest_free_run(&self) -> usize {
        self.state.lock().slots.largest_free_run() * SLOT_SIZE
    }

    /// Checks the invariants of the bookkeeping. Looks at every slot under the lock: for tests and
    /// for doubt in the field.
    pub fn check(&self) -> bool {
        self.state.lock().slots.check()
    }

    /// Maps `buffer` for the device and returns the bus address of its copy, aligned to 2 KiB.
    ///
    /// The whole run of slots is written: the buffer's bytes (`ToDevice`, `Bidirectional`) or
    /// zeroes (`FromDevice`), then zeroes to the end of the last slot. So the device finds no
    /// remains of other mappings, and a buffer that the device is only to fill is never shown to
    /// the host. (Linux copies the old content of `FromDevice` buffers, so that a short write of
    /// the device leaves the rest as it was; here the rest becomes zero.)
    ///
    /// # Errors
    /// `Empty`, `TooLarge`, `Full`.
    pub fn map(&self, buffer: &[u8], direction: Direction) -> Result<BusAddr, Error> {
        self.map_aligned(buffer, direction, SLOT_SIZE)
    }

    /// [`map`](Self::map) at a bus address that is a multiple of `align` bytes, a power of two.
    ///
    /// # Errors
    /// Those of `map`, and `BadAlignment`.
    pub fn map_aligned(
        &self,
        buffer: &[u8],
        direction: Direction,
        align: usize,
    ) -> Result<BusAddr, Error> {
        let slot = {
            let mut state = self.state.lock();
            let slot = state.slots.alloc_streaming(buffer.len(), direction, align);
            let slot = state.count(buffer.len(), slot)?;
            bump(&mut state.stats.maps, 1);
            if direction.copies_in() {
                bump(&mut state.stats.bytes_to_device, buffer.len());
            }
            slot
        };
        let shown = if direction.copies_in() { buffer } else { &[] };
        let run = buffer.len().next_multiple_of(SLOT_SIZE);
        self.window.write(slot.offset(), shown)?;
        self.window
            .zero(slot.offset() + shown.len(), run - shown.len())?;
        self.bus_of(slot)
    }

    /// Ends the mapping at `addr`, which must be what [`map`](Self::map) returned for a buffer of
    /// this length and direction. `FromDevice` and `Bidirectional`: `buffer` is filled from the
    /// window. Its new content is the host's word and to be checked as such; it does not change any
    /// more after this call.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped` (also for a second unmap), `WrongKind`, `WrongSize`,
    /// `WrongDirection`; `buffer` and pool are then unchanged.
    pub fn unmap(
        &self,
        addr: BusAddr,
        buffer: &mut [u8],
        direction: Direction,
    ) -> Result<(), Error> {
        let run = self.begin_unmap(addr, buffer.len(), direction)?;
        if direction.copies_back() {
            // The slots are nobody's now: a second unmap fails, and no new mapping gets them yet.
            let copied = self.copy_back(addr, buffer);
            self.state.lock().slots.finish_release(run);
            copied
        } else {
            self.state.lock().slots.finish_release(run);
            Ok(())
        }
    }

    /// Ends the mapping at `addr` without copying back, whatever its direction: for buffers the
    /// device only read, and for requests given up after a device reset.
    ///
    /// # Errors
    /// Those of [`unmap`](Self::unmap).
    pub fn release(&self, addr: BusAddr, len: usize, direction: Direction) -> Result<(), Error> {
        let run = self.begin_unmap(addr, len, direction)?;
        self.state.lock().slots.finish_release(run);
        Ok(())
    }

    /// Copies part of a live mapping to private memory: `buffer.len()` bytes from `offset` bytes
    /// into the mapping at `addr`.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `OutsideMapping`, or `WrongDirection` for a
    /// `ToDevice` mapping, in which the device has nothing to say.
    pub fn sync_for_cpu(
        &self,
        addr: BusAddr,
        offset: usize,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let from = {
            let mut state = self.state.lock();
            let part = self.part(&state, addr, offset, buffer.len(), Direction::copies_back);
            let from = state.count(0, part)?;
            bump(&mut state.stats.bytes_from_device, buffer.len());
            from
        };
        self.window.read(from, buffer)
    }

    /// Copies new content into part of a live mapping: `data` to `offset` bytes into the mapping at
    /// `addr`.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `OutsideMapping`, or `WrongDirection` for a
    /// `FromDevice` mapping, in which the driver shows nothing.
    pub fn sync_for_device(&self, addr: BusAddr, offset: usize, data: &[u8]) -> Result<(), Error> {
        let to = {
            let mut state = self.state.lock();
            let part = self.part(&state, addr, offset, data.len(), Direction::copies_in);
            let to = state.count(0, part)?;
            bump(&mut state.stats.bytes_to_device, data.len());
            to
        };
        self.window.write(to, data)
    }

    /// Allocates `pages` pages, page-aligned on both sides and zeroed.
    ///
    /// # Errors
    /// `Empty`, `TooLarge`, `Full`.
    pub fn alloc_coherent(&self, pages: usize) -> Result<Coherent, Error> {
        let bytes = pages.saturating_mul(PAGE_SIZE);
        let slot = {
            let mut state = self.state.lock();
            let slot = state.slots.alloc_coherent(pages);
            let slot = state.count(bytes, slot)?;
            bump(&mut state.stats.coherent_allocs, 1);
            slot
        };
        self.window.zero(slot.offset(), bytes)?;
        Ok(Coherent {
            bus: self.bus_of(slot)?,
            ptr: self.window.at(slot.offset(), bytes)?,
            pages,
        })
    }

    /// Frees the coherent allocation of `pages` pages at `addr`. Its pointer must not be used after.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `WrongSize`.
    pub fn free_coherent(&self, addr: BusAddr, pages: usize) -> Result<(), Error> {
        let mut state = self.state.lock();
        let run = self
            .slot_at(addr)
            .and_then(|slot| state.slots.begin_release_coherent(slot, pages));
        let run = state.count(0, run)?;
        bump(&mut state.stats.coherent_frees, 1);
        state.slots.finish_release(run);
        Ok(())
    }

    /// Copies `target.len()` bytes out of the coherent allocation at `addr`, from `offset` bytes
    /// into it: for drivers that do without raw pointers.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `OutsideMapping`.
    pub fn read_coherent(
        &self,
        addr: BusAddr,
        offset: usize,
        target: &mut [u8],
    ) -> Result<(), Error> {
        let from = self.coherent_part(addr, offset, target.len())?;
        self.window.read(from, target)
    }

    /// Copies `source` into the coherent allocation at `addr`, to `offset` bytes into it.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `OutsideMapping`.
    pub fn write_coherent(&self, addr: BusAddr, offset: usize, source: &[u8]) -> Result<(), Error> {
        let to = self.coherent_part(addr, offset, source.len())?;
        self.window.write(to, source)
    }

    fn begin_unmap(
        &self,
        addr: BusAddr,
        len: usize,
        direction: Direction,
    ) -> Result<Releasing, Error> {
        let mut state = self.state.lock();
        let run = self
            .slot_at(addr)
            .and_then(|slot| state.slots.begin_release_streaming(slot, len, direction));
        let run = state.count(0, run)?;
        bump(&mut state.stats.unmaps, 1);
        Ok(run)
    }

    fn copy_back(&self, addr: BusAddr, buffer: &mut [u8]) -> Result<(), Error> {
        self.window.read(self.window.offset_of(addr)?, buffer)?;
        bump(&mut self.state.lock().stats.bytes_from_device, buffer.len());
        Ok(())
    }

    /// Offset in the window of a part of a streaming mapping whose direction `allows` the copy.
    fn part(
        &self,
        state: &State<'_>,
        addr: BusAddr,
        offset: usize,
        len: usize,
        allows: fn(Direction) -> bool,
    ) -> Result<usize, Error> {
        let slot = self.slot_at(addr)?;
        let (mapped, direction) = state.slots.streaming_at(slot)?;
        if !allows(direction) {
            return Err(Error::WrongDirection);
        }
        within(slot, mapped, offset, len)
    }

    fn coherent_part(&self, addr: BusAddr, offset: usize, len: usize) -> Result<usize, Error> {
        let mut state = self.state.lock();
        let part = self.slot_at(addr).and_then(|slot| {
            let pages = state.slots.coherent_at(slot)?;
            within(slot, pages * PAGE_SIZE, offset, len)
        });
        state.count(0, part)
    }

    fn slot_at(&self, addr: BusAddr) -> Result<SlotIndex, Error> {
        let offset = self.window.offset_of(addr)?;
        if !offset.is_multiple_of(SLOT_SIZE) {
            return Err(Error::NotMapped);
        }
        Ok(SlotIndex::new(offset / SLOT_SIZE))
    }

    fn bus_of(&self, slot: SlotIndex) -> Result<BusAddr, Error> {
        self.window
            .bus()
            .checked_add(slot.offset())
            .ok_or(Error::OutsideWindow)
    }
}

/// Offset in the window of `len` bytes at `offset` of a run of `size` bytes that starts at `slot`.
fn within(slot: SlotIndex, size: usize, offset: usize, len: usize) -> Result<usize, Error> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(slot.offset() + offset),
        _ => Err(Error::OutsideMapping),
    }
}
