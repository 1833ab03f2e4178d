//! A VM's address map: typed ranges of guest addresses, fixed for its life.
//! Knows no page and no table; MMIO emulation and stage 2 ask it what an address is.

use arrayvec::ArrayVec;
use porthole_abi::{
    Error, GUEST_IPA_BITS, PAGE_SIZE, RegionDesc, RegionKind, VM_REGIONS_MAX, VmConfig, VmFlags,
};

use crate::addr::{Ipa, IpaPages};

/// Bytes of a distributor region.
pub const GICD_SIZE: u64 = 0x1_0000;
/// Bytes of one vCPU's redistributor: RD and SGI frame.
pub const GICR_STRIDE: u64 = 0x2_0000;

/// One range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its addresses.
    pub pages: IpaPages,
    /// What it is.
    pub kind: RegionKind,
}

/// The checked map: in range, none overlapping another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions(ArrayVec<Region, VM_REGIONS_MAX>);

impl Regions {
    /// Checks the regions of a copied parameter block.
    ///
    /// # Errors
    /// `ReservedNonZero` if a reserved field or an unused entry is not zero, else `BadRegions`: none, too
    /// many, empty, unaligned, beyond [`GUEST_IPA_BITS`], an unknown kind, overlap, a GIC region twice or of
    /// another size than its kind has; RAM missing, or open to the host in a protected VM, or private in an
    /// unprotected one.
    pub fn new(config: &VmConfig) -> Result<Self, Error> {
        let count = usize::try_from(config.region_count).map_err(|_| Error::BadRegions)?;
        let (used, unused) = config
            .regions
            .split_at_checked(count)
            .ok_or(Error::BadRegions)?;
        if used.iter().any(|r| r.reserved != 0)
            || unused.iter().any(|r| *r != RegionDesc::default())
        {
            return Err(Error::ReservedNonZero);
        }
        let mut regions: ArrayVec<Region, VM_REGIONS_MAX> = ArrayVec::new();
        for desc in used {
            let region = Self::region(desc, config.vcpus).ok_or(Error::BadRegions)?;
            let single = !matches!(
                region.kind,
                RegionKind::Ram | RegionKind::OpenRam | RegionKind::Window
            );
            if regions.iter().any(|other| {
                other.pages.overlaps(&region.pages) || (single && other.kind == region.kind)
            }) {
                return Err(Error::BadRegions);
            }
            regions.try_push(region).map_err(|_| Error::BadRegions)?;
        }
        // A VM is one or the other as a whole and for life: no protected one has a region that a window opens.
        let open = config.flags & VmFlags::UNPROTECTED.bits() != 0;
        let has = |kind| regions.iter().any(|r| r.kind == kind);
        if has(RegionKind::OpenRam) != open || has(RegionKind::Ram) == open {
            return Err(Error::BadRegions);
        }
        Ok(Self(regions))
    }

    fn region(desc: &RegionDesc, vcpus: u32) -> Option<Region> {
        let kind = RegionKind::from_number(desc.kind)?;
        if !desc.size.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        let pages = IpaPages::new(Ipa::new(desc.base), desc.size / PAGE_SIZE).ok()?;
        let size_fits = match kind {
            RegionKind::Ram | RegionKind::OpenRam | RegionKind::Window => true,
            RegionKind::GicDistributor => pages.bytes() == GICD_SIZE,
            RegionKind::GicRedistributors => pages.bytes() == GICR_STRIDE * u64::from(vcpus),
            RegionKind::GicV2m => pages.count() == 1,
        };
        let in_range = pages.end().raw() <= 1 << GUEST_IPA_BITS;
        (size_fits && in_range).then_some(Region { pages, kind })
    }

    /// The region that holds this address.
    pub fn find(&self, ipa: Ipa) -> Option<&Region> {
        self.0.iter().find(|r| r.pages.contains(ipa))
    }

    /// The first region of a kind.
    pub fn of_kind(&self, kind: RegionKind) -> Option<&Region> {
        self.0.iter().find(|r| r.kind == kind)
    }

    /// All regions, in the order of the parameter block.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }

