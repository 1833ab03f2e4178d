//! The memory lock, {page tracker, host stage 2}, and every change of a page's owner.
//! Each change is checked whole and has its table pages in hand before it starts: it happens or nothing does.
//! Here the host's side; what involves a VM is in the submodules.
//!
//! Lock order: VM slot, vCPU, the VM's tables ([`crate::guest::GuestMemory`]), `HostMemory::confined`,
//! then the memory lock, inside which only the machine takes some (an SMMU's).

pub mod audit;
mod confine;
mod pins;
mod sharing;
#[cfg(test)]
mod tests;
mod transfer;
pub(crate) mod transit;

use arrayvec::ArrayVec;
use porthole_abi::{Error, PAGE_RUN_MAX, PAGE_SIZE, PageOwner};

pub use audit::{AuditStep, Look};
use confine::Confined;
pub use confine::DOORBELLS_MAX;
use transit::{Clean, Taken};

use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::hw::{Dma, Memory, Tlb, Vmid};
use crate::stage2::plan::{MapPlan, unmap_tables};
use crate::stage2::{Geometry, Lookup, MemoryType, PaRange, PoolSource, Regime, Reserve, Stage2};
use crate::tracker::{PageEntry, PageState, Tracker, VmSlot};

/// What the machine looks like at boot.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig<'a> {
    /// RAM, in ascending order.
    pub ram: &'a [PhysPages],
    /// The hypervisor's image, tracker and pool; inside one range of RAM.
    pub hyp: PhysPages,
    /// MMIO that the host is not to reach; outside RAM.
    pub hidden: &'a [PhysPages],
    /// Root of the host's stage 2: 8 KiB, aligned to it, zeroed, inside `hyp`.
    pub host_root: PhysAddr,
    /// ID_AA64MMFR0_EL1.PARange.
    pub pa_range: u8,
    /// Root of the mirror that devices walk, if there is an SMMU: as `host_root`, and apart from it.
    pub dma_root: Option<PhysAddr>,
    /// Pages outside RAM, ascending, that a confined device reaches beside its region.
    pub doorbells: &'a [PhysAddr],
}

/// What becomes of the content of donated pages.
pub enum Content<'a> {
    /// Zeroed.
    Zeroed,
    /// Kept, and shown page by page in order, after the host lost it: IPA and 4096 bytes.
    Keep(&'a mut dyn FnMut(Ipa, &[u8])),
}

/// What the memory lock protects.
#[derive(Debug)]
struct Inner<'t> {
    tracker: Tracker<'t>,
    stage2: Stage2,
    /// Pool pages in use as tables.
    tables: u64,
    donated: u64,
    reclaimed: u64,
}

/// Everything that the memory lock protects, behind it. `'t` is the life of the tracker's memory.
#[derive(Debug)]
pub struct HostMemory<'t> {
    inner: crate::lock::Mutex<Inner<'t>>,
    regime: Regime,
    pa_range: PaRange,
    confined: crate::lock::Mutex<Confined>,
    doorbells: ArrayVec<PhysAddr, DOORBELLS_MAX>,
}

impl MemoryConfig<'_> {
    fn check(&self, geometry: Geometry) -> Result<(), Error> {
        let root = PhysPages::new(self.host_root, 2)?;
        let dma_root = self.dma_root.map(|at| PhysPages::new(at, 2)).transpose()?;
        let is_root =
            |root: &PhysPages| self.hyp.covers(root) && root.start().is_aligned(2 * PAGE_SIZE);
        let is_doorbell = |at: &PhysAddr| {
            at.is_aligned(PAGE_SIZE) && !self.ram.iter().any(|ram| ram.contains(*at))
        };
        let in_reach = |pages: &PhysPages| pages.end().raw() <= geometry.end();
        let is_sound = self.ram.iter().all(in_reach)
            && self.ram.iter().any(|ram| ram.covers(&self.hyp))
            && is_root(&root)
            && dma_root.is_none_or(|dma| is_root(&dma) && !dma.overlaps(&root))
            && self.doorbells.len() <= DOORBELLS_MAX
            && self.doorbells.is_sorted_by(|a, b| a < b)
            && self.doorbells.iter().all(is_doorbell)
            && !self
                .hidden
                .iter()
                .any(|hidden| self.ram.iter().any(|ram| ram.overlaps(hidden)));
        is_sound.then_some(()).ok_or(Error::InvalidParameter)
    }

    /// How the host sees the page at `pa` at boot.
    fn host_type(&self, pa: PhysAddr) -> Option<MemoryType> {
        if self.hyp.contains(pa) || self.hidden.iter().any(|h| h.contains(pa)) {
            return None;
        }
        let is_ram = self.ram.iter().any(|r| r.contains(pa));
        Some(if is_ram {
            MemoryType::Ram
        } else {
            MemoryType::Device
        })
    }

    /// First address above `pa` where what the host sees may change.
    fn next_edge(&self, pa: PhysAddr, end: u64) -> u64 {
        self.ram
            .iter()
            .chain(self.hidden)
            .chain([&self.hyp])
            .flat_map(|p| [p.start().raw(), p.end().raw()])
            .filter(|edge| *edge > pa.raw())
            .fold(end, u64::min)
    }
}

