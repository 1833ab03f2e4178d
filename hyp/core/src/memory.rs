//! The memory lock, {page tracker, host stage 2}, and every change of a page's owner.
//! Each change is checked whole and has its table pages in hand before it starts: it happens or nothing does.
//!
//! Lock order: VM slot, vCPU, the VM's tables ([`GuestMemory`]), then the memory lock, which is a leaf.

use porthole_abi::{Error, PageOwner, WindowConfig};

use crate::addr::{Ipa, IpaPages, PhysAddr, PhysPages};
use crate::guest::GuestMemory;
use crate::hw::{Memory, Tlb};
use crate::regions::Regions;
use crate::stage2::Regime;
use crate::tracker::{PageEntry, PageState, VmSlot, WindowSlot};

/// What the machine looks like at boot.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig<'a> {
    /// RAM, in ascending order.
    pub ram: &'a [PhysPages],
    /// The hypervisor's image, tracker and pool; inside RAM.
    pub hyp: PhysPages,
    /// MMIO that the host is not to reach.
    pub hidden: &'a [PhysPages],
    /// Root of the host's stage 2: 8 KiB, aligned to it, zeroed, inside `hyp`.
    pub host_root: PhysAddr,
    /// ID_AA64MMFR0_EL1.PARange.
    pub pa_range: u8,
}

/// What becomes of the content of donated pages.
pub enum Content<'a> {
    /// Zeroed.
    Zeroed,
    /// Kept, and shown page by page in order, after the host lost it: IPA and 4096 bytes.
    Keep(&'a mut dyn FnMut(Ipa, &[u8])),
}

/// Result of one step of a share audit; sums are of this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditStep {
    /// Where to go on; 0 at the end.
    pub next: u64,
    /// Pages that host and a guest both reach, counted in the tables.
    pub shared: u64,
    /// Pages that the tracker says windows cover.
    pub windows: u64,
    /// First page where tables and tracker differ.
    pub offender: Option<PhysAddr>,
    /// The tracker's epoch during the step.
    pub epoch: u64,
}

/// Everything that the memory lock protects, behind it. `'t` is the life of the tracker's memory.
#[derive(Debug)]
pub struct HostMemory<'t> {
    inner: spin::Mutex<&'t mut [PageEntry]>,
}

impl<'t> HostMemory<'t> {
    /// Builds tracker and host stage 2. Every page of RAM but the hypervisor's becomes the host's.
    ///
    /// # Errors
    /// `NoMemory`; `InvalidParameter` for a configuration that contradicts itself.
    pub fn new<M: Memory + Tlb>(
        _machine: &M,
        _config: &MemoryConfig<'_>,
        _tracker: &'t mut [PageEntry],
    ) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The host's translation regime, the same on every CPU.
    pub fn regime(&self) -> Regime {
        unimplemented!()
    }

    /// Whether the host's stage 2 maps this address now. If it does at a translation fault, the fault fell
    /// into the gap of a break-before-make: the access is to be tried again.
    pub fn host_reaches<M: Memory>(&self, _machine: &M, _pa: PhysAddr) -> bool {
        unimplemented!()
    }

    /// State of a page; `None` if it is not RAM.
    pub fn page_state(&self, _pa: PhysAddr) -> Option<PageState> {
        unimplemented!()
    }

    /// Pages of RAM by owner.
    pub fn pages_by_owner(&self, _owner: PageOwner) -> u64 {
        unimplemented!()
    }