    /// Whether all of `pages` lies inside one region of this kind.
    ///
    /// # Errors
    /// `OutsideRegion`.
    pub fn inside(&self, kind: RegionKind, pages: &IpaPages) -> Result<(), Error> {
        self.0
            .iter()
            .any(|r| r.kind == kind && r.pages.covers(pages))
            .then_some(())
            .ok_or(Error::OutsideRegion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(regions: &[(u64, u64, u32)]) -> VmConfig {
        let mut config = VmConfig {
            version: 0,
            vcpus: 2,
            flags: 0,
            spi_count: 0,
            msi_base: 0,
            msi_count: 0,
            region_count: regions.len() as u32,
            meta_pa: 0,
            meta_pages: 0,
            reserved: [0; 2],
            regions: [RegionDesc::default(); VM_REGIONS_MAX],
        };
        for (to, (base, size, kind)) in config.regions.iter_mut().zip(regions) {
            *to = RegionDesc {
                base: *base,
                size: *size,
                kind: *kind,
                reserved: 0,
            };
        }
        config
    }

    const RAM: (u64, u64, u32) = (0x8000_0000, 0x10_0000, 1);

    #[test]
    fn a_usual_map_is_taken_and_answers() {
        let regions = Regions::new(&config(&[
            RAM,
            (0x1000_0000, 0x1f00_0000, 2),
            (0x0800_0000, GICD_SIZE, 3),
            (0x080a_0000, 2 * GICR_STRIDE, 4),
            (0x0802_0000, 0x1000, 5),
            ((1 << 36) - 0x1000, 0x1000, 1),
        ]))
        .unwrap();
        let kind = |ipa| regions.find(Ipa::new(ipa)).map(|r| r.kind);
        assert_eq!(kind(0x8000_0000), Some(RegionKind::Ram));
        assert_eq!(kind(0x8010_0000), None);
        assert_eq!(kind(0x0802_0fff), Some(RegionKind::GicV2m));
        assert!(regions.of_kind(RegionKind::GicDistributor).is_some());
        assert_eq!(regions.iter().count(), 6);
        let pages = |ipa, count| IpaPages::new(Ipa::new(ipa), count).unwrap();
        let inside = |kind, ipa, count| regions.inside(kind, &pages(ipa, count));
        assert_eq!(inside(RegionKind::Ram, 0x8000_0000, 256), Ok(()));
        for (kind, ipa, count) in [
            (RegionKind::Ram, 0x8000_0000, 257),
            (RegionKind::Window, 0x8000_0000, 1),
            (RegionKind::Ram, 0x7fff_f000, 2),
        ] {
            assert_eq!(inside(kind, ipa, count), Err(Error::OutsideRegion));
        }
    }

    #[test]
    fn a02_impossible_maps_are_refused() {
        let bad: &[&[(u64, u64, u32)]] = &[
            &[],
            &[(0x1000_0000, 0x1000, 2)],
            &[(0x8000_0000, 0, 1)],
            &[(0x8000_0800, 0x1000, 1)],
            &[(0x8000_0000, 0x1800, 1)],
            &[(1 << 36, 0x1000, 1)],
            &[((1 << 36) - 0x1000, 0x2000, 1)],
            &[(!0xfff, 0x1000, 1)],
            &[(!0xfff, 0x2000, 1)],
            &[(0, !0xfff, 1)],
            &[(0x8000_0000, 0x1000, 0)],
            &[(0x8000_0000, 0x1000, 6)],
            &[RAM, RAM],
            &[RAM, (0x800f_f000, 0x2000, 2)],
            &[RAM, (0, GICD_SIZE / 2, 3)],
            &[RAM, (0, GICR_STRIDE, 4)],
            &[RAM, (0, 0x2000, 5)],
            &[RAM, (0, GICD_SIZE, 3), (GICD_SIZE, GICD_SIZE, 3)],
        ];
        for regions in bad {
            let result = Regions::new(&config(regions));
            assert_eq!(result, Err(Error::BadRegions), "{regions:x?}");
        }
        let mut many = config(&[RAM]);
        many.region_count = 17;
        assert_eq!(Regions::new(&many), Err(Error::BadRegions));
    }

    #[test]
    fn a02_ram_is_private_as_a_whole_or_open_as_a_whole() {
        let open = (0x8000_0000, 0x10_0000, 6);
        let far = (0x9000_0000, 0x10_0000, 6);
        for (regions, flags, taken) in [
            (vec![RAM], 0, true),
            (vec![open], 0, false),
            (vec![RAM, far], 0, false),
            (vec![RAM], 1, false),
            (vec![RAM, far], 1, false),
            (vec![open], 1, true),
            (vec![open, far], 1, true),
        ] {
            let mut config = config(&regions);
            config.flags = flags;
            let result = Regions::new(&config).err();
            assert_eq!(result.is_none(), taken, "{regions:x?} {flags}");
            assert!(matches!(result, None | Some(Error::BadRegions)));
        }
    }

    #[test]
    fn a08_reserved_fields_are_zero() {
        let mut reserved = config(&[RAM]);
        reserved.regions[0].reserved = 1;
        assert_eq!(Regions::new(&reserved), Err(Error::ReservedNonZero));
        let mut unused = config(&[RAM, (0x1000, 0x1000, 2)]);
        unused.region_count = 1;
        assert_eq!(Regions::new(&unused), Err(Error::ReservedNonZero));
    }
}
