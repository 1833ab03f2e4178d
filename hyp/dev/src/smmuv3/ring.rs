//! Positions in a queue that the SMMU shares with EL2: an index with a wrap bit above it (Arm IHI 0070, 3.5.1).
//! Arithmetic only; entries and registers are the queues' own.

use porthole_core::addr::PhysAddr;

/// A queue of `1 << log2` entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    base: PhysAddr,
    log2: u32,
    entry: u64,
}

impl Ring {
    /// `entry` is the size of an entry in bytes.
    pub(super) fn new(base: PhysAddr, log2: u32, entry: u64) -> Self {
        Self { base, log2, entry }
    }

    /// Value of the base register: address, read/write allocate hint (bit 62), log2 of the entries.
    pub(super) fn base_register(&self) -> u64 {
        1 << 62 | self.base.raw() | u64::from(self.log2)
    }

    /// The index and its wrap bit; the error and overflow bits above them are dropped.
    fn position(&self, value: u32) -> u32 {
        value & ((2 << self.log2) - 1)
    }

    pub(super) fn is_empty(&self, prod: u32, cons: u32) -> bool {
        self.position(prod) == self.position(cons)
    }

    /// Full: the same index in different rounds.
    pub(super) fn is_full(&self, prod: u32, cons: u32) -> bool {
        self.position(prod ^ cons) == 1 << self.log2
    }

    /// The position behind this one.
    pub(super) fn next(&self, position: u32) -> u32 {
        self.position(self.position(position).wrapping_add(1))
    }

    /// Address of word `word` of the entry at a position.
    pub(super) fn word(&self, position: u32, word: u64) -> PhysAddr {
        let index = u64::from(position & ((1 << self.log2) - 1));
        PhysAddr::new(self.base.raw() + index * self.entry + word * 8)
    }
}
