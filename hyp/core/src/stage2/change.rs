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
use crate::hw::{Dma, Memory, Tlb};

impl Stage2 {
    /// Maps a run that was planned with [`super::plan::MapPlan`], in the largest blocks that fit. Without a kind it
    /// maps nothing, but makes the tables and keeps them: mapping the same run then takes no page.
    pub fn map<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        ipa: Ipa,
        pa: PhysAddr,
        pages: u64,
        kind: Option<MemoryType>,
        reserve: &mut Reserve,
    ) {
        for chunk in chunks(ipa, pa, pages) {
            let mut entry = self.descend(machine, chunk.ipa, chunk.level);
            while let (true, Some(next)) = (entry.level < chunk.level, entry.level.next()) {
                let tables = self.take_tables(next, reserve);
                // The table's zeros are visible before the entry that leads to them.
                machine.sync();
                let links = tables.map(Descriptor::table);
                self.write(machine, &entry, chunk.ipa, links);
                entry = self.entry_in(machine, tables[0], next, chunk.ipa);
            }
            debug_assert!(entry.descriptor.is_invalid(), "planned as free");
            let leaf = kind.map_or(Descriptor::PLACEHOLDER, |kind| {
                Descriptor::leaf(chunk.level, chunk.pa, kind.bits())
            });
            self.write(machine, &entry, chunk.ipa, [leaf; 2]);
        }
        machine.sync();
    }

    /// Splits a block into a table of the next level that maps the same.
    fn split<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        entry: &Entry,
        ipa: Ipa,
        reserve: &mut Reserve,
    ) {
        let (View::Leaf(pa, bits), Some(next)) = (entry.view(), entry.level.next()) else {
            return;
        };
        let tables = self.take_tables(next, reserve);
        for table in tables.iter().take(self.cost(next)) {
            for index in 0..ENTRIES {
                let part = PhysAddr::new(pa.raw() + index as u64 * next.span());
                machine.write_word(*table, index, Descriptor::leaf(next, part, bits).raw());
            }
        }
        machine.sync();
        self.replace(machine, entry, ipa, tables.map(Descriptor::table));
    }

    /// Unmaps a range, splitting the blocks at its ends with pages planned by
    /// [`super::plan::unmap_tables`]. On return no TLB knows the range and emptied tables are freed.
    pub fn unmap<M: Memory + Tlb + Dma, S: TableSource>(
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
                    self.write(machine, &entry, Ipa::new(at), [Descriptor::INVALID; 2]);
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
        self.flush(machine, ipa, pages);
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
            let tables = self.tables_below(machine, &entry, ipa);
            if !is_empty || retired.try_extend_from_slice(&tables).is_err() {
                return;
            }
            self.write(machine, &entry, ipa, [Descriptor::INVALID; 2]);
        }
    }

    /// Empties the root for good: nothing is mapped any more and no TLB knows otherwise. The tables' pages are
    /// left to whoever owns them, so a second time it does nothing: they may be anybody's by then.
    pub fn clear<M: Memory + Tlb + Dma>(&mut self, machine: &M) {
        if !self.live {
            return;
        }
        for number in 0..self.geometry.root_entries() {
            let ipa = Ipa::new(number << Level::L1.shift());
            let entry = self.descend(machine, ipa, Level::L1);
            entry.write(machine, Descriptor::INVALID);
        }
        machine.flush_vmid(self.vmid);
        self.live = false;
    }

    /// Joins the tables on the way to `ipa` into blocks where they map one block's worth in order.
    pub fn join<M: Memory + Tlb + Dma, S: TableSource>(
        &mut self,
        machine: &M,
        ipa: Ipa,
        source: &mut S,
    ) {
        for above in [Level::L2, Level::L1] {
            let entry = self.descend(machine, ipa, above);
            let (View::Table(table), Some(below)) = (entry.view(), above.next()) else {
                continue;
            };
            let Some(block) = Self::uniform(machine, table, below, above) else {
                return;
            };
            let tables = self.tables_below(machine, &entry, ipa);
            self.replace(machine, &entry, ipa, [block; 2]);
            tables.into_iter().for_each(|table| source.free(table));
        }
    }

    /// Frees every table, the root's page included, of tables that no walker reads and no TLB knows any more.
    pub fn dismantle<M: Memory, S: TableSource>(self, machine: &M, source: &mut S) {
        let below = |page, level: Level| {
            (0..ENTRIES).filter_map(move |index| {
                match Descriptor::from_raw(machine.read_word(page, index)).view(level) {
                    View::Table(table) => Some(table),
                    View::Leaf(..) | View::Invalid => None,
                }
            })
        };
        for table in below(self.root, Level::L1) {
            below(table, Level::L2).for_each(|lowest| source.free(lowest));
            source.free(table);
        }
        source.free(self.root);
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
