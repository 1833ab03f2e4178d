//! Confinement: a PCI function whose DMA reaches one region of the host's pages and the doorbells, nothing else.
//! The region stays the host's and can be neither donated nor shared until the function is back on the host's map.
//!
//! Lock order: [`HostMemory::confined`], then the memory lock.

use porthole_abi::{DMA_CONFINED_MAX, Error, FunctionId, PAGE_SIZE, VMS_MAX};

use super::audit::{AuditStep, CONFINED_ENTRIES_MAX};
use super::{HostMemory, Inner};
use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::hw::{Dma, DmaRegime, Memory, Tlb, Vmid};
use crate::stage2::plan::MapPlan;
use crate::stage2::{Geometry, Lookup, MemoryType, PoolSource, Reserve, Stage2, TableSource};
use crate::tracker::PageState;

/// Most pages for message-signalled interrupts.
pub const DOORBELLS_MAX: usize = 4;
/// Bits of the addresses that a confined function can use: its root is one page.
const BITS: u32 = 39;
/// VMID of the first slot, behind the host's and those of the VMs.
const FIRST_VMID: u16 = VMS_MAX as u16 + 1;

/// One confined function.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Confinement {
    function: FunctionId,
    pages: PhysPages,
    stage2: Stage2,
}

/// All of them, by slot, which gives the VMID.
pub(super) type Confined = [Option<Confinement>; DMA_CONFINED_MAX];

impl HostMemory<'_> {
    /// Confines a function to a region, whose pages are the host's own.
    ///
    /// # Errors
    /// `AlreadyConfined`; `NoSlot`; `NotRam`, `NotHostOwned`, `PageIsWindow`, `PagePinned`; `OutsideRegion` above
    /// 2^39; `NoMemory`; `BadStream` for a function that no SMMU knows.
    pub fn confine<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        function: FunctionId,
        pages: PhysPages,
    ) -> Result<(), Error> {
        let mut confined = self.confined.lock();
        if confined.iter().flatten().any(|c| c.function == function) {
            return Err(Error::AlreadyConfined);
        }
        let (vmid, slot) = (FIRST_VMID..)
            .zip(confined.iter_mut())
            .find(|(_, slot)| slot.is_none())
            .ok_or(Error::NoSlot)?;
        let mut inner = self.inner.lock();
        let Inner {
            tracker, tables, ..
        } = &mut *inner;
        tracker.check_range(&pages, PageState::host_owned)?;
        let mut pool = PoolSource {
            machine,
            used: tables,
        };
        let regime = DmaRegime {
            vmid: Vmid(vmid),
            root: pool.alloc().ok_or(Error::NoMemory)?,
            geometry: Geometry::new(BITS, self.pa_range),
        };
        // No device walks these tables before the last step, which can fail too.
        let mut stage2 = Stage2::new(regime.root, regime.geometry, regime.vmid);
        let made = self
            .map_region(machine, &mut stage2, pages, &mut pool)
            .and_then(|()| machine.dma_attach(function, regime));
        if let Err(error) = made {
            stage2.dismantle(machine, &mut pool);
            return Err(error);
        }
        tracker.set_range(&pages, PageState::Confined);
        *slot = Some(Confinement {
            function,
            pages,
            stage2,
        });
        Ok(())
    }

    fn map_region<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        stage2: &mut Stage2,
        region: PhysPages,
        pool: &mut PoolSource<'_, M>,
    ) -> Result<(), Error> {
        let region = (region.start(), region.count(), MemoryType::Window);
        let doorbells = self.doorbells.iter().map(|d| (*d, 1, MemoryType::Device));
        for (at, count, kind) in core::iter::once(region).chain(doorbells) {
            let ipa = Ipa::new(at.raw());
            let mut plan = MapPlan::default();
            plan.add(machine, stage2, ipa, at, count)?;
            let mut reserve = Reserve::fill(plan.tables(), pool)?;
            stage2.map(machine, ipa, at, count, Some(kind), &mut reserve);
            reserve.release(pool);
        }
        Ok(())
    }

    /// Gives a function the host's map again. Its region can be donated when this returns.
    ///
    /// # Errors
    /// `NotConfined`.
    pub fn release<M: Memory + Dma>(&self, machine: &M, function: FunctionId) -> Result<(), Error> {
        let mut confined = self.confined.lock();
        let (vmid, Confinement { pages, stage2, .. }) = (FIRST_VMID..)
            .zip(confined.iter_mut())
            .find_map(|(vmid, slot)| Some((vmid, slot.take_if(|c| c.function == function)?)))
            .ok_or(Error::NotConfined)?;
        machine.dma_detach(function);
        machine.dma_flush(Vmid(vmid), Ipa::new(0), stage2.end() / PAGE_SIZE);
        let mut inner = self.inner.lock();
        inner.tracker.set_range(&pages, PageState::Host);
        let mut pool = PoolSource {
            machine,
            used: &mut inner.tables,
        };
        stage2.dismantle(machine, &mut pool);
        Ok(())
    }

    /// The function in a slot, and its region.
    pub fn confinement(&self, slot: usize) -> Option<(FunctionId, PhysPages)> {
        let confined = self.confined.lock();
        let confinement = confined.get(slot)?.as_ref()?;
        Some((confinement.function, confinement.pages))
    }

    /// A confined function reaches exactly its region, which is confined, and the doorbells.
    pub(super) fn audit_confined<M: Memory>(&self, machine: &M, slot: usize, step: &mut AuditStep) {
        let confined = self.confined.lock();
        let inner = self.inner.lock();
        step.epoch = inner.tracker.epoch();
        let Some(Some(Confinement { pages, stage2, .. })) = confined.get(slot) else {
            return;
        };
        let (mut at, mut missing) = (PhysAddr::new(0), pages.count());
        for _ in 0..CONFINED_ENTRIES_MAX {
            at = match stage2.lookup(machine, Ipa::new(at.raw())) {
                Lookup::Hole { end: u64::MAX } => break,
                Lookup::Hole { end } => PhysAddr::new(end),
                Lookup::Mapped { pa, end, .. } => {
                    let count = (end - at.raw()) / PAGE_SIZE;
                    let leaf = PhysPages::new(at, count).ok().filter(|_| pa == at);
                    if leaf.is_some_and(|leaf| pages.covers(&leaf)) {
                        missing = missing.saturating_sub(count);
                    } else if leaf.is_none() || count != 1 || !self.doorbells.contains(&pa) {
                        step.offend(pa);
                    }
                    PhysAddr::new(end)
                }
            };
        }
        let is_confined = |state| {
            let is = state == PageState::Confined;
            is.then_some(()).ok_or(Error::NotHostOwned)
        };
        if missing != 0 || inner.tracker.check_range(pages, is_confined).is_err() {
            step.offend(pages.start());
        }
        // More entries than such a map can have: what stands behind them was not looked at.
        if at.raw() < stage2.end() {
            step.offend(at);
        }
    }
}
