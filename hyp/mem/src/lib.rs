//! The only owner of raw memory at EL2: the page pool, scrubbing, table words, copies out of host RAM, values that
//! live in donated pages. Which page may be touched, and when, is decided in core; caches are `arch`'s.
#![cfg_attr(not(test), no_std)]

mod boxed;
mod ram;
mod region;

pub use boxed::PageBox;
pub use ram::{CacheMaintenance, Ram};
pub use region::{BootMemory, Carver};
