//! What a guest finds at its start: kernel, initrd, device tree.

pub mod fdt;
pub mod image;
pub mod plan;
