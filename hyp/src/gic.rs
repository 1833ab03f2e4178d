//! The physical interrupt controller for core: which frames it has, and access to their registers.
//! What the host may do with them is decided in core; each CPU's own redistributor is `arch`'s.

use arrayvec::ArrayVec;
use porthole_abi::PAGE_SIZE;
use porthole_arch::cache;
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::gic_guard::{FRAME_BYTES, GicConfig, REDISTRIBUTORS_MAX};
use porthole_core::hw::Mmio;
use porthole_dev::devtree::{Gic, ITS_MAX};
use porthole_dev::gicv3;

use crate::fault::stop;
use crate::machine::Hardware;

/// What EL2 maps of the interrupt controller: registers of the distributor, redistributors, control frames of ITSs.
pub fn pages(gic: &Gic) -> impl Iterator<Item = PhysPages> {
    let its = gic.its.iter().map(|base| (*base, FRAME_BYTES));
    [(gic.distributor, PAGE_SIZE)]
        .into_iter()
        .chain(gic.redistributors.iter().copied())
        .chain(its)
        .filter_map(|(base, bytes)| PhysPages::new(base, bytes / PAGE_SIZE).ok())
}

/// The frames that the host reaches through core only.
pub struct Frames {
    redistributors: ArrayVec<PhysAddr, REDISTRIBUTORS_MAX>,
    its: ArrayVec<PhysAddr, ITS_MAX>,
    id_bits: u8,
}

impl Frames {
    /// For core.
    pub fn config(&self) -> GicConfig<'_> {
        GicConfig {
            redistributors: &self.redistributors,
            its: &self.its,
            id_bits: self.id_bits,
        }
    }
}

impl Hardware {
    /// Finds all redistributors, and each CPU's among them. EL2 maps what [`pages`] says.
    pub fn find_gic(&mut self, gic: &Gic) -> Frames {
        let mut frames = Frames {
            redistributors: ArrayVec::new(),
            its: gic.its.clone(),
            // SAFETY: the firmware's tree says that it is a distributor, and it is mapped.
            id_bits: unsafe { gicv3::id_bits(gic.distributor) },
        };
        for (base, bytes) in &gic.redistributors {
            // SAFETY: the firmware's tree says so, and they stay mapped.
            for found in unsafe { gicv3::redistributors(*base, *bytes, gic.stride) } {
                if frames.redistributors.try_push(found.base).is_err() {
                    stop(format_args!(
                        "cannot start: the interrupt controller has more than {REDISTRIBUTORS_MAX} redistributors"
                    ));
                }
                let mut cpus = self.cpus.iter().zip(&mut self.redistributors);
                if let Some((_, slot)) = cpus.find(|(cpu, _)| found.is_of(cpu.mpidr)) {
                    *slot = Some(found.base);
                }
            }
        }
        frames
    }
}

impl Mmio for Hardware {
    fn read32(&self, at: PhysAddr) -> u32 {
        // SAFETY: core names registers of the frames that it was given, which EL2 maps as device memory.
        unsafe { (at.raw() as *const u32).read_volatile() }
    }

    fn write32(&self, at: PhysAddr, value: u32) {
        // SAFETY: as above; what the device does with it is core's decision.
        unsafe { (at.raw() as *mut u32).write_volatile(value) }
    }

    fn read64(&self, at: PhysAddr) -> u64 {
        // SAFETY: as above.
        unsafe { (at.raw() as *const u64).read_volatile() }
    }

    fn write64(&self, at: PhysAddr, value: u64) {
        // SAFETY: as above.
        unsafe { (at.raw() as *mut u64).write_volatile(value) }
    }

    fn clean(&self, from: PhysAddr, bytes: u64) {
        cache::clean_invalidate(from, bytes);
    }
}
