//! The fake's interrupt controller: redistributors and ITSs with their registers, a model that carries out the commands
//! of the queue it was given and knows which pages it may touch for it. Before and after every register write each of
//! these must be a page that the hypervisor keeps for it; [`FakeMachine::assert_sound`] tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FakeMachine;
use crate::addr::PhysAddr;
use crate::hw::{Memory, Mmio};
use crate::tracker::PageState;

const PAGE: u64 = 4096;
const VALID: u64 = 1 << 63;

/// How a test's interrupt controller differs from the ordinary one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GicPlan {
    /// Commands name redistributors by address (GITS_TYPER.PTA).
    pub by_address: bool,
    /// Collections that the ITS holds itself (GITS_TYPER.HCC).
    pub collections: u64,
    /// GITS_BASER.Page_Size that sticks, if only one does.
    pub page_size: Option<u64>,
    /// Redistributors have the frames of GICv4, and the ITS says that it is one.
    pub is_v4: bool,
    /// GICR_CTLR.EnableLPIs cannot be cleared.
    pub lpis_stay: bool,
    /// GICR_CTLR.EnableLPIs is set at boot, with these property and pending tables.
    pub lpis_at_boot: Option<(u64, u64)>,
    /// Bits of GITS_TYPER that are not as ordinarily.
    pub typer: u64,
    /// Bits of GITS_BASER that read as zero whatever is written.
    pub unstuck: u64,
    /// Reads of GICR_CTLR.RWP or of a GITS_CTLR without Quiescent that follow a change.
    pub slow: u32,
}

#[derive(Debug, Default)]
struct FakeRedistributor {
    base: u64,
    number: u64,
    control: u64,
    waker: u64,
    property: u64,
    pending: u64,
    busy: u32,
}

#[derive(Debug, Default)]
struct FakeIts {
    base: u64,
    control: u64,
    queue: u64,
    writer: u64,
    reader: u64,
    tables: [u64; 8],
    busy: u32,
    /// ITT address and bytes by device.
    devices: BTreeMap<u32, (u64, u64)>,
}

/// Which commands the ITS stalls on.
type Stall = Box<dyn Fn(&[u64; 4]) -> bool + Send>;

/// Which owner a page must have.
type Owner = Box<dyn Fn(PhysAddr) -> Option<PageState> + Send>;

#[derive(Default)]
struct Model {
    plan: GicPlan,
    redistributors: Vec<FakeRedistributor>,
    its: Vec<FakeIts>,
    bases: (Vec<PhysAddr>, Vec<PhysAddr>),
    owner: Option<Owner>,
    commands: Vec<[u64; 4]>,
    stall: Option<Stall>,
    /// Addresses of commands that were cleaned out of caches and not read since.
    cleaned: BTreeSet<u64>,
    /// The ITS takes no command any more.
    is_dead: bool,
    /// Values that were written to registers without a state of their own.
    written: Vec<(u64, u64)>,
    violations: Vec<String>,
}

/// The fake's interrupt controller; without any frame until [`FakeMachine::add_gic`].
#[derive(Default)]
pub struct FakeGic(Mutex<Model>);

impl std::fmt::Debug for FakeGic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeGic")
    }
}

/// Why the GIC uses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It believes what stands there.
    Table,
    /// It reads and writes bits there that bear on the host's interrupts only.
    Shared,
    /// EL2's own command queue.
    Queue,
}

impl Model {
    /// Every page that the GIC may touch now.
    fn uses(&self) -> Vec<(u64, Use)> {
        let mut uses = Vec::new();
        let mut add = |start: u64, bytes: u64, what| {
            let pages = (start & !(PAGE - 1)..start + bytes).step_by(PAGE as usize);
            uses.extend(pages.map(|page| (page, what)));
        };
        for redistributor in &self.redistributors {
            if redistributor.control & 1 != 0 || redistributor.busy > 0 {
                let bits = (redistributor.property & 0x1f).min(15);
                let intids = 2u64 << bits;
                add(
                    redistributor.property & 0xf_ffff_ffff_f000,
                    intids.saturating_sub(8192),
                    Use::Shared,
                );
                let pending = redistributor.pending & 0xf_ffff_ffff_0000;
                add(pending, intids / 8, Use::Shared);
            }
        }
        for its in &self.its {
            let is_idle = its.control & 1 == 0 && its.busy == 0;
            for table in its.tables.iter().filter(|t| **t & VALID != 0) {
                add(table_start(*table), table_bytes(*table), Use::Table);
                assert!(table & 1 << 62 == 0 || is_idle, "an indirect table");
            }
            if its.queue & VALID != 0 {
                let bytes = ((its.queue & 0xff) + 1) * PAGE;
                add(its.queue & 0xf_ffff_ffff_f000, bytes, Use::Queue);
            }
            for (itt, bytes) in its.devices.values() {
                add(*itt, *bytes, Use::Shared);
            }
        }
        uses
    }

