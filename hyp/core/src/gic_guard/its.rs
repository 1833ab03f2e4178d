//! The control frame of an ITS (Arm IHI 0069, 12.18), emulated over the real one. Device and collection tables leave
//! the host, since the ITS believes them; command queue and ITTs are pinned. The host's commands are copied out of its
//! queue one by one, checked, and issued through a queue of EL2's own.

use arrayvec::ArrayVec;
use porthole_abi::{Error, PAGE_SIZE};

use super::command::{Command, Words};
use super::queue::{Failure, Queue};
use super::redistributor::{Redistributor, unpin};
use super::{Context, is_told, pages_of};
use crate::addr::{PhysAddr, PhysPages};
use crate::hw::Machine;

const CTLR: u64 = 0x00;
const IIDR: u64 = 0x04;
const TYPER: u64 = 0x08;
const UMSIR: u64 = 0x48;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const BASER_END: u64 = 0x140;
/// First of the identification registers.
const ID: u64 = 0xffd0;

/// GITS_CTLR.Enabled.
const ENABLED: u64 = 1;
/// What the host sees of GITS_TYPER: Physical, CCT, ITT_entry_size, ID_bits, Devbits, SEIS, PTA, HCC, CIDbits, CIL,
/// INV. Nothing of GICv4, no MPAM, no unmapped MSIs.
const TYPER_SHOWN: u64 = 0x401f_ff0f_fff5;
/// Valid of GITS_CBASER and GITS_BASER.
const VALID: u64 = 1 << 63;
/// GITS_CBASER: cacheability, address, shareability and size.
const CBASER_FIELDS: u64 = VALID | 7 << 59 | 7 << 53 | QUEUE_ADDRESS | 3 << 10 | 0xff;
const QUEUE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GITS_BASER.Indirect: two-level tables name pages that nobody checked, so there are none.
const INDIRECT: u64 = 1 << 62;
/// Fields of GITS_BASER that say where the table is: Physical_Address, Page_Size, Size.
const GEOMETRY: u64 = 0x0000_ffff_ffff_f3ff;
const BASER_PAGE_SIZE: u64 = 3 << 8;
const PAGE_SIZE_16K: u64 = 1 << 8;
/// GITS_BASER.Type and Entry_Size, which the hardware fixes.
const BASER_FIXED: u64 = 7 << 56 | 0x1f << 48;
/// Offset in GITS_CWRITER and GITS_CREADR, and what else they have.
const OFFSET: u64 = 0xf_ffe0;
const RETRY: u64 = 1;
const STALLED: u64 = 1;

const COMMAND_BYTES: u64 = 32;
/// Commands that one access of the host has done, at most; the next access goes on.
const BATCH: usize = 128;
/// Most devices of an ITS: their list fills a page.
const DEVICES_MAX: usize = 255;
/// Most pages of an ITT.
const ITT_PAGES_MAX: u64 = 512;

/// Whether the register at this offset has 64 bits.
pub(super) fn is_wide(offset: u64) -> bool {
    matches!(
        offset & !7,
        TYPER | UMSIR | CBASER | CWRITER | CREADR | BASER..BASER_END
    )
}

/// What a table is for (GITS_BASER.Type). The others, of GICv4 or reserved, are hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Devices,
    Collections,
}

impl Kind {
    fn of(baser: u64) -> Option<Self> {
        match baser >> 56 & 7 {
            1 => Some(Self::Devices),
            4 => Some(Self::Collections),
            _ => None,
        }
    }
}

/// A table taken from the host.
#[derive(Clone, Copy, Debug)]
struct Table {
    kind: Kind,
    pages: PhysPages,
    entries: u64,
    /// The ITS uses it. Else its pages could not be given back yet.
    live: bool,
}

/// A device that a MAPD made known.
#[derive(Clone, Copy, Debug)]
struct Device {
    id: u32,
    /// EventID bits, less one.
    bits: u8,
    itt: PhysAddr,
}

type Devices = ArrayVec<Device, DEVICES_MAX>;
const _: () = assert!(size_of::<Devices>() <= PAGE_SIZE as usize);

