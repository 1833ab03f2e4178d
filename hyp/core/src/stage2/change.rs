//! Changes of stage-2 tables: map, unmap with splits, join. None of them can fail: pages come from a [`Reserve`].
//! TLB rules: a page is flushed before the caller hears that it is gone; a valid entry becomes another valid
//! one by break-before-make (Arm ARM DDI 0487, D8.16); a table is freed after the flush that forgets it.

use arrayvec::ArrayVec;
use porthole_abi::PAGE_SIZE;

use super::descriptor::{Descriptor, Level, MemoryType, View};
use super::plan::chunks;
use super::reserve::TABLES_MAX;
use super::{ENTRIES, Entry, Reserve, Stage2, TableSource};
use crate::addr::{Ipa, PhysAddr};
use crate::hw::{Memory, Tlb};

/// How a block becomes a table of the same mapping, and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockChange {
    /// Break-before-make: invalid, flush, new entry. An access in the gap faults.
    #[default]
    BreakFirst,
    /// The new entry replaces the old one, then flush. Only where every CPU and SMMU that walks the tables
    /// has BBM level 2 without conflict aborts: devices, which cannot retry, then never see a gap.
    InPlace,
}

impl Stage2 {
    fn write<M: Memory>(&self, machine: &M, entry: &Entry, descriptor: Descriptor) {
        machine.write_word(entry.page, entry.index, descriptor.raw());
    }

    /// Replaces a valid entry that covers `base` by another valid one for the same addresses.
    fn replace<M: Memory + Tlb>(&self, machine: &M, entry: &Entry, base: Ipa, new: Descriptor) {
        let pages = entry.level.span() / PAGE_SIZE;
        match self.change {
            BlockChange::BreakFirst => {
                self.write(machine, entry, Descriptor::INVALID);
                machine.flush_range(self.vmid, base, pages);
                self.write(machine, entry, new);
                machine.sync();
            }
            BlockChange::InPlace => {
                machine.sync();
                self.write(machine, entry, new);
                machine.flush_range(self.vmid, base, pages);
            }
        }
    }

    /// Maps a run that was planned with [`super::plan::MapPlan`], in the largest blocks that fit.
    pub fn map<M: Memory + Tlb>(
        &mut self,
        machine: &M,
        ipa: Ipa,
        pa: PhysAddr,
        pages: u64,
        kind: MemoryType,
        reserve: &mut Reserve,
    ) {
        for chunk in chunks(ipa, pa, pages) {
            let mut entry = self.descend(machine, chunk.ipa, chunk.level);
            while let (true, Some(next)) = (entry.level < chunk.level, entry.level.next()) {
                let table = reserve.take();
                // The table's zeros are visible before the entry that leads to them.
                machine.sync();
                self.write(machine, &entry, Descriptor::table(table));
                entry = self.entry_in(machine, table, next, chunk.ipa);
            }
            debug_assert!(entry.descriptor.is_invalid(), "planned as free");
            let leaf = Descriptor::leaf(chunk.level, chunk.pa, kind.bits());
            self.write(machine, &entry, leaf);
        }
        machine.sync();
    }

    /// Splits a block into a table of the next level that maps the same.
    fn split<M: Memory + Tlb>(&self, machine: &M, entry: &Entry, ipa: Ipa, reserve: &mut Reserve) {
        let (View::Leaf(pa, bits), Some(next)) = (entry.view(), entry.level.next()) else {
            return;
        };
        let table = reserve.take();
        for index in 0..ENTRIES {
            let part = PhysAddr::new(pa.raw() + index as u64 * next.span());
            machine.write_word(table, index, Descriptor::leaf(next, part, bits).raw());
        }
        machine.sync();
        let base = Ipa::new(ipa.raw() & !(entry.level.span() - 1));
        self.replace(machine, entry, base, Descriptor::table(table));
    }

