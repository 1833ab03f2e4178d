//! EL2's own stage-1 map: VA = PA, 39 bits, 4 KiB granule, nothing both writable and executable.
//! The tables live in the image, so that mapping needs no allocator; what is mapped is decided in `porthole-hyp`.

use core::arch::asm;

use porthole_abi::PAGE_SIZE;
use porthole_core::addr::PhysPages;

/// First address that the map cannot hold.
pub const LIMIT: u64 = 1 << 39;
/// Tables: the root, and what 16 GiB of RAM, an image and a handful of devices take, twice over.
const TABLES: usize = 32;

/// MAIR_EL2: index 0 Device-nGnRE, index 1 Normal write-back.
pub(crate) const MAIR: u64 = 0xff04;
/// TCR_EL2 without PS: RES1 bits, inner shareable write-back walks, T0SZ 25.
pub(crate) const TCR: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 25;
/// SCTLR_EL2: RES1 bits, instruction and data caches, SP alignment check, WXN, MMU on.
pub(crate) const SCTLR: u64 = 0x30c5_0830 | 1 << 19 | 1 << 12 | 1 << 3 | 1 << 2 | 1;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const NORMAL: u64 = 1 << 2;
/// AP\[1\], RES1 in a regime of one privilege level.
const AP_RES1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and execute.
    Code,
    /// Read.
    Constant,
    /// Read and write.
    Data,
    /// Read and write, Device-nGnRE.
    Device,
}

impl Access {
    fn bits(self) -> u64 {
        let common = VALID | AP_RES1 | ACCESSED;
        match self {
            Self::Code => common | NORMAL | INNER_SHAREABLE | READ_ONLY,
            Self::Constant => common | NORMAL | INNER_SHAREABLE | READ_ONLY | EXECUTE_NEVER,
            Self::Data => common | NORMAL | INNER_SHAREABLE | EXECUTE_NEVER,
            Self::Device => common | EXECUTE_NEVER,
        }
    }
}

/// Why a range could not be mapped. The machine has a shape that the image was not built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The range ends beyond [`LIMIT`].
    OutOfRange,
    /// All tables of the image are in use.
    NoTable,
    /// Part of the range is mapped already.
    Overlap,
}

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Table([u64; 512]);

/// The map. One exists, in the image; the boot CPU changes it while it runs alone.
#[repr(C, align(4096))]
pub struct Map {
    tables: [Table; TABLES],
    used: usize,
}

impl Map {
    /// An empty map: table 0 is the root, at level 1.
    pub(crate) const fn new() -> Self {
        Self {
            tables: [Table([0; 512]); TABLES],
            used: 1,
        }
    }

    /// Address of the root table, for TTBR0_EL2.
    pub(crate) fn root(&self) -> u64 {
        (&raw const self.tables[0]) as u64
    }

    /// Maps `pages` to themselves in the largest blocks that fit. After an error, part of the range may be mapped.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(&mut self, pages: PhysPages, access: Access) -> Result<(), MapError> {
        self.fill(pages, Some(access))?;
        publish();
        Ok(())
    }

    /// Removes `pages`, mapped before with the same bounds, and their TLB entries.
    ///
    /// # Errors
    /// [`MapError::OutOfRange`]; [`MapError::NoTable`] when a block had to be split.
    pub fn unmap(&mut self, pages: PhysPages) -> Result<(), MapError> {
        self.fill(pages, None)?;
        // SAFETY: invalidation only makes the walker read the tables again.
        unsafe {
            asm!(
                "dsb ishst",
                "tlbi alle2is",
                "dsb ish",
                "isb",
                options(nostack, preserves_flags)
            );
        }
        Ok(())
    }

    fn fill(&mut self, pages: PhysPages, access: Option<Access>) -> Result<(), MapError> {
        let (mut at, end) = (pages.start().raw(), pages.end().raw());
        if end > LIMIT {
            return Err(MapError::OutOfRange);
        }
        while at < end {
            let (mut table, mut level) = (0, 1);
            loop {
                let shift = 39 - 9 * level;
                let (index, size) = ((at >> shift) as usize & 511, 1u64 << shift);
                let entry = self.tables[table].0[index];
                let is_leaf = level == 3 || entry & (VALID | TABLE_OR_PAGE) == VALID;
                let whole = at & (size - 1) == 0 && end - at >= size;
                if whole && (level == 3 || is_leaf || entry & VALID == 0) {
                    self.tables[table].0[index] = match access {
                        Some(_) if entry & VALID != 0 => return Err(MapError::Overlap),
                        Some(a) if level == 3 => at | a.bits() | TABLE_OR_PAGE,
                        Some(a) => at | a.bits(),
                        None => 0,
                    };
                    at += size;
                    break;
                }
                if entry & VALID == 0 {
                    let new = self.used;
                    if new == TABLES {
                        return Err(MapError::NoTable);
                    }
                    self.used += 1;
                    let address = (&raw const self.tables[new]) as u64;
                    self.tables[table].0[index] = address | VALID | TABLE_OR_PAGE;
                    table = new;
                } else if is_leaf {
                    return Err(MapError::Overlap);
                } else {
                    table = ((entry & ADDRESS) - self.root()) as usize / PAGE_SIZE as usize;
                }
                level += 1;
            }
        }
        Ok(())
    }
}

/// Makes new entries visible to the walker.
fn publish() {
    // SAFETY: barriers.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}
