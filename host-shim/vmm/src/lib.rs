//! The VMM of Porthole as a library: what `porthole run` builds a guest's machine from, and the other commands.
//! It talks to the driver through `porthole-uapi` and never sees guest memory beyond the devices' windows.
#![forbid(unsafe_code)]

pub mod backing;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod command;
pub mod control;
pub mod device;
pub mod devices;
pub mod end;
pub mod layout;
pub mod machine;
pub mod models;
pub mod pci;
pub mod seccomp;
pub mod unix;
pub mod vcpu;
pub mod virtio;
