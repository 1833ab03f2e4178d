//! Function identifiers: SMCCC 1.2 (Arm DEN 0028), vendor-specific hypervisor service range.
//! Which caller may use which call is decided in `porthole-core`; here are the numbers only.

/// Version of this ABI: major in the upper 16 bits, minor in the lower. A caller refuses another major.
pub const ABI_VERSION: u32 = 0x0001_0000;

/// Whether a parameter block of a caller that was built for `version` is understood: the same major version, and a minor
/// one that is not later than ours.
pub const fn version_ok(version: u32) -> bool {
    version >> 16 == ABI_VERSION >> 16 && version <= ABI_VERSION
}

/// The only immediate that Porthole's `HVC` takes; any other is answered `NotSupported`.
pub const HVC_IMMEDIATE: u16 = 0;

/// Fast 64-bit calls of the vendor-specific hypervisor service (SMCCC 1.2, table 6-2).
pub const RANGE_FAST64: u32 = 0xC600_0000;
/// Fast 32-bit calls of the same service: the discovery calls only.
pub const RANGE_FAST32: u32 = 0x8600_0000;
/// Mask that leaves type, width and owner of a function id.
pub const RANGE_MASK: u32 = 0xFF00_0000;
/// Discovery: number of calls in the range.
pub const CALL_COUNT: u32 = 0x8600_FF00;
/// Discovery: UID in w0 to w3.
pub const CALL_UID: u32 = 0x8600_FF01;
/// Discovery: revision, major in w0, minor in w1.
pub const CALL_REVISION: u32 = 0x8600_FF03;
/// What [`CALL_UID`] returns: d1f6c3a0-5b0e-4f7a-9c41-706f7274686c as four words, low byte first.
pub const UID: [u32; 4] = [0xa0c3_f6d1, 0x7a4f_0e5b, 0x6f70_419c, 0x6c68_7472];

macro_rules! functions {
    ($(#[$meta:meta])* $name:ident { $($(#[$vm:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vm])* $variant = RANGE_FAST64 | $value,)* }

        impl $name {
            /// Every function, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The SMCCC function identifier, as passed in w0.
            pub const fn id(self) -> u32 { self as u32 }

            /// The function with this identifier, if there is one.
            pub fn from_id(id: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|f| f.id() == id)
            }

            /// The function's name, as in `docs/abi.md`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }
        }
    };
}

