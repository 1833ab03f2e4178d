//! What an SMMU can do (Arm IHI 0070, 6.3.1 to 6.3.6), and whether that is enough to confine the host's devices.
//! Whatever is missing has an error that says what to do; it never stops the boot.

use thiserror::Error;
use tock_registers::interfaces::Readable;

use super::bus::{Bus, Fault};
use super::registers::{Aidr, Idr0, Idr1, Idr3, Idr5, Registers};
use super::stream::{ENTRY_BYTES, SPLIT};

/// log2 of the largest linear table: 4 MiB.
const LINEAR_BITS_MAX: u32 = 16;
/// log2 of the most streams of a two-level table: a first level of 128 KiB.
const BITS_MAX: u32 = 20;

/// Shape of a stream table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One table of entries.
    Linear,
    /// A table of pointers to tables of 64 entries.
    TwoLevel,
}

/// Why an SMMU cannot confine the host's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// AIDR.ArchMajorRev.
    #[error("it has architecture revision {0}.{1}, and only SMMUv3 (0.x) is known")]
    Version(u32, u32),
    /// IDR0.S2P.
    #[error(
        "it has no stage 2 (IDR0.S2P is 0); with QEMU, use machine virt-9.2 or later without arm-smmuv3.stage=1"
    )]
    NoStageTwo,
    /// IDR0.TTF.
    #[error("it does not walk AArch64 tables (IDR0.TTF is {0})")]
    Tables(u32),
    /// IDR0.TTENDIAN.
    #[error("it walks big-endian tables only (IDR0.TTENDIAN is {0})")]
    BigEndian(u32),
    /// IDR0.COHACC.
    #[error("its table walks are not coherent (IDR0.COHACC is 0)")]
    NotCoherent,
    /// IDR0.STALL_MODEL.
    #[error("it stalls every fault (IDR0.STALL_MODEL is {0})")]
    Stalls(u32),
    /// IDR1.TABLES_PRESET, QUEUES_PRESET.
    #[error("its tables or queues stand at fixed places (IDR1 is {0:#x})")]
    Preset(u32),
    /// IDR5.GRAN4K.
    #[error("it has no 4 KiB granule (IDR5.GRAN4K is 0)")]
    Granule,
    /// IDR5.OAS.
    #[error(
        "it reaches {has} address bits (IDR5.OAS), and {needs} are needed; give the machine less memory"
    )]
    OutputSize {
        /// Bits that it has.
        has: u32,
        /// Bits that the host's map has.
        needs: u32,
    },
    /// IDR1.SIDSIZE.
    #[error(
        "it knows {has} bits of stream numbers (IDR1.SIDSIZE), and the device tree's iommu-map needs {needs}"
    )]
    StreamBits {
        /// Bits that it has.
        has: u32,
        /// Bits that the device tree needs.
        needs: u32,
    },
    /// The stream table would be larger than Porthole makes one.
    #[error(
        "its stream table would need {needs} bits of stream numbers, and {limit} are the most for its format"
    )]
    TableSize {
        /// Bits that the device tree needs.
        needs: u32,
        /// The most for the format that the SMMU has.
        limit: u32,
    },
    /// It does not work.
    #[error("{0}")]
    Broken(#[from] Fault),
}

/// What an SMMU can do, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Shape of the stream table that it gets.
    pub format: Format,
    /// Bits of stream numbers in use.
    pub bits: u32,
    /// IDR3.BBML, 0 to 2.
    pub bbml: u8,
    /// Invalidation by range.
    pub range: bool,
    /// IDR5.OAS, encoded as PARange is.
    pub oas: u32,
    pub(super) hyp: bool,
    pub(super) log2_commands: u32,
    pub(super) log2_events: u32,
}

/// Address bits of an encoding of OAS.
fn address_bits(oas: u32) -> u32 {
    [32, 36, 40, 42, 44, 48, 52]
        .get(oas as usize)
        .copied()
        .unwrap_or(32)
}

impl Abilities {
    /// Asks an SMMU. `last_stream` is the highest stream number in use, `address_bits` the size of the host's map.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn probe<B: Bus>(bus: &B, last_stream: u32, needed_bits: u32) -> Result<Self, Unfit> {
        let registers = Registers(bus);
        let aidr = registers.aidr().extract();
        if aidr.read(Aidr::MAJOR) != 0 {
            return Err(Unfit::Version(
                aidr.read(Aidr::MAJOR),
                aidr.read(Aidr::MINOR),
            ));
        }
        let idr0 = registers.idr0().extract();
        if !idr0.is_set(Idr0::S2P) {
            return Err(Unfit::NoStageTwo);
        }
        if idr0.read(Idr0::TTF) & 2 == 0 {
            return Err(Unfit::Tables(idr0.read(Idr0::TTF)));
        }
        if idr0.matches_all(Idr0::TTENDIAN::Big) {
            return Err(Unfit::BigEndian(idr0.read(Idr0::TTENDIAN)));
        }
        if !idr0.is_set(Idr0::COHACC) {
            return Err(Unfit::NotCoherent);
        }
        if idr0.matches_all(Idr0::STALL_MODEL::Forced) {
            return Err(Unfit::Stalls(idr0.read(Idr0::STALL_MODEL)));
        }
        let idr1 = registers.idr1().extract();
        if idr1.is_set(Idr1::TABLES_PRESET) || idr1.is_set(Idr1::QUEUES_PRESET) {
            return Err(Unfit::Preset(idr1.get()));
        }
        let idr5 = registers.idr5().extract();
        if !idr5.is_set(Idr5::GRAN4K) {
            return Err(Unfit::Granule);
        }
        let oas = idr5.read(Idr5::OAS);
        if address_bits(oas) < needed_bits {
            return Err(Unfit::OutputSize {
                has: address_bits(oas),
                needs: needed_bits,
            });
        }
        let needs = u32::BITS - last_stream.leading_zeros();
        let has = idr1.read(Idr1::SIDSIZE);
        if needs > has {
            return Err(Unfit::StreamBits { has, needs });
        }
        let two_level = idr0.matches_all(Idr0::ST_LEVEL::TwoLevel);
        let format = if two_level && needs > SPLIT {
            Format::TwoLevel
        } else {
            Format::Linear
        };
        let limit = if two_level { BITS_MAX } else { LINEAR_BITS_MAX };
        if needs > limit {
            return Err(Unfit::TableSize { needs, limit });
        }
        let idr3 = registers.idr3().extract();
        Ok(Self {
            format,
            bits: needs,
            bbml: idr3.read(Idr3::BBML) as u8,
            range: idr3.is_set(Idr3::RIL),
            oas,
            hyp: idr0.is_set(Idr0::HYP),
            log2_commands: idr1.read(Idr1::CMDQS),
            log2_events: idr1.read(Idr1::EVENTQS),
        })
    }

    /// Bytes of the table (linear) or its first level; a power of two, and its alignment.
    pub(super) fn table_bytes(&self) -> u64 {
        match self.format {
            Format::Linear => ENTRY_BYTES << self.bits,
            Format::TwoLevel => 8 << (self.bits - SPLIT),
        }
    }
}
