//! The slot allocator: which slots of the window are taken, by what, and where the next run fits.
//! Pure bookkeeping in the guest's private memory; it never sees the window's content, so nothing
//! the host writes can reach it. Copying belongs to the pool, memory access to `raw`.
#![forbid(unsafe_code)]

use crate::addr::{
    BusAddr, Direction, MAX_MAPPING_SLOTS, PAGE_SIZE, SLOT_SHIFT, SLOT_SIZE, SLOTS_PER_PAGE,
};
use crate::error::{Error, SetupError};

/// Slots in one [`SlotGroup`].
pub const SLOTS_PER_GROUP: usize = u64::BITS as usize;

/// What starts at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// Nothing: the slot is free, inside a run, or its run is on the way back.
    Nothing,
    /// A streaming mapping of `len` bytes (1 to 256 KiB).
    Streaming { len: u32, direction: Direction },
    /// A coherent allocation of `pages` pages.
    Coherent { pages: u32 },
}

/// Bookkeeping for 64 slots (128 KiB of window), 520 bytes.
///
/// The caller provides these, from its own private memory: never from the window, where the host
/// could rewrite them.
#[derive(Clone, Debug)]
pub struct SlotGroup {
    /// Bit n set: slot n of this group is free.
    free: u64,
    heads: [Head; SLOTS_PER_GROUP],
}

impl SlotGroup {
    /// A group before it is given to an allocator.
    pub const NEW: Self = Self {
        free: 0,
        heads: [Head::Nothing; SLOTS_PER_GROUP],
    };

    /// Groups that a window of `bytes` bytes needs.
    pub const fn needed_for(bytes: usize) -> usize {
        (bytes >> SLOT_SHIFT).div_ceil(SLOTS_PER_GROUP)
    }
}

impl Default for SlotGroup {
    fn default() -> Self {
        Self::NEW
    }
}

/// Index of a slot in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(usize);

impl SlotIndex {
    /// Wraps an index; an index past the end of the window is refused where it is used.
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    /// The raw index.
    pub const fn get(self) -> usize {
        self.0
    }

    /// Bytes from the start of the window to this slot.
    pub const fn offset(self) -> usize {
        self.0 << SLOT_SHIFT
    }
}

/// A run of slots on its way back: its mapping is gone, its slots are not yet free.
///
/// Only [`SlotAllocator::finish_release`] of the same allocator ends this state, by consuming it.
#[derive(Debug)]
#[must_use = "the slots stay taken until finish_release"]
pub struct Releasing {
    start: usize,
    slots: usize,
}

/// First-fit allocator of slots; see the crate documentation for the layout.
///
/// Invariant ([`SlotAllocator::check`]): every head's run is taken, no two runs overlap, the count
/// of free slots is the number of bits set, and no slot below `lowest` is free.
#[derive(Debug)]
pub struct SlotAllocator<'a> {
    groups: &'a mut [SlotGroup],
    slots: usize,
    free: usize,
    /// No slot below this one is free. May itself be taken.
    lowest: usize,
    high_water: usize,
    /// Number of the window's first slot on the bus, so that alignment is that of bus addresses.
    first: u64,
}

impl<'a> SlotAllocator<'a> {
    /// An allocator of all slots of a window of `bytes` bytes at `base`.
    ///
    /// # Errors
    /// `Empty`, `Unaligned`, or `TooLittleBookkeeping` if `groups` is too short.
    pub fn new(
        groups: &'a mut [SlotGroup],
        base: BusAddr,
        bytes: usize,
    ) -> Result<Self, SetupError> {
        if bytes == 0 {
            return Err(SetupError::Empty);
        }
        if !bytes.is_multiple_of(PAGE_SIZE) || !base.get().is_multiple_of(PAGE_SIZE as u64) {
            return Err(SetupError::Unaligned);
        }
        let slots = bytes >> SLOT_SHIFT;
        let groups = groups
            .get_mut(..SlotGroup::needed_for(bytes))
            .ok_or(SetupError::TooLittleBookkeeping)?;
        for (i, group) in groups.iter_mut().enumerate() {
            *group = SlotGroup::NEW;
            group.free = mask(0, (slots - i * SLOTS_PER_GROUP).min(SLOTS_PER_GROUP));
        }
        Ok(Self {
            groups,
            slots,
            free: slots,
            lowest: 0,
            high_water: 0,
            first: base.get() >> SLOT_SHIFT,
        })
    }

