//! The EL2 image: boot, traps, console, and the machine that core runs on, put together from `arch`, `mem` and `dev`.
//! Policy stands in `porthole-core`; this crate only carries registers there and back.
#![no_std]
#![no_main]

mod boot;
mod console;
mod cpu;
mod dma;
mod fault;
mod gic;
mod layout;
mod machine;
mod traps;

use machine::Hardware;
use porthole_core::hypervisor::Hypervisor;
use porthole_core::vm::Slots;
use porthole_dev::smmuv3::{Mmio, Smmus};
use spin::Once;

/// Porthole, from the moment before the host starts.
static HYPERVISOR: Once<Hypervisor<Hardware>> = Once::new();
/// SMMUs of the machine, none before they are taken over.
static SMMUS: Once<Smmus<Mmio>> = Once::new();
/// Its VMs.
static SLOTS: Slots<Hardware> = Slots::new();
