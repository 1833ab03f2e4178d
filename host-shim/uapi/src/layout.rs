//! The structures of `porthole_uapi.h`, field by field, and the numbers of the ioctls that take them.
//! A test compiles the header and compares sizes, offsets and numbers. No call is made here.

use porthole_abi::RegionDesc;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Version of the interface between the driver and user space.
pub const UAPI_VERSION: u32 = 1;
/// Most regions of one VM.
pub const REGIONS_MAX: usize = 16;
/// Instead of an IPA: the window is registered nowhere.
pub const WINDOW_UNMAPPED: u64 = u64::MAX;
/// Bytes of a vCPU's run page.
pub const RUN_SIZE: usize = 4096;

/// Flag bits of the eventfd calls.
pub struct IrqFlags;

impl IrqFlags {
    /// Undo the assignment.
    pub const DEASSIGN: u32 = 1 << 0;
    /// The write's value has to match.
    pub const DATAMATCH: u32 = 1 << 1;
}

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
        /// Out: `porthole_abi::PageOwner`.
        owner: u32,
        /// Out: the hypervisor's error or 0.
        refusal: i32,
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
        /// [`IrqFlags`].
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
        /// [`IrqFlags`].
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
        /// Out: [`RunReason`].
        exit_reason: u32,
        /// MMIO exits.
        mmio: RunMmio,
        /// Reset type or exception class.
        system: u64,
    }
}

/// Why RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunReason {
    /// It has not run, or RUN failed.
    None = 0,
    /// A load outside RAM.
    MmioRead = 1,
    /// A store outside RAM.
    MmioWrite = 2,
    /// PSCI SYSTEM_OFF.
    SystemOff = 7,
    /// PSCI SYSTEM_RESET.
    SystemReset = 8,
    /// The guest cannot go on.
    Crash = 10,
    /// A signal or immediate_exit.
    Interrupted = 256,
    /// Another vCPU ended the VM.
    Stopped = 257,
}

impl RunReason {
    const ALL: [Self; 8] = [
        Self::None,
        Self::MmioRead,
        Self::MmioWrite,
        Self::SystemOff,
        Self::SystemReset,
        Self::Crash,
        Self::Interrupted,
        Self::Stopped,
    ];

    /// The reason with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|r| *r as u32 == number)
    }
}

/// Names and numbers of the ioctls. Source: `_IOC` of Linux's asm-generic/ioctl.h, which arm64 and x86 use.
pub(crate) mod number {
    use super::*;

    const MAGIC: u32 = 0xD7;
    const WRITE: u32 = 1;
    const READ: u32 = 2;

    /// An ioctl that takes a `T`.
    #[derive(Debug)]
    pub struct Call<T> {
        /// As in the header.
        pub name: &'static str,
        /// The request.
        pub number: u32,
        argument: core::marker::PhantomData<fn(T)>,
    }

    const fn call<T>(name: &'static str, direction: u32, nr: u32) -> Call<T> {
        Call {
            name,
            number: direction << 30 | (size_of::<T>() as u32) << 16 | MAGIC << 8 | nr,
            argument: core::marker::PhantomData,
        }
    }

    macro_rules! calls {
        ($($name:ident($ty:ty) = $direction:expr, $nr:literal;)*) => {
            $(pub const $name: Call<$ty> = call(stringify!($name), $direction, $nr);)*
            #[cfg(test)]
            pub fn all() -> Vec<(&'static str, u32)> {
                vec![$(($name.name, $name.number)),*]
            }
        };
    }

