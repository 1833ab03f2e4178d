//! GICR registers: 64 KiB of the redistributor proper and 64 KiB for SGIs and PPIs, for each vCPU in turn
//! (Arm IHI 0069, 12.11). No LPIs, so the frames of GICv4 and the LPI tables do not exist.

use super::distributor::{IIDR, PIDR2, offset};
use super::{Gic, VcpuMask};

/// Bytes of one vCPU's two frames.
const STRIDE: u64 = 0x2_0000;
/// Where the SGI frame starts.
const SGI_FRAME: u64 = 0x1_0000;

const TYPER: u64 = 0x0008;
const TYPER_HIGH: u64 = 0x000c;
const IIDR_OFFSET: u64 = 0x0004;
const WAKER: u64 = 0x0014;
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

impl Gic {
    fn redistributor(&self, region_offset: u64) -> Option<(usize, u64)> {
        let vcpu = usize::try_from(region_offset / STRIDE).ok()?;
        (vcpu < self.vcpus()).then_some((vcpu, region_offset % STRIDE))
    }

    /// GICR_TYPER: affinity, processor number, whether it is the last one.
    fn redistributor_type(&self, vcpu: usize) -> u64 {
        let number = vcpu as u64;
        let last = u64::from(vcpu + 1 == self.vcpus());
        number << 32 | number << 8 | last << 4
    }

    /// Offset in the frame whose layout [`Gic::needs_evacuation`] knows, if `region_offset` is in an SGI frame.
    pub fn sgi_frame_offset(region_offset: u64) -> Option<u64> {
        (region_offset % STRIDE).checked_sub(SGI_FRAME)
    }

    /// Reads a GICR register; `region_offset` counts from the first vCPU's frames.
    pub fn read_redistributor(&self, region_offset: u64, width: u64) -> u64 {
        let Some((vcpu, offset)) = self.redistributor(region_offset) else {
            return 0;
        };
        if let Some(sgi) = offset.checked_sub(SGI_FRAME) {
            return match sgi {
                offset::BANKED..offset::BANKED_END => self.read_banked(vcpu, true, sgi, width),
                _ => 0,
            };
        }
        match (offset, width) {
            (IIDR_OFFSET, 4) => IIDR,
            (TYPER, 8) => self.redistributor_type(vcpu),
            (TYPER, 4) => self.redistributor_type(vcpu) & 0xffff_ffff,
            (TYPER_HIGH, 4) => self.redistributor_type(vcpu) >> 32,
            (WAKER, 4) if self.asleep >> vcpu & 1 != 0 => {
                WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP
            }
            (offset::PIDR2, 4) => PIDR2,
            _ => 0,
        }
    }

    /// Writes a GICR register; returns the vCPUs that must look again.
    pub fn write_redistributor(&mut self, region_offset: u64, width: u64, value: u64) -> VcpuMask {
        let Some((vcpu, offset)) = self.redistributor(region_offset) else {
            return 0;
        };
        if let Some(sgi) = offset.checked_sub(SGI_FRAME) {
            return match sgi {
                offset::BANKED..offset::BANKED_END => {
                    self.write_banked(vcpu, true, sgi, width, value)
                }
                _ => 0,
            };
        }
        if (offset, width) != (WAKER, 4) {
            return 0;
        }
        let bit: VcpuMask = 1 << vcpu;
        if value & WAKER_PROCESSOR_SLEEP != 0 {
            self.asleep |= bit;
        } else {
            self.asleep &= !bit;
        }
        bit
    }
}
