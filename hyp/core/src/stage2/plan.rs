//! How many tables a change will need, counted in the tables as they stand, before anything is changed.

use porthole_abi::{Error, PAGE_SIZE};

use super::Stage2;
use super::descriptor::{Level, View};
use crate::addr::{Ipa, PhysAddr};
use crate::hw::Memory;

/// A piece of a mapping: the largest block that alignment and length allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub ipa: Ipa,
    pub pa: PhysAddr,
    pub level: Level,
}

/// Cuts a run of pages, contiguous on both sides, into the largest blocks that fit.
pub(super) fn chunks(ipa: Ipa, pa: PhysAddr, pages: u64) -> impl Iterator<Item = Chunk> {
    let mut done = 0;
    let bytes = pages * PAGE_SIZE;
    core::iter::from_fn(move || {
        let left = bytes - done;
        let ipa = ipa.checked_add(done)?;
        let pa = pa.checked_add(done)?;
        let level = [Level::L1, Level::L2, Level::L3]
            .into_iter()
            .find(|l| left >= l.span() && ipa.is_aligned(l.span()) && pa.is_aligned(l.span()))?;
        done += level.span();
        Some(Chunk { ipa, pa, level })
    })
}

/// Counts the tables that mappings at ascending addresses will need, and finds out if they are free.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapPlan {
    tables: usize,
    /// Regions of the last new level-2 and level-3 table counted.
    last: [Option<u64>; 2],
}

impl MapPlan {
    /// Adds a run behind those added before.
    ///
    /// # Errors
    /// `BadState` for tables that were cleared, `OutsideRegion` beyond the input size, `AlreadyMapped`.
    pub fn add<M: Memory>(
        &mut self,
        machine: &M,
        tables: &Stage2,
        ipa: Ipa,
        pa: PhysAddr,
        pages: u64,
    ) -> Result<(), Error> {
        if !tables.is_live() {
            return Err(Error::BadState);
        }
        let end = pages
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| ipa.checked_add(bytes));
        if end.is_none_or(|end| end.raw() > tables.geometry.end()) {
            return Err(Error::OutsideRegion);
        }
        for chunk in chunks(ipa, pa, pages) {
            let entry = tables.descend(machine, chunk.ipa, chunk.level);
            match entry.view() {
                View::Invalid => self.count(tables, chunk, entry.level),
                View::Table(_) | View::Leaf(..) => return Err(Error::AlreadyMapped),
            }
        }
        Ok(())
    }

    /// The walk to `chunk` ends at an empty entry of level `from`: tables below it are missing.
    fn count(&mut self, tables: &Stage2, chunk: Chunk, from: Level) {
        let levels = [(Level::L1, Level::L2), (Level::L2, Level::L3)];
        for ((above, below), last) in levels.into_iter().zip(&mut self.last) {
            let region = chunk.ipa.raw() >> above.shift();
            if above >= from && above < chunk.level && *last != Some(region) {
                *last = Some(region);
                self.tables += tables.cost(below);
            }
        }
    }

    /// Tables needed in all.
    pub fn tables(&self) -> usize {
        self.tables
    }
}

/// Tables that unmapping a range takes to split the blocks at its two ends.
pub fn unmap_tables<M: Memory>(machine: &M, tables: &Stage2, ipa: Ipa, pages: u64) -> usize {
    let start = ipa.raw();
    let end = start + pages * PAGE_SIZE;
    // The block at each end and its level; splitting goes on downwards until a block lies inside.
    let splits = |at: u64| {
        let entry = tables.descend(machine, Ipa::new(at), Level::L3);
        let is_leaf = matches!(entry.view(), View::Leaf(..));
        [Level::L1, Level::L2].map(|level| {
            let base = at & !(level.span() - 1);
            let inside = base >= start && base + level.span() <= end;
            (is_leaf && level >= entry.level && !inside).then_some(base)
        })
    };
    let (first, last) = (splits(start), splits(end - PAGE_SIZE));
    first
        .into_iter()
        .zip(last)
        .zip([Level::L2, Level::L3])
        .map(|((a, b), below)| {
            let splits = match (a, b) {
                (Some(a), Some(b)) => 1 + usize::from(a != b),
                (a, b) => usize::from(a.is_some()) + usize::from(b.is_some()),
            };
            splits * tables.cost(below)
        })
        .sum()
}
