//! List registers: which interrupts a vCPU takes into hardware, and what comes back (Arm IHI 0069, 12.4).
//! Between two runs either the banks or the list registers have an interrupt's state, never both:
//! [`Gic::evacuate`] empties the registers into the banks, [`Gic::fill`] fills them again.

use arrayvec::ArrayVec;

use super::{Bits, Gic, Place, SPI_BASE, TIMER_INTID, VcpuMask};
use crate::context::{GicRegs, LIST_REGISTERS_MAX};

/// ICH_HCR_EL2 bits.
#[allow(missing_docs)]
pub mod hcr {
    pub const EN: u64 = 1 << 0;
    pub const UIE: u64 = 1 << 1;
    pub const LRENPIE: u64 = 1 << 2;
    pub const NPIE: u64 = 1 << 3;
    pub const TDIR: u64 = 1 << 14;
    pub const EOI_COUNT_SHIFT: u32 = 27;
    pub const EOI_COUNT_MASK: u64 = 31 << EOI_COUNT_SHIFT;
}

/// A value of `ICH_LR<n>_EL2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListRegister(pub u64);

impl ListRegister {
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HARDWARE: u64 = 1 << 61;
    const GROUP: u64 = 1 << 60;
    const PRIORITY_SHIFT: u32 = 48;
    const EOI: u64 = 1 << 41;
    const PHYSICAL_SHIFT: u32 = 32;

    /// vINTID.
    pub const fn intid(self) -> u32 {
        self.0 as u32
    }

    /// State: pending, maybe active too.
    pub const fn pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// State: active, maybe pending too.
    pub const fn active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    /// Linked to a physical interrupt, which the guest's deactivation deactivates.
    pub const fn hardware(self) -> bool {
        self.0 & Self::HARDWARE != 0
    }
}

/// An interrupt that wants a list register. Ordered by who gets one: active before pending, then by
/// priority, then by INTID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    inactive: bool,
    priority: u8,
    intid: u32,
    pending: bool,
}

impl Gic {
    /// Takes the state of all list registers in use into the banks and leaves none in use. Returns the other
    /// vCPUs that can now take what this one let go; `timer_physical` becomes false when the guest's
    /// deactivation ended the active state of the physical timer interrupt.
    pub fn evacuate(
        &mut self,
        vcpu: usize,
        regs: &mut GicRegs,
        timer_physical: &mut bool,
    ) -> VcpuMask {
        let used = usize::try_from(regs.used).unwrap_or(0);
        let mut mask = 0;
        let overflowed = self.overflowed(vcpu, regs.hcr);
        for raw in regs.lr.iter().take(used) {
            let register = ListRegister(*raw);
            let Some(place) = Place::of(register.intid()) else {
                continue;
            };
            let Some(held) = self.held.get_mut(vcpu) else {
                continue;
            };
            let offered = held.offered[place.bank] & place.bit != 0;
            let routed = held.routed[place.bank] & place.bit != 0;
            held.resident[place.bank] &= !place.bit;
            held.offered[place.bank] &= !place.bit;
            if register.active() {
                held.active[place.bank] |= place.bit;
            } else {
                held.active[place.bank] &= !place.bit;
            }
            if let Some(bank) = self.bank_mut(vcpu, place.bank) {
                let edge = bank.edge & place.bit != 0;
                if edge && offered && register.pending() {
                    bank.latch |= place.bit;
                } else if !edge && offered && !register.pending() {
                    // Acknowledged: what software had latched is consumed, the line decides.
                    bank.latch &= !place.bit;
                }
            }
            if register.hardware() && !register.pending() && !register.active() {
                *timer_physical = false;
            }
            if !routed {
                mask |= self.affected(vcpu, place.bank, place.bit);
            }
        }
        for intid in overflowed {
            mask |= self.deactivate(vcpu, intid);
        }
        regs.used = 0;
        regs.hcr &= !hcr::EOI_COUNT_MASK;
        mask & !(1u8.wrapping_shl(vcpu as u32))
    }

    /// Active interrupts without a list register that the guest has ended meanwhile: hardware counted them
    /// (ICH_HCR_EL2.EOIcount), and it ends the one of highest priority first.
    fn overflowed(&self, vcpu: usize, hcr: u64) -> ArrayVec<u32, 31> {
        let mut ended: ArrayVec<u32, 31> = ArrayVec::new();
        let count = (hcr >> hcr::EOI_COUNT_SHIFT & 31) as usize;
        let Some(held) = self.held.get(vcpu).filter(|_| count != 0) else {
            return ended;
        };
        let mut candidates: ArrayVec<(u8, u32), 31> = ArrayVec::new();
        for bank in 0..self.banks() {
            let Some(state) = self.bank(vcpu, bank) else {
                continue;
            };
            for index in Bits(held.active[bank] & !held.resident[bank]) {
                let key = (state.priority[index], (bank * 32 + index) as u32);
                insert_bounded(&mut candidates, key, count);
            }
        }
        ended.extend(candidates.into_iter().map(|(_, intid)| intid));
        ended
    }