    /// Slots of the window.
    pub fn total(&self) -> usize {
        self.slots
    }

    /// Slots taken now.
    pub fn used(&self) -> usize {
        self.slots - self.free
    }

    /// Most slots ever taken at one time.
    pub fn high_water(&self) -> usize {
        self.high_water
    }

    /// Most bytes one streaming mapping of this window may have.
    pub fn max_mapping_size(&self) -> usize {
        self.slots.min(MAX_MAPPING_SLOTS) << SLOT_SHIFT
    }

    /// Length of the longest run of free slots. Looks at every slot: for reports, not for hot paths.
    pub fn largest_free_run(&self) -> usize {
        let (mut best, mut run) = (0, 0);
        for i in 0..self.slots {
            run = if self.is_free(i) { run + 1 } else { 0 };
            best = best.max(run);
        }
        best
    }

    /// Takes a run of slots for a streaming mapping of `len` bytes, the lowest that fits.
    ///
    /// `align` is in bytes of bus address, a power of two; up to [`SLOT_SIZE`] it comes for free.
    ///
    /// # Errors
    /// `Empty`, `BadAlignment`, `TooLarge`, `Full`.
    pub fn alloc_streaming(
        &mut self,
        len: usize,
        direction: Direction,
        align: usize,
    ) -> Result<SlotIndex, Error> {
        if len == 0 {
            return Err(Error::Empty);
        }
        if !align.is_power_of_two() {
            return Err(Error::BadAlignment);
        }
        if len > self.max_mapping_size() {
            return Err(Error::TooLarge);
        }
        let slots = len.div_ceil(SLOT_SIZE);
        let align = ((align >> SLOT_SHIFT) as u64).max(1);
        let start = self.fit_low(slots, align).ok_or(Error::Full)?;
        let len = u32::try_from(len).map_err(|_| Error::TooLarge)?;
        self.take(start, slots, Head::Streaming { len, direction });
        Ok(SlotIndex(start))
    }

    /// Takes a page-aligned run for a coherent allocation of `pages` pages, the highest that fits,
    /// so that what lives long does not cut up the space of what comes and goes.
    ///
    /// # Errors
    /// `Empty`, `TooLarge`, `Full`.
    pub fn alloc_coherent(&mut self, pages: usize) -> Result<SlotIndex, Error> {
        if pages == 0 {
            return Err(Error::Empty);
        }
        let slots = pages
            .checked_mul(SLOTS_PER_PAGE)
            .filter(|&slots| slots <= self.slots)
            .ok_or(Error::TooLarge)?;
        let count = u32::try_from(pages).map_err(|_| Error::TooLarge)?;
        let start = self
            .fit_high(slots, SLOTS_PER_PAGE as u64)
            .ok_or(Error::Full)?;
        self.take(start, slots, Head::Coherent { pages: count });
        Ok(SlotIndex(start))
    }

    /// Length and direction of the streaming mapping that starts at `slot`.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`.
    pub fn streaming_at(&self, slot: SlotIndex) -> Result<(usize, Direction), Error> {
        match self.head(slot)? {
            Head::Streaming { len, direction } => Ok((len as usize, direction)),
            Head::Coherent { .. } => Err(Error::WrongKind),
            Head::Nothing => Err(Error::NotMapped),
        }
    }

    /// Length in pages of the coherent allocation that starts at `slot`.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`.
    pub fn coherent_at(&self, slot: SlotIndex) -> Result<usize, Error> {
        match self.head(slot)? {
            Head::Coherent { pages } => Ok(pages as usize),
            Head::Streaming { .. } => Err(Error::WrongKind),
            Head::Nothing => Err(Error::NotMapped),
        }
    }

