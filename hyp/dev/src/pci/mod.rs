//! Looks at a machine's PCI functions, once, before the host runs: which of them do their DMA past the SMMU although the
//! device tree has them behind it? Every bus is visited (bridges get bus numbers for that time only), virtio functions
//! are asked (`virtio`). Nothing is decided here, and everything is left as it was.

mod ecam;
#[cfg(test)]
mod tests;
mod virtio;

use core::fmt;
use core::ops::RangeInclusive;

use arrayvec::ArrayVec;

pub use ecam::Ecam;

/// Most bridges in a row.
const DEPTH_MAX: usize = 8;
/// Most bridges whose buses are open or waited for at a time.
const BRIDGES_MAX: usize = 128;
/// Most buses that are visited.
const BUSES_MAX: usize = 256;

/// What reads as all ones: no function.
const ABSENT: u16 = 0xffff;
/// Class (the upper half of this register): host bridge, which every root has.
const CLASS: u16 = 0x08;
const HOST_BRIDGE: u32 = 0x0600;
/// Header type (bits 16 to 22): 0 a function, 1 a bridge to another bus.
const HEADER: u16 = 0x0c;
/// A bridge's bus numbers: primary, secondary, subordinate (PCI-to-PCI Bridge Architecture Specification 1.2, 3.2.5).
const NUMBERS: u16 = 0x18;
const NUMBERS_MASK: u32 = 0x00ff_ffff;
/// Bridge control (upper half): bit 6 holds the bus behind it in reset.
const CONTROL: u16 = 0x3c;
const BUS_RESET: u32 = 1 << 22;

/// Where a function is on its PCI segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Bus number.
    pub bus: u8,
    /// Device, five bits, and function, three.
    pub devfn: u8,
}

/// Configuration space of a segment.
pub trait Config {
    /// Reads the register at `offset`, a multiple of 4 below 4096; all ones where there is none.
    fn read(&self, at: Function, offset: u16) -> u32;

    /// Writes it.
    fn write(&self, at: Function, offset: u16, value: u32);
}

/// Device and function on each bus from the root down. Bus numbers would say nothing: they are gone afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Path {
    devfns: [u8; DEPTH_MAX],
    length: usize,
}

impl Path {
    /// One bus further down; `None` where that is too deep.
    fn join(mut self, devfn: u8) -> Option<Self> {
        *self.devfns.get_mut(self.length)? = devfn;
        self.length += 1;
        Some(self)
    }
}

/// Why what is at this place counts as a master that no SMMU stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It offers no VIRTIO_F_ACCESS_PLATFORM (QEMU's default), or has no interface that could.
    Bypass,
    /// It takes pages away by physical address, whatever it says about its DMA.
    Balloon,
    /// What it says about itself is malformed, or it does not answer.
    Unreadable,
    /// It can make more functions later (SR-IOV), which may be of another kind.
    MoreFunctions,
    /// It stands for another root, whose buses the device tree does not name.
    OtherRoot,
    /// The buses behind it cannot be looked at.
    Closed,
}

/// A master outside every SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    root: u8,
    path: Path,
    /// Vendor in the lower half, device in the upper one.
    ids: u32,
    /// Why it is one.
    pub reason: Reason,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vendor, device) = (self.ids & 0xffff, self.ids >> 16);
        write!(f, "PCI function {:02x}:", self.root)?;
        for (n, devfn) in self.path.devfns.iter().take(self.path.length).enumerate() {
            let slash = if n == 0 { "" } else { "/" };
            write!(f, "{slash}{:02x}.{}", devfn >> 3, devfn & 7)?;
        }
        write!(f, " ({vendor:04x}:{device:04x}) ")?;
        f.write_str(match self.reason {
            Reason::Bypass => {
                "does its DMA past the SMMU; with QEMU, add iommu_platform=on,disable-legacy=on to -device virtio-..., \
                 and -nic none if it is the default network card"
            }
            Reason::Balloon => {
                "is a memory balloon: it empties any page that its driver names; remove it"
            }
            Reason::Unreadable => {
                "is a virtio device that does not say whether its DMA goes through the SMMU; remove it"
            }
            Reason::MoreFunctions => {
                "is a virtio device with SR-IOV, and other functions of it may do DMA past the SMMU; remove it"
            }
            Reason::OtherRoot => {
                "leads to buses that the device tree does not name; with QEMU, use no pxb-pcie"
            }
            Reason::Closed => "is a bridge, and what is behind it cannot be looked at; remove it",
        })
    }
}

