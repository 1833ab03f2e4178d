//! The hypercall ABI of Porthole: function ids, parameter blocks, results and error codes.
//! The hypervisor, the VMM, the guest crates and (by a checked C header) the driver share it.
//! No policy and no unsafe code live here; `docs/abi.md` explains each call.
#![no_std]
#![forbid(unsafe_code)]

mod block;
mod error;
mod exit;
mod function;
mod info;

pub use block::{
    Extent, RegionDesc, RegionKind, VM_REGIONS_MAX, VmConfig, VmFlags, WINDOW_EXTENTS_MAX,
    WindowConfig, WindowFlags,
};
pub use error::Error;
pub use exit::ExitKind;
pub use function::{
    ABI_VERSION, CALL_COUNT, CALL_REVISION, CALL_UID, GuestFunction, HVC_IMMEDIATE, HostFunction,
    RANGE_FAST32, RANGE_FAST64, RANGE_MASK, UID, version_ok,
};
pub use info::{
    DmaRecord, Features, FunctionId, NO_ADDRESS, PageOwner, StatKind, VmHandle, VmState,
};

/// Bytes in a page. Porthole knows the 4 KiB granule only.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Most pages that one `VM_DONATE`, `VM_DONATE_META` or `VM_RECLAIM` takes: 2 MiB.
pub const DONATE_PAGES_MAX: u64 = 512;
/// Most pages of one window: 16 MiB.
pub const WINDOW_PAGES_MAX: u64 = 4096;
/// Most pages of one window in a region of [`RegionKind::OpenRam`]: 64 MiB.
pub const OPEN_WINDOW_PAGES_MAX: u64 = 16384;
/// Most pages that one `PAGE_INFO` counts: 64 MiB.
pub const PAGE_RUN_MAX: u64 = 16384;
/// Most windows of one VM.
pub const WINDOWS_MAX: usize = 32;
/// Most VMs that live at once.
pub const VMS_MAX: usize = 64;
/// Most vCPUs of one VM.
pub const VCPUS_MAX: usize = 8;
/// Bits of a guest's intermediate physical addresses: 64 GiB.
pub const GUEST_IPA_BITS: u32 = 36;
/// First INTID of the shared peripheral interrupts (GICv3, Arm IHI 0069, 2.2).
pub const SPI_BASE: u32 = 32;
/// Most SPIs of one VM.
pub const SPIS_MAX: u32 = 224;
/// Pages of physically contiguous metadata that one vCPU takes.
pub const VCPU_META_PAGES: u64 = 1;
/// Most pages that a device is confined to: 64 MiB.
pub const DMA_PAGES_MAX: u64 = 16384;
/// Most devices that are confined at once.
pub const DMA_CONFINED_MAX: usize = 16;
/// Most devices whose refused accesses are counted apart.
pub const DMA_SOURCES_MAX: usize = 16;
/// Bytes that one `LOG_READ` returns, in x3 to x17.
pub const LOG_CHUNK: usize = 120;