    /// Ends a streaming mapping; its slots stay taken until [`finish_release`](Self::finish_release)
    /// so that they can be copied out without holding a lock.
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `WrongSize`, `WrongDirection`.
    pub fn begin_release_streaming(
        &mut self,
        slot: SlotIndex,
        len: usize,
        direction: Direction,
    ) -> Result<Releasing, Error> {
        let (mapped_len, mapped_direction) = self.streaming_at(slot)?;
        if mapped_len != len {
            return Err(Error::WrongSize);
        }
        if mapped_direction != direction {
            return Err(Error::WrongDirection);
        }
        Ok(self.detach(slot.0, len.div_ceil(SLOT_SIZE)))
    }

    /// Ends a coherent allocation; see [`begin_release_streaming`](Self::begin_release_streaming).
    ///
    /// # Errors
    /// `OutsideWindow`, `NotMapped`, `WrongKind`, `WrongSize`.
    pub fn begin_release_coherent(
        &mut self,
        slot: SlotIndex,
        pages: usize,
    ) -> Result<Releasing, Error> {
        if self.coherent_at(slot)? != pages {
            return Err(Error::WrongSize);
        }
        Ok(self.detach(slot.0, pages * SLOTS_PER_PAGE))
    }

    /// Makes the slots of a released run free again.
    pub fn finish_release(&mut self, run: Releasing) {
        let Releasing { start, slots } = run;
        self.for_words(start, slots, |word, bits| *word |= bits);
        self.free += slots;
        self.lowest = self.lowest.min(start);
    }

    /// Checks the invariant of the type, looking at every slot. For tests and for doubt in the field.
    pub fn check(&self) -> bool {
        let (mut free, mut end) = (0, 0);
        for i in 0..self.groups.len() * SLOTS_PER_GROUP {
            let is_free = self.is_free(i);
            let run = match self.groups[i / SLOTS_PER_GROUP].heads[i % SLOTS_PER_GROUP] {
                Head::Nothing => 0,
                Head::Streaming { len, .. } => (len as usize).div_ceil(SLOT_SIZE),
                Head::Coherent { pages } => pages as usize * SLOTS_PER_PAGE,
            };
            if run > 0 {
                if i < end || i + run > self.slots {
                    return false;
                }
                end = i + run;
            }
            if is_free && (i < end || i < self.lowest || i >= self.slots) {
                return false;
            }
            free += usize::from(is_free);
        }
        free == self.free && self.high_water <= self.slots && self.used() <= self.high_water
    }

    fn head(&self, slot: SlotIndex) -> Result<Head, Error> {
        if slot.0 >= self.slots {
            return Err(Error::OutsideWindow);
        }
        Ok(self.groups[slot.0 / SLOTS_PER_GROUP].heads[slot.0 % SLOTS_PER_GROUP])
    }

    fn set_head(&mut self, start: usize, head: Head) {
        self.groups[start / SLOTS_PER_GROUP].heads[start % SLOTS_PER_GROUP] = head;
    }

    fn take(&mut self, start: usize, slots: usize, head: Head) {
        self.for_words(start, slots, |word, bits| *word &= !bits);
        self.set_head(start, head);
        self.free -= slots;
        self.high_water = self.high_water.max(self.used());
        if start <= self.lowest {
            self.lowest = self.lowest.max(start + slots);
        }
    }

    fn detach(&mut self, start: usize, slots: usize) -> Releasing {
        self.set_head(start, Head::Nothing);
        Releasing { start, slots }
    }

    /// The lowest start, aligned to `align` slots of the bus, of `slots` free slots.
    fn fit_low(&self, slots: usize, align: u64) -> Option<usize> {
        if slots > self.free {
            return None;
        }
        if slots <= SLOTS_PER_GROUP && align == 1 {
            return self.fit_short(slots);
        }
        let mut from = self.lowest;
        loop {
            let start = self.align_up(self.next_free(from)?, align)?;
            let end = start.checked_add(slots).filter(|&end| end <= self.slots)?;
            match self.last_used_in(start, end) {
                None => return Some(start),
                Some(used) => from = used + 1,
            }
        }
    }

