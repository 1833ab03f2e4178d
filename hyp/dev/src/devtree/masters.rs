//! Who can write to memory by itself: SMMUs, the devices behind them with their streams, and every device that might be a
//! DMA master and is behind none. What cannot be told counts as such a master. Nothing is decided about protected VMs here.

use core::fmt;

use arrayvec::ArrayVec;
use fdt::node::FdtNode;
use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{PhysAddr, PhysPages};

use super::gic::gic_node;
use super::pci::{ROOTS_MAX, Root};
use super::read::{Tree, enabled, is_compatible, number, pairs, text};
use crate::pci::Finding;
use crate::smmuv3::{ROUTES_MAX, Route, SMMUS_MAX};

/// Most masters outside that are named; the others are counted.
const OUTSIDE_MAX: usize = 8;
/// Most runs of pages that the host loses for DMA's sake.
pub const HIDDEN_MAX: usize = 16;
/// Most runs of registers that are hidden.
const FRAMES_MAX: usize = 16;
/// Most register frames of devices that the host keeps.
const KEPT_MAX: usize = 32;
/// Deepest simple-bus.
const BUS_DEPTH_MAX: usize = 4;

/// Devices with registers that never access memory by themselves. The ITS does; its tables are core's business.
const HARMLESS: [&str; 10] = [
    "arm,pl011",
    "arm,pl031",
    "arm,pl061",
    "arm,sp805",
    "arm,gic-v3",
    "arm,gic-v3-its",
    "arm,gic-v2m-frame",
    "arm,armv7-timer-mem",
    "cfi-flash",
    "ns16550a",
];
/// Nodes of the root that are no devices.
const NO_DEVICES: [&str; 4] = ["chosen", "aliases", "cpus", "reserved-memory"];

/// An SMMUv3 of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmmuNode<'a> {
    /// Node name.
    pub name: &'a str,
    /// Register frame.
    pub base: PhysAddr,
    /// Its bytes.
    pub bytes: u64,
    /// The firmware lets it be used.
    pub enabled: bool,
    phandle: Option<u64>,
}

/// Why a device counts as a DMA master that no SMMU stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A virtio-mmio transport with this DeviceID.
    VirtioMmio(u32),
    /// A PCI root without `iommu-map`.
    NoMap,
    /// Its `iommu-map` or `iommus` cannot be read.
    BrokenMap,
    /// Its `iommu-map` leaves requester ids from this one on out.
    Uncovered(u32),
    /// `iommu-map` or `iommus` lead to this phandle, which is no SMMUv3 that can be used.
    Foreign(u64),
    /// A device that is not known to leave memory alone.
    Unknown,
    /// Its `reg` cannot be read, so that it cannot be hidden.
    NoRegisters,
    /// Its registers share a page with a device that the host keeps.
    SharedPage,
    /// A PCI root whose functions EL2 cannot look at.
    NoEcam,
    /// A PCI function that is known to bypass the SMMU, or not known not to.
    Function(Finding),
    /// The tree has more of something than is kept.
    TooMany(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtioMmio(id) => write!(
                f,
                "a virtio-mmio device (DeviceID {id}) is behind no SMMU; use its PCI variant (QEMU: virtio-*-pci)"
            ),
            Self::NoMap => f.write_str(
                "a PCI root without iommu-map; with QEMU, add iommu=smmuv3 to -machine virt",
            ),
            Self::BrokenMap => f.write_str("its iommu-map or iommus is malformed; mend the device tree"),
            Self::Uncovered(id) => write!(
                f,
                "its iommu-map leaves out requester id {id:#x}; it must cover 0 to 0xffff"
            ),
            Self::Foreign(phandle) => write!(
                f,
                "its IOMMU (phandle {phandle:#x}) is no arm,smmu-v3 that can be used"
            ),
            Self::Unknown => f.write_str(
                "not known to leave memory alone, and it has no iommus; remove it or put it behind an SMMU",
            ),
            Self::NoRegisters => f.write_str("its reg cannot be read, so it cannot be hidden; mend the device tree"),
            Self::SharedPage => f.write_str("its registers share a page with a device of the host"),
            Self::NoEcam => f.write_str(
                "a PCI root whose functions cannot be looked at; only pci-host-ecam-generic is supported",
            ),
            Self::Function(finding) => finding.fmt(f),
            Self::TooMany(what) => write!(f, "more {what} than are supported"),
        }
    }
}