    fn check(&mut self, doing: &str) {
        let Some(owner) = &self.owner else { return };
        for (page, what) in self.uses() {
            let state = owner(PhysAddr::new(page));
            let is_kept = match what {
                Use::Table => state == Some(PageState::HwTable),
                Use::Shared => matches!(state, Some(PageState::Pinned(_))),
                Use::Queue => state == Some(PageState::Hyp),
            };
            if !is_kept {
                let violation = format!("{doing}: the GIC uses {page:#x} as {what:?}: {state:?}");
                self.violations.push(violation);
                return;
            }
        }
    }

    fn typer(&self) -> u64 {
        // Physical, 12 bytes an ITT entry, 16 EventID bits, 16 DeviceID bits, 16 collection bits.
        let v4 = if self.plan.is_v4 {
            1 << 1 | 1 << 37 | 1 << 39
        } else {
            0
        };
        (1 | 11 << 4
            | 15 << 8
            | 15 << 13
            | u64::from(self.plan.by_address) << 19
            | self.plan.collections << 24
            | 15 << 32
            | 1 << 36
            | v4)
            ^ self.plan.typer
    }

    fn read(&mut self, at: u64) -> u64 {
        let typer = self.typer();
        let (is_v4, slow) = (self.plan.is_v4, self.plan.slow);
        let last = self.redistributors.len().saturating_sub(1) as u64;
        if let Some(r) = self
            .redistributors
            .iter_mut()
            .find(|r| r.base == at & !0xffff)
        {
            return match at & 0xffff {
                0x00 => {
                    let pending = u64::from(r.busy > 0) << 3;
                    r.busy = r.busy.saturating_sub(1);
                    r.control | pending
                }
                0x04 => 0x43b,
                0x08 => {
                    let v4 = if is_v4 { 1 << 1 | 1 << 7 | 1 << 26 } else { 0 };
                    r.number << 32 | r.number << 8 | u64::from(r.number == last) << 4 | 1 | v4
                }
                0x14 => r.waker,
                0x70 => r.property,
                0x78 => r.pending & !(1 << 62),
                0xffe8 => 0x3b,
                _ => 0,
            };
        }
        let Some(its) = self.its.iter_mut().find(|i| i.base == at & !0xffff) else {
            return 0;
        };
        match at & 0xffff {
            0x00 => {
                let quiescent = its.control & 1 == 0 && its.busy == 0;
                its.busy = its.busy.saturating_sub(u32::from(slow > 0));
                its.control | u64::from(quiescent) << 31
            }
            0x04 => 0x43b,
            0x08 => typer,
            0x80 => its.queue,
            0x88 => its.writer,
            0x90 => its.reader,
            offset @ 0x100..0x140 => its.tables[(offset as usize - 0x100) / 8],
            0xffe8 => 0x3b,
            _ => 0,
        }
    }

