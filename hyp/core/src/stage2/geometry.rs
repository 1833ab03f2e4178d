//! Size of a translation regime, and what VTTBR_EL2 and VTCR_EL2 say about it (Arm ARM DDI 0487, D24.2).
//! 4 KiB granule, walks start at level 1, one table or two concatenated ones as root.

use super::descriptor::Level;
use crate::addr::PhysAddr;
use crate::hw::Vmid;

/// What makes a translation regime the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Regime {
    /// VTTBR_EL2: VMID and root.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
}

/// ID_AA64MMFR0_EL1.PARange of the machine, capped at what the 4 KiB granule reaches without FEAT_LPA2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PaRange(u8);

impl PaRange {
    /// Takes the field's value; 52 bits and encodings to come count as 48.
    pub const fn new(field: u8) -> Self {
        Self(if field > 5 { 5 } else { field })
    }

    /// Bits of a physical address.
    pub const fn bits(self) -> u32 {
        match self.0 {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        }
    }
}

/// Size of an input address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    bits: u32,
    pa_range: PaRange,
}

impl Geometry {
    /// Most bits that walks from level 1 can have here: two concatenated tables.
    pub const BITS_MAX: u32 = 40;

    /// `bits` of input address, fewer if the machine has fewer bits of physical address.
    pub const fn new(bits: u32, pa_range: PaRange) -> Self {
        let limit = if pa_range.bits() < Self::BITS_MAX {
            pa_range.bits()
        } else {
            Self::BITS_MAX
        };
        Self {
            bits: if bits < limit { bits } else { limit },
            pa_range,
        }
    }

    /// First address behind the last.
    pub const fn end(self) -> u64 {
        1 << self.bits
    }

    /// Entries of the root.
    pub const fn root_entries(self) -> u64 {
        1 << (self.bits - Level::L1.shift())
    }

    /// VTCR_EL2: RES1 bit 31, 8-bit VMIDs, PS of the machine, 4 KiB granule, walks inner shareable and
    /// write-back write-allocate, start at level 1.
    pub const fn vtcr(self) -> u64 {
        const RES1: u64 = 1 << 31;
        const SH0_INNER: u64 = 0b11 << 12;
        const ORGN0_WB_WA: u64 = 0b01 << 10;
        const IRGN0_WB_WA: u64 = 0b01 << 8;
        const SL0_LEVEL_1: u64 = 0b01 << 6;
        let ps = (self.pa_range.0 as u64) << 16;
        let t0sz = 64 - self.bits as u64;
        RES1 | ps | SH0_INNER | ORGN0_WB_WA | IRGN0_WB_WA | SL0_LEVEL_1 | t0sz
    }

    /// The whole regime.
    pub const fn regime(self, vmid: Vmid, root: PhysAddr) -> Regime {
        Regime {
            vttbr: (vmid.0 as u64 & 0xff) << 48 | root.raw(),
            vtcr: self.vtcr(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_guest_regimes_have_the_documented_values() {
        let host = Geometry::new(40, PaRange::new(4));
        assert_eq!(host.root_entries(), 1024);
        assert_eq!(host.vtcr(), 0x8004_3558);
        let guest = Geometry::new(36, PaRange::new(6));
        assert_eq!(guest.root_entries(), 64);
        assert_eq!(guest.vtcr(), 0x8005_355c);
        assert_eq!(
            guest.regime(Vmid(7), PhysAddr::new(0x4321_0000)).vttbr,
            0x0007_0000_4321_0000
        );
    }

    #[test]
    fn input_never_exceeds_the_physical_size() {
        for field in 0..=15 {
            let pa = PaRange::new(field);
            assert!(Geometry::new(40, pa).end() <= 1 << pa.bits());
            assert!(Geometry::new(36, pa).root_entries() >= 4);
        }
    }
}
