//! EL2's own command queue of an ITS: one page that the host never sees. A command is issued and waited for, one at a
//! time, so that what it changed is known before anything else happens.

use porthole_abi::{Error, PAGE_SIZE};

use super::command::{Command, Words};
use crate::addr::PhysAddr;
use crate::hw::Machine;

const CTLR: u64 = 0x00;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;

const ENABLED: u32 = 1;
const QUIESCENT: u32 = 1 << 31;
/// GITS_CBASER: valid, normal write-back memory, inner shareable, one page of 4 KiB.
const CBASER_OWN: u64 = 1 << 63 | 7 << 59 | 1 << 10;
/// GITS_CWRITER.Retry.
const RETRY: u64 = 1;
/// GITS_CREADR.Stalled.
const STALLED: u64 = 1;
/// Offset field of GITS_CREADR and GITS_CWRITER.
const OFFSET: u64 = 0xf_ffe0;
const COMMAND_BYTES: u64 = 32;
/// Reads of a register that changes within microseconds, before the ITS is given up: about a second.
const POLLS: u32 = 1_000_000;

/// Why a command was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// It was refused, here or by the ITS; nothing has changed.
    #[error("{0}")]
    Refused(Error),
    /// The ITS does not answer: what it still uses is not known, so all that it may use stays with it for ever.
    #[error("the ITS does not answer")]
    Dead,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The registers of an ITS that EL2 drives itself.
#[derive(Debug)]
pub(super) struct Queue {
    base: PhysAddr,
    page: PhysAddr,
    /// Where the next command goes.
    tail: u64,
    /// RDbase of some redistributor.
    target: u64,
    dead: bool,
}

impl Queue {
    /// Takes an ITS over and switches it off. `target` is the RDbase of a redistributor.
    pub fn new<M: Machine>(machine: &M, base: PhysAddr, page: PhysAddr, target: u64) -> Self {
        let mut queue = Self {
            base,
            page,
            tail: 0,
            target,
            dead: false,
        };
        let _ = queue.disable(machine);
        queue
    }

    pub const fn at(&self, offset: u64) -> PhysAddr {
        PhysAddr::new(self.base.raw() + offset)
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    pub fn is_enabled<M: Machine>(&self, machine: &M) -> bool {
        machine.read32(self.at(CTLR)) & ENABLED != 0
    }

    /// Whether the ITS is off and has written back whatever it holds.
    pub fn is_idle<M: Machine>(&self, machine: &M) -> bool {
        !self.dead && machine.read32(self.at(CTLR)) & (ENABLED | QUIESCENT) == QUIESCENT
    }

    /// Switches the ITS on, which is off, with EL2's queue empty.
    pub fn enable<M: Machine>(&mut self, machine: &M) {
        machine.write64(self.at(CBASER), CBASER_OWN | self.page.raw());
        machine.write64(self.at(CWRITER), 0);
        self.tail = 0;
        self.switch(machine, ENABLED);
    }

    /// Asks the ITS to stop.
    pub fn stop<M: Machine>(&self, machine: &M) {
        self.switch(machine, 0);
    }

    fn switch<M: Machine>(&self, machine: &M, enabled: u32) {
        let rest = machine.read32(self.at(CTLR)) & !(ENABLED | QUIESCENT);
        machine.write32(self.at(CTLR), rest | enabled);
    }

    /// Stops the ITS and waits until it is idle.
    pub fn disable<M: Machine>(&mut self, machine: &M) -> Result<(), Failure> {
        self.stop(machine);
        self.wait(|queue| queue.is_idle(machine))
    }

    /// Has a command done by the ITS, which is enabled and not dead.
    pub fn issue<M: Machine>(&mut self, machine: &M, command: Command) -> Result<(), Failure> {
        let slot = self.tail;
        self.put(machine, slot, command.encode());
        self.tail = (slot + COMMAND_BYTES) % PAGE_SIZE;
        machine.write64(self.at(CWRITER), self.tail);
        if !self.wait_for_reader(machine)? {
            return Ok(());
        }
        // The ITS stalled on it: one that changes nothing takes its place.
        let target = self.target;
        self.put(machine, slot, Command::Sync { target }.encode());
        machine.write64(self.at(CWRITER), self.tail | RETRY);
        if self.wait_for_reader(machine)? {
            self.dead = true;
            return Err(Failure::Dead);
        }
        Err(Failure::Refused(Error::InvalidParameter))
    }

    fn put<M: Machine>(&self, machine: &M, slot: u64, words: Words) {
        for (index, word) in (slot as usize / 8..).zip(words) {
            machine.write_word(self.page, index, word);
        }
        machine.clean(PhysAddr::new(self.page.raw() + slot), COMMAND_BYTES);
    }

    /// Waits until the ITS has taken all commands; whether it stalled on one.
    fn wait_for_reader<M: Machine>(&mut self, machine: &M) -> Result<bool, Failure> {
        let mut stalled = false;
        self.wait(|queue| {
            let reader = machine.read64(queue.at(CREADR));
            stalled = reader & STALLED != 0;
            stalled || reader & OFFSET == queue.tail
        })?;
        Ok(stalled)
    }

    fn wait(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<(), Failure> {
        for _ in 0..POLLS {
            if done(self) {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        self.dead = true;
        log::error!(
            "the ITS at {} does not answer; it is not used any more",
            self.base
        );
        Err(Failure::Dead)
    }
}