    fn write(&mut self, machine: &FakeMachine, at: u64, value: u64) {
        let plan = self.plan;
        if let Some(r) = self
            .redistributors
            .iter_mut()
            .find(|r| r.base == at & !0xffff)
        {
            match at & 0xffff {
                0x00 if value & !(7 << 24 | 1) != 0 => {
                    self.violations.push("reserved bits of GICR_CTLR".into());
                }
                0x00 => {
                    let was_on = r.control & 1;
                    r.control = value & (7 << 24 | 1);
                    if was_on != 0 && plan.lpis_stay {
                        r.control |= 1;
                    }
                    if r.control & 1 != was_on {
                        r.busy = plan.slow;
                    }
                }
                0x14 => r.waker = value & 2 | value << 1 & 4,
                0x70 if r.control & 1 != 0 => self.violations.push("PROPBASER while on".into()),
                0x70 => r.property = value,
                0x78 if r.control & 1 != 0 => self.violations.push("PENDBASER while on".into()),
                0x78 => r.pending = value,
                _ => self.written.push((at, value)),
            }
            return;
        }
        let Some(index) = self.its.iter().position(|i| i.base == at & !0xffff) else {
            self.violations.push(format!("a write to {at:#x}"));
            return;
        };
        let its = &mut self.its[index];
        let is_idle = its.control & 1 == 0 && its.busy == 0;
        match at & 0xffff {
            0x00 => {
                if its.control & 1 != 0 && value & 1 == 0 {
                    its.busy = plan.slow;
                }
                its.control = value & 3;
            }
            0x80 if is_idle => {
                // The architecture lets an ITS take other bits than 0 in 15:12 for what it likes.
                assert!(value & 0xf000 == 0, "a queue at a multiple of 64 KiB");
                (its.queue, its.reader) = (value, 0);
            }
            0x88 => {
                its.writer = value & 0xf_ffe0;
                if value & 1 != 0 {
                    its.reader &= !1;
                }
            }
            offset @ 0x100..0x140 if is_idle => {
                let table = &mut its.tables[(offset as usize - 0x100) / 8];
                let fixed = 7 << 56 | 0x1f << 48;
                if *table & 7 << 56 != 0 {
                    *table = *table & fixed | value & !fixed;
                    if let Some(size) = plan.page_size {
                        *table = *table & !(3 << 8) | size << 8;
                    }
                    *table &= !plan.unstuck;
                }
            }
            0x80 | 0x100..0x140 => self.violations.push("a table while the ITS is on".into()),
            _ => self.violations.push(format!("a write to {at:#x}")),
        }
        self.run(machine, index);
    }

    fn run(&mut self, machine: &FakeMachine, index: usize) {
        let entry = (self.typer() >> 4 & 0xf) + 1;
        loop {
            let its = &mut self.its[index];
            if its.control & 1 == 0
                || its.reader & 1 != 0
                || its.reader == its.writer
                || self.is_dead
            {
                return;
            }
            let at = (its.queue & 0xf_ffff_ffff_f000) + its.reader;
            let page = PhysAddr::new(at & !(PAGE - 1));
            let first = (at % PAGE) as usize / 8;
            let words = [0, 1, 2, 3].map(|i| machine.read_word(page, first + i));
            if !self.cleaned.remove(&at) {
                self.violations
                    .push(format!("a command at {at:#x} that is in a cache"));
            }
            if self.stall.as_ref().is_some_and(|stall| stall(&words)) {
                its.reader |= 1;
                return;
            }
            let bytes = ((its.queue & 0xff) + 1) * PAGE;
            its.reader = (its.reader + 32) % bytes;
            if words[0] & 0xff == 8 {
                let device = (words[0] >> 32) as u32;
                if words[2] & VALID != 0 {
                    let size = entry << ((words[1] & 0x1f) + 1);
                    let itt = words[2] & 0xf_ffff_ffff_ff00;
                    if its.devices.insert(device, (itt, size)).is_some() {
                        self.violations.push("a device mapped over itself".into());
                    }
                } else {
                    its.devices.remove(&device);
                }
            }
            self.commands.push(words);
        }
    }
}

/// As QEMU does: of a table of 16 KiB pages bits 13:12 count, where the architecture lets hardware choose.
fn table_start(table: u64) -> u64 {
    match table >> 8 & 3 {
        0 | 1 => table & 0xffff_ffff_f000,
        _ => table & 0xffff_ffff_0000 | (table & 0xf000) << 36,
    }
}

fn table_bytes(table: u64) -> u64 {
    ((table & 0xff) + 1) * [0x1000, 0x4000, 0x1_0000, 0x1_0000][(table >> 8 & 3) as usize]
}

impl FakeMachine {
    /// RD_base of the fake's first redistributor; they follow each other.
    pub const GICR: u64 = 0x080a_0000;
    /// Control frame of the fake's first ITS; the next is 128 KiB further.
    pub const GITS: u64 = 0x0808_0000;