    /// The tracker's epoch: grows with every change.
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }

    /// Pages donated to VMs since boot, metadata included.
    pub fn pages_donated(&self) -> u64 {
        unimplemented!()
    }

    /// Pages reclaimed and scrubbed since boot.
    pub fn pages_reclaimed(&self) -> u64 {
        unimplemented!()
    }

    /// Pages of the hypervisor's pool in use as host stage-2 tables.
    pub fn host_tables(&self) -> u64 {
        unimplemented!()
    }

    /// Copies `to.len()` bytes of a parameter block out of one page owned by the host, under the lock, so
    /// that the page cannot change hands meanwhile.
    ///
    /// # Errors
    /// `Unaligned` if `from` is not 8-byte aligned or the bytes cross a page; `NotRam`, `NotHostOwned`,
    /// `PageIsWindow`, `PagePinned`.
    pub fn copy_from_host<M: Memory>(
        &self,
        _machine: &M,
        _from: PhysAddr,
        _to: &mut [u8],
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// Takes metadata pages from the host and builds an empty VM in them; the first becomes the root table.
    ///
    /// # Errors
    /// `TooLarge` above `DONATE_PAGES_MAX` pages; `NotRam`, `NotHostOwned`, `PageIsWindow`, `PagePinned`;
    /// `NoMemory` for host tables.
    pub fn create_guest<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _slot: VmSlot,
        _regions: Regions,
        _metadata: PhysPages,
    ) -> Result<GuestMemory, Error> {
        unimplemented!()
    }

    /// Takes more metadata pages from the host.
    ///
    /// # Errors
    /// As [`Self::create_guest`]; `BadState` once the VM is dying.
    pub fn donate_metadata<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _guest: &mut GuestMemory,
        _pages: PhysPages,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// Moves pages from the host into a VM's RAM.
    ///
    /// # Errors
    /// `TooLarge`; `OutsideRegion`, `AlreadyMapped`; page errors as above; `NoMetadata` for the guest's
    /// tables, `NoMemory` for the host's; `BadState` once the VM is dying.
    pub fn donate<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _guest: &mut GuestMemory,
        _pages: PhysPages,
        _ipa: Ipa,
        _content: Content<'_>,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// Registers a window, or adds a function of the same device to it. `config` was copied once, and the
    /// caller found `guest` by its `vm`.
    ///
    /// # Errors
    /// One for each refusal: see `docs/abi.md`.
    pub fn register_window<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _guest: &mut GuestMemory,
        _config: &WindowConfig,
    ) -> Result<WindowSlot, Error> {
        unimplemented!()
    }

    /// Takes a function out of a window; the last one removes it and the pages are the host's alone again.
    ///
    /// # Errors
    /// `NoWindow`; `BadFunction` if the function does not use the window.
    pub fn unregister_window<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _guest: &mut GuestMemory,
        _window: u64,
        _function: u64,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// One bounded step of a VM's end; nothing of it runs any more or will. Returns the windows left; after 0
    /// no translation of the VM exists, its metadata is unused and its pages may be reclaimed. The caller has
    /// dropped everything placed in metadata pages before the first [`Self::reclaim`].
    pub fn retire_step<M: Memory + Tlb>(&self, _machine: &M, _guest: &mut GuestMemory) -> usize {
        unimplemented!()
    }

    /// Gives pages of a retired VM, memory and metadata alike, back to the host, zeroed.
    ///
    /// # Errors
    /// `BadState` before [`Self::retire_step`] returned 0; `TooLarge`; `NotRam`, `NotVmOwned`; `NoMemory`.
    pub fn reclaim<M: Memory + Tlb>(
        &self,
        _machine: &M,
        _guest: &mut GuestMemory,
        _pages: PhysPages,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// One step of the share audit. `with_guest(slot, look)` calls `look` with the VM's memory, its table lock
    /// held and the memory lock not, if the slot has a VM.
    ///
    /// # Errors
    /// `InvalidParameter` for a cursor that no step returns.
    pub fn audit<M: Memory>(
        &self,
        _machine: &M,
        _cursor: u64,
        _with_guest: &mut dyn FnMut(VmSlot, &mut dyn FnMut(&GuestMemory)),
    ) -> Result<AuditStep, Error> {
        unimplemented!()
    }
}

#[allow(dead_code)]
type RangeOfGuest = IpaPages;
