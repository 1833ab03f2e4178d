//! PCI Express as the guest sees it: one bus, configuration space through ECAM, memory BARs, MSI-X.
//! What a function does behind its registers lives in `virtio`.

pub mod bus;
pub mod config;
pub mod msix;
