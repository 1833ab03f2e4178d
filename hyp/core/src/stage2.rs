//! Stage-2 translation tables: look-up here; planning in `plan`, changes in `change`.
//! Tables hold no policy: who may map what is decided in `memory`, and every change there was planned before.
//! Tables lie in pages that EL2 alone reaches; they are read and written a word at a time.

pub mod change;
pub mod descriptor;
pub mod geometry;
mod mirror;
pub mod plan;
pub mod reserve;
#[cfg(test)]
mod tests;

use porthole_abi::PAGE_SIZE;

pub use descriptor::MemoryType;
use descriptor::{Bits, Descriptor, Level, View};
pub use geometry::{Geometry, PaRange, Regime};
use mirror::Mirror;
pub use reserve::{PoolSource, Reserve, TableSource};

use crate::addr::{Ipa, PhysAddr};
use crate::hw::{Memory, Vmid};

/// Entries of a table.
const ENTRIES: usize = 512;

/// One regime's tables. Whoever has it by `&mut` is the only one to change them.
///
/// Invariant: as long as `live`, `root` and every table below it lie in pages that EL2 alone reaches. After
/// [`Self::clear`] these pages may be anybody's, and nothing here reads them again.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
pub struct Stage2 {
    root: PhysAddr,
    live: bool,
    geometry: Geometry,
    vmid: Vmid,
    mirror: Option<Mirror>,
}

/// What stands at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing, up to `end`.
    Hole {
        /// First address behind the empty entry.
        end: u64,
    },
    /// A page or part of a block.
    Mapped {
        /// Where the address itself leads.
        pa: PhysAddr,
        /// Attributes.
        bits: Bits,
        /// First input address behind the block.
        end: u64,
    },
}

/// An entry in its place.
#[derive(Clone, Copy, Debug)]
struct Entry {
    level: Level,
    page: PhysAddr,
    index: usize,
    descriptor: Descriptor,
}

impl Entry {
    fn view(&self) -> View {
        self.descriptor.view(self.level)
    }

    fn write<M: Memory>(&self, machine: &M, descriptor: Descriptor) {
        machine.write_word(self.page, self.index, descriptor.raw());
    }
}

impl Stage2 {
    /// Tables with this zeroed root: two pages, 8 KiB aligned, if the geometry has more than 512 entries.
    pub const fn new(root: PhysAddr, geometry: Geometry, vmid: Vmid) -> Self {
        Self {
            root,
            live: true,
            geometry,
            vmid,
            mirror: None,
        }
    }

    /// VTTBR_EL2 and VTCR_EL2.
    pub const fn regime(&self) -> Regime {
        self.geometry.regime(self.vmid, self.root)
    }

    /// First input address behind the last.
    pub const fn end(&self) -> u64 {
        self.geometry.end()
    }

    /// Whether there are tables; not after [`Self::clear`].
    pub const fn is_live(&self) -> bool {
        self.live
    }

    fn entry_in<M: Memory>(&self, machine: &M, table: PhysAddr, level: Level, ipa: Ipa) -> Entry {
        let number = ipa.raw() >> level.shift();
        // Only the root may be longer than a page.
        let (page, index) = match level {
            Level::L1 => {
                let number = number & (self.geometry.root_entries() - 1);
                let page = table.raw() + number / ENTRIES as u64 * PAGE_SIZE;
                (PhysAddr::new(page), number as usize % ENTRIES)
            }
            Level::L2 | Level::L3 => (table, number as usize % ENTRIES),
        };
        Entry {
            level,
            page,
            index,
            descriptor: Descriptor::from_raw(machine.read_word(page, index)),
        }
    }

    /// Walks to the entry for `ipa` at level `stop`, or to the leaf or empty entry above it.
    fn descend<M: Memory>(&self, machine: &M, ipa: Ipa, stop: Level) -> Entry {
        self.descend_from(machine, self.root, ipa, stop)
    }

    fn descend_from<M: Memory>(&self, machine: &M, root: PhysAddr, ipa: Ipa, stop: Level) -> Entry {
        let mut entry = self.entry_in(machine, root, Level::L1, ipa);
        while entry.level < stop {
            let (View::Table(table), Some(next)) = (entry.view(), entry.level.next()) else {
                break;
            };
            entry = self.entry_in(machine, table, next, ipa);
        }
        entry
    }

    /// What stands at an address below [`Self::end`]; beyond it, and after [`Self::clear`], is one hole.
    pub fn lookup<M: Memory>(&self, machine: &M, ipa: Ipa) -> Lookup {
        self.lookup_from(machine, self.root, ipa)
    }

    fn lookup_from<M: Memory>(&self, machine: &M, root: PhysAddr, ipa: Ipa) -> Lookup {
        if !self.live || ipa.raw() >= self.end() {
            return Lookup::Hole { end: u64::MAX };
        }
        let entry = self.descend_from(machine, root, ipa, Level::L3);
        let offset = ipa.raw() & (entry.level.span() - 1);
        let end = ipa.raw() - offset + entry.level.span();
        match entry.view() {
            View::Leaf(pa, bits) => Lookup::Mapped {
                pa: PhysAddr::new(pa.raw() + offset),
                bits,
                end,
            },
            View::Table(_) | View::Invalid => Lookup::Hole { end },
        }
    }
}
