//! GICD registers, and those bit, priority and configuration registers that GICR has too (Arm IHI 0069, 12.9).
//! One security state (DS), affinity routing always on, no LPI. An access of a width or at an offset that
//! the architecture does not have reads as zero and is ignored.

use porthole_abi::{SPI_BASE, VCPUS_MAX};

use super::{BANKS, Bits, CTLR_ENABLE, Gic, PRIORITY_MASK, Place, VcpuMask};

/// GICD_IIDR, GICR_IIDR and MSI_IIDR: product 'P', implementer Arm.
pub const IIDR: u64 = 0x5000_043b;
/// PIDR2 of either frame: architecture revision 3.
pub(super) const PIDR2: u64 = 0x30;

const CTLR_ARE: u32 = 1 << 4;
const CTLR_DS: u32 = 1 << 6;
/// GICD_TYPER: 10 bits of INTID, no 1-of-N.
const TYPER_FIXED: u64 = 9 << 19 | 1 << 25;

/// Offsets in a frame.
pub(super) mod offset {
    pub const CTLR: u64 = 0x0000;
    pub const TYPER: u64 = 0x0004;
    pub const IIDR: u64 = 0x0008;
    pub const IROUTER: u64 = 0x6000;
    pub const IROUTER_END: u64 = 0x8000;
    pub const PIDR2: u64 = 0xffe8;
    /// First and last register that both frames have: IGROUPR to ICFGR.
    pub const BANKED: u64 = 0x0080;
    pub const BANKED_END: u64 = 0x0d00;
}

/// A register of a bank, by its place in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Group,
    Enable {
        set: bool,
    },
    Pending {
        set: bool,
    },
    Active {
        set: bool,
    },
    /// Byte of the first priority in the bank.
    Priority(usize),
    /// Half of the bank.
    Config(u32),
}

/// Which register lies at an offset, and of which bank.
fn locate(offset: u64) -> Option<(Register, usize)> {
    let bank = (offset as usize & 0x7f) / 4;
    let register = match offset {
        0x080..0x100 => Register::Group,
        0x100..0x180 => Register::Enable { set: true },
        0x180..0x200 => Register::Enable { set: false },
        0x200..0x280 => Register::Pending { set: true },
        0x280..0x300 => Register::Pending { set: false },
        0x300..0x380 => Register::Active { set: true },
        0x380..0x400 => Register::Active { set: false },
        0x400..0x800 => {
            let byte = offset as usize - 0x400;
            return Some((Register::Priority(byte % 32), byte / 32));
        }
        0xc00..0xd00 => {
            let word = (offset as usize - 0xc00) / 4;
            return Some((Register::Config(word as u32 % 2), word / 2));
        }
        _ => return None,
    };
    Some((register, bank))
}

impl Gic {
    /// Whether an access at this offset of either frame needs the list registers in the banks first: it reads
    /// or changes what they hold.
    pub fn needs_evacuation(offset: u64) -> bool {
        (0x200..0x400).contains(&offset)
    }

    /// Reads a GICD register, for the vCPU that reads it.
    pub fn read_distributor(&self, offset: u64, width: u64) -> u64 {
        match (offset, width) {
            (offset::CTLR, 4) => u64::from(self.ctlr | CTLR_ARE | CTLR_DS),
            (offset::TYPER, 4) => TYPER_FIXED | u64::from(self.config.spis.div_ceil(32)),
            (offset::IIDR, 4) => IIDR,
            (offset::PIDR2, 4) => PIDR2,
            (offset::BANKED..offset::BANKED_END, _) => self.read_banked(0, false, offset, width),
            (offset::IROUTER..offset::IROUTER_END, _) => self.read_router(offset, width),
            _ => 0,
        }
    }

    /// Writes a GICD register; returns the vCPUs that must look again.
    pub fn write_distributor(&mut self, offset: u64, width: u64, value: u64) -> VcpuMask {
        match (offset, width) {
            (offset::CTLR, 4) => {
                let changed = self.ctlr ^ (value as u32 & CTLR_ENABLE);
                self.ctlr ^= changed;
                if changed != 0 {
                    ((1u32 << self.vcpus()) - 1) as VcpuMask
                } else {
                    0
                }
            }
            (offset::BANKED..offset::BANKED_END, _) => {
                self.write_banked(0, false, offset, width, value)
            }
            (offset::IROUTER..offset::IROUTER_END, _) => self.write_router(offset, width, value),
            _ => 0,
        }
    }

