//! Counters of a pool: what it did, what it refused, how full it got.
//! Plain numbers, kept under the pool's lock in private memory and handed out as a copy.
//! A full pool shows up in drivers as I/O errors that never name it; here it is named.
#![forbid(unsafe_code)]

use crate::error::Error;

/// A snapshot of a pool's counters and fill level. Counters only grow (and stop at `u64::MAX`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Streaming mappings made.
    pub maps: u64,
    /// Streaming mappings ended.
    pub unmaps: u64,
    /// Coherent allocations made.
    pub coherent_allocs: u64,
    /// Coherent allocations freed.
    pub coherent_frees: u64,
    /// Bytes copied from private memory into the window.
    pub bytes_to_device: u64,
    /// Bytes copied from the window into private memory.
    pub bytes_from_device: u64,
    /// Requests refused with [`Error::Full`].
    pub full: u64,
    /// Those of `full` for which enough slots were free, but not in one run: external fragmentation.
    pub full_fragmented: u64,
    /// Requests refused with [`Error::TooLarge`].
    pub too_large: u64,
    /// Requests refused with [`Error::OutsideWindow`].
    pub outside_window: u64,
    /// Requests refused with any other error: mistakes of the caller.
    pub invalid: u64,
    /// Slots of the window.
    pub slots_total: usize,
    /// Slots taken now.
    pub slots_used: usize,
    /// Most slots ever taken at one time.
    pub slots_high_water: usize,
}

impl Stats {
    /// Counts a refusal. `fragmented`: enough slots were free for it.
    pub(crate) fn refused(&mut self, error: Error, fragmented: bool) {
        match error {
            Error::Full => {
                bump(&mut self.full, 1);
                bump(&mut self.full_fragmented, usize::from(fragmented));
            }
            Error::TooLarge => bump(&mut self.too_large, 1),
            Error::OutsideWindow => bump(&mut self.outside_window, 1),
            Error::Empty
            | Error::BadAlignment
            | Error::NotMapped
            | Error::WrongSize
            | Error::WrongDirection
            | Error::WrongKind
            | Error::OutsideMapping => bump(&mut self.invalid, 1),
        }
    }
}

/// Adds to a counter, stopping at its end.
pub(crate) fn bump(counter: &mut u64, by: usize) {
    *counter = counter.saturating_add(by as u64);
}
