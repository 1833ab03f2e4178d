//! A fake machine for tests on the build machine: sparse RAM, a page pool that can run dry, a TLB that remembers
//! stale translations, and a table walker of its own that decodes VTTBR_EL2, VTCR_EL2 and descriptors.
//! It records what real hardware would punish silently; [`FakeMachine::assert_sound`] tells.

mod cpu;
mod dma;
mod gic;
mod host;
mod tlb;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use cpu::{FakeCpu, Guest, Meanwhile};
use dma::FakeDma;
use gic::FakeGic;
pub use gic::GicPlan;
pub use host::{Host, VmPlan};
pub use tlb::Access;
use tlb::FakeTlb;

use porthole_abi::PAGE_SIZE;

use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::hw::{Memory, Tlb, Vmid};
use crate::stage2::Regime;

const WORDS: usize = 512;

/// Memory and TLB; cloning it is cheap, pages are shared until written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FakeState {
    /// Pages that are not all zeros, by address.
    pages: BTreeMap<u64, Arc<[u64; WORDS]>>,
    /// Free pages of the pool; the last is the next.
    pool: Vec<u64>,
    /// Allocations that still succeed.
    budget: Option<usize>,
    tlb: FakeTlb,
    dma: FakeDma,
    /// Regimes that tests walk, by VMID.
    regimes: BTreeMap<u16, (u64, u64)>,
    /// Entries made invalid and not flushed since.
    broken: BTreeSet<(u64, usize)>,
    /// The same for the SMMU.
    dma_broken: BTreeSet<(u64, usize)>,
    violations: Vec<String>,
}

/// The fake machine.
#[derive(Debug, Default)]
pub struct FakeMachine {
    state: Mutex<FakeState>,
    flushes: AtomicUsize,
    /// Pages of which some CPU may hold instructions that are no longer there.
    instructions: Mutex<BTreeSet<u64>>,
    /// The CPU side, for scripts.
    pub cpu: FakeCpu,
    /// The interrupt controller.
    gic: FakeGic,
}

impl FakeState {
    fn word(&self, page: u64, index: usize) -> u64 {
        self.pages.get(&page).map_or(0, |words| words[index])
    }

    fn set_word(&mut self, page: u64, index: usize, value: u64) {
        if value != 0 || self.pages.contains_key(&page) {
            let words = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; WORDS]));
            Arc::make_mut(words)[index] = value;
            if value == 0 && words.iter().all(|w| *w == 0) {
                self.pages.remove(&page);
            }
        }
    }

    /// The same with an empty TLB.
    pub fn without_tlb(mut self) -> Self {
        self.tlb = FakeTlb::default();
        self.dma.tlb = FakeTlb::default();
        self
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn is_table(&self, page: u64, regimes: &BTreeMap<u16, (u64, u64)>) -> bool {
        regimes
            .values()
            .any(|(vttbr, vtcr)| tlb::tables(self, *vttbr, *vtcr).contains(&page))
    }

    /// A page whose content is about to change without its readers knowing.
    fn check_private(&mut self, page: u64, doing: &str) {
        for (whose, tlb) in [("CPU", &self.tlb), ("SMMU", &self.dma.tlb)] {
            if let Some(who) = tlb.knows(page) {
                let what = format!("{doing} {page:#x}, which the {whose}'s TLB still knows: {who}");
                self.violations.push(what);
            }
        }
        self.broken.retain(|(p, _)| *p != page);
        self.dma_broken.retain(|(p, _)| *p != page);
    }
}

impl FakeMachine {
    /// A machine whose pool is this range.
    pub fn new(pool: PhysPages) -> Self {
        let machine = Self::default();
        machine.state().pool = pool.iter().rev().map(PhysAddr::raw).collect();
        machine
    }

    /// A machine in a state taken with [`Self::snapshot`].
    pub fn restore(state: FakeState) -> Self {
        Self {
            state: Mutex::new(state),
            ..Self::default()
        }
    }

