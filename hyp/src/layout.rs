//! Where things stand in RAM: the hypervisor's own memory behind its image, and the host's device tree apart from
//! everything that was loaded. Plain arithmetic with checks; nothing is touched here.

use core::fmt;

use arrayvec::ArrayVec;
use porthole_abi::PAGE_SIZE;
use porthole_arch::boot::Image;
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::tracker::PageEntry;
use porthole_dev::devtree::Module;
use porthole_dev::smmuv3::{Needs, SMMUS_MAX};
use porthole_mem::Carver;

/// Bytes of the pool beside its share of RAM: room for splitting where guests lie scattered.
const POOL_BASE: u64 = 512 * 1024;
/// The pool's share of RAM: one part in so many. Splitting a GiB of 2 MiB blocks takes a 512th of it.
const POOL_SHARE: u64 = 1024;
/// Bytes of the pool for the second-level tables of the map that devices have: one a GiB, and some for registers.
const POOL_DMA: u64 = 64 * 1024;
/// Concatenated root of the host's stage 2.
const ROOT_BYTES: u64 = 8192;
/// Bytes and alignment of the place for the host's device tree.
pub const TREE_BYTES: u64 = 2 << 20;

/// The hypervisor's memory: one run of RAM from the image on.
#[derive(Clone, Debug)]
pub struct Layout {
    /// All of it.
    pub all: PhysPages,
    /// Page tracker.
    pub tracker: PhysPages,
    /// Entries of the tracker.
    pub tracker_entries: usize,
    /// Root of the host's stage 2.
    pub host_root: PhysPages,
    /// Root of the map that the host's devices have, if there is an SMMU.
    pub dma_root: Option<PhysPages>,
    /// Tables and queues of each SMMU.
    pub smmus: ArrayVec<PhysPages, SMMUS_MAX>,
    /// Pool for the host's tables.
    pub pool: PhysPages,
}

/// Why the machine cannot be laid out, and how to mend it.
#[derive(Clone, Copy, Debug)]
pub enum LayoutError {
    /// The hypervisor's memory does not fit behind its image.
    NoRoom { needed: u64 },
    /// A module is not RAM.
    ModuleNotRam(&'static str, PhysAddr),
    /// A module overlaps the hypervisor.
    ModuleInside(&'static str, PhysAddr, PhysPages),
    /// Kernel and initrd overlap.
    ModulesOverlap(PhysAddr),
    /// No place for the device tree.
    NoRoomForTree,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { needed } => write!(
                f,
                "too little memory behind the image: {} KiB are needed; give the machine more memory (QEMU: -m 512M)",
                needed / 1024
            ),
            Self::ModuleNotRam(what, at) => {
                write!(
                    f,
                    "the {what} at {at} is outside memory; load it lower or give the machine more memory"
                )
            }
            Self::ModuleInside(what, at, hyp) => write!(
                f,
                "the {what} at {at} overlaps the hypervisor's memory; load it at {} or above",
                PhysAddr::new(hyp.end().raw().next_multiple_of(TREE_BYTES))
            ),
            Self::ModulesOverlap(at) => {
                write!(
                    f,
                    "the initrd at {at} overlaps the kernel, which needs room behind its file; load it higher"
                )
            }
            Self::NoRoomForTree => f.write_str(
                "no free 2 MiB for the host's device tree; give the machine more memory",
            ),
        }
    }
}

/// Lays the hypervisor's memory out behind its image; `smmus` is what each SMMU needs.
pub fn plan(
    ram: &[PhysPages],
    image: &Image,
    smmus: impl Iterator<Item = Needs>,
) -> Result<Layout, LayoutError> {
    let mut smmus = smmus.peekable();
    let has_smmu = smmus.peek().is_some();
    let pages: u64 = ram.iter().map(PhysPages::count).sum();
    let tracker_bytes = pages.saturating_mul(size_of::<PageEntry>() as u64);
    let mut pool_bytes = (pages * PAGE_SIZE / POOL_SHARE).saturating_add(POOL_BASE);
    if has_smmu {
        pool_bytes += (pages * PAGE_SIZE).div_ceil(1 << 30) * PAGE_SIZE + POOL_DMA;
    }
    let no_room = LayoutError::NoRoom {
        needed: tracker_bytes.saturating_add(pool_bytes),
    };
    let mut carver = Carver::new(image.end);
    let tracker = carver.take(tracker_bytes, PAGE_SIZE).ok_or(no_room)?;
    let host_root = carver.take(ROOT_BYTES, ROOT_BYTES).ok_or(no_room)?;
    let mut dma_root = None;
    if has_smmu {
        dma_root = Some(carver.take(ROOT_BYTES, ROOT_BYTES).ok_or(no_room)?);
    }
    let smmus = smmus
        .take(SMMUS_MAX)
        .map(|needs| {
            carver
                .take(needs.pages * PAGE_SIZE, needs.align)
                .ok_or(no_room)
        })
        .collect::<Result<_, _>>()?;
    let pool = carver.take(pool_bytes, PAGE_SIZE).ok_or(no_room)?;
    let count = (carver.end().raw() - image.start.raw()) / PAGE_SIZE;
    let all = PhysPages::new(image.start, count).map_err(|_| no_room)?;
    if !ram.iter().any(|run| run.covers(&all)) {
        return Err(no_room);
    }
    Ok(Layout {
        all,
        tracker,
        tracker_entries: pages as usize,
        host_root,
        dma_root,
        smmus,
        pool,
    })
}

/// Pages of a module that takes `bytes` bytes, checked against RAM and the hypervisor's memory.
pub fn module_pages(
    what: &'static str,
    module: &Module<'_>,
    bytes: u64,
    ram: &[PhysPages],
    hyp: &PhysPages,
) -> Result<PhysPages, LayoutError> {
    let outside = LayoutError::ModuleNotRam(what, module.start);
    let first = module.start.page();
    let end = module.start.checked_add(bytes).ok_or(outside)?.raw();
    let count = (end - first.raw()).div_ceil(PAGE_SIZE);
    let pages = PhysPages::new(first, count).map_err(|_| outside)?;
    if !ram.iter().any(|run| run.covers(&pages)) {
        return Err(outside);
    }
    if pages.overlaps(hyp) {
        return Err(LayoutError::ModuleInside(what, module.start, *hyp));
    }
    Ok(pages)
}

/// The highest free 2 MiB of the first run of RAM, for the host's device tree.
pub fn tree_place(ram: &[PhysPages], taken: &[PhysPages]) -> Result<PhysAddr, LayoutError> {
    let run = ram.first().ok_or(LayoutError::NoRoomForTree)?;
    let mut at = run.end().raw() / TREE_BYTES * TREE_BYTES;
    while at >= run.start().raw().saturating_add(TREE_BYTES) {
        at -= TREE_BYTES;
        let place = PhysAddr::new(at);
        let free = PhysPages::new(place, TREE_BYTES / PAGE_SIZE)
            .is_ok_and(|pages| run.covers(&pages) && taken.iter().all(|t| !t.overlaps(&pages)));
        if free {
            return Ok(place);
        }
    }
    Err(LayoutError::NoRoomForTree)
}