    /// Unmaps a range, splitting the blocks at its ends with pages planned by
    /// [`super::plan::unmap_tables`]. On return no TLB knows the range and emptied tables are freed.
    pub fn unmap<M: Memory + Tlb, S: TableSource>(
        &mut self,
        machine: &M,
        ipa: Ipa,
        pages: u64,
        reserve: &mut Reserve,
        source: &mut S,
    ) {
        let start = ipa.raw();
        let end = start + pages * PAGE_SIZE;
        let mut retired: ArrayVec<PhysAddr, TABLES_MAX> = ArrayVec::new();
        let mut at = start;
        while at < end {
            let entry = self.descend(machine, Ipa::new(at), Level::L3);
            let base = at & !(entry.level.span() - 1);
            let next = base + entry.level.span();
            match entry.view() {
                View::Leaf(..) if base >= start && next <= end => {
                    self.write(machine, &entry, Descriptor::INVALID);
                    at = next;
                }
                View::Leaf(..) => self.split(machine, &entry, Ipa::new(at), reserve),
                View::Table(_) | View::Invalid => at = next,
            }
            let leaves_table = at & (Level::L2.span() - 1) == 0 || at >= end;
            if leaves_table && at > start {
                self.prune(machine, Ipa::new(at.min(end) - PAGE_SIZE), &mut retired);
            }
        }
        machine.flush_range(self.vmid, ipa, pages);
        for table in retired {
            source.free(table);
        }
    }

    /// Unlinks the tables on the way to `ipa` that have become empty, lowest first.
    fn prune<M: Memory>(
        &self,
        machine: &M,
        ipa: Ipa,
        retired: &mut ArrayVec<PhysAddr, TABLES_MAX>,
    ) {
        for above in [Level::L2, Level::L1] {
            let entry = self.descend(machine, ipa, above);
            let View::Table(table) = entry.view() else {
                continue;
            };
            let is_empty = (0..ENTRIES).all(|i| machine.read_word(table, i) == 0);
            // A full list leaves an empty table linked, which is harmless.
            if !is_empty || retired.try_push(table).is_err() {
                return;
            }
            self.write(machine, &entry, Descriptor::INVALID);
        }
    }

    /// Empties the root for good: nothing is mapped any more and no TLB knows otherwise. The tables' pages are
    /// left to whoever owns them.
    pub fn clear<M: Memory + Tlb>(&mut self, machine: &M) {
        for number in 0..self.geometry.root_entries() {
            let ipa = Ipa::new(number << Level::L1.shift());
            let entry = self.descend(machine, ipa, Level::L1);
            self.write(machine, &entry, Descriptor::INVALID);
        }
        machine.flush_vmid(self.vmid);
        self.live = false;
    }

    /// Joins the tables on the way to `ipa` into blocks where they map one block's worth in order.
    pub fn join<M: Memory + Tlb, S: TableSource>(&mut self, machine: &M, ipa: Ipa, source: &mut S) {
        for above in [Level::L2, Level::L1] {
            let entry = self.descend(machine, ipa, above);
            let (View::Table(table), Some(below)) = (entry.view(), above.next()) else {
                continue;
            };
            let Some(block) = Self::uniform(machine, table, below, above) else {
                return;
            };
            let base = Ipa::new(ipa.raw() & !(above.span() - 1));
            self.replace(machine, &entry, base, block);
            source.free(table);
        }
    }

    /// The block that maps the same as a table of level `below`, if there is one.
    fn uniform<M: Memory>(
        machine: &M,
        table: PhysAddr,
        below: Level,
        above: Level,
    ) -> Option<Descriptor> {
        let first = Descriptor::from_raw(machine.read_word(table, 0));
        let View::Leaf(pa, bits) = first.view(below) else {
            return None;
        };
        let in_order = |i: usize| {
            let part = PhysAddr::new(pa.raw() + i as u64 * below.span());
            machine.read_word(table, i) == Descriptor::leaf(below, part, bits).raw()
        };
        (pa.is_aligned(above.span()) && (0..ENTRIES).all(in_order))
            .then(|| Descriptor::leaf(above, pa, bits))
    }
}
