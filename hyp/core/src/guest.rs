//! What a VM's memory consists of, kept under the VM's table lock: stage 2, free metadata, windows, regions.
//! Changes that take pages from the host or give them back are made by `HostMemory`, which is handed this.

use porthole_abi::{Error, PAGE_SIZE, RegionKind};

use crate::addr::{Ipa, IpaPages, PhysAddr, PhysPages};
use crate::hw::{Dma, Memory, Tlb};
use crate::memory::transit::ForGuest;
use crate::meta_pool::{MetaPool, MetaSource};
use crate::regions::Regions;
use crate::stage2::plan::MapPlan;
use crate::stage2::{Lookup, MemoryType, Regime, Reserve, Stage2};
use crate::tracker::VmSlot;
use crate::window::WindowTable;

/// Memory of one VM. Made by `HostMemory::create_guest`; there is one for each slot in use.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone))]
pub struct GuestMemory {
    pub(crate) slot: VmSlot,
    pub(crate) regions: Regions,
    pub(crate) stage2: Stage2,
    pub(crate) meta: MetaPool,
    pub(crate) windows: WindowTable,
    pub(crate) memory_pages: u64,
    pub(crate) metadata_pages: u64,
}

/// A run of mapped guest pages that is contiguous on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub ipa: Ipa,
    pub pages: PhysPages,
}

impl GuestMemory {
    /// The VM it belongs to.
    pub fn slot(&self) -> VmSlot {
        self.slot
    }

    /// The VM's address map.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The VM's windows.
    pub fn windows(&self) -> &WindowTable {
        &self.windows
    }

    /// What VTTBR_EL2 and VTCR_EL2 hold while a vCPU of this VM is loaded.
    pub fn regime(&self) -> Regime {
        self.stage2.regime()
    }

    /// Pages of private memory that the VM owns, mapped or waiting to be reclaimed.
    pub fn memory_pages(&self) -> u64 {
        self.memory_pages
    }

    /// Pages of metadata that the VM owns, in use, free or waiting to be reclaimed.
    pub fn metadata_pages(&self) -> u64 {
        self.metadata_pages
    }

    /// Metadata pages that nothing uses yet.
    pub fn metadata_free(&self) -> u64 {
        self.meta.free_pages()
    }

    /// Whether no translation of the VM exists any more and its pages may be reclaimed.
    pub fn is_retired(&self) -> bool {
        !self.stage2.is_live()
    }

    /// Whether a page is mapped at this address (another vCPU's fault may have been served meanwhile).
    pub fn is_mapped<M: Memory>(&self, machine: &M, ipa: Ipa) -> bool {
        matches!(self.stage2.lookup(machine, ipa), Lookup::Mapped { .. })
    }

    /// Takes a zeroed page of the VM's metadata, for a vCPU. It is used until the VM is retired.
    ///
    /// # Errors
    /// `NoMetadata`; `BadState` once the VM was retired.
    pub fn take_metadata<M: Memory>(&mut self, machine: &M) -> Result<PhysAddr, Error> {
        self.live()?;
        self.meta.pop(machine).ok_or(Error::NoMetadata)
    }

    /// # Errors
    /// `BadState` once the VM was retired.
    pub(crate) fn live(&self) -> Result<(), Error> {
        if self.is_retired() {
            return Err(Error::BadState);
        }
        Ok(())
    }

    /// Takes the tables that a plan asks for.
    ///
    /// # Errors
    /// `NoMetadata`.
    pub(crate) fn reserve<M: Memory>(
        &mut self,
        machine: &M,
        plan: &MapPlan,
    ) -> Result<Reserve, Error> {
        Reserve::fill(plan.tables(), &mut self.source(machine))
    }

    /// The VM's metadata as a source of tables.
    pub(crate) fn source<'a, M>(&'a mut self, machine: &'a M) -> MetaSource<'a, M> {
        MetaSource {
            machine,
            pool: &mut self.meta,
        }
    }

    /// Checks where private memory is to be mapped and counts the tables for it.
    ///
    /// # Errors
    /// `Overflow`, `Unaligned`, `OutsideRegion`, `AlreadyMapped`.
    pub(crate) fn plan_memory<M: Memory>(
        &self,
        machine: &M,
        pages: &PhysPages,
        ipa: Ipa,
    ) -> Result<MapPlan, Error> {
        let range = IpaPages::new(ipa, pages.count())?;
        self.regions.inside(RegionKind::Ram, &range)?;
        let mut plan = MapPlan::default();
        plan.add(machine, &self.stage2, ipa, pages.start(), pages.count())?;
        Ok(plan)
    }

    /// Maps pages in transit as private memory, as planned.
    pub(crate) fn accept<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        pages: impl ForGuest,
        ipa: Ipa,
        mut reserve: Reserve,
    ) {
        let pages = pages.into_pages();
        // The host may have executed what was there before.
        machine.forget_instructions();
        self.stage2.map(
            machine,
            ipa,
            pages.start(),
            pages.count(),
            Some(MemoryType::Ram),
            &mut reserve,
        );
        self.memory_pages += pages.count();
        reserve.release(&mut self.source(machine));
    }

    /// The mapped run at `ipa`, not beyond its block or `end`.
    pub(crate) fn run_at<M: Memory>(&self, machine: &M, ipa: Ipa, end: Ipa) -> Option<Run> {
        let Lookup::Mapped { pa, end: stop, .. } = self.stage2.lookup(machine, ipa) else {
            return None;
        };
        let bytes = stop.min(end.raw()).checked_sub(ipa.raw())?;
        let pages = PhysPages::new(pa, bytes / PAGE_SIZE).ok()?;
        Some(Run { ipa, pages })
    }

    /// Whether a range is mapped to exactly these extents in this order.
    pub(crate) fn maps<M: Memory>(
        &self,
        machine: &M,
        range: &IpaPages,
        extents: impl Iterator<Item = PhysPages>,
    ) -> bool {
        let mut ipas = range.iter();
        extents.flat_map(|e| e.iter()).all(|page| {
            ipas.next().is_some_and(|ipa| {
                self.run_at(machine, ipa, range.end())
                    .is_some_and(|run| run.pages.start() == page)
            })
        }) && ipas.next().is_none()
    }
}
