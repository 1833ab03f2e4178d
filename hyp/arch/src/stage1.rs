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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range ends beyond [`LIMIT`].
    #[error("it ends beyond 512 GiB")]
    OutOfRange,
    /// All tables of the image are in use.
    #[error("it takes more tables than the image has")]
    NoTable,
}

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Table([u64; 512]);

/// The map. One exists, in the image; the boot CPU changes it while it runs alone.
#[repr(C, align(4096))]
pub struct Map {
    tables: [Table; TABLES],
    /// Tables in use beside the root.
    used: usize,
}

impl Map {
    /// An empty map: table 0 is the root, at level 1.
    pub(crate) const fn new() -> Self {
        Self {
            tables: [Table([0; 512]); TABLES],
            used: 0,
        }
    }

    /// Address of the root table, for TTBR0_EL2.
    pub(crate) fn root(&self) -> u64 {
        (&raw const self.tables[0]) as u64
    }

    /// Maps `pages` to themselves in the largest blocks that fit; what is mapped already stays as it is. After an
    /// error, part of the range may be mapped.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(&mut self, pages: PhysPages, access: Access) -> Result<(), MapError> {
        let (mut at, end) = (pages.start().raw(), pages.end().raw());
        if end > LIMIT {
            return Err(MapError::OutOfRange);
        }
        while at < end {
            at = self.step(at, end, access)?;
        }
        publish();
        Ok(())
    }

    /// Maps one block at `at`; returns where the next one starts.
    fn step(&mut self, at: u64, end: u64, access: Access) -> Result<u64, MapError> {
        let mut table = 0;
        for level in 1..=3 {
            let shift = 39 - 9 * level;
            let (index, size) = ((at >> shift) as usize & 511, 1u64 << shift);
            let entry = self.tables[table].0[index];
            let valid = entry & VALID != 0;
            if valid && (level == 3 || entry & TABLE_OR_PAGE == 0) {
                return Ok((at & !(size - 1)) + size);
            }
            if !valid && at & (size - 1) == 0 && end - at >= size {
                let kind = if level == 3 { TABLE_OR_PAGE } else { 0 };
                self.tables[table].0[index] = at | access.bits() | kind;
                return Ok(at + size);
            }
            table = if valid {
                ((entry & ADDRESS) - self.root()) as usize / PAGE_SIZE as usize
            } else {
                self.new_table(table, index)?
            };
        }
        // Level 3 holds pages, and every range consists of pages: one of the branches above was taken.
        Err(MapError::OutOfRange)
    }

    fn new_table(&mut self, parent: usize, index: usize) -> Result<usize, MapError> {
        let new = self.used + 1;
        let table = self.tables.get(new).ok_or(MapError::NoTable)?;
        let address = (&raw const *table) as u64;
        self.used += 1;
        self.tables[parent].0[index] = address | VALID | TABLE_OR_PAGE;
        Ok(new)
    }
}

/// Makes new entries visible to the walker.
fn publish() {
    // SAFETY: barriers.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}
