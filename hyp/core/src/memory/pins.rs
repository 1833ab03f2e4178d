//! Pages of the host that hardware tables use: pinned, where the table may lie in memory that the host still reaches,
//! or taken, where the hardware believes what it reads. Which table needs what is decided by its guard.

use porthole_abi::Error;

use super::HostMemory;
use super::transit::Taken;
use crate::addr::PhysPages;
use crate::hw::{Dma, Memory, Tlb};
use crate::tracker::PageState;

/// Most pages of one table: GITS_BASER names 256 pages of 64 KiB (Arm IHI 0069, 12.19.1).
pub const TABLE_PAGES_MAX: u64 = 4096;

fn bounded(pages: &PhysPages) -> Result<(), Error> {
    if pages.count() > TABLE_PAGES_MAX {
        return Err(Error::TooLarge);
    }
    Ok(())
}

impl HostMemory<'_> {
    /// Keeps pages of the host from being donated or shared until as many calls of [`Self::unpin`]. The host keeps
    /// its mapping.
    ///
    /// # Errors
    /// `TooLarge` above 4,096 pages; `NotRam`, `NotHostOwned`, `PageIsWindow`; `PagePinned` for a page with 65,535 pins.
    pub fn pin(&self, pages: &PhysPages) -> Result<(), Error> {
        bounded(pages)?;
        let mut inner = self.inner.lock();
        let tracker = &mut inner.tracker;
        tracker.check_range(pages, |state| state.pinned().map(|_| ()))?;
        tracker.change_range(pages, |state| state.pinned().unwrap_or(state));
        Ok(())
    }

    /// Ends one [`Self::pin`].
    ///
    /// # Errors
    /// `TooLarge`, `NotRam`; `NotHostOwned` if a page is not pinned.
    pub fn unpin(&self, pages: &PhysPages) -> Result<(), Error> {
        bounded(pages)?;
        let mut inner = self.inner.lock();
        let tracker = &mut inner.tracker;
        tracker.check_range(pages, |state| state.unpinned().map(|_| ()))?;
        tracker.change_range(pages, |state| state.unpinned().unwrap_or(state));
        Ok(())
    }

    /// Takes pages from the host for a table that hardware believes: on return they are zero, and neither the host
    /// nor a device of it reaches them.
    ///
    /// # Errors
    /// `TooLarge` above 4,096 pages; `NotRam`, `NotHostOwned`, `PageIsWindow`, `PagePinned`; `NoMemory` for host
    /// tables.
    pub fn take_table<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        pages: PhysPages,
    ) -> Result<(), Error> {
        bounded(&pages)?;
        let taken = self.inner.lock().take(machine, pages, PageState::HwTable)?;
        // The caller alone knows these pages: nobody gives them back meanwhile.
        let _ = taken.scrub(machine);
        Ok(())
    }

    /// Gives pages of [`Self::take_table`], which no hardware uses any more, back to the host, zeroed.
    ///
    /// # Errors
    /// `TooLarge`, `NotRam`; `NotHostOwned` if a page is no such page; `NoMemory` for host tables.
    pub fn give_table<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        pages: PhysPages,
    ) -> Result<(), Error> {
        bounded(&pages)?;
        let mut inner = self.inner.lock();
        inner.tracker.check_range(&pages, |state| {
            (state == PageState::HwTable)
                .then_some(())
                .ok_or(Error::NotHostOwned)
        })?;
        inner.prepare(machine, &pages)?;
        drop(inner);
        let clean = Taken::new(pages).scrub(machine);
        self.inner.lock().give(machine, clean);
        Ok(())
    }
}
