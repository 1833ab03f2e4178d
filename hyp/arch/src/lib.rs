//! The only user of system registers and of assembly: boot entry, exception vectors, EL2's own stage 1,
//! TLB and cache maintenance, firmware calls, host EL1 state, and the guest world switch.
//! No policy lives here; `porthole-core` decides, `porthole-hyp` ties the two together.
#![no_std]

mod sysreg;

pub mod boot;
pub mod cache;
pub mod exceptions;
pub mod firmware;
pub mod guest;
pub mod host;
pub mod idregs;
pub mod percpu;
pub mod stage1;
pub mod time;
pub mod tlb;
