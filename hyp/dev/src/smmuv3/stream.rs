//! The stream table (Arm IHI 0070, 5.2), linear or of two levels, and what a stream may be: aborted, or behind a stage 2.
//! The order of writes makes every step safe against an SMMU that reads meanwhile; invalidations are ordered by the caller.

use porthole_abi::PAGE_SIZE;
use porthole_core::addr::PhysAddr;

use super::bus::Bus;
use super::probe::Format;

/// log2 of the entries of a table of the second level: 64 entries of 64 bytes, a page.
pub(super) const SPLIT: u32 = 6;
/// 64-bit words of an entry.
const WORDS: u64 = 8;
/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = 64;
const ENTRIES: u64 = 1 << SPLIT;

/// Word 0: V, and Config in bits 3:1.
const VALID: u64 = 1;
const CONFIG_ABORT: u64 = 0b000 << 1;
const CONFIG_STAGE_2: u64 = 0b110 << 1;
/// Word 1: SHCFG, use the incoming attribute. EATS stays 0: no ATS.
const SHCFG_INCOMING: u64 = 0b01 << 44;
/// Word 2: VTCR_EL2\[18:0\] has the layout of S2T0SZ to S2PS.
const S2_VTCR_SHIFT: u32 = 32;
const S2_VTCR: u64 = (1 << 19) - 1;
const S2PS_SHIFT: u32 = 48;
const S2PS: u64 = 0b111 << S2PS_SHIFT;
/// S2AA64, S2AFFD (no access-flag faults), S2R (record faults). S2S stays 0: faults end the transaction.
const S2_FIXED: u64 = 1 << 51 | 1 << 53 | 1 << 58;
/// Descriptor of the first level: Span of a whole second-level table.
const SPAN: u64 = SPLIT as u64 + 1;
const POINTER: u64 = 0x000f_ffff_ffff_ffc0;

/// A stage 2 as a stream uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageTwo {
    /// Root table.
    pub root: PhysAddr,
    /// Tags its translations.
    pub vmid: u16,
    /// VTCR_EL2 of these tables.
    pub vtcr: u64,
}

/// Words 0 to 3 of an entry; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry([u64; 4]);

impl Entry {
    /// An entry that ends every transaction, without a record.
    const ABORT: u64 = VALID | CONFIG_ABORT;

    /// A stream behind a stage 2. `oas` is IDR5.OAS: the size of output addresses is at most this.
    pub(super) fn stage_two(stage2: &StageTwo, oas: u32) -> Self {
        let control = (stage2.vtcr & S2_VTCR) << S2_VTCR_SHIFT;
        let size = ((control & S2PS) >> S2PS_SHIFT).min(oas.into()) << S2PS_SHIFT;
        Self([
            VALID | CONFIG_STAGE_2,
            SHCFG_INCOMING,
            u64::from(stage2.vmid) | control & !S2PS | size | S2_FIXED,
            stage2.root.raw(),
        ])
    }

    fn write_all<B: Bus>(self, bus: &B, at: PhysAddr) {
        for word in (0..WORDS).rev() {
            let value = self.0.get(word as usize).copied().unwrap_or(0);
            bus.store(word_of(at, word), value);
        }
    }
}

fn word_of(entry: PhysAddr, word: u64) -> PhysAddr {
    PhysAddr::new(entry.raw() + word * 8)
}

/// The table of one SMMU. Whoever has it by `&mut` is the only one to write it.
///
/// Invariant: an entry is zero (not valid), or [`Entry::ABORT`] while it changes, or behind a stage 2; none bypasses.
#[derive(Debug)]
pub(super) struct StreamTable {
    base: PhysAddr,
    format: Format,
    /// log2 of the streams that it covers.
    bits: u32,
    /// The second-level table that all plain groups share, all [`Self::host`].
    shared: PhysAddr,
    host: Entry,
}

/// Why a stream cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The stream is not one of this SMMU's.
    NoStream,
    /// No page for a second-level table.
    NoPage,
}

impl StreamTable {
    /// A table at `base`, whose memory is zero; `shared` is a page that all 64 entries of are written here.
    pub(super) fn new<B: Bus>(
        bus: &B,
        base: PhysAddr,
        (format, bits): (Format, u32),
        shared: PhysAddr,
        host: Entry,
    ) -> Self {
        if format == Format::TwoLevel {
            for index in 0..ENTRIES {
                host.write_all(bus, PhysAddr::new(shared.raw() + index * ENTRY_BYTES));
            }
        }
        Self {
            base,
            format,
            bits,
            shared,
            host,
        }
    }

    /// Value of STRTAB_BASE: address, read-allocate hint (bit 62).
    pub(super) fn base_register(&self) -> u64 {
        1 << 62 | self.base.raw()
    }

    fn descriptor(&self, stream: u32) -> PhysAddr {
        PhysAddr::new(self.base.raw() + u64::from(stream >> SPLIT) * 8)
    }

    /// Where a stream's entry stands; `None` where no table leads to one.
    fn entry<B: Bus>(&self, bus: &B, stream: u32) -> Option<PhysAddr> {
        if u64::from(stream) >> self.bits != 0 {
            return None;
        }
        let (table, index) = match self.format {
            Format::Linear => (self.base.raw(), stream.into()),
            Format::TwoLevel => {
                let descriptor = bus.load(self.descriptor(stream));
                if descriptor == 0 {
                    return None;
                }
                (descriptor & POINTER, u64::from(stream) % ENTRIES)
            }
        };
        Some(PhysAddr::new(table + index * ENTRY_BYTES))
    }

