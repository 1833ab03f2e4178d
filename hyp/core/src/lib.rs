//! All policy of Porthole: ownership, stage 2, VMs, windows, hypercalls, PSCI, vGIC, measurement.
//! Safe code only, no register access: it builds and tests on any machine.
//! Hardware stands behind the traits of [`hw`]; `porthole-hyp` implements them with `arch`, `mem` and `dev`.
#![cfg_attr(not(any(test, feature = "fakes")), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod context;
pub mod gic_guard;
pub mod guest;
pub mod host;
pub mod hw;
pub mod hypervisor;
pub mod id_registers;
pub mod lock;
pub mod log_ring;
pub mod measure;
pub mod memory;
mod meta_pool;
pub mod regions;
mod run;
pub mod smccc;
pub mod stage2;
mod stats;
pub mod syndrome;
#[cfg(any(test, feature = "fakes"))]
pub mod testing;
pub mod tracker;
mod vcpu;
pub mod vgic;
pub mod vm;
pub mod window;
