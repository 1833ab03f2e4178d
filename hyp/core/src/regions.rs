//! A VM's address map: typed ranges of guest addresses, fixed for its life.
//! Knows no page and no table; MMIO emulation and stage 2 ask it what an address is.

use arrayvec::ArrayVec;
use porthole_abi::{
    Error, GUEST_IPA_BITS, PAGE_SIZE, RegionDesc, RegionKind, VM_REGIONS_MAX, VmConfig,
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
    /// many, empty, unaligned, beyond [`GUEST_IPA_BITS`], an unknown kind, overlap, no RAM, a GIC region
    /// twice or of another size than its kind has.
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
            let single = !matches!(region.kind, RegionKind::Ram | RegionKind::Window);
            if regions.iter().any(|other| {
                other.pages.overlaps(&region.pages) || (single && other.kind == region.kind)
            }) {
                return Err(Error::BadRegions);
            }
            regions.try_push(region).map_err(|_| Error::BadRegions)?;
        }
        if !regions.iter().any(|r| r.kind == RegionKind::Ram) {
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
            RegionKind::Ram | RegionKind::Window => true,
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