/// The host's command queue as the host sees it.
#[derive(Debug, Default)]
struct HostQueue {
    /// GITS_CBASER.
    base: u64,
    /// Its pages, pinned, if it is valid.
    pages: Option<PhysPages>,
    reader: u64,
    writer: u64,
    stalled: bool,
}

/// An ITS.
pub(super) struct Its<M: Machine> {
    queue: Queue,
    typer: u64,
    host: HostQueue,
    tables: [Option<Table>; 8],
    devices: M::Boxed<Devices>,
    refused: u64,
}

impl<M: Machine> Its<M> {
    /// Takes an ITS over: off, without tables.
    pub fn new(
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        base: PhysAddr,
    ) -> Result<Self, Error> {
        let machine = context.machine;
        let page = queue_page(machine).ok_or(Error::NoMemory)?;
        let list = machine.alloc_page().ok_or(Error::NoMemory)?;
        let typer = machine.read64(PhysAddr::new(base.raw() + TYPER));
        let target = redistributors.first().map(|r| r.target(by_address(typer)));
        let queue = Queue::new(machine, base, page, target.unwrap_or(0));
        for register in (BASER..BASER_END).step_by(8).map(|offset| queue.at(offset)) {
            let value = machine.read64(register);
            machine.write64(register, value & !VALID);
        }
        Ok(Self {
            typer,
            queue,
            host: HostQueue::default(),
            tables: [None; 8],
            devices: machine.place(list, Devices::new()),
            refused: 0,
        })
    }

    pub fn read(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        register: u64,
    ) -> u64 {
        let machine = context.machine;
        let at = self.queue.at(register);
        match register {
            CTLR | IIDR | ID.. => machine.read32(at).into(),
            TYPER => self.typer & TYPER_SHOWN,
            CBASER => self.host.base,
            CWRITER => self.host.writer,
            CREADR => {
                self.process(context, redistributors);
                self.host.reader | if self.host.stalled { STALLED } else { 0 }
            }
            BASER..BASER_END => {
                let value = machine.read64(at);
                Kind::of(value).map_or(0, |_| value & !INDIRECT)
            }
            _ => 0,
        }
    }

    pub fn write(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        register: u64,
        value: u64,
    ) {
        match register {
            CTLR => self.set_control(context, redistributors, value),
            CBASER if self.queue.is_idle(context.machine) => self.set_queue(context, value),
            CWRITER => {
                self.host.writer = value & OFFSET;
                self.host.stalled &= value & RETRY == 0;
                self.process(context, redistributors);
            }
            BASER..BASER_END if self.queue.is_idle(context.machine) => {
                let index = (register - BASER) as usize / 8;
                self.set_table(context, redistributors, index, value);
            }
            _ => {}
        }
    }

    fn set_control(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        value: u64,
    ) {
        let machine = context.machine;
        match (value & ENABLED != 0, self.queue.is_enabled(machine)) {
            (true, false) if !self.queue.is_dead() => {
                self.queue.enable(machine);
                self.process(context, redistributors);
            }
            (false, true) => self.queue.stop(machine),
            _ => {}
        }
    }

    /// GITS_CBASER: the pages are pinned, the ITS itself never hears of them.
    fn set_queue(&mut self, context: &Context<'_, M>, value: u64) {
        if let Some(pages) = self.host.pages.take() {
            unpin(context, &pages);
        }
        let mut base = value & CBASER_FIELDS;
        if base & VALID != 0 {
            let start = PhysAddr::new(base & QUEUE_ADDRESS);
            let pages = PhysPages::new(start, (base & 0xff) + 1);
            match pages.and_then(|pages| context.memory.pin(&pages).map(|()| pages)) {
                Ok(pages) => self.host.pages = Some(pages),
                Err(error) => {
                    if is_told(&mut self.refused) {
                        log::warn!("an ITS command queue at {start} is refused: {error:?}");
                    }
                    base &= !VALID;
                }
            }
        }
        self.host = HostQueue {
            base,
            pages: self.host.pages,
            writer: self.host.writer,
            ..HostQueue::default()
        };
    }

