//! What a VM's memory consists of, kept under the VM's table lock: stage 2, free metadata, windows, regions.
//! Changes that take pages from the host or give them back are made by `HostMemory`, which is handed this.

use porthole_abi::Error;

use crate::addr::{Ipa, PhysAddr};
use crate::hw::{Memory, Tlb};
use crate::regions::Regions;
use crate::stage2::Regime;
use crate::tracker::VmSlot;
use crate::window::WindowTable;

/// Memory of one VM. Made by `HostMemory::create_guest`.
#[derive(Debug)]
pub struct GuestMemory {
    slot: VmSlot,
    regions: Regions,
    windows: WindowTable,
}

impl GuestMemory {
    /// The VM it belongs to.
    pub fn slot(&self) -> VmSlot {
        self.slot
    }

    /// The VM's address map.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The VM's windows.
    pub fn windows(&self) -> &WindowTable {
        &self.windows
    }

    /// What VTTBR_EL2 and VTCR_EL2 hold while a vCPU of this VM is loaded.
    pub fn regime(&self) -> Regime {
        unimplemented!()
    }

    /// Pages of private memory that the VM owns, mapped or waiting to be reclaimed.
    pub fn memory_pages(&self) -> u64 {
        unimplemented!()
    }

    /// Pages of metadata that the VM owns, in use, free or waiting to be reclaimed.
    pub fn metadata_pages(&self) -> u64 {
        unimplemented!()
    }

    /// Metadata pages that nothing uses yet.
    pub fn metadata_free(&self) -> u64 {
        unimplemented!()
    }

    /// Whether a page is mapped at this address (another vCPU's fault may have been served meanwhile).
    pub fn is_mapped<M: Memory>(&self, _machine: &M, _ipa: Ipa) -> bool {
        unimplemented!()
    }

    /// Takes a zeroed page of the VM's metadata, for a vCPU. It is used until the VM is retired.
    ///
    /// # Errors
    /// `NoMetadata`; `BadState` once the VM was retired.
    pub fn take_metadata<M: Memory + Tlb>(&mut self, _machine: &M) -> Result<PhysAddr, Error> {
        unimplemented!()
    }
}