    /// Puts `count` streams behind the host's map, before the SMMU is on. `page` gives zeroed pages for second-level
    /// tables of groups that are not covered whole.
    pub(super) fn add_host<B: Bus>(
        &mut self,
        bus: &B,
        first: u32,
        count: u32,
        mut page: impl FnMut() -> Option<PhysAddr>,
    ) -> Result<(), StreamError> {
        let mut at = u64::from(first);
        let end = at + u64::from(count);
        if end > 1 << self.bits {
            return Err(StreamError::NoStream);
        }
        while at < end {
            let stream = at as u32;
            let group_end = (at / ENTRIES + 1) * ENTRIES;
            if self.format == Format::TwoLevel && bus.load(self.descriptor(stream)) == 0 {
                let whole = at.is_multiple_of(ENTRIES) && group_end <= end;
                let table = if whole {
                    self.shared
                } else {
                    page().ok_or(StreamError::NoPage)?
                };
                bus.store(self.descriptor(stream), table.raw() | SPAN);
                if whole {
                    at = group_end;
                    continue;
                }
            }
            let entry = self.entry(bus, stream).ok_or(StreamError::NoStream)?;
            self.host.write_all(bus, entry);
            at += 1;
            if at == group_end || at == end {
                // Runs may make a group whole one by one. Its page stays unused: it is not of the pool that groups of
                // their own have theirs from.
                self.share_group(bus, stream);
            }
        }
        Ok(())
    }

    /// Whether the stream's second-level table is the shared one: it needs one of its own before it can change.
    pub(super) fn is_shared<B: Bus>(&self, bus: &B, stream: u32) -> bool {
        self.format == Format::TwoLevel
            && self.entry(bus, stream).map(PhysAddr::page) == Some(self.shared)
    }

    /// Gives the stream's group a table of its own in `page`, with the same content.
    pub(super) fn own_group<B: Bus>(&mut self, bus: &B, stream: u32, page: PhysAddr) {
        for index in 0..ENTRIES {
            self.host
                .write_all(bus, PhysAddr::new(page.raw() + index * ENTRY_BYTES));
        }
        bus.barrier();
        bus.store(self.descriptor(stream), page.raw() | SPAN);
        bus.barrier();
    }

    /// Puts the stream's group back on the shared table if all its streams are the host's again; the page that it had.
    /// The SMMU may read that page until its configuration is invalidated.
    pub(super) fn share_group<B: Bus>(&mut self, bus: &B, stream: u32) -> Option<PhysAddr> {
        let page = self.entry(bus, stream)?.page();
        let is_host = |index: u64| {
            let entry = PhysAddr::new(page.raw() + index * ENTRY_BYTES);
            (0..4).all(|word| bus.load(word_of(entry, word)) == self.host.0[word as usize])
        };
        let is_own = self.format == Format::TwoLevel && page != self.shared;
        if !is_own || !(0..ENTRIES).all(is_host) {
            return None;
        }
        bus.store(self.descriptor(stream), self.shared.raw() | SPAN);
        bus.barrier();
        Some(page)
    }

    /// Makes a configured stream abort: one word, so the SMMU sees the entry before or after, nothing between.
    ///
    /// # Errors
    /// [`StreamError::NoStream`] if the stream is not configured.
    pub(super) fn abort<B: Bus>(&mut self, bus: &B, stream: u32) -> Result<(), StreamError> {
        let entry = self.entry(bus, stream).ok_or(StreamError::NoStream)?;
        if bus.load(entry) & VALID == 0 {
            return Err(StreamError::NoStream);
        }
        bus.store(entry, Entry::ABORT);
        bus.barrier();
        Ok(())
    }

    /// Fills in the entry of a stream that aborts and that the SMMU has been told to forget.
    pub(super) fn set<B: Bus>(&mut self, bus: &B, stream: u32, entry: Option<Entry>) {
        let entry = entry.unwrap_or(self.host);
        let Some(at) = self.entry(bus, stream) else {
            return;
        };
        for word in 1..4 {
            bus.store(word_of(at, word), entry.0[word as usize]);
        }
        bus.barrier();
        bus.store(at, entry.0[0]);
        bus.barrier();
    }

    /// Pages of second-level tables that [`Self::add_host`] takes for these streams.
    pub(super) fn pages(format: Format, ranges: impl Iterator<Item = (u32, u32)> + Clone) -> u64 {
        if format == Format::Linear {
            return 0;
        }
        // At most one at each end of a run.
        ranges
            .map(|(first, count)| {
                let (start, end) = (u64::from(first), u64::from(first) + u64::from(count));
                let head = !start.is_multiple_of(ENTRIES);
                let tail = !end.is_multiple_of(ENTRIES) && end / ENTRIES != start / ENTRIES;
                let alone = !head && !tail && !end.is_multiple_of(ENTRIES);
                u64::from(head) + u64::from(tail) + u64::from(alone)
            })
            .sum()
    }
}

const _: () = assert!(ENTRIES * ENTRY_BYTES == PAGE_SIZE);
