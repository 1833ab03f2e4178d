//! The device tree: what the firmware says about the machine (`read`, `masters`), and the edited copy for the host
//! (`host`).
//! The firmware is trusted, so the `fdt` crate may read its blob; nothing that host or guest wrote comes here.

mod check;
mod gic;
mod host;
mod masters;
mod pci;
mod read;
#[cfg(test)]
mod tests;
mod writer;

pub use gic::{Gic, ITS_MAX, REGIONS_MAX};
pub use host::{HostTree, write_host_tree};
pub use masters::{HIDDEN_MAX, Masters, SmmuNode, Why};
pub use pci::{ROOTS_MAX, Root};
pub use read::{CPUS_MAX, Module, RAM_MAX, Tree, TreeError};
pub use writer::WriteError;