    /// Copies memory, pool and TLB. In which order the pool's pages come does not count.
    pub fn snapshot(&self) -> FakeState {
        let mut state = self.state().clone();
        state.pool.sort_unstable_by(|a, b| b.cmp(a));
        state
    }

    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instructions(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.instructions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// TLB maintenance operations so far.
    pub fn flushes(&self) -> usize {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Lets this many page allocations succeed, then none; `None` for all.
    pub fn limit_pool(&self, allocations: Option<usize>) {
        self.state().budget = allocations;
    }

    /// Tells the fake of a regime, so that it can find its tables.
    pub fn watch(&self, regime: Regime) {
        let vmid = (regime.vttbr >> 48) as u16;
        let value = (regime.vttbr, regime.vtcr);
        self.state().regimes.insert(vmid, value);
    }

    /// Forgets a regime.
    pub fn unwatch(&self, vmid: Vmid) {
        self.state().regimes.remove(&vmid.0);
    }

    /// An access through a watched regime as hardware makes it: cached translations win over tables.
    pub fn access(&self, vmid: Vmid, ipa: Ipa) -> Option<Access> {
        let mut state = self.state();
        let (vttbr, vtcr) = *state.regimes.get(&vmid.0)?;
        let mut cache = core::mem::take(&mut state.tlb);
        let access = tlb::access(&state, &mut cache, vttbr, vtcr, ipa.raw());
        state.tlb = cache;
        let code = access.filter(|access| access.execute && vmid != Vmid::HOST);
        if let Some(page) = code.map(|access| access.pa & !(PAGE_SIZE - 1))
            && self.instructions().contains(&page)
        {
            state.violation(format!("{page:#x} may be executed as it was before"));
        }
        access
    }

    /// What the tables say, whatever the TLB knows; caches nothing.
    pub fn walk(&self, vmid: Vmid, ipa: Ipa) -> Option<Access> {
        let state = self.state();
        let (vttbr, vtcr) = *state.regimes.get(&vmid.0)?;
        tlb::walk(&state, vttbr, vtcr, ipa.raw())
    }

    /// Fills the TLBs with all that any watched regime and any device's map.
    pub fn warm(&self) {
        let mut state = self.state();
        let mut cache = core::mem::take(&mut state.tlb);
        for (vttbr, vtcr) in state.regimes.values() {
            tlb::warm(&state, &mut cache, *vttbr, *vtcr);
        }
        state.tlb = cache;
        let mut cache = core::mem::take(&mut state.dma.tlb);
        for (vttbr, vtcr) in state.dma.regimes.values() {
            tlb::warm(&state, &mut cache, *vttbr, *vtcr);
        }
        state.dma.tlb = cache;
    }

    /// Table pages of a watched regime, its root included.
    pub fn tables(&self, vmid: Vmid) -> Vec<PhysAddr> {
        let state = self.state();
        let Some((vttbr, vtcr)) = state.regimes.get(&vmid.0) else {
            return Vec::new();
        };
        let pages = tlb::tables(&state, *vttbr, *vtcr);
        pages.into_iter().map(PhysAddr::new).collect()
    }

    /// Writes a word of RAM as its owner would.
    pub fn poke(&self, page: PhysAddr, index: usize, value: u64) {
        self.state().set_word(page.raw(), index, value);
    }

    /// Whether a page is all zeros.
    pub fn is_zero(&self, page: PhysAddr) -> bool {
        !self.state().pages.contains_key(&page.raw())
    }

    /// What is wrong, if a cached translation differs from the tables or a rule was broken on the way.
    pub fn unsound(&self) -> Option<String> {
        let gic = self.gic_violations();
        if !gic.is_empty() {
            return Some(format!("{gic:#?}"));
        }
        let state = self.state();
        if !state.violations.is_empty() {
            return Some(format!("{:#?}", state.violations));
        }
        let mut stale = tlb::stale(&state, &state.tlb, &state.regimes);
        stale.extend(tlb::stale(&state, &state.dma.tlb, &state.dma.regimes));
        (!stale.is_empty()).then(|| format!("stale translations: {stale:#x?}"))
    }

    /// # Panics
    /// If [`Self::unsound`].
    pub fn assert_sound(&self) {
        if let Some(why) = self.unsound() {
            panic!("{why}");
        }
    }
}

impl Memory for FakeMachine {
    type Boxed<T: Send> = Box<T>;

    fn read_word(&self, page: PhysAddr, index: usize) -> u64 {
        self.state().word(page.raw(), index)
    }

    fn write_word(&self, page: PhysAddr, index: usize, value: u64) {
        let is_queue = self.is_its_queue(page.raw());
        let mut state = self.state();
        let page = page.raw();
        if is_queue {
            state.set_word(page, index, value);
            return;
        }
        let old = state.word(page, index);
        let (was_valid, is_valid) = (old & 1 != 0, value & 1 != 0);
        let replaced = was_valid && is_valid && old != value;
        if replaced
            && (state.is_table(page, &state.regimes)
                || !state.dma.in_place && state.is_table(page, &state.dma.regimes))
        {
            state.violation(format!(
                "{page:#x}[{index}] {old:#x} -> {value:#x}: no break"
            ));
        }
        if was_valid && !is_valid {
            let devices = state.is_table(page, &state.dma.regimes);
            if devices {
                state.dma_broken.insert((page, index));
            }
            if !devices || state.is_table(page, &state.regimes) {
                state.broken.insert((page, index));
            }
        } else if !was_valid
            && is_valid
            && (state.broken.contains(&(page, index)) || state.dma_broken.contains(&(page, index)))
        {
            state.violation(format!("{page:#x}[{index}] made again before a flush"));
        }
        state.set_word(page, index, value);
        state.check_kept();
    }

    fn scrub(&self, page: PhysAddr) {
        let is_used = self.gic_uses(page.raw());
        let mut state = self.state();
        if is_used {
            state.violation(format!("scrub of {page}, which the GIC uses"));
        }
        state.check_private(page.raw(), "scrub of");
        self.instructions().insert(page.raw());
        state.pages.remove(&page.raw());
    }

    fn read_page(&self, page: PhysAddr, show: &mut dyn FnMut(&[u8])) {
        let mut state = self.state();
        state.check_private(page.raw(), "reading of");
        self.instructions().insert(page.raw());
        let words: Vec<u64> = (0..WORDS).map(|i| state.word(page.raw(), i)).collect();
        drop(state);
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        show(&bytes);
    }

    fn forget_instructions(&self) {
        self.instructions().clear();
    }

    fn copy_from_host(&self, from: PhysAddr, to: &mut [u8]) {
        let state = self.state();
        let page = from.page().raw();
        for (offset, byte) in (from.raw() - page..).zip(to) {
            let word = state.word(page, offset as usize / 8);
            *byte = word.to_le_bytes()[offset as usize % 8];
        }
    }

    fn alloc_page(&self) -> Option<PhysAddr> {
        let mut state = self.state();
        if state.budget == Some(0) {
            return None;
        }
        let page = state.pool.pop()?;
        state.budget = state.budget.map(|left| left - 1);
        state.pages.remove(&page);
        Some(PhysAddr::new(page))
    }

    fn free_page(&self, page: PhysAddr) {
        let mut state = self.state();
        state.check_private(page.raw(), "freeing of");
        if state.pool.contains(&page.raw()) {
            state.violation(format!("{page} freed twice"));
        }
        state.pages.remove(&page.raw());
        state.pool.push(page.raw());
    }

    fn free_pages(&self) -> usize {
        self.state().pool.len()
    }

    fn place<T: Send>(&self, _page: PhysAddr, value: T) -> Box<T> {
        assert!(size_of::<T>() <= 4096 && align_of::<T>() <= 4096);
        Box::new(value)
    }
}

impl Tlb for FakeMachine {
    fn flush_ipa(&self, vmid: Vmid, ipa: Ipa) {
        self.flush_range(vmid, ipa, 1);
    }

    fn flush_range(&self, vmid: Vmid, ipa: Ipa, pages: u64) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.tlb.flush(vmid.0, ipa.raw(), ipa.raw() + pages * 4096);
        state.broken.clear();
    }

    fn flush_vmid(&self, vmid: Vmid) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.tlb.flush(vmid.0, 0, u64::MAX);
        state.broken.clear();
    }

    fn flush_vmid_local(&self, vmid: Vmid) {
        // One TLB stands for all CPUs here: what another CPU caches stays. It is written down only.
        let mut script = self.cpu.script();
        let cpu = script.id;
        script.local_flushes.push((cpu, vmid));
    }

    fn sync(&self) {}
}
