//! What the bare-metal guests share: the machine as its device tree describes it, PCI, the check of windows against
//! the hypervisor's word, a virtio transport for them, interrupts, a heap.
//! What each guest does is in `bin/`; entry, MMU, GIC and vCPU start are `porthole-runtime`'s.
#![no_std]

extern crate alloc;

pub mod args;
pub mod console;
pub mod devices;
mod heap;
pub mod hypercall;
pub mod interrupt;
pub mod machine;
pub mod pci;
pub mod raw;
pub mod transport;
pub mod window;

use porthole_runtime::{println, psci};

/// Prints why the guest gives up, and resets: whoever runs it sees that in its exit status.
pub fn fail(what: core::fmt::Arguments<'_>) -> ! {
    println!("FAILED: {what}");
    psci::system_reset()
}

/// Gives up with a formatted reason (see [`fail()`]).
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { $crate::fail(format_args!($($arg)*)) };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
