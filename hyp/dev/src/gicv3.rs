//! Finds each CPU's redistributor of a GICv3 (Arm IHI 0069, 12.10). What EL2 does with it, and the CPU interface, are
//! `arch`'s; everything else of the interrupt controller is the host's.

use core::ptr::NonNull;

use porthole_core::addr::PhysAddr;
use tock_registers::interfaces::Readable;
use tock_registers::registers::ReadOnly;
use tock_registers::{register_bitfields, register_structs};

register_bitfields![u64,
    Typer [
        /// Aff3 to Aff0 of the CPU that it belongs to.
        AFFINITY OFFSET(32) NUMBITS(32) [],
        /// The last one of its region.
        LAST OFFSET(4) NUMBITS(1) [],
        /// It has the two further frames of GICv4.
        VLPIS OFFSET(1) NUMBITS(1) [],
    ]
];

register_structs! {
    #[allow(non_snake_case)]
    Frames {
        (0x00000 => _reserved0),
        (0x00008 => typer: ReadOnly<u64, Typer::Register>),
        (0x00010 => @END),
    }
}

/// Bytes of a redistributor: RD_base and SGI_base.
const STRIDE: u64 = 0x2_0000;

/// RD_base of the CPU with this affinity (as in MPIDR_EL1), in a region of redistributors; `None` if it is not there.
///
/// # Safety
/// The region is one of redistributors, and EL2 reaches it as device memory.
pub unsafe fn find_redistributor(base: PhysAddr, bytes: u64, affinity: u64) -> Option<NonNull<u8>> {
    let wanted = (affinity >> 32 & 0xff) << 24 | affinity & 0xff_ffff;
    let mut offset = 0u64;
    while offset.checked_add(STRIDE).is_some_and(|end| end <= bytes) {
        let frames = NonNull::new(base.checked_add(offset)?.raw() as *mut Frames)?;
        // SAFETY: inside the region, by the caller's promise a redistributor.
        let typer = unsafe { frames.as_ref() }.typer.extract();
        if typer.read(Typer::AFFINITY) == wanted {
            return Some(frames.cast());
        }
        if typer.is_set(Typer::LAST) {
            return None;
        }
        offset += if typer.is_set(Typer::VLPIS) {
            2 * STRIDE
        } else {
            STRIDE
        };
    }
    None
}
