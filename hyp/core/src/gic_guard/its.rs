//! The control frame of an ITS (Arm IHI 0069, 12.18), emulated over the real one. Device and collection tables leave
//! the host, since the ITS believes them; the host's command queue is pinned, the ITS gets one of EL2's own.
//! What the host's commands do is in `commands`.

mod commands;

use arrayvec::ArrayVec;
use porthole_abi::{Error, PAGE_SIZE};

use super::queue::Queue;
use super::redistributor::{Redistributor, unpin};
use super::{is_told, pages_of};
use crate::addr::{PhysAddr, PhysPages};
use crate::hw::Machine;
use crate::memory::HostMemory;

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

/// Most devices of an ITS: their list fills a page.
const DEVICES_MAX: usize = 255;

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
    /// GITS_CBASER as it was last written.
    base: u64,
    /// Its pages, pinned, if it is valid.
    pages: Option<PhysPages>,
    reader: u64,
    writer: u64,
    stalled: bool,
}

/// What the hardware, `memory` and the redistributors are to an ITS.
pub(super) struct Site<'a, M> {
    pub machine: &'a M,
    pub memory: &'a HostMemory<'static>,
    pub id_bits: u8,
    pub redistributors: &'a [Redistributor],
}

/// An ITS.
pub(super) struct Its<M: Machine> {
    queue: Queue,
    typer: u64,
    host: HostQueue,
    tables: [Option<Table>; 8],
    /// GITS_BASER as they were last written.
    asked: [u64; 8],
    devices: M::Boxed<Devices>,
    refused: u64,
}

impl<M: Machine> Its<M> {
    /// Takes an ITS over: off, without tables.
    ///
    /// # Errors
    /// `NoMemory`; `Busy` for one that cannot be switched off.
    pub fn new(site: &Site<'_, M>, base: PhysAddr) -> Result<Self, Error> {
        let machine = site.machine;
        let page = queue_page(machine).ok_or(Error::NoMemory)?;
        let list = machine.alloc_page().ok_or(Error::NoMemory)?;
        let typer = machine.read64(PhysAddr::new(base.raw() + TYPER));
        let target = site
            .redistributors
            .first()
            .map(|r| r.target(by_address(typer)));
        let queue = Queue::new(machine, base, page, target.unwrap_or(0));
        if queue.is_dead() {
            // Nobody knows what firmware had it use.
            return Err(Error::Busy);
        }
        let asked = [0, 1, 2, 3, 4, 5, 6, 7].map(|index| {
            let register = queue.at(BASER + 8 * index);
            let value = machine.read64(register) & !VALID;
            machine.write64(register, value);
            value
        });
        Ok(Self {
            typer,
            queue,
            host: HostQueue::default(),
            tables: [None; 8],
            asked,
            devices: machine.place(list, Devices::new()),
            refused: 0,
        })
    }

    pub fn read(&mut self, site: &Site<'_, M>, register: u64) -> u64 {
        let machine = site.machine;
        let at = self.queue.at(register);
        match register {
            CTLR | IIDR | ID.. => machine.read32(at).into(),
            TYPER => self.typer & TYPER_SHOWN,
            CBASER if self.host.pages.is_none() => self.host.base & !VALID,
            CBASER => self.host.base,
            CWRITER => self.host.writer,
            CREADR => {
                self.process(site);
                self.host.reader | if self.host.stalled { STALLED } else { 0 }
            }
            BASER..BASER_END => {
                let value = machine.read64(at);
                Kind::of(value).map_or(0, |_| value & !INDIRECT)
            }
            _ => 0,
        }
    }

    /// A 64-bit register as the host last wrote it: what it is when one half of it is written.
    pub fn asked(&self, register: u64) -> u64 {
        match register {
            CBASER => self.host.base,
            CWRITER => self.host.writer,
            BASER..BASER_END => self.asked[(register - BASER) as usize / 8],
            _ => 0,
        }
    }

    pub fn write(&mut self, site: &Site<'_, M>, register: u64, value: u64) {
        match register {
            CTLR => self.set_control(site, value),
            CBASER if self.queue.is_idle(site.machine) => self.set_queue(site, value),
            CWRITER => {
                self.host.writer = value & OFFSET;
                self.host.stalled &= value & RETRY == 0;
                self.process(site);
            }
            BASER..BASER_END if self.queue.is_idle(site.machine) => {
                let index = (register - BASER) as usize / 8;
                self.set_table(site, index, value);
            }
            _ => {}
        }
    }

