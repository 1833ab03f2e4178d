//! Finds the redistributors of a GICv3 (Arm IHI 0069, 12.10) and reads what core must know of the distributor.
//! What EL2 does with its own CPU's redistributor, and the CPU interface, are `arch`'s; which accesses the host may
//! make to the frames is decided in core.

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

register_bitfields![u32,
    DistributorTyper [
        /// Bits of an INTID, less one.
        ID_BITS OFFSET(19) NUMBITS(5) [],
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

register_structs! {
    #[allow(non_snake_case)]
    Distributor {
        (0x0000 => _reserved0),
        (0x0004 => typer: ReadOnly<u32, DistributorTyper::Register>),
        (0x0008 => @END),
    }
}

/// Bytes of a redistributor: RD_base and SGI_base.
const STRIDE: u64 = 0x2_0000;

/// A redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redistributor {
    /// RD_base.
    pub base: PhysAddr,
    /// Affinity of its CPU: Aff3 in 31:24, Aff2 to Aff0 in 23:0.
    pub affinity: u32,
}

impl Redistributor {
    /// Whether it is the one of the CPU with this affinity, as in MPIDR_EL1.
    pub fn is_of(&self, mpidr: u64) -> bool {
        u64::from(self.affinity) == (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff
    }
}

/// All redistributors of a region, in order; `stride` as the device tree has it.
///
/// # Safety
/// The region is one of redistributors, and EL2 reaches it as device memory as long as the iterator is used.
pub unsafe fn redistributors(
    base: PhysAddr,
    bytes: u64,
    stride: Option<u64>,
) -> impl Iterator<Item = Redistributor> {
    let mut offset = Some(0u64);
    core::iter::from_fn(move || {
        let at = offset.take()?;
        if at.checked_add(STRIDE).is_none_or(|end| end > bytes) {
            return None;
        }
        let base = base.checked_add(at)?;
        // SAFETY: inside the region, by the caller's promise a redistributor.
        let typer = unsafe { &*(base.raw() as *const Frames) }.typer.extract();
        if !typer.is_set(Typer::LAST) {
            let own = if typer.is_set(Typer::VLPIS) {
                2 * STRIDE
            } else {
                STRIDE
            };
            offset = at.checked_add(stride.filter(|s| *s >= own).unwrap_or(own));
        }
        Some(Redistributor {
            base,
            affinity: typer.read(Typer::AFFINITY) as u32,
        })
    })
}

/// GICD_TYPER.IDbits: INTIDs have one bit more.
///
/// # Safety
/// A distributor is there, and EL2 reaches its first page as device memory.
pub unsafe fn id_bits(distributor: PhysAddr) -> u8 {
    // SAFETY: the caller's promise.
    let frame = unsafe { &*(distributor.raw() as *const Distributor) };
    frame.typer.read(DistributorTyper::ID_BITS) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers of a test, at an address that the code takes for theirs.
    fn region(redistributors: &[(usize, u64)]) -> (&'static [u64], PhysAddr) {
        let words = Box::leak(vec![0u64; 0x20_0000 / 8].into_boxed_slice());
        for (at, typer) in redistributors {
            words[(at + 8) / 8] = *typer;
        }
        let base = PhysAddr::new(words.as_ptr() as u64);
        (words, base)
    }

    fn found(base: PhysAddr, bytes: u64, stride: Option<u64>) -> Vec<(u64, u32)> {
        // SAFETY: memory of this test that reads as redistributors.
        unsafe { redistributors(base, bytes, stride) }
            .map(|r| (r.base.raw() - base.raw(), r.affinity))
            .collect()
    }

    #[test]
    fn redistributors_follow_each_other_up_to_the_last() {
        let (_, base) = region(&[
            (0, 7 << 32),
            (0x2_0000, 8 << 32 | 1 << 4),
            (0x4_0000, 9 << 32),
        ]);
        assert_eq!(found(base, 0x10_0000, None), [(0, 7), (0x2_0000, 8)]);
        assert_eq!(found(base, 0x3_ffff, None), [(0, 7)]);
        assert_eq!(found(base, 0x1_ffff, None), []);
    }

    #[test]
    fn the_frames_of_a_gicv4_and_the_trees_stride_are_stepped_over() {
        let (_, base) = region(&[
            (0, 2),
            (0x4_0000, 5 << 32 | 2),
            (0x8_0000, 6 << 32 | 1 << 4),
        ]);
        let all = [(0, 0), (0x4_0000, 5), (0x8_0000, 6)];
        assert_eq!(found(base, 0x10_0000, None), all);
        // A stride that would let frames overlap is none.
        assert_eq!(found(base, 0x10_0000, Some(0x2_0000)), all);
        let (_, base) = region(&[(0, 0), (0x8_0000, 3 << 32 | 1 << 4)]);
        assert_eq!(
            found(base, 0x10_0000, Some(0x8_0000)),
            [(0, 0), (0x8_0000, 3)]
        );
    }

    #[test]
    fn a_cpu_is_known_by_all_four_fields_of_its_affinity() {
        let redistributor = Redistributor {
            base: PhysAddr::new(0),
            affinity: 0x0102_0304,
        };
        assert!(redistributor.is_of(0x01_8002_0304));
        assert!(!redistributor.is_of(0x0102_0304));
    }

    #[test]
    fn the_distributor_tells_the_width_of_intids() {
        let (_, base) = region(&[]);
        // SAFETY: memory of this test, exclusively its own.
        unsafe { *(base.raw() as *mut u64) = (15 << 19 | 0x7ff) << 32 };
        // SAFETY: it reads as a distributor.
        assert_eq!(unsafe { id_bits(base) }, 15);
    }
}
