//! What the fields of the structures in `layout` hold: reasons, obstacles and flag bits of `porthole_uapi.h`.
//! The test of `layout` compares the numbers with the header.

/// Why a device cannot be confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaObstacle {
    /// A bridge: it speaks for others.
    Bridge = 1,
    /// Its accesses carry another function's id.
    Alias = 2,
    /// The kernel has an IOMMU of its own for it.
    Iommu = 3,
    /// Its addresses are not the CPUs', or not coherent with them.
    Address = 4,
    /// The kernel lets no module serve its DMA API.
    Kernel = 5,
    /// Its driver needs 2 MiB: a request is mapped whole.
    Size = 6,
}

impl DmaObstacle {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Bridge,
        Self::Alias,
        Self::Iommu,
        Self::Address,
        Self::Kernel,
        Self::Size,
    ];

    /// The obstacle of a number; `None` for 0, which is none.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|o| *o as u32 == number)
    }
}

/// Flag bits of the eventfd calls.
pub struct IrqFlags;

impl IrqFlags {
    /// Undo the assignment.
    pub const DEASSIGN: u32 = 1 << 0;
    /// The write's value has to match.
    pub const DATAMATCH: u32 = 1 << 1;
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
    /// All of them.
    pub const ALL: [Self; 8] = [
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