    /// GITS_BASER of an ITS that is idle. A table that cannot be had leaves the register without Valid.
    fn set_table(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        index: usize,
        value: u64,
    ) {
        let machine = context.machine;
        let register = self.queue.at(BASER + 8 * index as u64);
        let old = machine.read64(register);
        let Some(kind) = Kind::of(old) else {
            return;
        };
        let value = value & !(INDIRECT | BASER_FIXED) | old & BASER_FIXED;
        if old & value & VALID != 0 && (old ^ value) & GEOMETRY == 0 {
            // The same table: it keeps its content, as it does when a host wakes up and writes all registers again.
            machine.write64(register, value);
            return;
        }
        if !self.drop_table(context, redistributors, index) {
            return;
        }
        machine.write64(register, value & !VALID);
        if value & VALID == 0 {
            return;
        }
        // The page size that the hardware has decides how much it will use.
        let page_size = machine.read64(register) & BASER_PAGE_SIZE;
        let mut value = value & !BASER_PAGE_SIZE | page_size;
        if page_size == PAGE_SIZE_16K {
            // What these bits do is the hardware's choice (12.19.1), and QEMU's ITS adds them to the address.
            value &= !(3 << 12);
        }
        let table = match take_table(context, kind, value) {
            Ok(table) => table,
            Err(error) => {
                if is_told(&mut self.refused) {
                    log::warn!("an ITS table {value:#x} is refused: {error:?}");
                }
                return;
            }
        };
        machine.write64(register, value);
        let stuck = machine.read64(register);
        let live = stuck & VALID != 0 && (stuck ^ value) & (GEOMETRY | INDIRECT) == 0;
        self.tables[index] = Some(Table { live, ..table });
        if !live {
            machine.write64(register, value & !VALID);
            self.drop_table(context, redistributors, index);
        }
    }

    /// Ends the use of a table and gives its pages back; whether there is none any more.
    fn drop_table(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        index: usize,
    ) -> bool {
        let machine = context.machine;
        let Some(table) = self.tables[index] else {
            return true;
        };
        if table.live {
            if table.kind == Kind::Devices && self.forget_devices(context, redistributors).is_err()
            {
                return false;
            }
            let register = self.queue.at(BASER + 8 * index as u64);
            let value = machine.read64(register);
            machine.write64(register, value & !VALID);
            self.tables[index] = Some(Table {
                live: false,
                ..table
            });
        }
        // Without memory for the host's tables the pages stay taken until the register is written again.
        let given = context.memory.give_table(machine, table.pages);
        if given.is_ok() {
            self.tables[index] = None;
        }
        given.is_ok()
    }

    /// Unmaps every device, by command, so that the ITS forgets what it has cached of their ITTs. It is idle before
    /// and after.
    fn forget_devices(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
    ) -> Result<(), Failure> {
        if self.devices.is_empty() {
            return Ok(());
        }
        self.queue.enable(context.machine);
        while let Some(device) = self.devices.last().copied() {
            self.unmap_device(context, redistributors, device.id)?;
        }
        self.queue.disable(context.machine)
    }

    /// Has the host's next commands done, up to the first that is refused.
    fn process(&mut self, context: &Context<'_, M>, redistributors: &[Redistributor]) {
        let Some(pages) = self.host.pages else {
            return;
        };
        if self.host.writer >= pages.bytes() || !self.queue.is_enabled(context.machine) {
            return;
        }
        for _ in 0..BATCH {
            if self.host.stalled || self.host.reader == self.host.writer {
                return;
            }
            let at = PhysAddr::new(pages.start().raw() + self.host.reader);
            let result = copy(context, at).and_then(|words| {
                let command = Command::decode(&words).ok_or(Error::InvalidParameter)?;
                self.execute(context, redistributors, command)
            });
            match result {
                Ok(()) => self.host.reader = (self.host.reader + COMMAND_BYTES) % pages.bytes(),
                Err(failure) => {
                    self.host.stalled = true;
                    if is_told(&mut self.refused) {
                        log::warn!("an ITS command at {at} is refused: {failure:?}");
                    }
                }
            }
        }
    }

