//! The structures of `porthole_uapi.h`, field by field, and the numbers of the ioctls that take them.
//! A test compiles the header and compares sizes, offsets and numbers. No call is made here.

use porthole_abi::RegionDesc;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Version of the interface between the driver and user space.
pub const UAPI_VERSION: u32 = 2;
/// Most regions of one VM.
pub const REGIONS_MAX: usize = 16;
/// Instead of an IPA: the window is registered nowhere.
pub const WINDOW_UNMAPPED: u64 = u64::MAX;
/// Bytes of a vCPU's run page.
pub const RUN_SIZE: usize = 4096;

/// Kinds of exits that the driver counts.
pub const RUN_EXITS: usize = 11;

macro_rules! records {
    ($($(#[$meta:meta])* $name:ident = $c:literal { $($(#[$fm:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            pub struct $name { $($(#[$fm])* pub $field: $ty,)* }

            impl Default for $name {
                fn default() -> Self {
                    Self::new_zeroed()
                }
            }
        )*

        /// C name, size and (field, offset) of every structure: for the comparison with the header.
        #[cfg(test)]
        type Shape = (&'static str, usize, Vec<(&'static str, usize)>);

        #[cfg(test)]
        fn shapes() -> Vec<Shape> {
            vec![$((
                $c,
                size_of::<$name>(),
                vec![$((stringify!($field), core::mem::offset_of!($name, $field))),*],
            )),*]
        }
    };
}

