//! Free metadata pages of a VM: a list that runs through the pages themselves, word 0 being the link.
//! EL2 alone reaches these pages, so the links are as good as its own memory. Which pages a VM has donated
//! stands in the tracker, not here.

use porthole_abi::Error;

use crate::addr::PhysAddr;
use crate::hw::Memory;
use crate::memory::transit::Clean;
use crate::stage2::TableSource;

/// Set in a link that leads on; the end of the list is 0, as in a page that was just zeroed. Bit 0 stays clear:
/// should a walker ever read a link, it faults.
const LINKED: u64 = 2;

/// The list's head. All pages on it are zero but for word 0.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
pub struct MetaPool {
    head: Option<PhysAddr>,
    free: u64,
}

impl MetaPool {
    /// Pages on the list.
    pub fn free_pages(&self) -> u64 {
        self.free
    }

    /// Puts donated pages on the list; the first of them comes off first.
    pub(crate) fn add<M: Memory>(&mut self, machine: &M, pages: Clean) {
        for page in pages.pages().iter().rev() {
            self.push(machine, page);
        }
    }

    /// Puts a page on the list that is zero.
    fn push<M: Memory>(&mut self, machine: &M, page: PhysAddr) {
        let link = self.head.map_or(0, |next| next.raw() | LINKED);
        machine.write_word(page, 0, link);
        self.head = Some(page);
        self.free += 1;
    }

    /// Takes a zeroed page off the list.
    pub(crate) fn pop<M: Memory>(&mut self, machine: &M) -> Option<PhysAddr> {
        let page = self.head?;
        let link = machine.read_word(page, 0);
        machine.write_word(page, 0, 0);
        self.head = (link & LINKED != 0).then(|| PhysAddr::new(link & !LINKED));
        self.free -= 1;
        Some(page)
    }

    /// Forgets all pages: from now on they are only the tracker's to give back.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A VM's metadata as a source of its tables.
pub(crate) struct MetaSource<'a, M> {
    pub machine: &'a M,
    pub pool: &'a mut MetaPool,
}

impl<M: Memory> TableSource for MetaSource<'_, M> {
    const SHORTAGE: Error = Error::NoMetadata;

    fn alloc(&mut self) -> Option<PhysAddr> {
        self.pool.pop(self.machine)
    }

    fn free(&mut self, page: PhysAddr) {
        self.machine.scrub(page);
        self.pool.push(self.machine, page);
    }
}
