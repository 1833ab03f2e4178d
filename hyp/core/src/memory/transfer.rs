//! Pages that change hands: creation of a VM, donations, reclaim.
//! Windows, where nothing changes hands, are in `sharing`.

use porthole_abi::{DONATE_PAGES_MAX, Error, GUEST_IPA_BITS};

use super::transit::{Clean, Taken};
use super::{Content, HostMemory, Inner};
use crate::addr::{Ipa, PhysPages};
use crate::guest::GuestMemory;
use crate::hw::{Dma, Memory, Tlb};
use crate::meta_pool::{MetaPool, MetaSource};
use crate::regions::Regions;
use crate::stage2::{Geometry, Stage2, TableSource};
use crate::tracker::{PageState, VmSlot};
use crate::window::WindowTable;

fn bounded(pages: &PhysPages) -> Result<(), Error> {
    if pages.count() > DONATE_PAGES_MAX {
        return Err(Error::TooLarge);
    }
    Ok(())
}

impl Inner<'_> {
    /// Takes pages of the host for a VM.
    fn donate<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        pages: PhysPages,
        state: PageState,
    ) -> Result<Taken, Error> {
        let taken = self.take(machine, pages, state)?;
        self.donated += pages.count();
        Ok(taken)
    }
}

impl HostMemory<'_> {
    /// Takes metadata pages from the host and builds an empty VM in them; the first becomes the root table.
    /// `slot` has no VM, and no page is left of the one that it had.
    ///
    /// # Errors
    /// `TooLarge` above `DONATE_PAGES_MAX` pages; `NotRam`, `NotHostOwned`, `PageIsWindow`, `PagePinned`;
    /// `NoMemory` for host tables.
    pub fn create_guest<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        slot: VmSlot,
        regions: Regions,
        metadata: PhysPages,
    ) -> Result<GuestMemory, Error> {
        let clean = self.take_metadata(machine, slot, metadata)?;
        let mut meta = MetaPool::default();
        meta.add(machine, clean);
        let root = MetaSource {
            machine,
            pool: &mut meta,
        }
        .alloc()
        .ok_or(Error::NoMetadata)?;
        // The slot's VMID may have been another VM's; that one flushed when it was retired.
        let geometry = Geometry::new(GUEST_IPA_BITS, self.pa_range);
        Ok(GuestMemory {
            slot,
            regions,
            stage2: Stage2::new(root, geometry, slot.vmid()),
            meta,
            windows: WindowTable::default(),
            memory_pages: 0,
            metadata_pages: metadata.count(),
        })
    }

    fn take_metadata<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        slot: VmSlot,
        pages: PhysPages,
    ) -> Result<Clean, Error> {
        bounded(&pages)?;
        let state = PageState::VmMetadata(slot);
        let taken = self.inner.lock().donate(machine, pages, state)?;
        Ok(taken.scrub(machine))
    }

    /// Takes more metadata pages from the host.
    ///
    /// # Errors
    /// As [`Self::create_guest`]; `BadState` once the VM is dying.
    pub fn donate_metadata<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        pages: PhysPages,
    ) -> Result<(), Error> {
        guest.live()?;
        let clean = self.take_metadata(machine, guest.slot, pages)?;
        guest.meta.add(machine, clean);
        guest.metadata_pages += pages.count();
        Ok(())
    }

    /// Moves pages from the host into a VM's RAM. They are cleaned or shown with the memory lock free: they
    /// are nobody's then but the VM's, whose table lock is held.
    ///
    /// # Errors
    /// `TooLarge`; `Unaligned`, `Overflow`, `OutsideRegion`, `AlreadyMapped` for the address; page errors as
    /// above; `NoMetadata` for the guest's tables, `NoMemory` for the host's; `BadState` once the VM is dying.
    pub fn donate<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        pages: PhysPages,
        ipa: Ipa,
        content: Content<'_>,
    ) -> Result<(), Error> {
        guest.live()?;
        bounded(&pages)?;
        let plan = guest.plan_memory(machine, &pages, ipa)?;
        let reserve = guest.reserve(machine, &plan)?;
        let state = PageState::VmMemory(guest.slot);
        let taken = match self.inner.lock().donate(machine, pages, state) {
            Ok(taken) => taken,
            Err(error) => {
                reserve.release(&mut guest.source(machine));
                return Err(error);
            }
        };
        match content {
            Content::Zeroed => {
                let clean = taken.scrub(machine);
                guest.accept(machine, clean, ipa, reserve);
            }
            Content::Keep(show) => {
                let shown = taken.show(machine, ipa, show);
                guest.accept(machine, shown, ipa, reserve);
            }
        }
        Ok(())
    }

    /// Gives pages of a retired VM, memory and metadata alike, back to the host, zeroed.
    ///
    /// # Errors
    /// `BadState` before [`Self::retire_step`] returned 0; `TooLarge`; `NotRam`, `NotVmOwned`; `NoMemory` for
    /// host tables.
    pub fn reclaim<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        pages: PhysPages,
    ) -> Result<(), Error> {
        if !guest.is_retired() {
            return Err(Error::BadState);
        }
        bounded(&pages)?;
        // Nobody else gives away this VM's pages while its table lock is held: what was checked, and the tables made
        // for it, stay while the memory lock is free for the scrub.
        let mut inner = self.inner.lock();
        let (taken, memory) = inner.retired_pages(machine, guest.slot, pages)?;
        drop(inner);
        let clean = taken.scrub(machine);
        let mut inner = self.inner.lock();
        inner.give(machine, clean);
        inner.reclaimed += pages.count();
        drop(inner);
        guest.memory_pages -= memory;
        guest.metadata_pages -= pages.count() - memory;
        Ok(())
    }
}
