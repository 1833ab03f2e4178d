//! The machine, read from the device tree in x0: what is where, and mapping it.
//! The tree is part of the launch measurement, so it is trusted as far as whoever checked that trusts it; the `fdt`
//! crate panics on a malformed one, which ends the guest.

use core::ops::Range;

use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;
use porthole_runtime::entry::{CPUS_MAX, image_range};
use porthole_runtime::gic::Gic;
use porthole_runtime::mmio::Registers;
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::{console, psci};

use crate::args::Args;

/// Bytes in a page.
pub const PAGE: u64 = porthole_abi::PAGE_SIZE;
/// Most ranges of RAM.
const RAM_MAX: usize = 4;

/// The GICv2m frame (Arm SBSA, GICv2m): a write of an interrupt's number to its doorbell raises it.
#[derive(Clone, Copy, Debug)]
pub struct MsiFrame {
    /// Address of SETSPI_NS.
    pub doorbell: u64,
    /// First INTID.
    pub base: u32,
    /// How many.
    pub count: u32,
}

/// The PCI host bridge (`pci-host-ecam-generic`).
#[derive(Clone, Debug)]
pub struct PciHost {
    /// Configuration space of the first bus.
    pub ecam: Registers,
    /// Number of the first bus.
    pub bus: u8,
    /// Memory for BARs with registers: not prefetchable, mapped as Device.
    pub registers: Registers,
    /// Prefetchable memory, where windows may be; nothing is mapped there.
    pub windows: Option<Range<u64>>,
}

/// What the tree says.
#[derive(Clone, Debug)]
pub struct Machine {
    /// RAM.
    pub ram: ArrayVec<Range<u64>, RAM_MAX>,
    /// Pages of the device tree.
    pub tree: Range<u64>,
    /// MPIDR of each CPU, the boot CPU's first.
    pub cpus: ArrayVec<u64, CPUS_MAX>,
    /// Interrupt controller; its registers are mapped.
    pub gic: Gic,
    /// MSI frame.
    pub msi: Option<MsiFrame>,
    /// PCI.
    pub pci: Option<PciHost>,
    /// PL031.
    pub rtc: Option<Registers>,
    /// Command line.
    pub args: Args,
    /// Whether the tree says that this is a guest of Porthole.
    pub protected: bool,
}

/// Switches the MMU on and reads the tree at `dtb`; from then on the console works.
///
/// # Panics
/// When the tree lacks what every machine has.
pub fn start(dtb: u64) -> Machine {
    let image = pages(image_range());
    mmu::map(
        image.start,
        image.start,
        image.end - image.start,
        Attr::Normal,
    );
    // Its first page tells how long the tree is; unaligned reads need the MMU on.
    let first = pages(dtb..dtb + 8);
    mmu::map(first.start, first.start, PAGE, Attr::Normal);
    mmu::enable();
    // SAFETY: the boot protocol puts a device tree there, its header inside the page just mapped.
    let total = u32::from_be(unsafe { ((dtb + 4) as *const u32).read() });
    let tree = pages(dtb..dtb + u64::from(total));
    mmu::map(
        first.end,
        first.end,
        tree.end.saturating_sub(first.end),
        Attr::Normal,
    );
    // SAFETY: mapped above, not written by anybody, and never unmapped.
    let bytes = unsafe { core::slice::from_raw_parts(dtb as *const u8, total as usize) };
    let fdt = match Fdt::new(bytes) {
        Ok(fdt) => fdt,
        Err(_) => psci::system_reset(), // and there is no console to say why
    };
    open_console(&fdt);
    read(&fdt, tree)
}

fn open_console(fdt: &Fdt<'static>) {
    let (node, kind): (_, fn(u64) -> console::Uart) = match fdt.find_compatible(&["ns16550a"]) {
        Some(node) => (node, console::Uart::Ns16550),
        None => match fdt.find_compatible(&["arm,pl011"]) {
            Some(node) => (node, console::Uart::Pl011),
            None => return,
        },
    };
    if let Some(place) = reg(&node, 0) {
        console::set(kind(device(place).base()));
    }
}

