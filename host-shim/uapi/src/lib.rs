//! Safe Rust face of `/dev/porthole`: the structures of `host-shim/driver/porthole_uapi.h`, its ioctls as methods
//! of file types, the mappings of windows and run pages; TAP interfaces. All `unsafe` of the host's Rust side is in `ioctl`.
//! What to do with a VM is the VMM's business, not this crate's.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod ioctl;
mod layout;
mod number;
mod system;
pub mod tap;
mod values;
mod vcpu;
mod vm;

pub use ioctl::{read_vectored, read_vectored_at, write_vectored, write_vectored_at};
pub use layout::{
    Audit, CreateVm, DmaConfine, DmaInfo, Info, LogRead, PageFind, PageInfo, REGIONS_MAX,
    RUN_EXITS, RUN_SIZE, UAPI_VERSION, VmEntry, VmInfo, VmWindow, WINDOW_UNMAPPED, WindowCreate,
    WindowInfo,
};
pub use system::{DEVICE, System};
pub use values::{DmaObstacle, IrqFlags, RunReason};
pub use vcpu::{RunExit, RunPage, Vcpu};
pub use vm::Vm;

use std::io;

/// Why the driver or the hypervisor refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor refused; its own reason.
    #[error("{call}: the hypervisor refused it: {refusal}")]
    Refused {
        /// The ioctl's name.
        call: &'static str,
        /// The hypervisor's error.
        refusal: porthole_abi::Error,
    },
    /// The driver or the kernel refused.
    #[error("{call}: {source}")]
    System {
        /// The ioctl's name.
        call: &'static str,
        /// errno.
        source: io::Error,
    },
}

impl Error {
    /// The hypervisor's error, if it was the one that refused.
    pub fn refusal(&self) -> Option<porthole_abi::Error> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            Self::System { .. } => None,
        }
    }

    /// errno, if the driver or the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { source, .. } => source.raw_os_error(),
            Self::Refused { .. } => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::System { source, .. } => source,
            refused => io::Error::other(refused),
        }
    }
}

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;