/// What the tree says about DMA.
#[derive(Clone, Debug, Default)]
pub struct Masters<'a> {
    /// All SMMUv3s; a [`Route`] names one by its place here.
    pub smmus: ArrayVec<SmmuNode<'a>, SMMUS_MAX>,
    /// Streams of all devices behind them.
    pub routes: ArrayVec<Route, ROUTES_MAX>,
    /// PCI roots behind them, whose functions are to be looked at.
    pub roots: ArrayVec<Root<'a>, ROOTS_MAX>,
    /// The first masters that no SMMU stands in front of: node and reason.
    pub outside: ArrayVec<(&'a str, Why), OUTSIDE_MAX>,
    /// All such masters.
    pub outside_count: usize,
    /// Frames that the host is not to see: SMMUs, fw_cfg, virtio-mmio transports without a device.
    hidden: ArrayVec<Frame<'a>, FRAMES_MAX>,
    /// Name, by where it stands in the tree, of the GIC that core guards.
    gic: Option<&'a str>,
    /// Frames of devices that it keeps.
    kept: ArrayVec<Frame<'a>, KEPT_MAX>,
}

/// Registers of a device.
#[derive(Clone, Copy, Debug)]
struct Frame<'a> {
    name: &'a str,
    base: u64,
    bytes: u64,
    /// The host could do DMA through it.
    is_master: bool,
}

impl<'a> Frame<'a> {
    fn new(name: &'a str, (base, bytes): (u64, u64), is_master: bool) -> Self {
        Self {
            name,
            base,
            bytes,
            is_master,
        }
    }

    /// The pages that it lies in, start and end.
    fn pages(&self) -> (u64, u64) {
        let end = self.base.saturating_add(self.bytes.max(1));
        let end = end.checked_next_multiple_of(PAGE_SIZE);
        (
            self.base & !(PAGE_SIZE - 1),
            end.unwrap_or(!(PAGE_SIZE - 1)),
        )
    }

    /// Takes in a frame of the same kind that lies right behind or before this one; false if it does not.
    fn join(&mut self, other: &Self) -> bool {
        let is_behind = self.base.checked_add(self.bytes) == Some(other.base);
        let is_before = other.base.checked_add(other.bytes) == Some(self.base);
        if self.is_master || other.is_master || !(is_behind || is_before) {
            return false;
        }
        self.base = self.base.min(other.base);
        self.bytes += other.bytes;
        true
    }

    fn meets(&self, other: &Self) -> bool {
        let ((start, end), (from, to)) = (self.pages(), other.pages());
        start < to && from < end
    }
}

/// Compatible strings of what is hidden.
const SMMU: &str = "arm,smmu-v3";
const FW_CFG: &str = "qemu,fw-cfg-mmio";
const VIRTIO_MMIO: &str = "virtio,mmio";

fn is_bus(node: FdtNode<'_, '_>) -> bool {
    ["simple-bus", "simple-mfd", "simple-pm-bus"]
        .iter()
        .any(|name| is_compatible(node, name))
}

/// Whether addresses of a bus's children are those of its parent: an empty `ranges`.
fn is_identity(node: FdtNode<'_, '_>) -> bool {
    node.property("ranges").is_some_and(|p| p.value.is_empty())
}

/// A property as rows of `N` cells; `None` if it has no whole number of them, or none at all.
pub(super) fn cell_list<const N: usize>(
    value: &[u8],
) -> Option<impl Iterator<Item = [u32; N]> + Clone + '_> {
    (!value.is_empty() && value.len().is_multiple_of(4 * N)).then(|| {
        value.chunks_exact(4 * N).map(|row| {
            let mut cells = row.chunks_exact(4);
            core::array::from_fn(|_| cells.next().and_then(number).map_or(0, |cell| cell as u32))
        })
    })
}

impl<'a> Tree<'a> {
    /// Looks at every device. `virtio_id` reads the DeviceID of a virtio-mmio transport, 0 where there is no device.
    pub fn masters(&self, mut virtio_id: impl FnMut(PhysAddr) -> u32) -> Masters<'a> {
        let mut masters = Masters::default();
        let Some(root) = self.root() else {
            return masters;
        };
        masters.gic = gic_node(root).map(|node| node.name);
        masters.find_smmus(root, 0);
        masters.classify(root, true, 0, &mut virtio_id);
        masters.check_pages();
        masters
    }
}