fn read(fdt: &Fdt<'static>, tree: Range<u64>) -> Machine {
    let method = fdt.find_node("/psci").and_then(|n| n.property("method"));
    psci::use_smc(method.and_then(|m| m.as_str()) == Some("smc"));
    let gic = fdt
        .find_compatible(&["arm,gic-v3"])
        .expect("no GICv3 in the device tree");
    let place = |n| device(reg(&gic, n).expect("GICv3 without registers")).base();
    let gic = Gic {
        dist: place(0),
        redist: place(1),
    };
    let mut machine = Machine {
        ram: fdt
            .memory()
            .regions()
            .map(|r| range(r.starting_address as u64, r.size.unwrap_or(0) as u64))
            .take(RAM_MAX)
            .collect(),
        tree,
        cpus: fdt
            .cpus()
            .map(|c| c.ids().first() as u64)
            .take(CPUS_MAX)
            .collect(),
        gic,
        msi: fdt
            .find_compatible(&["arm,gic-v2m-frame"])
            .and_then(|n| msi(&n)),
        pci: fdt
            .find_compatible(&["pci-host-ecam-generic"])
            .and_then(|n| pci(&n)),
        rtc: fdt
            .find_compatible(&["arm,pl031"])
            .and_then(|n| Some(device(reg(&n, 0)?))),
        args: Args(fdt.chosen().bootargs().unwrap_or("")),
        protected: fdt.root().compatible().all().any(|c| c == "porthole,guest"),
    };
    let boot = porthole_runtime::read_reg!("mpidr_el1") & 0xff_00ff_ffff;
    if let Some(index) = machine.cpus.iter().position(|c| *c == boot) {
        machine.cpus.swap(0, index);
    }
    for free in machine.free() {
        mmu::map(free.start, free.start, free.end - free.start, Attr::Normal);
    }
    machine
}

impl Machine {
    /// RAM that neither image nor device tree takes, in whole pages, in order.
    pub fn free(&self) -> ArrayVec<Range<u64>, { RAM_MAX + 2 }> {
        let mut free = ArrayVec::new();
        for ram in &self.ram {
            let mut taken = [pages(image_range()), self.tree.clone()];
            taken.sort_by_key(|t| t.start);
            let mut at = ram.start.next_multiple_of(PAGE);
            let end = ram.end & !(PAGE - 1);
            for taken in taken {
                if taken.start >= end || taken.end <= at {
                    continue;
                }
                if taken.start > at {
                    free.push(at..taken.start);
                }
                at = taken.end;
            }
            if at < end {
                free.push(at..end);
            }
        }
        free
    }

    /// The last `size` bytes of free RAM (a multiple of the page size), less `skip` bytes behind them.
    pub fn top(&self, skip: u64, size: u64) -> Option<Range<u64>> {
        let need = skip.checked_add(size)?;
        self.free().iter().rev().find_map(|free| {
            let start = free.end.checked_sub(need)?;
            (start >= free.start).then(|| start..start + size)
        })
    }
}

/// The whole pages that a range touches.
fn pages(range: Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE)
}

fn range(base: u64, size: u64) -> Range<u64> {
    base..base.saturating_add(size)
}

/// Entry `n` of a node's `reg`.
fn reg(node: &FdtNode<'_, 'static>, n: usize) -> Option<Range<u64>> {
    let entry = node.reg()?.nth(n)?;
    Some(range(entry.starting_address as u64, entry.size? as u64))
}

/// Maps registers that the tree describes.
fn device(place: Range<u64>) -> Registers {
    let whole = pages(place.clone());
    mmu::map(
        whole.start,
        whole.start,
        whole.end - whole.start,
        Attr::Device,
    );
    // SAFETY: just mapped as Device, and never as anything else; the tree says that a device is there.
    unsafe { Registers::new(place.start, place.end - place.start) }
}

fn msi(node: &FdtNode<'_, 'static>) -> Option<MsiFrame> {
    let number = |name| node.property(name)?.as_usize()?.try_into().ok();
    Some(MsiFrame {
        doorbell: device(reg(node, 0)?).base() + 0x40,
        base: number("arm,msi-base-spi")?,
        count: number("arm,msi-num-spis")?,
    })
}

/// `ranges` of a PCI host (PCI bus binding to IEEE 1275): cells of flags, bus address (2), CPU address (2), size (2).
fn pci(node: &FdtNode<'_, 'static>) -> Option<PciHost> {
    const CELLS: usize = 7;
    const MEMORY_32: u32 = 2;
    const PREFETCHABLE: u32 = 1 << 30;
    let word = |bytes: &[u8], n: usize| -> u32 {
        bytes[n * 4..]
            .first_chunk()
            .map_or(0, |c| u32::from_be_bytes(*c))
    };
    let wide = |bytes: &[u8], n| u64::from(word(bytes, n)) << 32 | u64::from(word(bytes, n + 1));
    let (mut registers, mut windows) = (None, None);
    for entry in node.property("ranges")?.value.chunks_exact(CELLS * 4) {
        let flags = word(entry, 0);
        // Bus and CPU addresses must be equal: this guest translates nothing.
        if flags >> 24 & 3 != MEMORY_32 || wide(entry, 1) != wide(entry, 3) {
            continue;
        }
        let place = range(wide(entry, 3), wide(entry, 5));
        if flags & PREFETCHABLE != 0 {
            windows.get_or_insert(place);
        } else {
            registers.get_or_insert(place);
        }
    }
    let bus = node.property("bus-range").map_or(0, |p| word(p.value, 0));
    let ecam = reg(node, 0)?;
    // One bus: nothing behind bridges is looked for.
    let one = range(ecam.start, (1 << 20).min(ecam.end - ecam.start));
    Some(PciHost {
        ecam: device(one),
        bus: u8::try_from(bus).ok()?,
        registers: device(registers?),
        windows,
    })
}
