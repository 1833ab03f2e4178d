//! The fake's SMMU: streams, translations cached until flushed, and an event queue, on the walker of `tlb`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use porthole_abi::{Error, FunctionId};

use super::tlb::{self, Access, FakeTlb};
use super::{FakeMachine, FakeState};
use crate::addr::{Ipa, PhysAddr};
use crate::hw::{Dma, DmaEvent, DmaRegime, Vmid};

/// Stands for no VMID.
const ABORT: u16 = u16::MAX;

/// What the SMMU knows. One TLB and one set of streams stand for all SMMUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct FakeDma {
    pub tlb: FakeTlb,
    /// Regimes in use, by VMID, as VTTBR_EL2 and VTCR_EL2 would have them.
    pub regimes: BTreeMap<u16, (u64, u64)>,
    /// The VMID that each function is translated by.
    streams: BTreeMap<u32, u16>,
    events: VecDeque<DmaEvent>,
    /// Whether a block may become a table of the same mapping without a break.
    pub in_place: bool,
    /// Attaching fails with this.
    refuse: Option<Error>,
    /// Addresses that every device on the host's map must reach after each write to a table.
    pub kept: Vec<u64>,
}

impl FakeMachine {
    /// Adds an SMMU with these functions, all of which abort before [`Dma::dma_start`].
    pub fn add_smmu(&self, functions: &[FunctionId], in_place: bool) {
        let mut state = self.state();
        state.dma.in_place = in_place;
        let aborting = functions.iter().map(|f| (f.0, ABORT));
        state.dma.streams.extend(aborting);
    }

    /// Adds a function, on the host's map.
    pub fn add_stream(&self, function: FunctionId) {
        self.state().dma.streams.insert(function.0, Vmid::HOST.0);
    }

    /// Makes attaching fail, or work again.
    pub fn refuse_attach(&self, error: Option<Error>) {
        self.state().dma.refuse = error;
    }

    /// From now on it is a violation if devices lose one of these addresses of the host's map, be it for a moment.
    pub fn keep(&self, addresses: Vec<u64>) {
        self.state().dma.kept = addresses;
    }

    /// Whether there is an SMMU.
    pub fn has_smmu(&self) -> bool {
        !self.state().dma.streams.is_empty()
    }

    /// An event for the queue.
    pub fn push_event(&self, event: DmaEvent) {
        self.state().dma.events.push_back(event);
    }

    /// An access of a device: cached translations win over tables.
    pub fn dma_access(&self, function: FunctionId, address: Ipa) -> Option<Access> {
        let mut state = self.state();
        let vmid = *state.dma.streams.get(&function.0)?;
        let (vttbr, vtcr) = *state.dma.regimes.get(&vmid)?;
        let mut cache = core::mem::take(&mut state.dma.tlb);
        let access = tlb::access(&state, &mut cache, vttbr, vtcr, address.raw());
        state.dma.tlb = cache;
        access
    }

    /// What a device's tables say; caches nothing.
    pub fn dma_walk(&self, function: FunctionId, address: Ipa) -> Option<Access> {
        let state = self.state();
        let vmid = state.dma.streams.get(&function.0)?;
        let (vttbr, vtcr) = *state.dma.regimes.get(vmid)?;
        tlb::walk(&state, vttbr, vtcr, address.raw())
    }

    /// Table pages that accesses of any device walk, roots included.
    pub fn dma_tables(&self) -> BTreeSet<PhysAddr> {
        let state = self.state();
        let tables = |(vttbr, vtcr): &(u64, u64)| tlb::tables(&state, *vttbr, *vtcr);
        let pages = state.dma.regimes.values().flat_map(tables);
        pages.map(PhysAddr::new).collect()
    }

    /// Root of a device's tables.
    pub fn dma_root(&self, function: FunctionId) -> u64 {
        let state = self.state();
        let vmid = state.dma.streams[&function.0];
        state.dma.regimes[&vmid].0 & 0x0000_ffff_ffff_fffe
    }
}

impl FakeState {
    fn dma_regime(&mut self, regime: DmaRegime) {
        let cpu = regime.geometry.regime(regime.vmid, regime.root);
        let value = (cpu.vttbr, cpu.vtcr);
        let old = self.dma.regimes.insert(regime.vmid.0, value);
        if old.is_some_and(|old| old != value) {
            self.violation(format!("{:?} is in use for another regime", regime.vmid));
        }
    }

    /// What devices lost by the write that was just made.
    pub(super) fn check_kept(&mut self) {
        if self.dma.kept.is_empty() {
            return;
        }
        let Some((vttbr, vtcr)) = self.dma.regimes.get(&Vmid::HOST.0).copied() else {
            return;
        };
        let lost = |at: &&u64| tlb::walk(self, vttbr, vtcr, **at).is_none();
        if let Some(at) = self.dma.kept.iter().find(lost).copied() {
            self.violation(format!("devices lost {at:#x}"));
        }
    }

    fn dma_stream(&mut self, function: u32, vmid: Vmid) {
        let old = self.dma.streams.insert(function, vmid.0);
        // A confined function's regime is forgotten, its cached translations are not.
        if let Some(old) = old.filter(|old| *old != Vmid::HOST.0) {
            self.dma.regimes.remove(&old);
        }
    }
}

impl Dma for FakeMachine {
    fn dma_in_place(&self) -> bool {
        self.state().dma.in_place
    }

    fn dma_start(&self, host: DmaRegime) {
        let mut state = self.state();
        state.dma_regime(host);
        for vmid in state.dma.streams.values_mut() {
            *vmid = host.vmid.0;
        }
    }

    fn dma_attach(&self, function: FunctionId, regime: DmaRegime) -> Result<(), Error> {
        let mut state = self.state();
        if state.dma.streams.get(&function.0) != Some(&Vmid::HOST.0) {
            return Err(Error::BadStream);
        }
        if let Some(error) = state.dma.refuse {
            return Err(error);
        }
        state.dma_regime(regime);
        state.dma_stream(function.0, regime.vmid);
        Ok(())
    }

    fn dma_detach(&self, function: FunctionId) {
        self.state().dma_stream(function.0, Vmid::HOST);
    }

    fn dma_flush(&self, vmid: Vmid, ipa: Ipa, pages: u64) {
        let mut state = self.state();
        state
            .dma
            .tlb
            .flush(vmid.0, ipa.raw(), ipa.raw() + pages * 4096);
        state.dma_broken.clear();
    }

    fn dma_event(&self) -> Option<DmaEvent> {
        self.state().dma.events.pop_front()
    }
}