records! {
    /// The hypervisor and the driver.
    Info = "porthole_info" {
        /// [`UAPI_VERSION`] of the driver.
        uapi_version: u32,
        /// The hypervisor's: major in the upper 16 bits.
        abi_version: u32,
        /// `porthole_abi::Features`.
        features: u64,
        /// Bytes kept from the host.
        reserved_bytes: u64,
        /// Bytes of the machine's memory.
        ram_bytes: u64,
        /// Free pages of the hypervisor's own pool.
        pool_free_pages: u64,
        /// CPUs under the hypervisor.
        cpus: u64,
        /// Pages the driver dared not free.
        leaked_pages: u64,
        /// Zero.
        reserved: u64,
    }
    /// A VM's configuration.
    CreateVm = "porthole_create_vm" {
        /// `porthole_abi::VmFlags`.
        flags: u64,
        /// 1 to `VCPUS_MAX`.
        vcpus: u32,
        /// SPIs declared, from INTID 32 on.
        spi_count: u32,
        /// First INTID of the GICv2m frame, 0 without one.
        msi_base: u32,
        /// SPIs of the frame.
        msi_count: u32,
        /// Entries of `regions` in use.
        region_count: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Out: the hypervisor's handle.
        handle: u64,
        /// Zero.
        reserved: u64,
        /// The address map.
        regions: [RegionDesc; REGIONS_MAX],
    }
    /// One living VM.
    VmEntry = "porthole_vm_entry" {
        /// The hypervisor's handle.
        handle: u64,
        /// Pages of private memory.
        memory_pages: u64,
        /// Pages of metadata.
        metadata_pages: u64,
        /// Those of them not in use.
        metadata_free: u64,
        /// `porthole_abi::VmState`.
        state: u32,
        /// vCPUs.
        vcpus: u32,
        /// Registered windows.
        windows: u32,
        /// Process that created it; 0 if gone or unknown.
        pid: i32,
        /// `porthole_abi::VmFlags` that it was created with.
        flags: u64,
    }
    /// Argument of LIST.
    List = "porthole_list" {
        /// User address of `VmEntry`s.
        entries: u64,
        /// Entries that fit.
        capacity: u32,
        /// Out: living VMs.
        count: u32,
    }
    /// Result of a whole pass of `SHARE_AUDIT`.
    Audit = "porthole_audit" {
        /// Pages that the host and a guest reach.
        shared_pages: u64,
        /// Pages covered by registered windows.
        window_pages: u64,
        /// First page that differs, or all ones.
        offender: u64,
        /// Epoch of the tracker during the pass.
        epoch: u64,
        /// Hypercalls of the pass.
        steps: u32,
        /// Passes made.
        passes: u32,
    }
    /// Argument of LOG_READ.
    LogRead = "porthole_log_read" {
        /// In: where to start. Out: of the first byte.
        position: u64,
        /// User address.
        buffer: u64,
        /// Bytes that fit.
        capacity: u32,
        /// Out: bytes written.
        length: u32,
    }
    /// Argument of STATS.
    Stats = "porthole_stats" {
        /// `porthole_abi::StatKind`.
        kind: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// CPU or other index.
        index: u64,
        /// Out.
        value: u64,
    }
    /// Owner of one page.
    PageInfo = "porthole_page_info" {
        /// Page-aligned physical address.
        pa: u64,
        /// Out: handle or 0.
        vm: u64,
        /// Out: pages from this one on with the same owner and VM, or to the next RAM.
        pages: u64,
        /// Out: `porthole_abi::PageOwner`.
        owner: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// A registered window of any VM.
    VmWindow = "porthole_vm_window" {
        /// Handle.
        vm: u64,
        /// The hypervisor's number of it.
        id: u64,
        /// Out: where the guest sees it.
        ipa: u64,
        /// Out: bytes.
        length: u64,
        /// Out: bytes from the BAR's start.
        bar_offset: u64,
        /// Out: the lowest `porthole_abi::FunctionId` that shares it.
        function: u32,
        /// Out: functions of the device that share it, one bit each.
        function_mask: u32,
        /// Out: BAR number.
        bar: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// A PCI function to confine.
    DmaConfine = "porthole_dma_confine" {
        /// Bytes, a multiple of the page size, at most 64 MiB.
        size: u64,
        /// Out: where the region is.
        pa: u64,
        /// Out: with `ENOMEM` a size that is free now, or 0.
        available: u64,
        /// `porthole_abi::FunctionId`.
        function: u32,
        /// Out: [`crate::DmaObstacle`]'s number.
        obstacle: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// A PCI function to release.
    DmaRelease = "porthole_dma_release" {
        /// `porthole_abi::FunctionId`.
        function: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// What the hypervisor knows of the host's DMA at an index.
    DmaInfo = "porthole_dma_info" {
        /// Confined functions, then refused accesses.
        index: u64,
        /// Out: `porthole_abi::DmaRecord`.
        kind: u32,
        /// Out: `porthole_abi::FunctionId`, or all ones for a stream that is no function's.
        function: u32,
        /// Out, confined: its region.
        pa: u64,
        /// Out, confined: bytes.
        size: u64,
        /// Out, confined: bytes in use by its driver.
        used: u64,
        /// Out, confined: requests of its driver that found no room.
        failed: u64,
        /// Out, faults: SMMU in 63:32, StreamID.
        stream: u64,
        /// Out, faults: how many.
        count: u64,
        /// Out, faults: address of the last one, or all ones.
        address: u64,
        /// Out, faults: of the last one the SMMU's event, bit 8 for a write.
        event: u32,
        /// Out, confined: 1 if by this kernel.
        owned: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Search for a page by owner.
    PageFind = "porthole_page_find" {
        /// In: first address. Out: the page found.
        start: u64,
        /// Address to stop at.
        end: u64,
        /// Handle, or 0 for any.
        vm: u64,
        /// `porthole_abi::PageOwner`.
        owner: u32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of VM_LOAD.
    Load = "porthole_load" {
        /// User address.
        source: u64,
        /// Page-aligned.
        ipa: u64,
        /// Bytes.
        size: u64,
        /// Out: bytes loaded.
        loaded: u64,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of VM_POPULATE.
    Populate = "porthole_populate" {
        /// Page-aligned.
        ipa: u64,
        /// Bytes, a multiple of the page size.
        size: u64,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of VM_FINALIZE.
    Finalize = "porthole_finalize" {
        /// Where vCPU 0 starts.
        entry: u64,
        /// Its x0.
        x0: u64,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of VM_CREATE_VCPU.
    CreateVcpu = "porthole_create_vcpu" {
        /// vCPU number.
        index: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// Argument of WINDOW_CREATE.
    WindowCreate = "porthole_window_create" {
        /// Where the guest sees it, or [`WINDOW_UNMAPPED`].
        ipa: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the BAR.
        bar_size: u64,
        /// Offset in the BAR.
        bar_offset: u64,
        /// `porthole_abi::FunctionId`.
        function: u32,
        /// BAR number.
        bar: u32,
        /// `porthole_abi::WindowFlags`.
        flags: u32,
        /// Out: the driver's id.
        id: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of WINDOW_MOVE.
    WindowMove = "porthole_window_move" {
        /// The driver's id.
        id: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// New place, or [`WINDOW_UNMAPPED`].
        ipa: u64,
    }
    /// Argument of WINDOW_DESTROY.
    WindowDestroy = "porthole_window_destroy" {
        /// The driver's id.
        id: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// Argument of WINDOW_ADD_FUNCTION and WINDOW_REMOVE_FUNCTION.
    WindowFunction = "porthole_window_function" {
        /// The driver's id.
        id: u32,
        /// `porthole_abi::FunctionId`.
        function: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// What is known of a window.
    WindowInfo = "porthole_window_info" {
        /// The driver's id.
        id: u32,
        /// The function that created it.
        function: u32,
        /// Functions of the device that share it.
        function_mask: u32,
        /// BAR number.
        bar: u32,
        /// Or [`WINDOW_UNMAPPED`].
        ipa: u64,
        /// Bytes.
        length: u64,
        /// Physical address of its first page.
        first_pa: u64,
        /// The hypervisor's number while mapped.
        hyp_id: u32,
        /// Runs of contiguous pages.
        extents: u32,
    }
    /// Argument of IRQ_LINE.
    IrqLine = "porthole_irq_line" {
        /// 32 on.
        intid: u32,
        /// 0 or 1.
        level: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
        /// Zero.
        reserved: u32,
    }
    /// Argument of IRQFD.
    IrqFd = "porthole_irqfd" {
        /// Eventfd.
        fd: i32,
        /// 32 on.
        intid: u32,
        /// [`crate::IrqFlags`].
        flags: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
    }
    /// Argument of IOEVENTFD.
    IoEventFd = "porthole_ioeventfd" {
        /// Address of the write.
        ipa: u64,
        /// Value, with DATAMATCH.
        datamatch: u64,
        /// Bytes, or 0 for any.
        width: u32,
        /// [`crate::IrqFlags`].
        flags: u32,
        /// Eventfd.
        fd: i32,
        /// Zero.
        reserved: u32,
    }
    /// SHA-256 of the launch.
    Measurement = "porthole_measurement" {
        /// In memory order.
        digest: [u8; 32],
    }
    /// A VM as its own file shows it.
    VmInfo = "porthole_vm_info" {
        /// The hypervisor's handle.
        handle: u64,
        /// Pages of private memory.
        memory_pages: u64,
        /// Pages of metadata.
        metadata_pages: u64,
        /// Those of them not in use.
        metadata_free: u64,
        /// `porthole_abi::VmState`.
        state: u32,
        /// vCPUs.
        vcpus: u32,
        /// Registered windows.
        windows: u32,
        /// The hypervisor's error or 0.
        refusal: i32,
        /// 2 MiB blocks among the memory.
        blocks_2m: u64,
        /// Pages served on first touch.
        ram_faults: u64,
        /// Physical address of a page of memory, or all ones.
        first_pa: u64,
        /// Zero.
        reserved: u64,
    }
    /// The MMIO part of [`Run`].
    RunMmio = "" {
        /// Address.
        ipa: u64,
        /// Value.
        data: u64,
        /// Bytes.
        width: u32,
        /// Zero.
        reserved: u32,
    }
    /// The start of a vCPU's run page.
    Run = "porthole_run" {
        /// In: RUN returns before it enters the guest.
        immediate_exit: u32,
        /// Out: [`crate::RunReason`].
        exit_reason: u32,
        /// MMIO exits.
        mmio: RunMmio,
        /// Reset type or exception class.
        system: u64,
        /// Out: exits so far, by `porthole_abi::ExitKind`.
        exits: [u64; RUN_EXITS],
    }
}

#[cfg(test)]
mod tests;
