//! What a bare-metal EL1 program needs: entry as an arm64 Image, identity map, exceptions that a program
//! can expect, secondary CPUs, GICv3, timer, hypercalls, a console lock.
//! Shared by the hostile host (`hyp/tests`) and the guest payloads; it knows nothing of Porthole's policy.
#![no_std]

pub mod call;
pub mod console;
pub mod entry;
pub mod exception;
pub mod gic;
pub mod mmio;
pub mod mmu;
pub mod probe;
pub mod psci;
pub mod reg;
pub mod smp;
pub mod timer;