    /// Checks a command and has it done, or refuses it with nothing changed.
    fn execute(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        command: Command,
    ) -> Result<(), Failure> {
        let by_address = by_address(self.typer);
        let is_sound = match command {
            Command::Mapd { device, itt: None } => {
                return self.unmap_device(context, redistributors, device);
            }
            Command::Mapd {
                device,
                itt: Some((itt, bits)),
            } => {
                let device = Device {
                    id: device,
                    bits,
                    itt,
                };
                return self.map_device(context, redistributors, device);
            }
            Command::Event { device, event, .. } => self.has_event(device, event),
            Command::Movi {
                device,
                event,
                collection,
            } => self.has_event(device, event) && self.has_collection(collection),
            Command::Mapti {
                device,
                event,
                intid,
                collection,
            } => {
                self.has_event(device, event)
                    && self.has_collection(collection)
                    && (8192..2 << context.id_bits).contains(&u64::from(intid))
            }
            Command::Mapc { collection, target } => {
                let exists = |target| is_target(redistributors, by_address, target);
                self.has_collection(collection) && target.is_none_or(exists)
            }
            Command::Invall { collection } => self.has_collection(collection),
            Command::Movall { from, to } => [from, to].into_iter().all(|target| {
                let mut all = redistributors.iter();
                all.any(|r| r.target(by_address) == target && r.property_table().is_some())
            }),
            Command::Sync { target } => is_target(redistributors, by_address, target),
        };
        if !is_sound {
            return Err(Error::InvalidParameter.into());
        }
        self.queue.issue(context.machine, command)
    }

    fn live_table(&self, kind: Kind) -> Option<&Table> {
        let mut tables = self.tables.iter().flatten();
        tables.find(|table| table.live && table.kind == kind)
    }

    fn has_event(&self, device: u32, event: u32) -> bool {
        let mut devices = self.devices.iter();
        devices.any(|d| d.id == device && u64::from(event) < 2 << d.bits)
    }

    fn has_collection(&self, collection: u16) -> bool {
        let in_memory = self.live_table(Kind::Collections).map_or(0, |t| t.entries);
        let in_hardware = self.typer >> 24 & 0xff;
        // GITS_TYPER.CCT: the two add up. Else memory alone counts, where there is a table.
        let count = match (self.typer >> 2 & 1, in_memory) {
            (1, _) => in_memory + in_hardware,
            (_, 0) => in_hardware,
            _ => in_memory,
        };
        // GITS_TYPER.CIL: CIDbits counts.
        let bits = if self.typer >> 36 & 1 != 0 {
            (self.typer >> 32 & 0xf) + 1
        } else {
            16
        };
        u64::from(collection) < count.min(1 << bits)
    }

    fn itt_pages(&self, device: &Device) -> Result<PhysPages, Error> {
        let entry = (self.typer >> 4 & 0xf) + 1;
        let pages = pages_of(device.itt.raw(), entry << (device.bits + 1))?;
        if pages.count() > ITT_PAGES_MAX {
            return Err(Error::TooLarge);
        }
        Ok(pages)
    }

    /// MAPD with Valid: the ITT's pages are pinned as long as the device is mapped to it.
    fn map_device(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        device: Device,
    ) -> Result<(), Failure> {
        let ids = 2u64 << (self.typer >> 13 & 0x1f);
        let entries = self.live_table(Kind::Devices).map_or(0, |t| t.entries);
        if u64::from(device.id) >= ids.min(entries) || device.bits > (self.typer >> 8 & 0x1f) as u8
        {
            return Err(Error::InvalidParameter.into());
        }
        let slot = self.devices.iter().position(|d| d.id == device.id);
        if slot.is_none() && self.devices.is_full() {
            return Err(Error::NoSlot.into());
        }
        let pages = self.itt_pages(&device)?;
        context.memory.pin(&pages)?;
        let itt = Some((device.itt, device.bits));
        let command = Command::Mapd {
            device: device.id,
            itt,
        };
        match self.queue.issue(context.machine, command) {
            Ok(()) => {}
            Err(Failure::Refused(error)) => {
                unpin(context, &pages);
                return Err(error.into());
            }
            Err(Failure::Dead) => return Err(Failure::Dead),
        }
        match slot.and_then(|slot| self.devices.get_mut(slot)) {
            None => self.devices.push(device),
            Some(known) => {
                let old = core::mem::replace(known, device);
                let pages = self.itt_pages(&old)?;
                self.sync(context, redistributors)?;
                unpin(context, &pages);
            }
        }
        Ok(())
    }

