//! SMMUv3 (Arm IHI 0070): one [`Smmu`] drives one of them, under one lock.
//! Registers, queues and table have files of their own; [`Smmus`] is all of a machine.
//! Who may reach what is decided in core; here streams are behind the stage 2 that it names, or they abort.

mod bus;
mod command;
mod event;
mod probe;
mod registers;
mod ring;
mod set;
mod stream;
#[cfg(test)]
mod tests;

use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{Ipa, PhysAddr, PhysPages};
use porthole_core::lock::Mutex;
use tock_registers::interfaces::{Readable, Writeable};

pub use bus::{Bus, Cpu, Fault, Mmio};
use command::{Command, CommandQueue, invalidations};
pub use event::Event;
use event::EventQueue;
pub use probe::{Abilities, Format, Unfit};
use registers::{Base, Cr0, Cr1, Cr2, Gbpa, Registers, StrtabBaseCfg};
pub use set::{ROUTES_MAX, Route, SMMUS_MAX, Smmus};
use stream::{Entry, SPLIT, StreamTable};
pub use stream::{StageTwo, StreamError};

/// Bytes of the register frame: pages 0 and 1, 64 KiB each.
pub const FRAME_BYTES: u64 = 0x2_0000;
/// More single invalidations than this are dearer than forgetting the VMID.
const SINGLES_MAX: u64 = 64;
/// Pages beside the stream table: the shared second level, commands, events.
const PAGES: u64 = 3;

/// Ends all DMA through an SMMU, whatever it was doing: transactions abort while it is off, and it is off (6.3.17).
///
/// # Errors
/// [`Fault::Silent`].
pub fn quiesce<B: Bus>(bus: &B) -> Result<(), Fault> {
    let registers = Registers(bus);
    set_global_bypass(bus, Gbpa::ABORT::SET.value)?;
    registers.irq_ctrl().set(0);
    set_control(bus, 0)
}

/// Lets all DMA through an SMMU that was quiesced: it cannot confine anything, and the host's devices are to work.
///
/// # Errors
/// [`Fault::Silent`].
pub fn bypass<B: Bus>(bus: &B) -> Result<(), Fault> {
    set_global_bypass(bus, 0)
}

fn set_global_bypass<B: Bus>(bus: &B, abort: u32) -> Result<(), Fault> {
    let gbpa = Registers(bus).gbpa();
    bus::wait(bus, "GBPA", || !gbpa.is_set(Gbpa::UPDATE))?;
    let kept = gbpa.get() & !(Gbpa::ABORT::SET.value | Gbpa::UPDATE::SET.value);
    gbpa.set(kept | abort | Gbpa::UPDATE::SET.value);
    bus::wait(bus, "GBPA", || !gbpa.is_set(Gbpa::UPDATE))
}

/// Writes CR0 and waits until it holds.
fn set_control<B: Bus>(bus: &B, value: u32) -> Result<(), Fault> {
    let registers = Registers(bus);
    registers.cr0().set(value);
    bus::wait(bus, "CR0ACK", || registers.cr0ack().get() == value)
}

/// RAM that one SMMU takes, in pages, and its alignment in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Pages.
    pub pages: u64,
    /// Alignment of the first one.
    pub align: u64,
}

impl Abilities {
    /// RAM for an SMMU with these streams.
    pub fn needs(&self, streams: impl Iterator<Item = (u32, u32)> + Clone) -> Needs {
        let table = self.table_bytes();
        Needs {
            pages: table.div_ceil(PAGE_SIZE) + PAGES + StreamTable::pages(self.format, streams),
            align: table.max(PAGE_SIZE),
        }
    }
}

/// What the lock protects. Both queues acknowledge errors in one register.
#[derive(Debug)]
struct State {
    commands: CommandQueue,
    events: EventQueue,
    /// None until the host's map is known.
    table: Option<StreamTable>,
}

/// One SMMU that EL2 has to itself. Its lock is a leaf.
#[derive(Debug)]
pub struct Smmu<B> {
    bus: B,
    abilities: Abilities,
    /// Its RAM: the stream table first, then [`PAGES`], then second-level tables.
    memory: PhysPages,
    state: Mutex<State>,
}

impl<B: Bus> Smmu<B> {
    /// Takes a quiesced SMMU over: queues stand, nothing is cached, all streams still abort.
    ///
    /// `memory` is zeroed RAM as [`Abilities::needs`] says, for this SMMU alone and for good.
    ///
    /// # Errors
    /// [`Fault`] if it does not work.
    pub fn new(bus: B, abilities: Abilities, memory: PhysPages) -> Result<Self, Fault> {
        let page = |number: u64| {
            let table = abilities.table_bytes().next_multiple_of(PAGE_SIZE);
            PhysAddr::new(memory.start().raw() + table + number * PAGE_SIZE)
        };
        let mut commands = CommandQueue::new(page(1), abilities.log2_commands);
        let events = EventQueue::new(page(2), abilities.log2_events);
        let registers = Registers(&bus);
        registers.cr1().write(
            Cr1::TABLE_SH::Inner
                + Cr1::TABLE_OC::WriteBack
                + Cr1::TABLE_IC::WriteBack
                + Cr1::QUEUE_SH::Inner
                + Cr1::QUEUE_OC::WriteBack
                + Cr1::QUEUE_IC::WriteBack,
        );
        registers.cr2().write(Cr2::PTM::SET + Cr2::RECINVSID::SET);
        commands.install(&bus);
        events.install(&bus);
        // Errors of whoever had it before are not ours.
        let stale = registers.gerror().get();
        registers.gerrorn().set(stale);
        bus.barrier();
        set_control(&bus, (Cr0::CMDQEN::SET + Cr0::EVENTQEN::SET).value)?;
        commands.push(&bus, Command::CfgiAll)?;
        if abilities.hyp {
            commands.push(&bus, Command::TlbiEl2All)?;
        }
        commands.push(&bus, Command::TlbiNsnhAll)?;
        commands.sync(&bus)?;
        Ok(Self {
            bus,
            abilities,
            memory,
            state: Mutex::new(State {
                commands,
                events,
                table: None,
            }),
        })
    }

