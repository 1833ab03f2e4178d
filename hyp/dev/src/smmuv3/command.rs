//! The command queue (Arm IHI 0070, chapter 4): encoding, waiting for room and for completion, and errors.
//! A command that the SMMU refuses is replaced; since its effect is missing then, everything is invalidated.

use porthole_core::addr::{Ipa, PhysAddr};
use tock_registers::interfaces::{Readable, Writeable};

use super::bus::{Bus, Fault, wait};
use super::registers::{Base, CmdqCons, Gerror, Registers};
use super::ring::Ring;

/// log2 of the entries of the queue, if the SMMU takes so many: a page.
const LOG2_ENTRIES: u32 = 8;
/// Bytes of a command.
const BYTES: u64 = 16;
/// Errors in one wait before the SMMU is given up.
const ERRORS_MAX: u32 = 8;
/// TG of a 4 KiB granule.
const TG_4K: u64 = 1 << 10;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Forget this stream's table entry, and what leads to it.
    CfgiSte(u32),
    /// Forget all configuration.
    CfgiAll,
    /// Forget all translations of EL2's own contexts.
    TlbiEl2All,
    /// Forget a VMID's translations.
    TlbiS12Vmall(u16),
    /// Forget `1 + num` times `1 << scale` pages of a VMID; a single page where both are 0.
    TlbiS2Ipa {
        vmid: u16,
        ipa: Ipa,
        scale: u8,
        num: u8,
    },
    /// Forget all translations of EL1 and below.
    TlbiNsnhAll,
    /// Done when all before it is done.
    Sync,
}

impl Command {
    pub(super) fn encode(self) -> [u64; 2] {
        match self {
            Self::CfgiSte(stream) => [0x03 | u64::from(stream) << 32, 0],
            // CFGI_STE_RANGE of all 2^32 streams.
            Self::CfgiAll => [0x04, 31],
            Self::TlbiEl2All => [0x20, 0],
            Self::TlbiS12Vmall(vmid) => [0x28 | u64::from(vmid) << 32, 0],
            Self::TlbiS2Ipa {
                vmid,
                ipa,
                scale,
                num,
            } => {
                // A range of one page is reserved where TTL is 0 (4.4.1.1): it goes without TG.
                let granule = if scale == 0 && num == 0 { 0 } else { TG_4K };
                [
                    0x2a | u64::from(num) << 12 | u64::from(scale) << 20 | u64::from(vmid) << 32,
                    ipa.raw() & 0x000f_ffff_ffff_f000 | granule,
                ]
            }
            Self::TlbiNsnhAll => [0x30, 0],
            // Completion shows in CMDQ_CONS: no signal.
            Self::Sync => [0x46, 0],
        }
    }
}

/// The queue. Whoever has it by `&mut` is the only one to write it.
#[derive(Debug)]
pub(super) struct CommandQueue {
    ring: Ring,
    prod: u32,
    /// A command was replaced since the last [`Self::sync`].
    lost: bool,
    /// Commands that the SMMU refused, ever.
    errors: u64,
}

impl CommandQueue {
    /// A queue in one page, at most `log2_max` as log2 of its entries. The queue is off.
    pub(super) fn new(page: PhysAddr, log2_max: u32) -> Self {
        Self {
            ring: Ring::new(page, LOG2_ENTRIES.min(log2_max), BYTES),
            prod: 0,
            lost: false,
            errors: 0,
        }
    }

    /// Tells the SMMU where the queue is; CR0.CMDQEN is clear.
    pub(super) fn install<B: Bus>(&self, bus: &B) {
        let registers = Registers(bus);
        registers.set_base(Base::Commands, self.ring.base_register());
        registers.cmdq_prod().set(self.prod);
        registers.cmdq_cons().set(self.prod);
    }

