//! Devices that EL2 drives itself (PL011, SMMUv3, the GICv3's own interrupts), those that it only looks at (virtio, PCI),
//! the device tree in which it finds them, and the command line. What the host may reach of a device is decided in core.
#![cfg_attr(not(test), no_std)]

pub mod devtree;
pub mod gicv3;
pub mod options;
pub mod pci;
pub mod pl011;
pub mod smmuv3;
pub mod virtio_mmio;