    /// Adds an interrupt controller: four redistributors and one ITS.
    pub fn add_gic(&self, plan: GicPlan) {
        let mut model = self.gic();
        model.plan = plan;
        let stride = if plan.is_v4 { 0x4_0000 } else { 0x2_0000 };
        for number in 0..4 {
            let (property, pending) = plan.lpis_at_boot.unwrap_or_default();
            let redistributor = FakeRedistributor {
                base: Self::GICR + number * stride,
                number,
                control: plan.lpis_at_boot.is_some().into(),
                property,
                pending,
                ..FakeRedistributor::default()
            };
            let base = PhysAddr::new(redistributor.base);
            model.redistributors.push(redistributor);
            model.bases.0.push(base);
        }
        let mut its = FakeIts {
            base: Self::GITS,
            control: 1,
            ..FakeIts::default()
        };
        // Devices and collections of 8 bytes, and a table of vPEs.
        its.tables[0] = 1 << 56 | 7 << 48 | VALID | 0x4000_0000;
        its.tables[1] = 4 << 56 | 7 << 48;
        its.tables[2] = 2 << 56 | 7 << 48;
        model.its.push(its);
        model.bases.1.push(PhysAddr::new(Self::GITS));
    }

    /// RD_base of each redistributor and control frame of each ITS.
    pub(super) fn gic_bases(&self) -> (Vec<PhysAddr>, Vec<PhysAddr>) {
        self.gic().bases.clone()
    }

    /// From now on every page that the GIC uses must have the right owner.
    pub fn watch_gic(&self, owner: impl Fn(PhysAddr) -> Option<PageState> + Send + 'static) {
        self.gic().owner = Some(Box::new(owner));
    }

    /// Makes the ITS stall on commands with this opcode, or on none.
    pub fn stall_on(&self, opcode: Option<u64>) {
        self.stall_if(move |words| opcode == Some(words[0] & 0xff));
    }

    /// Makes the ITS stall on these commands.
    pub fn stall_if(&self, stall: impl Fn(&[u64; 4]) -> bool + Send + 'static) {
        self.gic().stall = Some(Box::new(stall));
    }

    /// The ITS takes no command any more.
    pub fn kill_its(&self) {
        self.gic().is_dead = true;
    }

    /// The commands that the ITS has carried out since the last call.
    pub fn its_commands(&self) -> Vec<[u64; 4]> {
        core::mem::take(&mut self.gic().commands)
    }

    /// What was written to registers that only pass things on.
    pub fn gic_writes(&self) -> Vec<(u64, u64)> {
        core::mem::take(&mut self.gic().written)
    }

    /// A register as the hardware has it.
    pub fn gic_register(&self, at: u64) -> u64 {
        self.gic().read(at)
    }

    /// ITTs that the ITS knows.
    pub fn its_devices(&self) -> Vec<u32> {
        let model = self.gic();
        let devices = model.its.iter().flat_map(|its| its.devices.keys());
        devices.copied().collect()
    }

    pub(super) fn gic_uses(&self, page: u64) -> bool {
        let model = self.gic();
        model.owner.is_some() && model.uses().iter().any(|(used, _)| *used == page)
    }

    /// Whether a page is the command queue of an ITS, whose words are no table entries.
    pub(super) fn is_its_queue(&self, page: u64) -> bool {
        let model = self.gic();
        let mut queues = model.its.iter().map(|its| its.queue);
        queues.any(|queue| queue & VALID != 0 && queue & 0xf_ffff_ffff_f000 == page)
    }

    pub(super) fn gic_violations(&self) -> Vec<String> {
        let mut model = self.gic();
        model.check("at the end");
        model.violations.clone()
    }

    fn gic(&self) -> MutexGuard<'_, Model> {
        self.gic.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register_write(&self, at: u64, value: u64) {
        let mut model = self.gic();
        model.check("before a write");
        model.write(self, at, value);
        model.check(&format!("write of {value:#x} to {at:#x}"));
    }
}

impl Mmio for FakeMachine {
    fn read32(&self, at: PhysAddr) -> u32 {
        self.gic().read(at.raw()) as u32
    }

    fn write32(&self, at: PhysAddr, value: u32) {
        self.register_write(at.raw(), value.into());
    }

    fn read64(&self, at: PhysAddr) -> u64 {
        self.gic().read(at.raw())
    }

    fn write64(&self, at: PhysAddr, value: u64) {
        self.register_write(at.raw(), value);
    }

    fn clean(&self, from: PhysAddr, bytes: u64) {
        let commands = (from.raw()..from.raw() + bytes).step_by(32);
        self.gic().cleaned.extend(commands);
    }
}
