//! Parameter blocks: what a call takes that does not fit into registers.
//! A block lies in one page owned by the host; the hypervisor copies it once, then looks at the copy.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most regions of one VM.
pub const VM_REGIONS_MAX: usize = 16;
/// Most extents of one window.
pub const WINDOW_EXTENTS_MAX: usize = 240;

/// What a range of guest addresses is; fixed for the VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RegionKind {
    /// Private memory: donated pages only.
    Ram = 1,
    /// The PCI aperture or a restricted DMA pool: windows only.
    Window = 2,
    /// The GICv3 distributor, 64 KiB.
    GicDistributor = 3,
    /// The GICv3 redistributors, 128 KiB for each vCPU, in order of the vCPU index.
    GicRedistributors = 4,
    /// The GICv2m frame, 4 KiB, through which MSIs arrive as SPIs.
    GicV2m = 5,
    /// RAM of an unprotected VM: windows that the guest may execute from. Never beside [`Self::Ram`].
    OpenRam = 6,
}

impl RegionKind {
    /// The kind with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ram),
            2 => Some(Self::Window),
            3 => Some(Self::GicDistributor),
            4 => Some(Self::GicRedistributors),
            5 => Some(Self::GicV2m),
            6 => Some(Self::OpenRam),
            _ => None,
        }
    }
}

bitflags! {
    /// Policy of a VM, fixed when it is created; part of its measurement.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VmFlags: u64 {
        /// The VM has no private memory: its RAM is [`RegionKind::OpenRam`], which the host reaches too.
        const UNPROTECTED = 1 << 0;
    }

    /// Form of a window.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WindowFlags: u32 {
        /// The BAR is a 64-bit one (it takes its slot and the next).
        const BAR_64 = 1 << 0;
    }
}

/// One typed range of guest addresses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionDesc {
    /// First IPA, page-aligned.
    pub base: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// A [`RegionKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// Parameter block of `VM_CREATE`, 8-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmConfig {
    /// The ABI version that the caller was built for.
    pub version: u32,
    /// vCPUs, 1 to `VCPUS_MAX`.
    pub vcpus: u32,
    /// [`VmFlags`].
    pub flags: u64,
    /// SPIs declared, from INTID 32 on: the only interrupts that the host may raise. At most `SPIS_MAX`.
    pub spi_count: u32,
    /// First INTID of the SPIs that the GICv2m frame offers; 0 without a frame.
    pub msi_base: u32,
    /// Number of those SPIs; all must be declared.
    pub msi_count: u32,
    /// Entries of `regions` in use.
    pub region_count: u32,
    /// First page of the metadata, page-aligned; pages are contiguous and owned by the host.
    pub meta_pa: u64,
    /// Metadata pages, 1 to `DONATE_PAGES_MAX`.
    pub meta_pages: u64,
    /// Zero.
    pub reserved: [u64; 2],
    /// The VM's address map; entries beyond `region_count` must be zero.
    pub regions: [RegionDesc; VM_REGIONS_MAX],
}

/// A run of host pages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Extent {
    /// First page's physical address, page-aligned.
    pub pa: u64,
    /// Pages, at least 1.
    pub pages: u64,
}

/// Parameter block of `WINDOW_REGISTER`, 8-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WindowConfig {
    /// The ABI version that the caller was built for.
    pub version: u32,
    /// [`WindowFlags`].
    pub flags: u32,
    /// The VM's handle.
    pub vm: u64,
    /// The PCI function: a [`crate::FunctionId`].
    pub function: u32,
    /// BAR number, 0 to 5 (0 to 4 for a 64-bit one).
    pub bar: u32,
    /// Size of the BAR in bytes: a power of two, at least a page.
    pub bar_size: u64,
    /// Offset of the window in the BAR, page-aligned.
    pub bar_offset: u64,
    /// Bytes of the window, a multiple of the page size.
    pub length: u64,
    /// Where the guest sees it, page-aligned.
    pub ipa: u64,
    /// Entries of `extents` in use.
    pub extent_count: u32,
    /// Zero.
    pub reserved: u32,
    /// The host pages in order; their sum equals `length`; entries beyond `extent_count` must be zero.
    pub extents: [Extent; WINDOW_EXTENTS_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_in_a_page() {
        assert!(size_of::<VmConfig>() <= 4096);
        assert!(size_of::<WindowConfig>() <= 4096);
    }
}