    /// Commands refused so far.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Puts a command into the queue, waiting for room.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(super) fn push<B: Bus>(&mut self, bus: &B, command: Command) -> Result<(), Fault> {
        let prod = self.prod;
        self.wait_for(bus, |ring, cons| !ring.is_full(prod, cons))?;
        for (word, value) in (0..).zip(command.encode()) {
            bus.store(self.ring.word(prod, word), value);
        }
        self.prod = self.ring.next(prod);
        bus.barrier();
        Registers(bus).cmdq_prod().set(self.prod);
        Ok(())
    }

    /// Returns when everything in the queue has taken effect.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(super) fn sync<B: Bus>(&mut self, bus: &B) -> Result<(), Fault> {
        self.finish(bus)?;
        if !core::mem::take(&mut self.lost) {
            return Ok(());
        }
        // What was refused did not happen: do more than it would have done.
        self.push(bus, Command::CfgiAll)?;
        self.push(bus, Command::TlbiNsnhAll)?;
        self.finish(bus)?;
        if self.lost {
            return Err(Fault::Refuses(
                Registers(bus).cmdq_cons().read(CmdqCons::ERR),
            ));
        }
        Ok(())
    }

    fn finish<B: Bus>(&mut self, bus: &B) -> Result<(), Fault> {
        self.push(bus, Command::Sync)?;
        let prod = self.prod;
        self.wait_for(bus, |ring, cons| ring.is_empty(prod, cons))?;
        bus.barrier();
        Ok(())
    }

    /// Waits until the consumer's position satisfies `done`, mending errors meanwhile.
    fn wait_for<B: Bus>(
        &mut self,
        bus: &B,
        done: impl Fn(&Ring, u32) -> bool,
    ) -> Result<(), Fault> {
        let registers = Registers(bus);
        let mut result = Ok(());
        let mut errors = 0;
        wait(bus, "CMDQ_CONS", || {
            if done(&self.ring, registers.cmdq_cons().get()) {
                return true;
            }
            let pending = registers.gerror().get() ^ registers.gerrorn().get();
            if pending & Gerror::CMDQ::SET.value != 0 {
                errors += 1;
                let code = self.mend(bus);
                if errors > ERRORS_MAX {
                    result = Err(Fault::Refuses(code));
                    return true;
                }
            }
            false
        })?;
        result
    }

    /// The SMMU stopped at a command. An illegal one is replaced by a CMD_SYNC; where the fetch failed, or an ATS
    /// completion (which only a CMD_SYNC waits for), the same command is tried again. Then the error is acknowledged and the
    /// SMMU goes on (7.1, 7.3.2). Returns the error's code.
    fn mend<B: Bus>(&mut self, bus: &B) -> u32 {
        let registers = Registers(bus);
        let cons = registers.cmdq_cons().extract();
        self.errors = self.errors.saturating_add(1);
        if cons.matches_all(CmdqCons::ERR::Illegal) {
            self.lost = true;
            for (word, value) in (0..).zip(Command::Sync.encode()) {
                bus.store(self.ring.word(cons.read(CmdqCons::RD), word), value);
            }
            bus.barrier();
        }
        let acknowledged = registers.gerrorn().get() ^ Gerror::CMDQ::SET.value;
        registers.gerrorn().set(acknowledged);
        cons.read(CmdqCons::ERR)
    }
}

/// The fewest range commands that cover `pages` pages from `ipa` on (`range`), or one for each page.
pub(super) fn invalidations(
    vmid: u16,
    ipa: Ipa,
    pages: u64,
    range: bool,
) -> impl Iterator<Item = Command> {
    let mut left = pages;
    let mut at = ipa;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        // The largest power of two that divides the rest, up to 32 of them (4.4.1.1).
        let scale = if range {
            left.trailing_zeros().min(31)
        } else {
            0
        };
        let units = if range { (left >> scale).min(32) } else { 1 };
        let command = Command::TlbiS2Ipa {
            vmid,
            ipa: at,
            scale: scale as u8,
            num: (units - 1) as u8,
        };
        let done = units << scale;
        left -= done;
        at = Ipa::new(at.raw().wrapping_add(done * porthole_abi::PAGE_SIZE));
        Some(command)
    })
}
