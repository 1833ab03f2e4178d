//! PCI roots: the streams of their functions (`iommu-map`), and where their configuration space is. The functions
//! themselves are looked at in `crate::pci`.

use core::ops::RangeInclusive;

use fdt::node::FdtNode;
use porthole_abi::{FunctionId, PAGE_SIZE};
use porthole_core::addr::{PhysAddr, PhysPages};

use super::masters::{Masters, Why, cell_list};
use super::read::{enabled, is_compatible, number, pairs};
use crate::pci::Ecam;
use crate::smmuv3::Route;

/// Requester ids of a PCI segment.
const REQUESTERS: u64 = 0x1_0000;
/// Most PCI roots.
pub const ROOTS_MAX: usize = 4;

/// A PCI root with its configuration space in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root<'a> {
    /// Node name.
    pub name: &'a str,
    /// Configuration space of all its buses.
    pub pages: PhysPages,
    /// Its buses.
    pub buses: RangeInclusive<u8>,
}

impl<'a> Root<'a> {
    /// `reg` and `bus-range` (Linux, host-generic-pci.yaml); `None` for another kind of root, one that is switched off, or
    /// one whose properties do not fit each other.
    fn read(parent: FdtNode<'_, 'a>, node: FdtNode<'_, 'a>) -> Option<Self> {
        if !is_compatible(node, "pci-host-ecam-generic") || !enabled(node) {
            return None;
        }
        let (base, bytes) = pairs(parent, node).next()?;
        let (first, last) = match node.property("bus-range") {
            None => (0, 0xff),
            Some(range) => {
                let (first, last) = range.value.split_at_checked(4)?;
                (number(first)?, number(last)?)
            }
        };
        let buses = u8::try_from(first).ok()?..=u8::try_from(last).ok()?;
        let needed = buses.len() as u64 * Ecam::BUS_BYTES;
        if needed == 0 || bytes < needed || !base.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        Some(Self {
            name: node.name,
            pages: PhysPages::new(PhysAddr::new(base), needed / PAGE_SIZE).ok()?,
            buses,
        })
    }
}

impl<'a> Masters<'a> {
    /// `iommu-map`: requester id, phandle, stream, count (Linux, pci-iommu.txt). All 65,536 ids must be in it once.
    pub(super) fn pci_root(
        &mut self,
        parent: FdtNode<'_, 'a>,
        node: FdtNode<'_, 'a>,
        identity: bool,
    ) -> Result<(), Why> {
        let map = node.property("iommu-map").ok_or(Why::NoMap)?;
        let entries = cell_list::<4>(map.value).ok_or(Why::BrokenMap)?;
        let domain = node.property("linux,pci-domain");
        let segment = domain.map_or(Some(0), |p| number(p.value));
        let segment = segment.and_then(|n| u16::try_from(n).ok());
        let segment = segment.ok_or(Why::BrokenMap)?;
        if node.property("iommu-map-mask").is_some() {
            return Err(Why::BrokenMap);
        }
        // The next uncovered id is looked for in all entries, again and again: they may stand in any order.
        let mut covered = 0u64;
        let mut total = 0u64;
        while covered < REQUESTERS {
            let mut starts = entries.clone().filter(|e| u64::from(e[0]) == covered);
            let Some([id, phandle, stream, count]) = starts.next() else {
                return Err(Why::Uncovered(covered as u32));
            };
            let end = covered + u64::from(count);
            if count == 0 || end > REQUESTERS || stream.checked_add(count - 1).is_none() {
                return Err(Why::BrokenMap);
            }
            let smmu = self.smmu(phandle.into())?;
            self.add_route(Route {
                smmu,
                stream,
                count,
                function: Some(FunctionId(u32::from(segment) << 16 | id)),
            })?;
            covered = end;
            total += 1;
        }
        // Entries that overlap others.
        if total != entries.count() as u64 {
            return Err(Why::BrokenMap);
        }
        let root = Root::read(parent, node).filter(|_| identity);
        self.roots
            .try_push(root.ok_or(Why::NoEcam)?)
            .map_err(|_| Why::TooMany("PCI roots"))
    }
}
