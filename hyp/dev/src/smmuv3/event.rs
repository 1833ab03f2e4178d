//! The event queue (Arm IHI 0070, chapter 7): records of transactions that the SMMU did not let through.
//! Nothing is decided here; a queue that overflowed is counted and goes on.

use porthole_core::addr::PhysAddr;
use tock_registers::interfaces::{Readable, Writeable};

use super::bus::Bus;
use super::registers::{Base, Gerror, Registers};
use super::ring::Ring;

/// log2 of the entries of the queue, if the SMMU takes so many: a page.
const LOG2_ENTRIES: u32 = 7;
/// Bytes of a record.
const BYTES: u64 = 32;
/// EVENTQ_PROD.OVFLG and EVENTQ_CONS.OVACKFLG.
const OVERFLOW: u32 = 1 << 31;

/// A record of the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// EVENT_ID, 7.3.
    pub kind: u8,
    /// Who.
    pub stream: u32,
    /// Input address, where the record has one.
    pub address: Option<u64>,
    /// It was a write.
    pub write: bool,
}

impl Event {
    /// Stands for records that were lost because the queue was full.
    pub const LOST: Self = Self {
        kind: 0,
        stream: 0,
        address: None,
        write: false,
    };

    fn decode(words: [u64; 4]) -> Self {
        let kind = words[0] as u8;
        // F_UUT, F_TRANSL_FORBIDDEN, F_WALK_EABT and the faults of translation have an address and a direction.
        let of_access = matches!(kind, 0x01 | 0x07 | 0x0b | 0x10..=0x13 | 0x20);
        Self {
            kind,
            stream: (words[0] >> 32) as u32,
            address: of_access.then_some(words[2]),
            write: of_access && words[1] & 1 << 35 == 0,
        }
    }
}

/// The queue. Whoever has it by `&mut` is the only one to read it.
#[derive(Debug)]
pub(super) struct EventQueue {
    ring: Ring,
    cons: u32,
}

impl EventQueue {
    /// A queue in one page, at most `log2_max` as log2 of its entries. The queue is off.
    pub(super) fn new(page: PhysAddr, log2_max: u32) -> Self {
        Self {
            ring: Ring::new(page, LOG2_ENTRIES.min(log2_max), BYTES),
            cons: 0,
        }
    }

    /// Tells the SMMU where the queue is; CR0.EVENTQEN is clear.
    pub(super) fn install<B: Bus>(&self, bus: &B) {
        let registers = Registers(bus);
        registers.set_base(Base::Events, self.ring.base_register());
        registers.eventq_prod().set(self.cons);
        registers.eventq_cons().set(self.cons);
    }

    /// Takes the oldest record. Once for each overflow, [`Event::LOST`] comes instead, and the queue goes on.
    pub(super) fn pop<B: Bus>(&mut self, bus: &B) -> Option<Event> {
        let registers = Registers(bus);
        let prod = registers.eventq_prod().get();
        // A full queue shows in OVFLG, or where the SMMU writes nevertheless as a write that aborted (7.2, 6.3.19).
        let gerrorn = registers.gerrorn().get();
        let aborted = (registers.gerror().get() ^ gerrorn) & Gerror::EVENTQ_ABT::SET.value;
        let overflow = (prod ^ self.cons) & OVERFLOW;
        if overflow | aborted != 0 {
            self.cons ^= overflow;
            registers.eventq_cons().set(self.cons);
            registers.gerrorn().set(gerrorn ^ aborted);
            return Some(Event::LOST);
        }
        if self.ring.is_empty(prod, self.cons) {
            return None;
        }
        bus.barrier();
        let words = core::array::from_fn(|n| bus.load(self.ring.word(self.cons, n as u64)));
        // The record is read before its place is free.
        bus.barrier();
        self.cons = self.ring.next(self.cons) | self.cons & OVERFLOW;
        registers.eventq_cons().set(self.cons);
        Some(Event::decode(words))
    }
}