functions! {
    /// What the host may call. Arguments from x1, result status in x0, values from x1.
    HostFunction {
        /// () -> x1 ABI version, x2 feature bits, x3 bytes kept from the host, x4 CPUs that run under the
        /// hypervisor, x5 free pages of the hypervisor's own pool, x6 bytes of RAM.
        Features = 0x100,
        /// (PA of a `VmConfig`) -> x1 VM handle. Donates the metadata pages it names.
        VmCreate = 0x110,
        /// (VM, PA, pages): more metadata pages for the VM.
        VmDonateMeta = 0x111,
        /// (VM, PA, IPA, pages, flags): donates contiguous pages. Flag bit 0 keeps and measures the content
        /// (before finalize only); without it the pages arrive zeroed.
        VmDonate = 0x112,
        /// (VM, entry IPA, x0 of the boot vCPU): closes the measurement; vCPUs may run.
        VmFinalize = 0x113,
        /// (VM) -> x1 work left: 0 when all translations and windows are gone, else call again.
        VmTeardown = 0x114,
        /// (VM, PA, pages): gives pages of a torn-down VM back, scrubbed; memory and metadata alike.
        VmReclaim = 0x115,
        /// (VM): frees the handle of a torn-down VM that owns no page any more.
        VmDestroy = 0x116,
        /// (slot) -> x1 handle or 0, x2 `VmState`, x3 pages of memory, x4 pages of metadata, x5 windows,
        /// x6 vCPUs, x7 metadata pages still free, x8 the flags it was created with.
        VmInfo = 0x117,
        /// (VM) -> x1 to x4: SHA-256 of the launch, bytes in memory order, each register little-endian.
        VmMeasurement = 0x118,
        /// (VM, index): makes a vCPU out of the VM's metadata pages.
        VcpuCreate = 0x120,
        /// (VM, index, result of the last MMIO read) -> x1 `ExitKind`, x2 to x4 its payload.
        VcpuRun = 0x121,
        /// (PA of a `WindowConfig`) -> x1 window id.
        WindowRegister = 0x130,
        /// (VM, window id, PCI function number 0 to 7): the last function's unregister removes the window.
        WindowUnregister = 0x131,
        /// (VM, window id) -> x1 IPA, x2 bytes, x3 `FunctionId`, x4 BAR, x5 offset in the BAR, x6 mask of
        /// the PCI functions that share it.
        WindowInfo = 0x132,
        /// (VM, INTID, level 0 or 1) -> x1 mask of vCPUs to wake.
        SpiSet = 0x140,
        /// (cursor, 0 at first) -> x1 next cursor or 0 at the end, x2 pages reachable by host and a guest,
        /// x3 pages covered by windows, x4 first offender's PA or `NO_ADDRESS`, x5 epoch. Sums are of this
        /// step; a pass whose steps saw two epochs is void.
        ShareAudit = 0x150,
        /// (`StatKind`, index) -> x1 value.
        Stats = 0x151,
        /// (position) -> x1 position of the first byte returned, x2 bytes returned, x3 to x17 the bytes.
        LogRead = 0x152,
        /// (PA) -> x1 `PageOwner`, x2 VM handle or 0, x3 pages from here on with the same, 16384 at most; where no RAM is,
        /// pages to the next.
        PageInfo = 0x153,
        /// (`FunctionId`, PA, pages): the function's DMA reaches these pages of the host only.
        DmaConfine = 0x160,
        /// (`FunctionId`): the function's DMA reaches what the host reaches again.
        DmaRelease = 0x161,
        /// (index) -> x1 `DmaRecord`. Confined: x2 `FunctionId`, x3 PA, x4 pages. Faults: x2 `FunctionId` or
        /// `NO_ADDRESS`, x3 SMMU in 63:32 and StreamID in 31:0, x4 how many, of the last one x5 address or
        /// `NO_ADDRESS` and x6 SMMUv3 event number in 7:0, bit 8 for a write.
        DmaInfo = 0x162,
    }
}

functions! {
    /// What a guest may call beside PSCI, SMCCC discovery and TRNG.
    GuestFunction {
        /// () -> x1 ABI version, x2 feature bits.
        GuestFeatures = 0x200,
        /// (start slot) -> x1 slot found, x2 IPA, x3 bytes, x4 `FunctionId`, x5 BAR, x6 offset in the BAR,
        /// x7 mask of PCI functions; `NoWindow` when there is none from that slot on.
        WindowEnum = 0x201,
        /// () -> x1 to x4, as `VmMeasurement`.
        Measurement = 0x202,
        /// Always `Denied`: a guest's memory is never shared.
        MemShare = 0x203,
        /// Always `Denied`.
        MemUnshare = 0x204,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_in_range() {
        let mut seen = [0u32; 64];
        for (n, id) in HostFunction::ALL
            .iter()
            .map(|f| f.id())
            .chain(GuestFunction::ALL.iter().map(|f| f.id()))
            .enumerate()
        {
            assert_eq!(id & RANGE_MASK, RANGE_FAST64);
            assert!(!seen[..n].contains(&id));
            seen[n] = id;
        }
    }

    #[test]
    fn from_id_finds_every_function_and_nothing_else() {
        for f in HostFunction::ALL {
            assert_eq!(HostFunction::from_id(f.id()), Some(*f));
            assert_eq!(GuestFunction::from_id(f.id()), None);
        }
        assert_eq!(HostFunction::from_id(RANGE_FAST64), None);
        assert_eq!(HostFunction::from_id(0), None);
    }
}