    fn set_control(&mut self, site: &Site<'_, M>, value: u64) {
        let machine = site.machine;
        match (value & ENABLED != 0, self.queue.is_enabled(machine)) {
            (true, false) if self.queue.is_idle(machine) => {
                self.queue.enable(machine);
                self.process(site);
            }
            (false, true) => self.queue.stop(machine),
            _ => {}
        }
    }

    /// GITS_CBASER: the pages are pinned, the ITS itself never hears of them.
    fn set_queue(&mut self, site: &Site<'_, M>, value: u64) {
        if let Some(pages) = self.host.pages.take() {
            unpin(site.memory, &pages);
        }
        let base = value & CBASER_FIELDS;
        if base & VALID != 0 {
            let start = PhysAddr::new(base & QUEUE_ADDRESS);
            let pages = PhysPages::new(start, (base & 0xff) + 1);
            match pages.and_then(|pages| site.memory.pin(&pages).map(|()| pages)) {
                Ok(pages) => self.host.pages = Some(pages),
                Err(error) => {
                    if is_told(&mut self.refused) {
                        log::warn!("an ITS command queue at {start} is refused: {error}");
                    }
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
    fn set_table(&mut self, site: &Site<'_, M>, index: usize, value: u64) {
        let machine = site.machine;
        let register = self.queue.at(BASER + 8 * index as u64);
        let old = machine.read64(register);
        let Some(kind) = Kind::of(old) else {
            return;
        };
        self.asked[index] = value;
        let value = value & !(INDIRECT | BASER_FIXED) | old & BASER_FIXED;
        if old & value & VALID != 0 && (old ^ value) & GEOMETRY == 0 {
            // The same table: it keeps its content, as it does when a host wakes up and writes all registers again.
            machine.write64(register, value);
            return;
        }
        if !self.drop_table(site, index) {
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
        machine.write64(register, value & !VALID);
        let stuck = machine.read64(register);
        let table = if (stuck ^ value) & (GEOMETRY | INDIRECT) == 0 {
            take_table(site, kind, value)
        } else {
            Err(Error::InvalidParameter)
        };
        match table {
            Ok(table) => {
                self.tables[index] = Some(table);
                machine.write64(register, value);
            }
            Err(error) => {
                if is_told(&mut self.refused) {
                    log::warn!("an ITS table {value:#x} is refused: {error}");
                }
            }
        }
    }

    /// Ends the use of a table and gives its pages back; whether there is none any more.
    fn drop_table(&mut self, site: &Site<'_, M>, index: usize) -> bool {
        let machine = site.machine;
        let Some(table) = self.tables[index] else {
            return true;
        };
        if table.live {
            if table.kind == Kind::Devices && self.forget_devices(site).is_err() {
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
        let given = site.memory.give_table(machine, table.pages);
        if given.is_ok() {
            self.tables[index] = None;
        }
        given.is_ok()
    }

    fn live_table(&self, kind: Kind) -> Option<&Table> {
        let mut tables = self.tables.iter().flatten();
        tables.find(|table| table.live && table.kind == kind)
    }
}

/// GITS_TYPER.PTA: commands name redistributors by address.
const fn by_address(typer: u64) -> bool {
    typer >> 19 & 1 != 0
}

/// A page of the pool at a multiple of 64 KiB, as a command queue must be: what an ITS reads where bits 15:12 of
/// GITS_CBASER are not zero is its own choice (12.19.2). The pool is young and whole, so every 16th page of it is one.
fn queue_page<M: Machine>(machine: &M) -> Option<PhysAddr> {
    const TRIES: usize = 96;
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

/// Takes the pages of the table that this value of GITS_BASER describes.
fn take_table<M: Machine>(site: &Site<'_, M>, kind: Kind, value: u64) -> Result<Table, Error> {
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
    site.memory.take_table(site.machine, pages)?;
    Ok(Table {
        kind,
        pages,
        entries: bytes / ((value >> 48 & 0x1f) + 1),
        live: true,
    })
}