    /// Fills the list registers of a vCPU that has none in use: active interrupts first, since their end must
    /// find them, then the pending ones of highest priority. `registers` is what the hardware has.
    ///
    /// When some do not fit, ICH_HCR_EL2 asks for a maintenance interrupt as soon as there is room.
    pub fn fill(
        &mut self,
        vcpu: usize,
        regs: &mut GicRegs,
        registers: usize,
        timer_physical: bool,
    ) {
        let room = registers.clamp(1, LIST_REGISTERS_MAX);
        let mut list: ArrayVec<Candidate, LIST_REGISTERS_MAX> = ArrayVec::new();
        let mut first_pending: Option<Candidate> = None;
        let (mut active_left, mut pending_left) = (false, false);
        for bank in 0..self.banks() {
            let Some(held) = self.held.get(vcpu) else {
                return;
            };
            let active = held.active[bank];
            let pending = self.deliverable(vcpu, bank);
            if active | pending == 0 {
                continue;
            }
            let Some(state) = self.bank(vcpu, bank) else {
                continue;
            };
            // A level that is high while the interrupt is active is looked at again when it ends.
            let again = pending & (state.edge | state.latch);
            for index in Bits(active | pending) {
                let bit = 1u32 << index;
                let candidate = Candidate {
                    inactive: active & bit == 0,
                    priority: state.priority[index],
                    intid: (bank * 32 + index) as u32,
                    pending: if active & bit != 0 { again } else { pending } & bit != 0,
                };
                if candidate.inactive && first_pending.is_none_or(|first| candidate < first) {
                    first_pending = Some(candidate);
                }
                if let Some(lost) = insert_bounded(&mut list, candidate, room) {
                    if lost.inactive {
                        pending_left = true;
                    } else {
                        active_left = true;
                    }
                }
            }
        }
        // Room for the first pending one even when active ones could fill all registers.
        if let (Some(first), Some(last)) = (first_pending, list.last_mut())
            && !last.inactive
            && pending_left
        {
            *last = first;
            active_left = true;
        }
        let active_listed = list.iter().filter(|c| !c.inactive).count();
        regs.hcr = hcr::EN;
        if pending_left {
            // "At most one is valid" would hold at once where active ones stay, or with one register.
            let none_pending = active_listed > 1 || room == 1;
            regs.hcr |= if none_pending { hcr::NPIE } else { hcr::UIE };
        }
        if active_left {
            regs.hcr |= hcr::LRENPIE | hcr::TDIR;
        }
        for (candidate, register) in list.iter().zip(regs.lr.iter_mut()) {
            *register = self.load(vcpu, candidate, timer_physical);
        }
        regs.used = list.len() as u64;
    }

    /// Moves an interrupt's state into a list register.
    fn load(&mut self, vcpu: usize, candidate: &Candidate, timer_physical: bool) -> u64 {
        let Some(place) = Place::of(candidate.intid) else {
            return 0;
        };
        let hardware = candidate.intid == TIMER_INTID && timer_physical;
        // Hardware does not take both states for an interrupt that is linked to a physical one.
        let pending = candidate.pending && (candidate.inactive || !hardware);
        let mut routed = true;
        if let Some(held) = self.held.get_mut(vcpu) {
            held.resident[place.bank] |= place.bit;
            if pending {
                held.offered[place.bank] |= place.bit;
            }
            routed = held.routed[place.bank] & place.bit != 0;
        }
        let mut raw = u64::from(candidate.intid)
            | u64::from(candidate.priority) << ListRegister::PRIORITY_SHIFT;
        let Some(bank) = self.bank_mut(vcpu, place.bank) else {
            return 0;
        };
        let edge = bank.edge & place.bit != 0;
        if pending && edge {
            bank.latch &= !place.bit;
        }
        if bank.group & place.bit != 0 {
            raw |= ListRegister::GROUP;
        }
        if pending {
            raw |= ListRegister::PENDING;
        }
        if !candidate.inactive {
            raw |= ListRegister::ACTIVE;
        }
        if hardware {
            raw |= ListRegister::HARDWARE | u64::from(TIMER_INTID) << ListRegister::PHYSICAL_SHIFT;
        } else if !edge || (candidate.intid >= SPI_BASE && !routed) {
            // Its end shows whether the line is still high, or lets the new target have it.
            raw |= ListRegister::EOI;
        }
        raw
    }
}

/// Inserts in order, keeping at most `room` items; returns the one that found no place.
fn insert_bounded<T: Ord + Copy, const N: usize>(
    list: &mut ArrayVec<T, N>,
    item: T,
    room: usize,
) -> Option<T> {
    let at = list.iter().take_while(|other| **other <= item).count();
    let lost = if list.len() >= room.min(N) {
        if at >= list.len() {
            return Some(item);
        }
        list.pop()
    } else {
        None
    };
    if list.try_insert(at, item).is_err() {
        return Some(item);
    }
    lost
}
