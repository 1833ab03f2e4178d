//! The one question that EL2 asks of a virtio-mmio transport (virtio 1.2, 4.2.2): is there a device behind it?
//! Such a device is a DMA master that no SMMU stands in front of.

use core::ptr::NonNull;

use porthole_core::addr::PhysAddr;
use tock_registers::interfaces::Readable;
use tock_registers::register_structs;
use tock_registers::registers::ReadOnly;

register_structs! {
    Registers {
        (0x000 => magic: ReadOnly<u32>),
        (0x004 => _version: ReadOnly<u32>),
        (0x008 => device_id: ReadOnly<u32>),
        (0x00c => @END),
    }
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;

/// DeviceID of the transport at `base`, 0 where there is no device. What is no transport at all counts as one
/// with an unknown device.
///
/// # Safety
/// The device tree says that a transport is at `base`, and EL2 reaches it as device memory.
pub unsafe fn device_id(base: PhysAddr) -> u32 {
    let Some(registers) = NonNull::new(base.raw() as *mut Registers) else {
        return u32::MAX;
    };
    // SAFETY: the caller's promise.
    let registers = unsafe { registers.as_ref() };
    if registers.magic.get() == MAGIC {
        registers.device_id.get()
    } else {
        u32::MAX
    }
}
