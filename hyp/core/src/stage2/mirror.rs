//! The mirror: a second root and second level-2 tables for devices, which lead to the same level-3 tables.
//! A CPU without block changes in place (FEAT_BBM level 2) sees a gap when a block becomes a table; devices cannot
//! take the access again, so their entry is replaced without one where the SMMU can. Both always map the same.

use arrayvec::ArrayVec;
use porthole_abi::PAGE_SIZE;

use super::descriptor::{Descriptor, Level, View};
use super::{Entry, Lookup, Reserve, Stage2};
use crate::addr::{Ipa, PhysAddr};
use crate::hw::{Dma, DmaRegime, Memory, Tlb};

/// Root of the devices' copy, and how its blocks are split and joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mirror {
    pub root: PhysAddr,
    /// The new entry replaces the old one, then a flush. Else break-before-make as for CPUs.
    pub in_place: bool,
}

impl Stage2 {
    /// The same tables with a mirror, whose root is like the first one's. To be called while nothing is mapped.
    #[must_use]
    pub const fn mirrored(mut self, root: PhysAddr, in_place: bool) -> Self {
        self.mirror = Some(Mirror { root, in_place });
        self
    }

    /// What devices walk.
    pub fn dma_regime(&self) -> Option<DmaRegime> {
        self.mirror.map(|mirror| DmaRegime {
            vmid: self.vmid,
            root: mirror.root,
            geometry: self.geometry,
        })
    }

    /// What devices have at an address; `None` without a mirror.
    pub fn dma_lookup<M: Memory>(&self, machine: &M, ipa: Ipa) -> Option<Lookup> {
        self.mirror
            .map(|mirror| self.lookup_from(machine, mirror.root, ipa))
    }

    /// The mirror's entry for `ipa` beside one of level 1 or 2; level 3 is shared.
    fn twin<M: Memory>(&self, machine: &M, entry: &Entry, ipa: Ipa) -> Option<(Mirror, Entry)> {
        let mirror = self.mirror.filter(|_| entry.level < Level::L3)?;
        let twin = self.descend_from(machine, mirror.root, ipa, entry.level);
        debug_assert!(twin.level == entry.level, "the mirror has the same shape");
        Some((mirror, twin))
    }

    /// Pages that one more table of this level takes.
    pub(super) fn cost(&self, level: Level) -> usize {
        1 + usize::from(self.mirror.is_some() && level == Level::L2)
    }

    /// Takes a new table of this level, and the mirror's: the same one at level 3 and without a mirror.
    pub(super) fn take_tables(&self, level: Level, reserve: &mut Reserve) -> [PhysAddr; 2] {
        let table = reserve.take();
        match self.cost(level) {
            1 => [table; 2],
            _ => [table, reserve.take()],
        }
    }

    /// The tables that an entry and its twin point to.
    pub(super) fn tables_below<M: Memory>(
        &self,
        machine: &M,
        entry: &Entry,
        ipa: Ipa,
    ) -> ArrayVec<PhysAddr, 2> {
        let twin = self.twin(machine, entry, ipa).map(|(_, twin)| twin);
        let own = twin.filter(|_| entry.level == Level::L1);
        let table = |e: Entry| match e.view() {
            View::Table(table) => Some(table),
            View::Leaf(..) | View::Invalid => None,
        };
        [Some(*entry), own]
            .into_iter()
            .flatten()
            .filter_map(table)
            .collect()
    }

    /// Writes an entry for `ipa` and its twin.
    pub(super) fn write<M: Memory>(
        &self,
        machine: &M,
        entry: &Entry,
        ipa: Ipa,
        [own, twin]: [Descriptor; 2],
    ) {
        entry.write(machine, own);
        if let Some((_, entry)) = self.twin(machine, entry, ipa) {
            entry.write(machine, twin);
        }
    }

    /// Replaces a valid entry for `ipa` and its twin by others for the same addresses.
    pub(super) fn replace<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        entry: &Entry,
        ipa: Ipa,
        [own, twin]: [Descriptor; 2],
    ) {
        let base = Ipa::new(ipa.raw() & !(entry.level.span() - 1));
        let pages = entry.level.span() / PAGE_SIZE;
        entry.write(machine, Descriptor::INVALID);
        machine.flush_range(self.vmid, base, pages);
        entry.write(machine, own);
        machine.sync();
        if let Some((mirror, entry)) = self.twin(machine, entry, ipa) {
            if !mirror.in_place {
                entry.write(machine, Descriptor::INVALID);
                machine.dma_flush(self.vmid, base, pages);
            }
            entry.write(machine, twin);
            machine.dma_flush(self.vmid, base, pages);
        }
    }

    /// Forgets a range on every CPU and, if devices have a mirror, in every SMMU.
    pub(super) fn flush<M: Tlb + Dma>(&self, machine: &M, ipa: Ipa, pages: u64) {
        machine.flush_range(self.vmid, ipa, pages);
        if self.mirror.is_some() {
            machine.dma_flush(self.vmid, ipa, pages);
        }
    }
}