    /// Reads a register of a bank. `private` selects bank 0 of `vcpu`, which only its redistributor shows.
    pub(super) fn read_banked(&self, vcpu: usize, private: bool, offset: u64, width: u64) -> u64 {
        let Some((register, bank)) = self.banked(private, offset, width) else {
            return 0;
        };
        let Some(state) = self.bank(vcpu, bank) else {
            return 0;
        };
        let exist = self.implemented(bank);
        let bits = match register {
            Register::Group => state.group,
            Register::Enable { .. } => state.enabled,
            Register::Pending { .. } => {
                // What another vCPU has in a list register was pending when it went there.
                self.viewers(vcpu, bank)
                    .fold(state.pending(), |bits, v| bits | self.held[v].offered[bank])
            }
            Register::Active { .. } => self.active(vcpu, bank),
            Register::Priority(first) => {
                return state
                    .priority
                    .iter()
                    .skip(first)
                    .take(width as usize)
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
            Register::Config(half) => {
                let edge = (state.edge & exist) >> (16 * half);
                return Bits(edge & 0xffff).fold(0, |word, index| word | 2 << (2 * index));
            }
        };
        u64::from(bits & exist)
    }

    pub(super) fn write_banked(
        &mut self,
        vcpu: usize,
        private: bool,
        offset: u64,
        width: u64,
        value: u64,
    ) -> VcpuMask {
        let Some((register, bank)) = self.banked(private, offset, width) else {
            return 0;
        };
        let exist = self.implemented(bank);
        let mut bits = value as u32 & exist;
        let Some(state) = self.bank_mut(vcpu, bank) else {
            return 0;
        };
        match register {
            Register::Group => {
                let changed = (state.group & exist) ^ bits;
                state.group ^= changed;
                bits = changed;
            }
            Register::Enable { set: true } => {
                bits &= !state.enabled;
                state.enabled |= bits;
            }
            Register::Enable { set: false } => {
                bits &= state.enabled;
                state.enabled &= !bits;
            }
            Register::Pending { set: true } => state.latch |= bits,
            Register::Pending { set: false } => {
                state.latch &= !bits;
                // What another vCPU has in a list register does not come back from there.
                for viewer in self.viewers(vcpu, bank) {
                    self.held[viewer].offered[bank] &= !bits;
                }
            }
            Register::Active { set } => self.write_active(vcpu, bank, bits, set),
            Register::Priority(first) => {
                bits = 0;
                for byte in 0..width as usize {
                    let index = first + byte;
                    if exist >> index & 1 != 0
                        && let Some(priority) = state.priority.get_mut(index)
                    {
                        *priority = (value >> (8 * byte)) as u8 & PRIORITY_MASK;
                        bits |= 1 << index;
                    }
                }
            }
            Register::Config(half) => {
                if bank == 0 {
                    // SGIs are edges and the PPIs' lines are levels, by construction.
                    return 0;
                }
                bits = 0xffffu32.wrapping_shl(16 * half) & exist;
                let edge = (0..16)
                    .filter(|index| value >> (2 * index + 1) & 1 != 0)
                    .fold(0u32, |edge, index| edge | 1 << (index + 16 * half));
                state.edge = state.edge & !bits | edge & bits;
            }
        }
        self.affected(vcpu, bank, bits)
    }

    /// The register and bank of an access, if the frame has it.
    fn banked(&self, private: bool, offset: u64, width: u64) -> Option<(Register, usize)> {
        let (register, bank) = locate(offset)?;
        let byte = matches!(register, Register::Priority(_)) && width == 1;
        let word = width == 4 && offset.is_multiple_of(4);
        ((byte || word) && (bank == 0) == private && bank < BANKS).then_some((register, bank))
    }

    fn write_active(&mut self, vcpu: usize, bank: usize, bits: u32, set: bool) {
        for viewer in self.viewers(vcpu, bank) {
            let elsewhere = self.held_elsewhere(viewer, bank);
            let held = &mut self.held[viewer];
            if !set {
                held.active[bank] &= !bits;
            } else {
                // Only where it is routed, and only when nobody has it.
                held.active[bank] |= bits & held.routed[bank] & !elsewhere;
            }
        }
    }

    /// INTID of an IROUTER offset, if it is a declared SPI.
    fn router(&self, offset: u64) -> Option<Place> {
        let intid = (offset - offset::IROUTER) / 8;
        self.declared_spi(intid)
    }

    fn read_router(&self, offset: u64, width: u64) -> u64 {
        let Some(place) = self.router(offset) else {
            return 0;
        };
        let number = (place.bank - 1) * 32 + place.index;
        let value = self.router.get(number).copied().unwrap_or(0);
        match (width, offset % 8) {
            (8 | 4, 0) => u64::from(value),
            _ => 0,
        }
    }

    fn write_router(&mut self, offset: u64, width: u64, value: u64) -> VcpuMask {
        let Some(place) = self.router(offset) else {
            return 0;
        };
        if !matches!((width, offset % 8), (8 | 4, 0)) {
            return 0;
        }
        let affinity = value as u32 & 0x00ff_ffff;
        let number = (place.bank - 1) * 32 + place.index;
        if let Some(router) = self.router.get_mut(number) {
            *router = affinity;
        }
        let before = self.affected(0, place.bank, place.bit);
        for vcpu in 0..VCPUS_MAX {
            let routed = &mut self.held[vcpu].routed[place.bank];
            if affinity as usize == vcpu && vcpu < self.config.vcpus {
                *routed |= place.bit;
            } else {
                *routed &= !place.bit;
            }
        }
        before | self.affected(0, place.bank, place.bit)
    }

    /// Reads a register of the GICv2m frame.
    pub fn read_message_frame(&self, offset: u64, width: u64) -> u64 {
        match (offset, width) {
            (0x008, 4) => {
                u64::from(self.config.msi_base & 0x3ff) << 16
                    | u64::from(self.config.msi_count & 0x3ff)
            }
            (0xfcc, 4) => IIDR,
            _ => 0,
        }
    }

    /// Writes a register of the GICv2m frame: MSI_SETSPI_NS.
    pub fn write_message_frame(&mut self, offset: u64, width: u64, value: u64) -> VcpuMask {
        match (offset, width) {
            (0x040, 2 | 4) => self.message(value as u32 & 0x3ff),
            _ => 0,
        }
    }
}

const _: () = assert!(SPI_BASE == 32);
