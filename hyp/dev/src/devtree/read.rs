//! Reads the firmware's device tree (Devicetree Specification 0.4; bindings of Linux).
//! Cells are taken apart here, not by the crate's accessors, which panic where a property has an odd length.

use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;
use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::hypervisor::CpuInfo;
use porthole_core::memory::DOORBELLS_MAX;
use thiserror::Error;

use super::check::is_sound;

/// Most CPUs.
pub const CPUS_MAX: usize = 8;
/// Most runs of RAM.
pub const RAM_MAX: usize = 8;
/// Largest tree (Linux, Documentation/arch/arm64/booting.rst).
const TREE_MAX: usize = 2 << 20;

/// What is wrong with the tree or the machine it describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TreeError {
    /// No tree.
    #[error("no device tree at the address in x0; boot the flat image, not the ELF file")]
    NoTree,
    /// A tree that breaks off, or whose nodes or names are broken.
    #[error("the device tree is malformed")]
    Malformed,
    /// No RAM.
    #[error("the device tree names no memory")]
    NoMemory,
    /// Too many of something.
    #[error("the device tree names more than {0} {1}")]
    TooMany(usize, &'static str),
    /// No CPU.
    #[error("the device tree names no CPU")]
    NoCpu,
    /// No GICv3.
    #[error("the device tree names no GICv3; with QEMU, add gic-version=3 to -machine virt")]
    NoGic,
}

/// A boot module: what QEMU's guest-loader put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// First byte.
    pub start: PhysAddr,
    /// Bytes.
    pub bytes: u64,
    /// Its command line.
    pub arguments: &'a str,
}

/// The firmware's tree.
pub struct Tree<'a> {
    pub(super) fdt: Fdt<'a>,
}

impl<'a> Tree<'a> {
    /// The size that the header of a tree claims, at most 2 MiB.
    ///
    /// # Errors
    /// [`TreeError::NoTree`] if it is no header of a tree (version 17 or compatible).
    pub fn claimed_bytes(header: &[u8; 40]) -> Result<usize, TreeError> {
        let size = word(header, 4) as usize;
        if word(header, 0) != 0xd00d_feed
            || !(40..=TREE_MAX).contains(&size)
            || word(header, 24) > 17
        {
            return Err(TreeError::NoTree);
        }
        Ok(size)
    }

    /// Opens a tree after checking that its blocks lie inside the blob.
    ///
    /// # Errors
    /// [`TreeError::NoTree`], [`TreeError::Malformed`].
    pub fn new(blob: &'a [u8]) -> Result<Self, TreeError> {
        let header = blob.first_chunk::<40>().ok_or(TreeError::NoTree)?;
        let size = Self::claimed_bytes(header)?;
        let inside = |offset: usize, length: usize| {
            let (start, length) = (word(header, offset) as usize, word(header, length) as usize);
            start % 4 == 0 && start.checked_add(length).is_some_and(|end| end <= size)
        };
        let strings = word(header, 12) as usize;
        if size > blob.len()
            || !inside(8, 36)
            || strings
                .checked_add(word(header, 32) as usize)
                .is_none_or(|end| end > size)
            || word(header, 16) as usize > size - 16
        {
            return Err(TreeError::NoTree);
        }
        let block = |start: usize, length: usize| {
            let start = word(header, start) as usize;
            blob.get(start..start.checked_add(word(header, length) as usize)?)
        };
        let (Some(structure), Some(strings)) = (block(8, 36), block(12, 32)) else {
            return Err(TreeError::NoTree);
        };
        if !is_sound(structure, strings) {
            return Err(TreeError::Malformed);
        }
        Fdt::new(blob)
            .map(|fdt| Self { fdt })
            .map_err(|_| TreeError::NoTree)
    }

    /// Root node.
    pub(super) fn root(&self) -> Option<FdtNode<'_, 'a>> {
        self.fdt.find_node("/")
    }

    /// A child of the root. Not by the crate's own search, which ends at a node that was blotted out.
    fn child(&self, name: &str) -> Option<FdtNode<'_, 'a>> {
        self.root()?.children().find(|node| node.name == name)
    }