    /// MAPD without Valid. A device that is not mapped stays so.
    fn unmap_device(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
        device: u32,
    ) -> Result<(), Failure> {
        let Some(slot) = self.devices.iter().position(|d| d.id == device) else {
            return Ok(());
        };
        let pages = self.itt_pages(&self.devices[slot])?;
        let command = Command::Mapd { device, itt: None };
        self.queue.issue(context.machine, command)?;
        self.sync(context, redistributors)?;
        unpin(context, &pages);
        self.devices.swap_remove(slot);
        Ok(())
    }

    /// Waits until every redistributor has seen the effects of what was issued: no earlier ITT is used any more.
    fn sync(
        &mut self,
        context: &Context<'_, M>,
        redistributors: &[Redistributor],
    ) -> Result<(), Failure> {
        let by_address = by_address(self.typer);
        for redistributor in redistributors {
            let target = redistributor.target(by_address);
            self.queue
                .issue(context.machine, Command::Sync { target })?;
        }
        Ok(())
    }
}

/// GITS_TYPER.PTA: commands name redistributors by address.
const fn by_address(typer: u64) -> bool {
    typer >> 19 & 1 != 0
}

/// A page of the pool at a multiple of 64 KiB, as a command queue must be: what an ITS reads where bits 15:12 of
/// GITS_CBASER are not zero is its own choice (12.19.2). The pool is young and whole, so every 16th page of it is one.
fn queue_page<M: Machine>(machine: &M) -> Option<PhysAddr> {
    const TRIES: usize = 48;
    let mut others = ArrayVec::<_, TRIES>::new();
    let mut found = None;
    for page in core::iter::from_fn(|| machine.alloc_page()).take(TRIES) {
        if page.is_aligned(0x1_0000) {
            found = Some(page);
            break;
        }
        others.push(page);
    }
    others.into_iter().for_each(|page| machine.free_page(page));
    found
}

/// Whether RDbase names a redistributor.
fn is_target(redistributors: &[Redistributor], by_address: bool, target: u64) -> bool {
    redistributors
        .iter()
        .any(|r| r.target(by_address) == target)
}

/// Copies a command out of the host's queue, once.
fn copy<M: Machine>(context: &Context<'_, M>, at: PhysAddr) -> Result<Words, Failure> {
    let mut bytes = [0; COMMAND_BYTES as usize];
    context
        .memory
        .copy_from_host(context.machine, at, &mut bytes)?;
    let mut words = Words::default();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(words)
}

/// Takes the pages of the table that this value of GITS_BASER describes.
fn take_table<M: Machine>(
    context: &Context<'_, M>,
    kind: Kind,
    value: u64,
) -> Result<Table, Error> {
    let (page_bytes, start) = match value & BASER_PAGE_SIZE {
        0 => (0x1000, value & 0x0000_ffff_ffff_f000),
        PAGE_SIZE_16K => (0x4000, value & 0x0000_ffff_ffff_c000),
        // Bits 51:48 of the address stand in 15:12.
        _ => (
            0x1_0000,
            value & 0x0000_ffff_ffff_0000 | (value & 0xf000) << 36,
        ),
    };
    let bytes = ((value & 0xff) + 1) * page_bytes;
    let pages = pages_of(start, bytes)?;
    context.memory.take_table(context.machine, pages)?;
    Ok(Table {
        kind,
        pages,
        entries: bytes / ((value >> 48 & 0x1f) + 1),
        live: false,
    })
}
