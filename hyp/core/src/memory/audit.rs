//! The share audit: tables against tracker, in bounded steps, without trusting any count.
//! First every frame of RAM against the host's tables, then the tables of confined devices against their regions, then
//! every leaf of the host's tables, which must lead to its own address and which devices must see as well, then every
//! leaf of every guest against the tracker.

use porthole_abi::{
    DMA_CONFINED_MAX, Error, GUEST_IPA_BITS, PAGE_SHIFT, PAGE_SIZE, RegionKind, VMS_MAX,
};

use super::{HostMemory, Inner};
use crate::addr::{Ipa, PhysAddr};
use crate::guest::GuestMemory;
use crate::hw::Memory;
use crate::stage2::descriptor::Bits;
use crate::stage2::{Geometry, Lookup};
use crate::tracker::{PageState, VmSlot};

/// Pages that one step looks at, at most (64 MiB).
const PAGES_PER_STEP: usize = 16384;
/// Table entries that one step looks at, at most.
const ENTRIES_PER_STEP: usize = 4096;
/// Table entries that the map of a confined device can have: one root, two level-2 and two level-3 tables for its
/// region, one of each for a doorbell.
pub(super) const CONFINED_ENTRIES_MAX: usize = (1 + 4 + 2 * super::DOORBELLS_MAX) * 512;

/// Result of one step of a share audit; sums are of this step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditStep {
    /// Where to go on; 0 at the end.
    pub next: u64,
    /// Pages that host and a guest both reach, counted in the tables.
    pub shared: u64,
    /// Pages that the tracker says windows cover.
    pub windows: u64,
    /// First page where tables and tracker differ.
    pub offender: Option<PhysAddr>,
    /// The tracker's epoch during the step.
    pub epoch: u64,
}

/// What the audit does with a VM's memory.
pub type Look<'a> = dyn FnMut(&GuestMemory) + 'a;

impl AuditStep {
    pub(super) fn offend(&mut self, pa: PhysAddr) {
        self.offender.get_or_insert(pa);
    }
}

/// Where an audit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// At this index of the tracker.
    Frames(usize),
    /// At the confined device in this slot.
    Confined(usize),
    /// At this address of the host's tables.
    Host(Ipa),
    /// At this address of the VM in this slot.
    Guest(usize, Ipa),
}

const GUEST_PHASE: u64 = 1 << 63;
const HOST_PHASE: u64 = 1 << 62;
const CONFINED_PHASE: u64 = 1 << 61;
const SLOT_SHIFT: u32 = 32;
const HOST_FRAME_MASK: u64 = (1 << (Geometry::BITS_MAX - PAGE_SHIFT)) - 1;
const FRAME_MASK: u64 = (1 << (GUEST_IPA_BITS - PAGE_SHIFT)) - 1;

impl Cursor {
    fn decode(raw: u64) -> Result<Self, Error> {
        if raw & !HOST_PHASE <= HOST_FRAME_MASK && raw & HOST_PHASE != 0 {
            return Ok(Self::Host(Ipa::new((raw & HOST_FRAME_MASK) << PAGE_SHIFT)));
        }
        if raw & CONFINED_PHASE != 0 {
            let slot = (raw & !CONFINED_PHASE) as usize;
            let is_slot = slot < DMA_CONFINED_MAX;
            return is_slot
                .then_some(Self::Confined(slot))
                .ok_or(Error::InvalidParameter);
        }
        if raw & GUEST_PHASE == 0 {
            let index = u32::try_from(raw).map_err(|_| Error::InvalidParameter)?;
            return Ok(Self::Frames(index as usize));
        }
        let slot = (raw & !GUEST_PHASE) >> SLOT_SHIFT;
        let frame = raw & 0xffff_ffff;
        if slot >= VMS_MAX as u64 || frame > FRAME_MASK {
            return Err(Error::InvalidParameter);
        }
        Ok(Self::Guest(slot as usize, Ipa::new(frame << PAGE_SHIFT)))
    }

    fn encode(self) -> u64 {
        match self {
            Self::Frames(index) => index as u64,
            Self::Confined(slot) => CONFINED_PHASE | slot as u64,
            Self::Host(ipa) => HOST_PHASE | ipa.frame(),
            Self::Guest(slot, ipa) => GUEST_PHASE | (slot as u64) << SLOT_SHIFT | ipa.frame(),
        }
    }
}

impl HostMemory<'_> {
    /// One step of the share audit. `with_guest(slot, look)` calls `look` with the VM's memory, its table lock
    /// held and the memory lock not, if the slot has a VM.
    ///
    /// # Errors
    /// `InvalidParameter` for a cursor that no step returns.
    pub fn audit<M: Memory>(
        &self,
        machine: &M,
        cursor: u64,
        with_guest: &mut dyn FnMut(VmSlot, &mut Look<'_>),
    ) -> Result<AuditStep, Error> {
        let (first, mut ipa) = match Cursor::decode(cursor)? {
            Cursor::Frames(index) => return Ok(self.inner.lock().audit_frames(machine, index)),
            Cursor::Confined(slot) => {
                let next = match slot + 1 {
                    DMA_CONFINED_MAX => Cursor::Host(Ipa::new(0)),
                    after => Cursor::Confined(after),
                };
                let mut step = AuditStep {
                    next: next.encode(),
                    ..AuditStep::default()
                };
                self.audit_confined(machine, slot, &mut step);
                return Ok(step);
            }
            Cursor::Host(ipa) => return Ok(self.inner.lock().audit_host(machine, ipa)),
            Cursor::Guest(slot, ipa) => (slot, ipa),
        };
        for slot in (first..VMS_MAX).filter_map(VmSlot::new) {
            let mut step = None;
            with_guest(slot, &mut |guest| {
                step = Some(self.inner.lock().audit_guest(machine, guest, ipa));
            });
            if let Some(step) = step {
                return Ok(step);
            }
            ipa = Ipa::new(0);
        }
        Ok(AuditStep {
            epoch: self.epoch(),
            ..AuditStep::default()
        })
    }
}

