//! The launch measurement: SHA-256 over what a VM is made of, in an encoding that has one reading.
//! What counts as content is decided by the calls that donate it; this file hashes and nothing else.
//!
//! The hash is over records, all numbers little-endian:
//! - one of `CONFIG`: tag u32, ABI version u32, flags u64, DMA policy u64, vCPUs u32, SPIs u32, MSI base u32,
//!   MSI count u32, regions u32, then for each region base u64, size u64, kind u32;
//! - one of `PAGE` for each measured page, in the order of donation: tag u32, IPA u64, its 4096 bytes;
//! - one of `ENTRY`: tag u32, entry u64, x0 of the boot vCPU u64.
//!
//! Each record's length follows from its tag (and `CONFIG`'s count of regions), so that no two launches
//! have the same bytes. Lowest tag bits spell the order; a launch without `ENTRY` has no measurement.

use porthole_abi::{Error, Features, VmConfig};
use sha2::{Digest, Sha256};

use crate::addr::Ipa;
use crate::regions::Regions;

/// A SHA-256 value.
pub type Measurement = [u8; 32];

const CONFIG: u32 = 0x5048_0001;
const PAGE: u32 = 0x5048_0002;
const ENTRY: u32 = 0x5048_0003;

/// Features that are policy: whether DMA can reach the guest.
const POLICY: Features = Features::DMA_ISOLATED.union(Features::UNSAFE_DMA);

/// The measurement of one VM, open until it is finalized.
#[derive(Clone, Debug)]
pub(crate) enum Launch {
    Open(Sha256),
    Closed(Measurement),
}

impl Launch {
    /// Starts with the configuration, which was checked.
    pub(crate) fn new(config: &VmConfig, regions: &Regions, features: Features) -> Self {
        let mut hash = Sha256::new();
        hash.update(CONFIG.to_le_bytes());
        hash.update(config.version.to_le_bytes());
        hash.update(config.flags.to_le_bytes());
        hash.update((features & POLICY).bits().to_le_bytes());
        for word in [
            config.vcpus,
            config.spi_count,
            config.msi_base,
            config.msi_count,
            config.region_count,
        ] {
            hash.update(word.to_le_bytes());
        }
        for region in regions.iter() {
            hash.update(region.pages.start().raw().to_le_bytes());
            hash.update(region.pages.bytes().to_le_bytes());
            hash.update((region.kind as u32).to_le_bytes());
        }
        Self::Open(hash)
    }

    /// The running hash, to be put back with [`Launch::commit`] when the pages went in.
    ///
    /// # Errors
    /// `BadState` once closed.
    pub(crate) fn open(&self) -> Result<Sha256, Error> {
        match self {
            Self::Open(hash) => Ok(hash.clone()),
            Self::Closed(_) => Err(Error::BadState),
        }
    }

    /// Adds one page.
    pub(crate) fn page(hash: &mut Sha256, ipa: Ipa, content: &[u8]) {
        hash.update(PAGE.to_le_bytes());
        hash.update(ipa.raw().to_le_bytes());
        hash.update(content);
    }

    /// Keeps what was added.
    pub(crate) fn commit(&mut self, hash: Sha256) {
        *self = Self::Open(hash);
    }

    /// Closes it.
    ///
    /// # Errors
    /// `BadState` if it was closed before.
    pub(crate) fn close(&mut self, entry: Ipa, x0: u64) -> Result<(), Error> {
        let mut hash = self.open()?;
        hash.update(ENTRY.to_le_bytes());
        hash.update(entry.raw().to_le_bytes());
        hash.update(x0.to_le_bytes());
        *self = Self::Closed(hash.finalize().into());
        Ok(())
    }

    /// The measurement as four registers, bytes in memory order, each register little-endian.
    ///
    /// # Errors
    /// `BadState` while it is open.
    pub(crate) fn registers(&self) -> Result<[u64; 4], Error> {
        let Self::Closed(digest) = self else {
            return Err(Error::BadState);
        };
        let mut registers = [0; 4];
        for (register, bytes) in registers.iter_mut().zip(digest.as_chunks::<8>().0) {
            *register = u64::from_le_bytes(*bytes);
        }
        Ok(registers)
    }
}