    /// What it can do.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Puts these streams (first, count) behind the host's map and switches translation on. All others abort. Once.
    ///
    /// # Errors
    /// [`Fault`] if it does not work; [`Unfit::StreamBits`] for a stream beyond the table that was planned.
    pub fn start(
        &self,
        host: &StageTwo,
        streams: impl Iterator<Item = (u32, u32)>,
    ) -> Result<(), Unfit> {
        let bus = &self.bus;
        let table = self.abilities.table_bytes().next_multiple_of(PAGE_SIZE);
        let shared = self.memory.start().raw() + table;
        let shape = (self.abilities.format, self.abilities.bits);
        let entry = Entry::stage_two(host, self.abilities.oas);
        let mut table = StreamTable::new(
            bus,
            self.memory.start(),
            shape,
            PhysAddr::new(shared),
            entry,
        );
        let mut next = shared + PAGES * PAGE_SIZE;
        let mut page = || {
            let at = PhysAddr::new(next);
            next += PAGE_SIZE;
            (at.raw() < self.memory.end().raw()).then_some(at)
        };
        for (first, count) in streams {
            table
                .add_host(bus, first, count, &mut page)
                .map_err(|_| Unfit::StreamBits {
                    has: self.abilities.bits,
                    needs: u32::BITS - first.saturating_add(count - 1).leading_zeros(),
                })?;
        }
        let registers = Registers(bus);
        registers.set_base(Base::StreamTable, table.base_register());
        let size = StrtabBaseCfg::LOG2SIZE.val(self.abilities.bits);
        registers
            .strtab_base_cfg()
            .write(match self.abilities.format {
                Format::Linear => size + StrtabBaseCfg::FMT::Linear,
                Format::TwoLevel => {
                    size + StrtabBaseCfg::FMT::TwoLevel + StrtabBaseCfg::SPLIT.val(SPLIT)
                }
            });
        let mut state = self.state.lock();
        bus.barrier();
        state.commands.push(bus, Command::CfgiAll)?;
        state.commands.push(bus, Command::TlbiNsnhAll)?;
        state.commands.sync(bus)?;
        let on = Cr0::CMDQEN::SET + Cr0::EVENTQEN::SET + Cr0::ATSCHK::SET + Cr0::SMMUEN::SET;
        set_control(bus, on.value)?;
        state.table = Some(table);
        Ok(())
    }

    /// Puts a stream behind another stage 2, the host's where `stage2` is `None`. While it changes the stream aborts. `page`
    /// gives a page for good until `release` has it back.
    ///
    /// # Errors
    /// [`StreamError`], nothing having changed; a [`Fault`] inside.
    pub fn set_stream(
        &self,
        stream: u32,
        stage2: Option<&StageTwo>,
        page: impl FnOnce() -> Option<PhysAddr>,
        release: impl FnOnce(PhysAddr),
    ) -> Result<Result<(), StreamError>, Fault> {
        let bus = &self.bus;
        let State {
            commands, table, ..
        } = &mut *self.state.lock();
        let Some(table) = table else {
            return Ok(Err(StreamError::NoStream));
        };
        if table.is_shared(bus, stream) {
            if stage2.is_none() {
                return Ok(Ok(()));
            }
            let Some(page) = page() else {
                return Ok(Err(StreamError::NoPage));
            };
            table.own_group(bus, stream, page);
            // The group's pointer changed for all its streams.
            commands.push(bus, Command::CfgiAll)?;
            commands.sync(bus)?;
        }
        if let Err(error) = table.abort(bus, stream) {
            return Ok(Err(error));
        }
        commands.push(bus, Command::CfgiSte(stream))?;
        commands.sync(bus)?;
        let oas = self.abilities.oas;
        table.set(bus, stream, stage2.map(|s| Entry::stage_two(s, oas)));
        commands.push(bus, Command::CfgiSte(stream))?;
        commands.sync(bus)?;
        if let (None, Some(page)) = (stage2, table.share_group(bus, stream)) {
            commands.push(bus, Command::CfgiAll)?;
            commands.sync(bus)?;
            release(page);
        }
        Ok(Ok(()))
    }

    /// Forgets `pages` pages of a VMID from `ipa` on, or more; what used them has ended on return.
    ///
    /// # Errors
    /// See [`Fault`]: nothing is known about the SMMU then.
    pub fn flush(&self, vmid: u16, ipa: Ipa, pages: u64) -> Result<(), Fault> {
        let bus = &self.bus;
        let commands = &mut self.state.lock().commands;
        if pages > SINGLES_MAX && !self.abilities.range || pages > PAGES_MAX {
            commands.push(bus, Command::TlbiS12Vmall(vmid))?;
        } else {
            for command in invalidations(vmid, ipa, pages, self.abilities.range) {
                commands.push(bus, command)?;
            }
        }
        commands.sync(bus)
    }

    /// The oldest record of the event queue, or [`Event::LOST`].
    pub fn event(&self) -> Option<Event> {
        self.state.lock().events.pop(&self.bus)
    }

    /// Commands that it refused and that were mended.
    pub fn command_errors(&self) -> u64 {
        self.state.lock().commands.errors()
    }
}

/// Pages of the largest range that is invalidated as one: 1 GiB.
const PAGES_MAX: u64 = 1 << 18;
