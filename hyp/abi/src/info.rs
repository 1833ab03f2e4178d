//! Small values that calls return: features, handles, owners, statistics.
//! Each is a plain number with names; no state lives here.

use bitflags::bitflags;

/// "No physical address", where a call returns one.
pub const NO_ADDRESS: u64 = u64::MAX;

bitflags! {
    /// What this hypervisor on this machine offers, in x2 of `FEATURES` and `GUEST_FEATURES`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Every DMA master of the host is behind an SMMU that the hypervisor owns.
        const DMA_ISOLATED = 1 << 0;
        /// The machine was told to create protected VMs although DMA is not isolated.
        const UNSAFE_DMA = 1 << 1;
        /// The CPU has RNDR: guests get the TRNG interface.
        const TRNG = 1 << 2;
        /// The hypervisor's log goes to a UART of its own.
        const LOG_UART = 1 << 3;
        /// Built with debug assertions.
        const DEBUG_BUILD = 1 << 4;
        /// In `GUEST_FEATURES` only: the VM that asks has no private memory.
        const UNPROTECTED = 1 << 5;
    }
}

/// Handle of a VM: slot number in bits 7:0, generation in bits 39:8. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VmHandle(pub u64);

impl VmHandle {
    /// Builds a handle; `generation` starts at 1.
    pub const fn new(slot: u8, generation: u32) -> Self {
        Self((generation as u64) << 8 | slot as u64)
    }

    /// The slot it names.
    pub const fn slot(self) -> usize {
        (self.0 & 0xff) as usize
    }
}

/// A PCI function: segment in bits 31:16, bus in 15:8, device in 7:3, function in 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FunctionId(pub u32);

impl FunctionId {
    /// Builds an id; `device` is below 32 and `function` below 8.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self(
            (segment as u32) << 16
                | (bus as u32) << 8
                | ((device & 0x1f) as u32) << 3
                | (function & 7) as u32,
        )
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Segment, bus and device without the function number.
    pub const fn device(self) -> u32 {
        self.0 >> 3
    }
}

impl core::fmt::Display for FunctionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.0 >> 16,
            (self.0 >> 8) & 0xff,
            (self.0 >> 3) & 0x1f,
            self.0 & 7
        )
    }
}

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$vm:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u64)]
        pub enum $name { $($(#[$vm])* $variant = $value,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value with this number.
            pub fn from_number(number: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| *v as u64 == number)
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }
        }
    };
}

numbered! {
    /// Where a VM stands in its life.
    VmState {
        /// Takes content, vCPUs and configuration; nothing runs.
        Created = 1,
        /// Measured; vCPUs run.
        Final = 2,
        /// The guest switched itself off, reset or crashed: nothing runs again.
        Stopped = 3,
        /// Being torn down: no translation is left once `VM_TEARDOWN` returned 0; pages can be reclaimed.
        Dying = 4,
    }
}

numbered! {
    /// Who owns a page, from `PAGE_INFO`.
    PageOwner {
        /// Not RAM that the tracker knows.
        None = 0,
        /// The host's own.
        Host = 1,
        /// The hypervisor's.
        Hyp = 2,
        /// A guest's private memory.
        VmMemory = 3,
        /// A guest's metadata (tables, vCPUs).
        VmMetadata = 4,
        /// A window: host and one guest.
        Window = 5,
        /// The host's, pinned by a hardware table or because a device is confined to it.
        Pinned = 6,
        /// Taken from the host for a table that hardware believes: the hypervisor and that hardware alone reach it.
        HwTable = 7,
    }
}

numbered! {
    /// Counters of `STATS`. The index is a physical CPU's number unless another meaning is named.
    StatKind {
        /// Hypercalls of the host.
        HostCalls = 0,
        /// Host accesses to protected memory that were refused, all CPUs (index 0).
        HostAborts = 1,
        /// Physical address of the last such access (index 0), or `NO_ADDRESS`.
        LastAbortAddress = 2,
        /// SMCs of the host refused, all CPUs (index 0).
        SmcsRefused = 3,
        /// Guest exits handled at EL2 without the host.
        GuestExitsInside = 4,
        /// Guest exits that went to the host.
        GuestExitsToHost = 5,
        /// Pages of RAM by owner: the index is a `PageOwner` number.
        PagesByOwner = 6,
        /// Epoch of the page tracker: grows with every transition (index 0).
        Epoch = 7,
        /// Pages donated to VMs since boot (index 0).
        PagesDonated = 8,
        /// Pages reclaimed and scrubbed since boot (index 0).
        PagesReclaimed = 9,
        /// Pages in use as stage-2 tables of the host and its devices (index 0).
        HostTables = 10,
        /// Accesses of devices that an SMMU refused, since boot (index 0).
        DmaFaults = 11,
    }
}

numbered! {
    /// What `DMA_INFO` tells at an index.
    DmaRecord {
        /// Nothing yet.
        Free = 0,
        /// A confined function; indices below `DMA_CONFINED_MAX`.
        Confined = 1,
        /// Refused accesses of one device; the `DMA_SOURCES_MAX` indices behind.
        Faults = 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_keep_slot_and_generation_apart() {
        assert_eq!(VmHandle::new(255, 1).slot(), 255);
        assert_ne!(VmHandle::new(0, 1), VmHandle::new(0, 2));
        assert_ne!(VmHandle::new(0, 1).0, 0);
    }

    #[test]
    fn function_ids_split_into_device_and_function() {
        let id = FunctionId::new(1, 2, 31, 7);
        assert_eq!(id.function(), 7);
        assert_eq!(id.device(), FunctionId::new(1, 2, 31, 0).device());
        assert_ne!(id.device(), FunctionId::new(1, 2, 30, 7).device());
    }
}