impl<'t> HostMemory<'t> {
    /// Builds tracker and host stage 2. Every page of RAM but the hypervisor's becomes the host's.
    ///
    /// # Errors
    /// `NoMemory` for tables; `InvalidParameter`, `Unaligned`, `TooLarge` or `Empty` for a configuration that
    /// contradicts itself.
    pub fn new<M: Memory + Tlb + Dma>(
        machine: &M,
        config: &MemoryConfig<'_>,
        tracker: &'t mut [PageEntry],
    ) -> Result<Self, Error> {
        let pa_range = PaRange::new(config.pa_range);
        let geometry = Geometry::new(Geometry::BITS_MAX, pa_range);
        config.check(geometry)?;
        let mut inner = Inner {
            tracker: Tracker::new(config.ram, tracker)?,
            stage2: Stage2::new(config.host_root, geometry, Vmid::HOST),
            tables: 0,
            donated: 0,
            reclaimed: 0,
        };
        if let Some(root) = config.dma_root {
            inner.stage2 = inner.stage2.mirrored(root, machine.dma_in_place());
        }
        let mut at = PhysAddr::new(0);
        while at.raw() < geometry.end() {
            let edge = config.next_edge(at, geometry.end());
            if let Some(kind) = config.host_type(at) {
                let pages = PhysPages::new(at, (edge - at.raw()) / PAGE_SIZE)?;
                inner.prepare(machine, &pages)?;
                inner.map(machine, &pages, kind);
                if kind == MemoryType::Ram {
                    inner.tracker.set_range(&pages, PageState::Host);
                }
            }
            at = PhysAddr::new(edge);
        }
        machine.flush_vmid(Vmid::HOST);
        if let Some(regime) = inner.stage2.dma_regime() {
            machine.dma_start(regime);
        }
        Ok(Self {
            regime: inner.stage2.regime(),
            inner: crate::lock::Mutex::new(inner),
            pa_range,
            confined: crate::lock::Mutex::default(),
            doorbells: config
                .doorbells
                .iter()
                .copied()
                .take(DOORBELLS_MAX)
                .collect(),
        })
    }

    /// The host's translation regime, the same on every CPU.
    pub fn regime(&self) -> Regime {
        self.regime
    }

    /// Whether the host's stage 2 maps this address now. If it does at a translation fault, the fault fell
    /// into the gap of a break-before-make: the access is to be tried again.
    pub fn host_reaches<M: Memory>(&self, machine: &M, pa: PhysAddr) -> bool {
        let inner = self.inner.lock();
        matches!(
            inner.stage2.lookup(machine, Ipa::new(pa.raw())),
            Lookup::Mapped { .. }
        )
    }

    /// State of a page; `None` if it is not RAM.
    pub fn page_state(&self, pa: PhysAddr) -> Option<PageState> {
        self.inner.lock().tracker.state(pa)
    }

    /// State of a page, and how many pages from it on have its owner and its VM: at most [`PAGE_RUN_MAX`]. `None` if it
    /// is not RAM, with the pages to the next RAM.
    pub fn page_run(&self, pa: PhysAddr) -> (Option<PageState>, u64) {
        let inner = self.inner.lock();
        match inner.tracker.run(pa, PAGE_RUN_MAX) {
            Some((state, run)) => (Some(state), run),
            None => (None, inner.tracker.gap(pa)),
        }
    }

    /// Pages of RAM by owner.
    pub fn pages_by_owner(&self, owner: PageOwner) -> u64 {
        self.inner.lock().tracker.count(owner)
    }

    /// The tracker's epoch: grows with every change.
    pub fn epoch(&self) -> u64 {
        self.inner.lock().tracker.epoch()
    }

    /// Pages donated to VMs since boot, metadata included.
    pub fn pages_donated(&self) -> u64 {
        self.inner.lock().donated
    }

    /// Pages reclaimed and scrubbed since boot.
    pub fn pages_reclaimed(&self) -> u64 {
        self.inner.lock().reclaimed
    }