impl<'a> Masters<'a> {
    /// Pages that the host is not to reach, neighbours joined; fails where they are too many runs.
    ///
    /// # Errors
    /// [`Why::TooMany`].
    pub fn hidden_pages(&self) -> Result<ArrayVec<PhysPages, HIDDEN_MAX>, Why> {
        let in_reach = |frame: &Frame<'_>| self.kept.iter().any(|kept| kept.meets(frame));
        let mut pages: ArrayVec<(u64, u64), FRAMES_MAX> = self
            .hidden
            .iter()
            .filter(|frame| !in_reach(frame))
            .map(Frame::pages)
            .collect();
        pages.sort_unstable();
        let mut joined: ArrayVec<(u64, u64), HIDDEN_MAX> = ArrayVec::new();
        for (start, end) in pages {
            match joined.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => joined
                    .try_push((start, end))
                    .map_err(|_| Why::TooMany("runs of registers to hide"))?,
            }
        }
        Ok(joined
            .iter()
            .filter_map(|(s, e)| PhysPages::new(PhysAddr::new(*s), (e - s) / PAGE_SIZE).ok())
            .collect())
    }

    /// Whether the host's tree leaves this node out.
    pub(super) fn is_hidden(&self, parent: FdtNode<'_, '_>, node: FdtNode<'_, '_>) -> bool {
        if is_compatible(node, SMMU) || is_compatible(node, FW_CFG) {
            return true;
        }
        is_compatible(node, VIRTIO_MMIO)
            && pairs(parent, node).next().is_some_and(|(base, _)| {
                let holds = |frame: &Frame<'_>| base.wrapping_sub(frame.base) < frame.bytes;
                self.hidden.iter().any(holds)
            })
    }

    /// Whether a phandle is that of an SMMU, which the host does not see.
    pub(super) fn is_smmu(&self, phandle: u64) -> bool {
        self.smmus.iter().any(|s| s.phandle == Some(phandle))
    }

    /// Notes a master that no SMMU stands in front of.
    pub fn add_outside(&mut self, name: &'a str, why: Why) {
        self.outside_count += 1;
        // More are counted.
        let _ = self.outside.try_push((name, why));
    }

    fn find_smmus(&mut self, parent: FdtNode<'_, 'a>, depth: usize) {
        for node in parent.children() {
            if is_compatible(node, SMMU) {
                let frame = pairs(parent, node).next().filter(|(base, bytes)| {
                    base.is_multiple_of(PAGE_SIZE)
                        && *bytes >= crate::smmuv3::FRAME_BYTES
                        && base.checked_add(*bytes).is_some()
                });
                let Some((base, bytes)) = frame else {
                    self.add_outside(node.name, Why::NoRegisters);
                    continue;
                };
                self.hide(Frame::new(node.name, (base, bytes), true));
                let phandle = node.property("phandle").and_then(|p| number(p.value));
                let smmu = SmmuNode {
                    name: node.name,
                    base: PhysAddr::new(base),
                    bytes,
                    enabled: enabled(node),
                    phandle,
                };
                if self.smmus.try_push(smmu).is_err() {
                    self.add_outside(node.name, Why::TooMany("SMMUs"));
                }
            } else if depth < BUS_DEPTH_MAX && is_bus(node) && is_identity(node) {
                self.find_smmus(node, depth + 1);
            }
        }
    }

    fn hide(&mut self, frame: Frame<'a>) {
        // QEMU has 32 virtio-mmio transports in a row.
        let joined = self.hidden.last_mut().is_some_and(|last| last.join(&frame));
        if !joined && self.hidden.try_push(frame).is_err() {
            self.add_outside(frame.name, Why::TooMany("registers to hide"));
        }
    }

    fn keep(&mut self, name: &'a str, frames: impl Iterator<Item = (u64, u64)>) {
        for frame in frames {
            if self.kept.try_push(Frame::new(name, frame, false)).is_err() {
                self.add_outside(name, Why::TooMany("devices"));
            }
        }
    }

    /// Sorts the children of a bus. `identity`: their addresses are the CPU's.
    fn classify(
        &mut self,
        parent: FdtNode<'_, 'a>,
        identity: bool,
        depth: usize,
        virtio_id: &mut impl FnMut(PhysAddr) -> u32,
    ) {
        for node in parent.children() {
            let is_memory = text(node, "device_type") == Some("memory");
            let is_device = !is_memory && (depth > 0 || !NO_DEVICES.contains(&node.name));
            if !is_device || is_compatible(node, SMMU) && identity {
                continue;
            }
            if is_bus(node) || node.property("reg").is_none() {
                let inside = identity && is_identity(node);
                if depth < BUS_DEPTH_MAX {
                    self.classify(node, inside, depth + 1, virtio_id);
                } else if node.children().next().is_some() {
                    self.add_outside(node.name, Why::Unknown);
                }
                continue;
            }
            if let Err(why) = self.device(parent, node, identity, virtio_id) {
                self.add_outside(node.name, why);
            }
            if is_compatible(node, "arm,gic-v3") && depth < BUS_DEPTH_MAX {
                self.classify(node, identity, depth + 1, virtio_id);
            }
        }
    }

    /// One device with registers.
    fn device(
        &mut self,
        parent: FdtNode<'_, 'a>,
        node: FdtNode<'_, 'a>,
        identity: bool,
        virtio_id: &mut impl FnMut(PhysAddr) -> u32,
    ) -> Result<(), Why> {
        if let Some(iommus) = node.property("iommus") {
            self.keep(node.name, pairs(parent, node));
            return self.streams(iommus.value);
        }
        if text(node, "device_type") == Some("pci") {
            return self.pci_root(parent, node, identity);
        }
        if is_compatible(node, FW_CFG) || is_compatible(node, VIRTIO_MMIO) {
            let (base, bytes) = pairs(parent, node)
                .next()
                .filter(|(base, bytes)| identity && base.checked_add(*bytes).is_some())
                .ok_or(Why::NoRegisters)?;
            let is_virtio = is_compatible(node, VIRTIO_MMIO);
            let id = if is_virtio {
                virtio_id(PhysAddr::new(base))
            } else {
                0
            };
            if id != 0 {
                self.keep(node.name, [(base, bytes)].into_iter());
                return Err(Why::VirtioMmio(id));
            }
            self.hide(Frame::new(node.name, (base, bytes), !is_virtio));
            return Ok(());
        }
        if identity {
            self.keep(node.name, pairs(parent, node));
        }
        let is_harmless = HARMLESS.iter().any(|name| is_compatible(node, name));
        (is_harmless && self.is_guarded(parent, node))
            .then_some(())
            .ok_or(Why::Unknown)
    }

    /// Whether core guards a device if it is a GICv3 or an ITS, which access memory: it knows of one GIC, and of the ITSs
    /// right below it whose one frame can be read.
    fn is_guarded(&self, parent: FdtNode<'_, 'a>, node: FdtNode<'_, 'a>) -> bool {
        let is_the_gic =
            |node: FdtNode<'_, 'a>| self.gic.is_some_and(|gic| core::ptr::eq(gic, node.name));
        if is_compatible(node, "arm,gic-v3-its") {
            return is_the_gic(parent) && is_identity(parent) && pairs(parent, node).count() == 1;
        }
        !is_compatible(node, "arm,gic-v3") || is_the_gic(node)
    }

    /// The index of the SMMU with this phandle.
    pub(super) fn smmu(&self, phandle: u64) -> Result<u8, Why> {
        self.smmus
            .iter()
            .position(|s| s.enabled && s.phandle == Some(phandle))
            .map(|index| index as u8)
            .ok_or(Why::Foreign(phandle))
    }

    pub(super) fn add_route(&mut self, route: Route) -> Result<(), Why> {
        self.routes
            .try_push(route)
            .map_err(|_| Why::TooMany("runs of streams"))
    }

    /// `iommus`: phandle and stream, in turn (one cell each, Linux's arm,smmu-v3 binding).
    fn streams(&mut self, value: &[u8]) -> Result<(), Why> {
        let words = cell_list::<2>(value).ok_or(Why::BrokenMap)?;
        for [phandle, stream] in words {
            let smmu = self.smmu(phandle.into())?;
            self.add_route(Route {
                smmu,
                stream,
                count: 1,
                function: None,
            })?;
        }
        Ok(())
    }

    /// An empty virtio-mmio transport may stay in reach; an SMMU or fw_cfg beside something of the host's must not.
    fn check_pages(&mut self) {
        let in_reach = |frame: &&Frame<'_>| self.kept.iter().any(|kept| kept.meets(frame));
        let masters = self.hidden.iter().filter(|frame| frame.is_master);
        let shared: ArrayVec<&'a str, FRAMES_MAX> =
            masters.filter(in_reach).map(|frame| frame.name).collect();
        for name in shared {
            self.add_outside(name, Why::SharedPage);
        }
    }
}
