//! Table pages taken before the first change, so that a change cannot run out of them half-way.
//! Where table pages come from is a [`TableSource`]: the hypervisor's pool or a VM's donated metadata.

use arrayvec::ArrayVec;
use porthole_abi::Error;

use crate::addr::PhysAddr;
use crate::hw::Memory;

/// Most tables that one change takes or frees: 64 MiB of open RAM cross at most 33 level-3 and 2 level-2
/// tables, 16 MiB of window 9 and 2, a donation 2 and 2.
pub const TABLES_MAX: usize = 36;

/// Table pages, zeroed.
pub trait TableSource {
    /// What a shortage is called towards the caller.
    const SHORTAGE: Error;

    /// Takes a zeroed page.
    fn alloc(&mut self) -> Option<PhysAddr>;

    /// Returns a page that no walker can reach any more, whatever stands in it.
    fn free(&mut self, page: PhysAddr);
}

/// The hypervisor's pool, for the host's tables.
pub struct PoolSource<'a, M> {
    /// Owns the pool.
    pub machine: &'a M,
    /// Pages in use.
    pub used: &'a mut u64,
}

impl<M: Memory> TableSource for PoolSource<'_, M> {
    const SHORTAGE: Error = Error::NoMemory;

    fn alloc(&mut self) -> Option<PhysAddr> {
        let page = self.machine.alloc_page()?;
        *self.used += 1;
        Some(page)
    }

    fn free(&mut self, page: PhysAddr) {
        *self.used -= 1;
        self.machine.free_page(page);
    }
}

/// Pages in hand for one change. It takes exactly as many as were planned.
#[must_use]
#[derive(Debug, Default)]
pub struct Reserve(ArrayVec<PhysAddr, TABLES_MAX>);

impl Reserve {
    /// Takes `count` pages, or none.
    ///
    /// # Errors
    /// The source's shortage.
    pub fn fill<S: TableSource>(count: usize, source: &mut S) -> Result<Self, Error> {
        let mut reserve = Self::default();
        for _ in 0..count {
            let taken = source.alloc().and_then(|page| {
                let fit = reserve.0.try_push(page);
                fit.inspect_err(|e| source.free(e.element())).ok()
            });
            if taken.is_none() {
                reserve.release(source);
                return Err(S::SHORTAGE);
            }
        }
        Ok(reserve)
    }

    /// Takes one page for use as a table.
    ///
    /// # Panics
    /// If the plan was too small: our own mistake, at which EL2 stops rather than run with half a change.
    /// No argument of host or guest leads here; the tests compare plans with changes.
    pub(super) fn take(&mut self) -> PhysAddr {
        self.0.pop().expect("planned before the first change")
    }

    /// Returns what was not used.
    pub fn release<S: TableSource>(mut self, source: &mut S) {
        while let Some(page) = self.0.pop() {
            source.free(page);
        }
    }

    /// Whether all of it was used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