    /// All RAM, ascending, neighbours joined.
    ///
    /// # Errors
    /// [`TreeError::NoMemory`], [`TreeError::TooMany`].
    pub fn ram(&self) -> Result<ArrayVec<PhysPages, RAM_MAX>, TreeError> {
        let too_many = TreeError::TooMany(RAM_MAX, "runs of memory");
        let mut ram: ArrayVec<(u64, u64), RAM_MAX> = ArrayVec::new();
        let root = self.root().ok_or(TreeError::NoTree)?;
        for node in root
            .children()
            .filter(|n| text(*n, "device_type") == Some("memory"))
        {
            for (base, size) in pairs(root, node) {
                let start = base.next_multiple_of(PAGE_SIZE);
                let end = base.saturating_add(size) & !(PAGE_SIZE - 1);
                if end > start {
                    ram.try_push((start, end)).map_err(|_| too_many)?;
                }
            }
        }
        ram.sort_unstable();
        let mut joined: ArrayVec<(u64, u64), RAM_MAX> = ArrayVec::new();
        for (start, end) in ram {
            match joined.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        let pages: ArrayVec<PhysPages, RAM_MAX> = joined
            .iter()
            .filter_map(|(s, e)| PhysPages::new(PhysAddr::new(*s), (e - s) / PAGE_SIZE).ok())
            .collect();
        if pages.is_empty() {
            return Err(TreeError::NoMemory);
        }
        Ok(pages)
    }

    /// All CPUs that can be started.
    ///
    /// # Errors
    /// [`TreeError::NoCpu`], [`TreeError::TooMany`].
    pub fn cpus(&self) -> Result<ArrayVec<CpuInfo, CPUS_MAX>, TreeError> {
        let mut cpus = ArrayVec::new();
        let node = self.child("cpus").ok_or(TreeError::NoCpu)?;
        for cpu in node
            .children()
            .filter(|n| text(*n, "device_type") == Some("cpu") && enabled(*n))
        {
            let Some(reg) = cpu.property("reg") else {
                continue;
            };
            let mpidr = number(reg.value).ok_or(TreeError::NoCpu)?;
            cpus.try_push(CpuInfo { mpidr })
                .map_err(|_| TreeError::TooMany(CPUS_MAX, "CPUs"))?;
        }
        if cpus.is_empty() {
            return Err(TreeError::NoCpu);
        }
        Ok(cpus)
    }

    /// Pages that devices write message-signalled interrupts to: GITS_TRANSLATER of each ITS, in its second 64 KiB.
    /// Ascending.
    pub fn doorbells(&self) -> ArrayVec<PhysAddr, DOORBELLS_MAX> {
        const TRANSLATER_FRAME: u64 = 0x1_0000;
        let gic = self.root().and_then(|root| {
            root.children()
                .find(|n| is_compatible(*n, "arm,gic-v3") && enabled(*n))
        });
        let mut pages: ArrayVec<PhysAddr, DOORBELLS_MAX> = gic
            .into_iter()
            .flat_map(|gic| {
                gic.children()
                    .filter(|n| is_compatible(*n, "arm,gic-v3-its") && enabled(*n))
                    .filter_map(move |its| pairs(gic, its).next())
            })
            .filter_map(|(base, _)| PhysAddr::new(base).checked_add(TRANSLATER_FRAME))
            .filter(|page| page.is_aligned(PAGE_SIZE))
            .take(DOORBELLS_MAX)
            .collect();
        pages.sort_unstable();
        pages
    }

    /// The PL011 that `stdout-path` names.
    pub fn console(&self) -> Option<PhysAddr> {
        let root = self.root()?;
        let node = self.console_node(root)?;
        pairs(root, node)
            .next()
            .map(|(base, _)| PhysAddr::new(base))
    }

    /// A PL011 that is not the console: the hypervisor takes it for its log.
    pub fn log_uart(&self) -> Option<PhysAddr> {
        let root = self.root()?;
        let node = self.log_uart_node(root)?;
        pairs(root, node)
            .next()
            .map(|(base, _)| PhysAddr::new(base))
    }

    pub(super) fn log_uart_node<'b>(&'b self, root: FdtNode<'b, 'a>) -> Option<FdtNode<'b, 'a>> {
        let console = self.console_node(root)?;
        root.children()
            .find(|n| is_compatible(*n, "arm,pl011") && enabled(*n) && n.name != console.name)
    }

