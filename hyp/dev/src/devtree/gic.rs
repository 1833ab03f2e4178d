//! The interrupt controller in the device tree (Linux, bindings/interrupt-controller/arm,gic-v3.yaml): distributor,
//! regions of redistributors, ITSs. What stands in the frames themselves is read in `gicv3`.

use arrayvec::ArrayVec;
use fdt::node::FdtNode;
use porthole_core::addr::PhysAddr;

use super::read::{Tree, TreeError, enabled, is_compatible, number, pairs};

/// Most redistributor regions.
pub const REGIONS_MAX: usize = 4;
/// Most ITSs.
pub const ITS_MAX: usize = 4;

/// The interrupt controller's register frames.
#[derive(Clone, Debug)]
pub struct Gic {
    /// First page of the distributor.
    pub distributor: PhysAddr,
    /// Regions of redistributors: base and bytes.
    pub redistributors: ArrayVec<(PhysAddr, u64), REGIONS_MAX>,
    /// Bytes from one redistributor to the next, where the tree says so.
    pub stride: Option<u64>,
    /// Control frame of each ITS; its translation frame is 64 KiB further.
    pub its: ArrayVec<PhysAddr, ITS_MAX>,
}

/// The GICv3 that is used: the first that is enabled.
pub(super) fn gic_node<'b, 'a>(root: FdtNode<'b, 'a>) -> Option<FdtNode<'b, 'a>> {
    root.children()
        .find(|n| is_compatible(*n, "arm,gic-v3") && enabled(*n))
}

impl Tree<'_> {
    /// The GICv3.
    ///
    /// # Errors
    /// [`TreeError::NoGic`], [`TreeError::TooMany`].
    pub fn gic(&self) -> Result<Gic, TreeError> {
        let root = self.root().ok_or(TreeError::NoTree)?;
        let node = gic_node(root).ok_or(TreeError::NoGic)?;
        let value = |name| node.property(name).and_then(|p| number(p.value));
        let regions = value("#redistributor-regions").map_or(1, |n| n as usize);
        if regions > REGIONS_MAX {
            return Err(TreeError::TooMany(REGIONS_MAX, "redistributor regions"));
        }
        let mut frames = pairs(root, node).map(|(base, size)| (PhysAddr::new(base), size));
        let (distributor, _) = frames.next().ok_or(TreeError::NoGic)?;
        let redistributors: ArrayVec<_, REGIONS_MAX> = frames.take(regions).collect();
        if redistributors.is_empty() {
            return Err(TreeError::NoGic);
        }
        let mut its = ArrayVec::new();
        // The ITS's own `reg` is in the cells of the GIC's node. A disabled one is there all the same.
        for child in node
            .children()
            .filter(|n| is_compatible(*n, "arm,gic-v3-its"))
        {
            let Some((base, _)) = pairs(node, child).next() else {
                continue;
            };
            its.try_push(PhysAddr::new(base))
                .map_err(|_| TreeError::TooMany(ITS_MAX, "ITSs"))?;
        }
        Ok(Gic {
            distributor,
            redistributors,
            stride: value("redistributor-stride"),
            its,
        })
    }
}