/// Visits every function that is on one of the `buses` or can be brought there, and tells `found` about those whose DMA
/// no SMMU stands in front of. All registers are as before afterwards. Nobody else uses the configuration space.
pub fn scan<C: Config>(config: &C, buses: RangeInclusive<u8>, found: impl FnMut(Finding)) {
    let mut scan = Scan {
        config,
        root: *buses.start(),
        last: *buses.end(),
        visited: 0,
        bridges: ArrayVec::new(),
        found,
    };
    scan.visit(Path::default(), scan.root);
}

struct Scan<'a, C, F> {
    config: &'a C,
    root: u8,
    last: u8,
    /// Buses so far.
    visited: usize,
    /// Bridges on the way from the root to this bus and on it, with what was in [`NUMBERS`].
    bridges: ArrayVec<(Function, u32), BRIDGES_MAX>,
    found: F,
}

impl<C: Config, F: FnMut(Finding)> Scan<'_, C, F> {
    fn report(&mut self, path: Path, ids: u32, reason: Reason) {
        (self.found)(Finding {
            root: self.root,
            path,
            ids,
            reason,
        });
    }

    /// The bus with this number, and all behind it. At most [`DEPTH_MAX`] of these calls are open at a time.
    fn visit(&mut self, path: Path, bus: u8) {
        self.visited += 1;
        let first = self.bridges.len();
        // All 256: a function may be there without function 0, or without a word in function 0's header type.
        for devfn in 0..=u8::MAX {
            let at = Function { bus, devfn };
            let ids = self.config.read(at, 0);
            if ids as u16 == ABSENT {
                continue;
            }
            let Some(path) = path.join(devfn) else {
                continue;
            };
            if let Err(reason) = virtio::check(self.config, at, ids) {
                self.report(path, ids, reason);
            }
            let is_root = self.config.read(at, CLASS) >> 16 == HOST_BRIDGE;
            if is_root && (bus, devfn) != (self.root, 0) {
                self.report(path, ids, Reason::OtherRoot);
            }
            match self.config.read(at, HEADER) >> 16 & 0x7f {
                0 => {}
                1 => {
                    // Closed, so that it answers for no number that another one gets.
                    let saved = self.config.read(at, NUMBERS);
                    if self.bridges.try_push((at, saved)).is_ok() {
                        self.config.write(at, NUMBERS, saved & !NUMBERS_MASK);
                    } else {
                        self.report(path, ids, Reason::Closed);
                    }
                }
                _ => self.report(path, ids, Reason::Closed),
            }
        }
        for index in first..self.bridges.len() {
            let (at, saved) = self.bridges[index];
            let Some(path) = path.join(at.devfn) else {
                continue;
            };
            if !self.descend(path, at, saved) {
                let ids = self.config.read(at, 0);
                self.report(path, ids, Reason::Closed);
            }
            self.config.write(at, NUMBERS, saved & !NUMBERS_MASK);
        }
        for (at, saved) in self.bridges.drain(first..).rev() {
            self.config.write(at, NUMBERS, saved);
        }
    }

    /// Opens a bridge and visits what is behind it; false if that cannot be. The caller closes it.
    fn descend(&mut self, path: Path, at: Function, saved: u32) -> bool {
        let next = at.bus.checked_add(1).filter(|next| *next <= self.last);
        let Some(next) = next.filter(|_| path.length < DEPTH_MAX && self.visited < BUSES_MAX)
        else {
            return false;
        };
        let numbers = u32::from_le_bytes([at.bus, next, self.last, 0]);
        self.config
            .write(at, NUMBERS, saved & !NUMBERS_MASK | numbers);
        if self.config.read(at, NUMBERS) & NUMBERS_MASK != numbers
            || self.config.read(at, CONTROL) & BUS_RESET != 0
        {
            return false;
        }
        self.visit(path, next);
        true
    }
}
