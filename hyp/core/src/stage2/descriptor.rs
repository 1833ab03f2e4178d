//! Stage-2 descriptors of the 4 KiB granule as typed views (Arm ARM DDI 0487, D8.3).
//! Knows the bits and nothing of who may map what.

use bitflags::bitflags;

use crate::addr::PhysAddr;

bitflags! {
    /// Bits of a stage-2 descriptor below and above its output address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Bits: u64 {
        /// Used by the walk at all.
        const VALID = 1 << 0;
        /// A table at level 1 and 2, a page at level 3.
        const TABLE_OR_PAGE = 1 << 1;
        /// MemAttr 0b0001: Device-nGnRE.
        const DEVICE_NGNRE = 0b0001 << 2;
        /// MemAttr 0b1111: Normal, inner and outer write-back cacheable.
        const NORMAL_WB = 0b1111 << 2;
        /// S2AP[0].
        const READ = 1 << 6;
        /// S2AP[1].
        const WRITE = 1 << 7;
        /// SH 0b11.
        const INNER_SHAREABLE = 0b11 << 8;
        /// Access flag; hardware management of it is off.
        const ACCESSED = 1 << 10;
        /// XN[1]. With XN[0] clear: execution at neither EL1 nor EL0, with FEAT_XNX and without.
        const EXECUTE_NEVER = 1 << 54;
    }
}

/// Output address of a page or table, bits 47:12.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What a mapping is for; decides its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// RAM: Normal write-back, read, write, execute.
    Ram,
    /// A window in a guest: Normal write-back, read, write, never executed.
    Window,
    /// The host's MMIO: Device-nGnRE, read, write, never executed.
    Device,
}

impl MemoryType {
    /// Attribute bits of a leaf.
    pub const fn bits(self) -> Bits {
        let common = Bits::READ.union(Bits::WRITE).union(Bits::ACCESSED);
        match self {
            Self::Ram => common.union(Bits::NORMAL_WB).union(Bits::INNER_SHAREABLE),
            Self::Window => common
                .union(Bits::NORMAL_WB)
                .union(Bits::INNER_SHAREABLE)
                .union(Bits::EXECUTE_NEVER),
            Self::Device => common.union(Bits::DEVICE_NGNRE).union(Bits::EXECUTE_NEVER),
        }
    }
}

/// Level of a table, and of the entries in it. Level 0 does not occur: 40 bits start at level 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// 1 GiB an entry.
    L1,
    /// 2 MiB an entry.
    L2,
    /// 4 KiB an entry.
    L3,
}

impl Level {
    /// log2 of the bytes that an entry covers.
    pub const fn shift(self) -> u32 {
        match self {
            Self::L1 => 30,
            Self::L2 => 21,
            Self::L3 => 12,
        }
    }

    /// Bytes that an entry covers.
    pub const fn span(self) -> u64 {
        1 << self.shift()
    }

    /// The level of the tables that entries of this one point to.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }
}

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Descriptor(u64);

/// What an entry means at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// Faults.
    Invalid,
    /// Goes on in the table at this address.
    Table(PhysAddr),
    /// Maps a block or page that starts at this address.
    Leaf(PhysAddr, Bits),
}

impl Descriptor {
    /// An entry that faults.
    pub const INVALID: Self = Self(0);

    /// An entry that faults and keeps its table from being freed as empty: something is about to be mapped there.
    pub const PLACEHOLDER: Self = Self(1 << 1);

    /// Wraps what stands in memory.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// What is to stand in memory.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Points to a table of the next level.
    pub const fn table(table: PhysAddr) -> Self {
        Self(table.raw() & ADDRESS | Bits::VALID.union(Bits::TABLE_OR_PAGE).bits())
    }

    /// Maps a block (level 1, 2) or page (level 3); `pa` is aligned to the level's span.
    pub const fn leaf(level: Level, pa: PhysAddr, attributes: Bits) -> Self {
        let kind = match level {
            Level::L1 | Level::L2 => Bits::VALID,
            Level::L3 => Bits::VALID.union(Bits::TABLE_OR_PAGE),
        };
        Self(pa.raw() & ADDRESS | attributes.union(kind).bits())
    }

    /// Whether it faults.
    pub const fn is_invalid(self) -> bool {
        self.0 & Bits::VALID.bits() == 0
    }

    /// What it means in a table of this level.
    pub const fn view(self, level: Level) -> View {
        if self.is_invalid() {
            return View::Invalid;
        }
        let pa = PhysAddr::new(self.0 & ADDRESS);
        let is_table_or_page = self.0 & Bits::TABLE_OR_PAGE.bits() != 0;
        match (level, is_table_or_page) {
            (Level::L1 | Level::L2, true) => View::Table(pa),
            // Block encoding at level 3 is reserved and faults.
            (Level::L3, false) => View::Invalid,
            _ => View::Leaf(
                pa,
                Bits::from_bits_truncate(self.0).difference(Bits::VALID.union(Bits::TABLE_OR_PAGE)),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_give_back_what_was_put_in() {
        let pa = PhysAddr::new(0x1_4000_0000);
        for kind in [MemoryType::Ram, MemoryType::Window, MemoryType::Device] {
            for level in [Level::L1, Level::L2, Level::L3] {
                let leaf = Descriptor::leaf(level, pa, kind.bits());
                assert_eq!(leaf.view(level), View::Leaf(pa, kind.bits()));
            }
        }
        assert_eq!(Descriptor::table(pa).view(Level::L1), View::Table(pa));
        assert_eq!(Descriptor::table(pa).view(Level::L2), View::Table(pa));
        assert_eq!(Descriptor::INVALID.view(Level::L3), View::Invalid);
        assert_eq!(Descriptor::from_raw(1).view(Level::L3), View::Invalid);
    }

    #[test]
    fn a24_windows_and_devices_are_never_executed() {
        // Raw values from the Arm ARM, D8.3: AF, SH, S2AP, MemAttr, type.
        let pa = PhysAddr::new(0x4000_0000);
        assert_eq!(
            Descriptor::leaf(Level::L3, pa, MemoryType::Ram.bits()).raw(),
            0x4000_07ff
        );
        assert_eq!(
            Descriptor::leaf(Level::L2, pa, MemoryType::Window.bits()).raw(),
            1 << 54 | 0x4000_07fd
        );
        assert_eq!(
            Descriptor::leaf(Level::L1, pa, MemoryType::Device.bits()).raw(),
            1 << 54 | 0x4000_04c5
        );
    }
}