impl Inner<'_> {
    /// Whether the host reaches this page, at its own address, and where the table entry that says so ends.
    fn host_entry<M: Memory>(&self, machine: &M, pa: PhysAddr) -> (bool, u64) {
        match self.stage2.lookup(machine, Ipa::new(pa.raw())) {
            Lookup::Mapped { pa: to, end, .. } => (to == pa, end),
            Lookup::Hole { end } => (false, end),
        }
    }

    fn audit_frames<M: Memory>(&self, machine: &M, first: usize) -> AuditStep {
        let mut step = AuditStep {
            epoch: self.tracker.epoch(),
            next: Cursor::Confined(0).encode(),
            ..AuditStep::default()
        };
        let limit = first.saturating_add(PAGES_PER_STEP);
        let mut index = first;
        while let Some((start, left)) = self.tracker.run_at(index) {
            if index >= limit {
                step.next = Cursor::Frames(index).encode();
                break;
            }
            let (reaches, end) = self.host_entry(machine, start);
            let in_entry = ((end - start.raw()) / PAGE_SIZE) as usize;
            let count = left.min(in_entry).min(limit - index);
            for (offset, index) in (index..index + count).enumerate() {
                let state = self.tracker.state_at(index);
                step.windows += u64::from(matches!(state, PageState::Window(..)));
                if state.host_reaches() != reaches {
                    step.offend(PhysAddr::new(start.raw() + offset as u64 * PAGE_SIZE));
                }
            }
            index += count;
        }
        step
    }

    /// Whatever the host's tables map, they map by identity, and its devices have the same map: no page is reached
    /// behind the tracker's back.
    fn audit_host<M: Memory>(&self, machine: &M, first: Ipa) -> AuditStep {
        let mut step = AuditStep {
            epoch: self.tracker.epoch(),
            next: Cursor::Guest(0, Ipa::new(0)).encode(),
            ..AuditStep::default()
        };
        let (mut at, mut entries) = (first.raw(), 0);
        while at < self.stage2.end() {
            if entries >= ENTRIES_PER_STEP {
                step.next = Cursor::Host(Ipa::new(at)).encode();
                break;
            }
            entries += 1;
            let host = self.stage2.lookup(machine, Ipa::new(at));
            let device = self.stage2.dma_lookup(machine, Ipa::new(at));
            if device.is_some_and(|device| device != host) {
                step.offend(PhysAddr::new(at));
            }
            at = match host {
                Lookup::Hole { end } => end,
                Lookup::Mapped { pa, end, .. } => {
                    if pa.raw() != at {
                        step.offend(pa);
                    }
                    end
                }
            };
        }
        step
    }

    fn audit_guest<M: Memory>(&self, machine: &M, guest: &GuestMemory, first: Ipa) -> AuditStep {
        let mut step = AuditStep {
            epoch: self.tracker.epoch(),
            ..AuditStep::default()
        };
        let after = guest.slot.index() + 1;
        if after < VMS_MAX {
            step.next = Cursor::Guest(after, Ipa::new(0)).encode();
        }
        let end = guest.stage2.end();
        let (mut at, mut pages, mut entries) = (first.raw(), 0, 0);
        while at < end {
            if pages >= PAGES_PER_STEP || entries >= ENTRIES_PER_STEP {
                step.next = Cursor::Guest(guest.slot.index(), Ipa::new(at)).encode();
                break;
            }
            entries += 1;
            at = match guest.stage2.lookup(machine, Ipa::new(at)) {
                Lookup::Hole { end } => end,
                Lookup::Mapped {
                    pa,
                    bits,
                    end: stop,
                } => {
                    // One page at a time in the host's tables, a block's worth at most in the guest's.
                    let stop = stop.min(at + 512 * PAGE_SIZE);
                    for ipa in (at..stop).step_by(PAGE_SIZE as usize) {
                        let pa = PhysAddr::new(pa.raw() + (ipa - at));
                        self.audit_leaf(machine, guest, Ipa::new(ipa), pa, bits, &mut step);
                        pages += 1;
                    }
                    stop
                }
            };
        }
        step
    }

    fn audit_leaf<M: Memory>(
        &self,
        machine: &M,
        guest: &GuestMemory,
        ipa: Ipa,
        pa: PhysAddr,
        bits: Bits,
        step: &mut AuditStep,
    ) {
        let (host, _) = self.host_entry(machine, pa);
        step.shared += u64::from(host);
        let is_right = match self.tracker.state(pa) {
            Some(PageState::VmMemory(vm)) => vm == guest.slot && !host,
            Some(PageState::Window(vm, window)) => {
                let is_window = |w: &crate::window::Window| {
                    let open = guest.regions.inside(RegionKind::OpenRam, &w.pages).is_ok();
                    w.pages.contains(ipa) && bits.contains(Bits::EXECUTE_NEVER) != open
                };
                vm == guest.slot && host && guest.windows.get(window).is_some_and(is_window)
            }
            _ => false,
        };
        if !is_right {
            step.offend(pa);
        }
    }
}