    fn console_node<'b>(&'b self, root: FdtNode<'b, 'a>) -> Option<FdtNode<'b, 'a>> {
        let path = text(self.child("chosen")?, "stdout-path")?;
        let path = path.split(':').next()?;
        let path = if path.starts_with('/') {
            path
        } else {
            text(self.child("aliases")?, path)?
        };
        let name = path.strip_prefix('/')?;
        root.children()
            .find(|n| n.name == name && is_compatible(*n, "arm,pl011"))
    }

    /// The hypervisor's own command line.
    pub fn arguments(&self) -> &'a str {
        self.child("chosen")
            .and_then(|chosen| text(chosen, "bootargs"))
            .unwrap_or("")
    }

    /// The host's kernel.
    pub fn kernel(&self) -> Option<Module<'a>> {
        self.module("multiboot,kernel")
    }

    /// The host's initrd.
    pub fn initrd(&self) -> Option<Module<'a>> {
        self.module("multiboot,ramdisk")
    }

    /// Whether firmware is called by HVC: it is not from EL2, only where something else holds EL2.
    pub fn firmware_is_hvc(&self) -> bool {
        self.child("psci")
            .is_some_and(|psci| text(psci, "method") == Some("hvc"))
    }

    /// A module of this kind; its `reg` is two 64-bit numbers whatever the parent's cells say (Xen's multiboot
    /// binding, as QEMU's guest-loader writes it).
    fn module(&self, kind: &str) -> Option<Module<'a>> {
        let node = self
            .child("chosen")?
            .children()
            .find(|n| is_module(*n) && is_compatible(*n, kind))?;
        let reg = node.property("reg")?.value;
        let (start, bytes) = reg.split_at_checked(reg.len() / 2)?;
        Some(Module {
            start: PhysAddr::new(number(start)?),
            bytes: number(bytes)?,
            arguments: text(node, "bootargs").unwrap_or(""),
        })
    }
}

/// Whether a child of `/chosen` is a boot module.
pub(super) fn is_module(node: FdtNode<'_, '_>) -> bool {
    is_compatible(node, "multiboot,module")
}

/// Whether `compatible` lists `name`.
pub(super) fn is_compatible(node: FdtNode<'_, '_>, name: &str) -> bool {
    node.property("compatible").is_some_and(|p| {
        p.value
            .split(|b| *b == 0)
            .any(|entry| entry == name.as_bytes())
    })
}

/// A property as a string without its final NUL.
pub(super) fn text<'a>(node: FdtNode<'_, 'a>, property: &str) -> Option<&'a str> {
    let value = node.property(property)?.value;
    core::str::from_utf8(value.strip_suffix(&[0])?).ok()
}

pub(super) fn enabled(node: FdtNode<'_, '_>) -> bool {
    matches!(text(node, "status"), None | Some("okay" | "ok"))
}

/// A property of one or two cells as a number.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => Some(u32::from_be_bytes(value.try_into().ok()?).into()),
        8 => Some(u64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

/// Number of cells that children of `node` use, from `#address-cells` or `#size-cells`.
pub(super) fn cells(node: FdtNode<'_, '_>, property: &str, default: usize) -> usize {
    node.property(property)
        .and_then(|p| number(p.value))
        .map_or(default, |n| n as usize)
}

/// The (address, size) pairs of `node`'s `reg`; none where the cells are not one or two.
pub(super) fn pairs<'a>(
    parent: FdtNode<'_, 'a>,
    node: FdtNode<'_, 'a>,
) -> impl Iterator<Item = (u64, u64)> + use<'a> {
    let address = cells(parent, "#address-cells", 2);
    let size = cells(parent, "#size-cells", 1);
    let entry = match (address, size) {
        (1 | 2, 1 | 2) => 4 * (address + size),
        _ => usize::MAX,
    };
    node.property("reg")
        .map_or(&[][..], |p| p.value)
        .chunks_exact(entry)
        .filter_map(move |chunk| {
            let (a, s) = chunk.split_at_checked(4 * address)?;
            Some((number(a)?, number(s)?))
        })
}

fn word(header: &[u8; 40], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[offset..offset + 4]);
    u32::from_be_bytes(bytes)
}