    /// Pages of the hypervisor's pool in use as host stage-2 tables.
    pub fn host_tables(&self) -> u64 {
        self.inner.lock().tables
    }

    /// Copies `to.len()` bytes of a parameter block out of one page owned by the host, under the lock, so
    /// that the page cannot change hands meanwhile.
    ///
    /// # Errors
    /// `Unaligned` if `from` is not 8-byte aligned or the bytes cross a page; `NotRam`, `NotHostOwned`,
    /// `PageIsWindow`; `PagePinned` for a page of a confined device's region. One that a table of the interrupt
    /// controller pins is the host's all the same.
    pub fn copy_from_host<M: Memory>(
        &self,
        machine: &M,
        from: PhysAddr,
        to: &mut [u8],
    ) -> Result<(), Error> {
        let room = PAGE_SIZE - (from.raw() - from.page().raw());
        if !from.is_aligned(8) || to.len() as u64 > room {
            return Err(Error::Unaligned);
        }
        let inner = self.inner.lock();
        match inner.tracker.ram(from)? {
            PageState::Pinned(_) => {}
            state => state.host_owned()?,
        }
        machine.copy_from_host(from, to);
        Ok(())
    }
}

impl Inner<'_> {
    /// Makes the tables that a range of the host's needs to be mapped by identity, and keeps them.
    ///
    /// # Errors
    /// `NoMemory`, `AlreadyMapped`, `OutsideRegion`; nothing has changed then.
    fn prepare<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        pages: &PhysPages,
    ) -> Result<(), Error> {
        let Self { stage2, tables, .. } = self;
        let mut pool = PoolSource {
            machine,
            used: tables,
        };
        let (ipa, pa, count) = (Ipa::new(pages.start().raw()), pages.start(), pages.count());
        let mut plan = MapPlan::default();
        plan.add(machine, stage2, ipa, pa, count)?;
        let mut reserve = Reserve::fill(plan.tables(), &mut pool)?;
        stage2.map(machine, ipa, pa, count, None, &mut reserve);
        reserve.release(&mut pool);
        Ok(())
    }

    /// Maps a range after [`Self::prepare`] and joins what becomes whole.
    fn map<M: Memory + Tlb + Dma>(&mut self, machine: &M, pages: &PhysPages, kind: MemoryType) {
        let Self { stage2, tables, .. } = self;
        let mut pool = PoolSource {
            machine,
            used: tables,
        };
        let (ipa, pa, count) = (Ipa::new(pages.start().raw()), pages.start(), pages.count());
        let mut none = Reserve::default();
        stage2.map(machine, ipa, pa, count, Some(kind), &mut none);
        stage2.join(machine, ipa, &mut pool);
        let last = Ipa::new(pages.end().raw() - PAGE_SIZE);
        stage2.join(machine, last, &mut pool);
    }

    /// Takes pages of the host: unmapped, flushed, recorded as what they are now.
    fn take<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        pages: PhysPages,
        state: PageState,
    ) -> Result<Taken, Error> {
        self.tracker.check_range(&pages, PageState::host_owned)?;
        let Self { stage2, tables, .. } = self;
        let mut pool = PoolSource {
            machine,
            used: tables,
        };
        let (ipa, count) = (Ipa::new(pages.start().raw()), pages.count());
        let needed = unmap_tables(machine, stage2, ipa, count);
        let mut reserve = Reserve::fill(needed, &mut pool)?;
        stage2.unmap(machine, ipa, count, &mut reserve, &mut pool);
        reserve.release(&mut pool);
        self.tracker.set_range(&pages, state);
        Ok(Taken::new(pages))
    }

    /// Checks that pages belong to a VM that is retired, counts those that were its memory, and makes sure that
    /// [`Self::give`] will find the host's tables.
    fn retired_pages<M: Memory + Tlb + Dma>(
        &mut self,
        machine: &M,
        vm: VmSlot,
        pages: PhysPages,
    ) -> Result<(Taken, u64), Error> {
        let mut memory = 0;
        self.tracker.check_range(&pages, |state| match state {
            PageState::VmMemory(owner) if owner == vm => {
                memory += 1;
                Ok(())
            }
            PageState::VmMetadata(owner) if owner == vm => Ok(()),
            _ => Err(Error::NotVmOwned),
        })?;
        self.prepare(machine, &pages)?;
        Ok((Taken::new(pages), memory))
    }

    /// Gives pages to the host, for which [`Self::prepare`] was called.
    fn give<M: Memory + Tlb + Dma>(&mut self, machine: &M, pages: Clean) {
        let pages = pages.pages();
        self.map(machine, &pages, MemoryType::Ram);
        self.tracker.set_range(&pages, PageState::Host);
    }
}
