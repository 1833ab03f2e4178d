//! Windows: pages that stay the host's and that one guest reaches too.
//! The tracker says `Window` before the guest can reach a page and until it no longer can.

use arrayvec::ArrayVec;
use porthole_abi::{Error, WindowConfig};

use super::HostMemory;
use crate::addr::Ipa;
use crate::guest::{GuestMemory, Run};
use crate::hw::{Dma, Memory, Tlb};
use crate::meta_pool::MetaSource;
use crate::stage2::Reserve;
use crate::stage2::plan::MapPlan;
use crate::tracker::{PageState, WindowSlot};
use crate::window::{Place, WindowRequest};

/// Runs of pages that are unmapped with one flush.
const RUNS: usize = 32;

impl HostMemory<'_> {
    /// Registers a window, or adds a function of the same device to it. `config` was copied once, and the
    /// caller found `guest` by its `vm`.
    ///
    /// # Errors
    /// `BadState` once the VM is dying; those of `WindowRequest::check`; `OutsideRegion`; `WindowOverlap`,
    /// `WindowForeign`; `NotRam`, `NotHostOwned`, `PageIsWindow`, `PagePinned`; `NoSlot`, `NoMetadata`.
    pub fn register_window<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        config: &WindowConfig,
    ) -> Result<WindowSlot, Error> {
        guest.live()?;
        let request = WindowRequest::check(config, &guest.regions)?;
        match guest.windows.place(&request)? {
            Place::Shared(slot) => {
                if !guest.maps(machine, &request.window.pages, request.extents()) {
                    return Err(Error::WindowOverlap);
                }
                guest.windows.share(slot, &request);
                Ok(slot)
            }
            Place::New(slot) => self.open_window(machine, guest, &request, slot),
        }
    }

    fn open_window<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        request: &WindowRequest<'_>,
        slot: Option<WindowSlot>,
    ) -> Result<WindowSlot, Error> {
        let vm = guest.slot;
        let mut inner = self.inner.lock();
        for extent in request.extents() {
            inner.tracker.check_range(&extent, |state| match state {
                PageState::Window(owner, other)
                    if owner == vm && guest.windows.is_foreign(other, &request.window) =>
                {
                    Err(Error::WindowForeign)
                }
                state => state.host_owned(),
            })?;
        }
        let slot = slot.ok_or(Error::NoSlot)?;
        let mut plan = MapPlan::default();
        for run in request.runs() {
            plan.add(
                machine,
                &guest.stage2,
                run.ipa,
                run.pages.start(),
                run.pages.count(),
            )?;
        }
        let mut reserve = guest.reserve(machine, &plan)?;
        for extent in request.extents() {
            inner
                .tracker
                .set_range(&extent, PageState::Window(vm, slot));
        }
        drop(inner);
        for run in request.runs() {
            guest.stage2.map(
                machine,
                run.ipa,
                run.pages.start(),
                run.pages.count(),
                Some(request.kind),
                &mut reserve,
            );
        }
        reserve.release(&mut guest.source(machine));
        guest.windows.insert(slot, &request.window);
        Ok(slot)
    }

    /// Takes a function out of a window; the last one removes it and the pages are the host's alone again.
    ///
    /// # Errors
    /// `BadState` once nothing of the VM is mapped any more; `NoWindow`; `BadFunction` if the function does not use the
    /// window.
    pub fn unregister_window<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        window: u64,
        function: u64,
    ) -> Result<(), Error> {
        // The machine may have begun to go down since the call was let in: the tables went first.
        guest.live()?;
        let slot = usize::try_from(window)
            .ok()
            .and_then(WindowSlot::new)
            .ok_or(Error::NoWindow)?;
        if guest.windows.leave(slot, function)? {
            self.close_window(machine, guest, slot);
        }
        Ok(())
    }

    /// Removes a window: at most 16 MiB of pages, 64 MiB in open RAM. Batch by batch, pages are unmapped from the guest and
    /// flushed, then they are the host's alone.
    fn close_window<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
        slot: WindowSlot,
    ) {
        let Some(window) = guest.windows.get(slot) else {
            return;
        };
        let (mut at, end) = (window.pages.start(), window.pages.end());
        while at < end {
            let mut runs: ArrayVec<Run, RUNS> = ArrayVec::new();
            let start = at;
            while at < end && !runs.is_full() {
                let Some(run) = guest.run_at(machine, at, end) else {
                    debug_assert!(false, "a window is mapped as long as it is in the table");
                    break;
                };
                at = Ipa::new(at.raw() + run.pages.bytes());
                runs.push(run);
            }
            let Some(pages) = runs.iter().map(|r| r.pages.count()).reduce(|a, b| a + b) else {
                break;
            };
            // Whole leaves only: there is nothing to split.
            let mut source = MetaSource {
                machine,
                pool: &mut guest.meta,
            };
            guest
                .stage2
                .unmap(machine, start, pages, &mut Reserve::default(), &mut source);
            let mut inner = self.inner.lock();
            for run in runs {
                inner.tracker.set_range(&run.pages, PageState::Host);
            }
        }
        guest.windows.remove(slot);
    }

    /// One bounded step of a VM's end; nothing of it runs any more or will. Returns the windows left; after 0
    /// no translation of the VM exists, its metadata is unused and its pages may be reclaimed. The caller has
    /// dropped everything placed in metadata pages before the first [`Self::reclaim`].
    pub fn retire_step<M: Memory + Tlb + Dma>(
        &self,
        machine: &M,
        guest: &mut GuestMemory,
    ) -> usize {
        if guest.is_retired() {
            return 0;
        }
        let first = guest.windows.iter_from(0).next().map(|(slot, _)| slot);
        if let Some(slot) = first {
            self.close_window(machine, guest, slot);
        }
        let left = guest.windows.len();
        if left == 0 {
            guest.stage2.clear(machine);
            guest.meta.forget();
        }
        left
    }
}