    calls! {
        INFO(Info) = READ, 0x00;
        CREATE_VM(CreateVm) = READ | WRITE, 0x01;
        LIST(List) = READ | WRITE, 0x02;
        AUDIT(Audit) = READ, 0x03;
        LOG_READ(LogRead) = READ | WRITE, 0x04;
        STATS(Stats) = READ | WRITE, 0x05;
        PAGE_INFO(PageInfo) = READ | WRITE, 0x06;
        PAGE_FIND(PageFind) = READ | WRITE, 0x07;
        VM_LOAD(Load) = READ | WRITE, 0x20;
        VM_POPULATE(Populate) = READ | WRITE, 0x21;
        VM_FINALIZE(Finalize) = READ | WRITE, 0x22;
        VM_CREATE_VCPU(CreateVcpu) = READ | WRITE, 0x23;
        VM_MEASUREMENT(Measurement) = READ, 0x24;
        VM_INFO(VmInfo) = READ, 0x25;
        WINDOW_CREATE(WindowCreate) = READ | WRITE, 0x30;
        WINDOW_MOVE(WindowMove) = READ | WRITE, 0x31;
        WINDOW_DESTROY(WindowDestroy) = READ | WRITE, 0x32;
        WINDOW_ADD_FUNCTION(WindowFunction) = READ | WRITE, 0x33;
        WINDOW_REMOVE_FUNCTION(WindowFunction) = READ | WRITE, 0x34;
        WINDOW_INFO(WindowInfo) = READ | WRITE, 0x35;
        IRQ_LINE(IrqLine) = READ | WRITE, 0x40;
        IRQFD(IrqFd) = READ | WRITE, 0x41;
        IOEVENTFD(IoEventFd) = WRITE, 0x42;
        VCPU_RUN(()) = 0, 0x60;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Compiles a program against the header that prints what the C side thinks, and compares line by line.
    #[test]
    fn structures_and_numbers_equal_the_drivers_header() {
        let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../driver/porthole_uapi.h");
        let (mut c, mut rust) = (String::new(), String::new());
        for (name, size, fields) in shapes() {
            if name.is_empty() {
                continue;
            }
            writeln!(c, "P(\"{name}\", sizeof(struct {name}));").unwrap();
            writeln!(rust, "{name} {size}").unwrap();
            for (field, offset) in fields {
                writeln!(
                    c,
                    "P(\"{name}.{field}\", __builtin_offsetof(struct {name}, {field}));"
                )
                .unwrap();
                writeln!(rust, "{name}.{field} {offset}").unwrap();
            }
        }
        for (field, offset) in [
            ("ipa", core::mem::offset_of!(RunMmio, ipa)),
            ("data", core::mem::offset_of!(RunMmio, data)),
            ("width", core::mem::offset_of!(RunMmio, width)),
        ] {
            let offset = core::mem::offset_of!(Run, mmio) + offset;
            writeln!(
                c,
                "P(\"mmio.{field}\", __builtin_offsetof(struct porthole_run, mmio.{field}));"
            )
            .unwrap();
            writeln!(rust, "mmio.{field} {offset}").unwrap();
        }
        for (name, number) in number::all() {
            writeln!(c, "P(\"{name}\", PORTHOLE_{name});").unwrap();
            writeln!(rust, "{name} {number}").unwrap();
        }
        for (name, value) in [
            ("PORTHOLE_UAPI_VERSION", u64::from(UAPI_VERSION)),
            ("PORTHOLE_UAPI_REGIONS_MAX", REGIONS_MAX as u64),
            ("PORTHOLE_WINDOW_UNMAPPED", WINDOW_UNMAPPED),
            ("PORTHOLE_RUN_SIZE", RUN_SIZE as u64),
            ("PORTHOLE_RUN_NONE", RunReason::None as u64),
            ("PORTHOLE_RUN_MMIO_READ", RunReason::MmioRead as u64),
            ("PORTHOLE_RUN_MMIO_WRITE", RunReason::MmioWrite as u64),
            ("PORTHOLE_RUN_SYSTEM_OFF", RunReason::SystemOff as u64),
            ("PORTHOLE_RUN_SYSTEM_RESET", RunReason::SystemReset as u64),
            ("PORTHOLE_RUN_CRASH", RunReason::Crash as u64),
            ("PORTHOLE_RUN_INTR", RunReason::Interrupted as u64),
            ("PORTHOLE_RUN_STOPPED", RunReason::Stopped as u64),
            ("PORTHOLE_IRQFD_DEASSIGN", IrqFlags::DEASSIGN.into()),
            ("PORTHOLE_IOEVENTFD_DEASSIGN", IrqFlags::DEASSIGN.into()),
            ("PORTHOLE_IOEVENTFD_DATAMATCH", IrqFlags::DATAMATCH.into()),
        ] {
            writeln!(c, "P(\"{name}\", {name});").unwrap();
            writeln!(rust, "{name} {value}").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("uapi.c"), dir.path().join("uapi"));
        let text = format!(
            "#include <stdio.h>\n#include \"{}\"\n\
             #define P(n, v) printf(\"%s %llu\\n\", n, (unsigned long long)(v))\n\
             int main(void) {{\n{c}return 0;\n}}\n",
            header.display()
        );
        std::fs::write(&source, text).unwrap();
        let cc = Command::new("cc")
            .args(["-Wall", "-Werror", "-o"])
            .args([&program, &source])
            .output()
            .expect("a C compiler (cc) is needed for this test");
        assert!(
            cc.status.success(),
            "{}",
            String::from_utf8_lossy(&cc.stderr)
        );
        let said = Command::new(&program).output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        for (c, rust) in said.lines().zip(rust.lines()) {
            assert_eq!(c, rust, "left: the header; right: this crate");
        }
        assert_eq!(said.lines().count(), rust.lines().count());
    }

    #[test]
    fn run_reasons_are_found_by_number() {
        for reason in RunReason::ALL {
            assert_eq!(RunReason::from_number(reason as u32), Some(reason));
        }
        assert_eq!(RunReason::from_number(3), None);
    }
}