    /// The lowest start of up to 64 free slots: each group once, however many holes it has.
    fn fit_short(&self, slots: usize) -> Option<usize> {
        let first = self.lowest / SLOTS_PER_GROUP;
        let mut groups = self.groups.get(first..)?.iter().map(|group| group.free);
        let mut this = groups.next()?;
        for i in first.. {
            let next = groups.next();
            // Bit n: `have` slots from slot n of this group on are free.
            let mut runs = u128::from(next.unwrap_or(0)) << SLOTS_PER_GROUP | u128::from(this);
            let mut have = 1;
            while have < slots {
                let step = have.min(slots - have);
                runs &= runs >> step;
                have += step;
            }
            let starts = runs as u64;
            if starts != 0 {
                return Some(i * SLOTS_PER_GROUP + starts.trailing_zeros() as usize);
            }
            this = next?;
        }
        None
    }

    /// The highest start, aligned to `align` slots of the bus, of `slots` free slots.
    fn fit_high(&self, slots: usize, align: u64) -> Option<usize> {
        if slots > self.free {
            return None;
        }
        let mut end = self.slots;
        loop {
            let start = self.align_down(end.checked_sub(slots)?, align)?;
            match self.first_used_in(start, start + slots) {
                None => return Some(start),
                Some(used) => end = used,
            }
        }
    }

    /// `index` rounded up so that its bus slot number is a multiple of `align`, a power of two.
    fn align_up(&self, index: usize, align: u64) -> Option<usize> {
        let bus = self.first.checked_add(index as u64)?;
        let up = bus.checked_next_multiple_of(align)? - self.first;
        usize::try_from(up).ok()
    }

    /// `index` rounded down likewise; `None` if that falls below the window.
    fn align_down(&self, index: usize, align: u64) -> Option<usize> {
        let bus = self.first.checked_add(index as u64)?;
        let down = (bus & !(align - 1)).checked_sub(self.first)?;
        usize::try_from(down).ok()
    }

    fn is_free(&self, slot: usize) -> bool {
        self.groups[slot / SLOTS_PER_GROUP].free >> (slot % SLOTS_PER_GROUP) & 1 != 0
    }

    /// First free slot at or after `from`.
    fn next_free(&self, from: usize) -> Option<usize> {
        let mut skip = from % SLOTS_PER_GROUP;
        let first = from / SLOTS_PER_GROUP;
        for (i, group) in self.groups.iter().enumerate().skip(first) {
            let word = group.free & (u64::MAX << skip);
            if word != 0 {
                return Some(i * SLOTS_PER_GROUP + word.trailing_zeros() as usize);
            }
            skip = 0;
        }
        None
    }

    /// Last taken slot in `start..end`, which lies in the window.
    fn last_used_in(&self, start: usize, end: usize) -> Option<usize> {
        words(start, end).rev().find_map(|(group, bits)| {
            let used = !self.groups[group].free & bits;
            (used != 0).then(|| group * SLOTS_PER_GROUP + used.ilog2() as usize)
        })
    }

    /// First taken slot in `start..end`, which lies in the window.
    fn first_used_in(&self, start: usize, end: usize) -> Option<usize> {
        words(start, end).find_map(|(group, bits)| {
            let used = !self.groups[group].free & bits;
            (used != 0).then(|| group * SLOTS_PER_GROUP + used.trailing_zeros() as usize)
        })
    }

    fn for_words(&mut self, start: usize, slots: usize, change: impl Fn(&mut u64, u64)) {
        for (group, bits) in words(start, start + slots) {
            change(&mut self.groups[group].free, bits);
        }
    }
}

/// The groups that `start..end` touches (`start < end`), each with its bits of the range.
fn words(start: usize, end: usize) -> impl DoubleEndedIterator<Item = (usize, u64)> {
    (start / SLOTS_PER_GROUP..end.div_ceil(SLOTS_PER_GROUP)).map(move |group| {
        let base = group * SLOTS_PER_GROUP;
        let low = start.saturating_sub(base);
        let high = (end - base).min(SLOTS_PER_GROUP);
        (group, mask(low, high))
    })
}

/// Bits `low..high` set; `low < high <= 64`.
const fn mask(low: usize, high: usize) -> u64 {
    (u64::MAX >> (SLOTS_PER_GROUP - (high - low))) << low
}
