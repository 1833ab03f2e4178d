//! The virtual GICv3 of one VM (Arm IHI 0069): state of every interrupt and the rules that change it.
//! Registers that the guest sees are in `distributor` and `redistributor`; list registers in `lists`.
//! Nothing here runs or wakes a vCPU: each change returns the vCPUs that must look again.

mod distributor;
mod lists;
mod redistributor;
#[cfg(test)]
mod tests;

pub use lists::hcr;
use porthole_abi::{Error, SPI_BASE, SPIS_MAX, VCPUS_MAX};

/// INTID of the EL1 virtual timer's PPI, in hardware as in a guest.
pub const TIMER_INTID: u32 = 27;
/// Interrupts in one bank: the width of a bit register.
const BANK: u32 = 32;
/// Banks of SPIs.
const SPI_BANKS: usize = (SPIS_MAX / BANK) as usize;
/// Banks that one vCPU sees: its own 32 SGIs and PPIs, then the SPIs.
const BANKS: usize = SPI_BANKS + 1;
/// SGIs in bank 0.
const SGIS: u32 = 0xffff;
/// Implemented bits of a priority: 5, the fewest that a GICv3 has.
const PRIORITY_MASK: u8 = 0xf8;
/// GICD_CTLR.EnableGrp0 and EnableGrp1, of a GIC with one security state.
const CTLR_ENABLE: u32 = 0b11;

/// A set of vCPUs, one bit each.
pub(crate) type VcpuMask = u8;

/// 32 interrupts, one bit each.
#[derive(Clone, Copy, Debug)]
struct Bank {
    enabled: u32,
    /// Pending by an edge, an SGI, an MSI or a write to ISPENDR.
    latch: u32,
    /// Level of the line.
    line: u32,
    /// Configured as edge-triggered.
    edge: u32,
    /// Group 1, not 0.
    group: u32,
    priority: [u8; BANK as usize],
}

impl Bank {
    const fn new(enabled: u32, edge: u32) -> Self {
        Self {
            enabled,
            latch: 0,
            line: 0,
            edge,
            group: u32::MAX,
            priority: [0; BANK as usize],
        }
    }

    const fn pending(&self) -> u32 {
        self.latch | (self.line & !self.edge)
    }
}

/// What one vCPU has of each bank.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Acknowledged here, not yet deactivated.
    active: [u32; BANKS],
    /// In one of its list registers.
    resident: [u32; BANKS],
    /// In a list register that was made pending.
    offered: [u32; BANKS],
    /// Bank 0 is always its own; of the SPIs, those that IROUTER sends here.
    routed: [u32; BANKS],
}

/// The interrupts that a VM's configuration declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GicConfig {
    /// vCPUs, 1 to `VCPUS_MAX`.
    pub vcpus: usize,
    /// SPIs, from INTID 32 on.
    pub spis: u32,
    /// First INTID of the GICv2m frame.
    pub msi_base: u32,
    /// Interrupts of the GICv2m frame; 0 without one.
    pub msi_count: u32,
}

/// State of a VM's interrupt controller. Lives behind one lock per VM, a leaf.
///
/// Invariant: an SPI is active or resident on at most one vCPU, so that hardware cannot deliver it twice.
#[derive(Debug)]
pub struct Gic {
    config: GicConfig,
    ctlr: u32,
    private: [Bank; VCPUS_MAX],
    shared: [Bank; SPI_BANKS],
    held: [Held; VCPUS_MAX],
    /// GICD_IROUTER: Aff2 to Aff0.
    router: [u32; SPIS_MAX as usize],
    /// GICR_WAKER.ProcessorSleep.
    asleep: VcpuMask,
}

/// Place of an interrupt in the banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bank: usize,
    bit: u32,
    index: usize,
}

impl Place {
    const fn of(intid: u32) -> Option<Self> {
        if intid >= SPI_BASE + SPIS_MAX {
            return None;
        }
        Some(Self {
            bank: (intid / BANK) as usize,
            bit: 1 << (intid % BANK),
            index: (intid % BANK) as usize,
        })
    }
}

impl Gic {
    /// The controller after reset: SPIs disabled and routed to vCPU 0, SGIs enabled (the GIC lets an
    /// implementation choose), all in group 1.
    pub fn new(config: GicConfig) -> Self {
        let mut gic = Self {
            config: GicConfig {
                vcpus: config.vcpus.clamp(1, VCPUS_MAX),
                spis: config.spis.min(SPIS_MAX),
                ..config
            },
            ctlr: 0,
            private: [Bank::new(SGIS, SGIS); VCPUS_MAX],
            shared: [Bank::new(0, 0); SPI_BANKS],
            held: [Held::default(); VCPUS_MAX],
            router: [0; SPIS_MAX as usize],
            asleep: 0,
        };
        for held in &mut gic.held {
            held.routed[0] = u32::MAX;
        }
        for bank in 1..BANKS {
            gic.held[0].routed[bank] = gic.implemented(bank);
        }
        gic
    }

    /// Bits of a bank that exist.
    fn implemented(&self, bank: usize) -> u32 {
        let Some(before) = bank.checked_sub(1) else {
            return u32::MAX;
        };
        let left = self.config.spis.saturating_sub(before as u32 * BANK);
        if left >= BANK {
            u32::MAX
        } else {
            (1u32 << left) - 1
        }
    }

    /// Banks that exist, that of SGIs and PPIs included.
    fn banks(&self) -> usize {
        (self.config.spis.div_ceil(BANK) as usize + 1).min(BANKS)
    }

    fn vcpus(&self) -> usize {
        self.config.vcpus
    }

    fn bank(&self, vcpu: usize, bank: usize) -> Option<&Bank> {
        match bank.checked_sub(1) {
            None => self.private.get(vcpu),
            Some(shared) => self.shared.get(shared),
        }
    }

    fn bank_mut(&mut self, vcpu: usize, bank: usize) -> Option<&mut Bank> {
        match bank.checked_sub(1) {
            None => self.private.get_mut(vcpu),
            Some(shared) => self.shared.get_mut(shared),
        }
    }

    /// vCPUs that see this bank: one for its own, else all.
    fn viewers(&self, vcpu: usize, bank: usize) -> core::ops::Range<usize> {
        if bank == 0 {
            vcpu..vcpu.saturating_add(1).min(VCPUS_MAX)
        } else {
            0..self.vcpus()
        }
    }

    /// Bits of a bank that are active on any vCPU.
    fn active(&self, vcpu: usize, bank: usize) -> u32 {
        self.viewers(vcpu, bank)
            .fold(0, |bits, v| bits | self.held[v].active[bank])
    }

    /// Bits of a bank of SPIs that another vCPU holds, active or in a list register.
    fn held_elsewhere(&self, vcpu: usize, bank: usize) -> u32 {
        if bank == 0 {
            return 0;
        }
        (0..self.vcpus()).filter(|v| *v != vcpu).fold(0, |bits, v| {
            bits | self.held[v].active[bank] | self.held[v].resident[bank]
        })
    }

    /// Bits of the enabled groups.
    fn group_enabled(&self, bank: &Bank) -> u32 {
        let group0 = if self.ctlr & 0b01 != 0 {
            !bank.group
        } else {
            0
        };
        let group1 = if self.ctlr & 0b10 != 0 { bank.group } else { 0 };
        group0 | group1
    }

    /// Bits of a bank that are pending and that the distributor forwards to this vCPU.
    fn deliverable(&self, vcpu: usize, bank: usize) -> u32 {
        let Some(state) = self.bank(vcpu, bank) else {
            return 0;
        };
        let bits = state.pending()
            & state.enabled
            & self.group_enabled(state)
            & self.held[vcpu].routed[bank];
        if bits == 0 || self.asleep >> vcpu & 1 != 0 {
            0
        } else {
            bits & !self.held_elsewhere(vcpu, bank)
        }
    }

    /// vCPUs that must look again after `bits` of a bank changed: those that could take one of them and those
    /// that have one in a list register.
    fn affected(&self, vcpu: usize, bank: usize, bits: u32) -> VcpuMask {
        let Some(state) = self.bank(vcpu, bank) else {
            return 0;
        };
        let ready = bits & state.pending() & state.enabled;
        self.viewers(vcpu, bank)
            .filter(|v| {
                let held = &self.held[*v];
                held.routed[bank] & ready != 0 || held.resident[bank] & bits != 0
            })
            .fold(0, |mask, v| mask | 1 << v)
    }

    /// The host sets the line of an SPI.
    ///
    /// # Errors
    /// `BadIntid` for an interrupt that the configuration did not declare.
    pub fn set_line(&mut self, intid: u64, level: bool) -> Result<VcpuMask, Error> {
        let place = self.declared_spi(intid).ok_or(Error::BadIntid)?;
        let Some(bank) = self.bank_mut(0, place.bank) else {
            return Err(Error::BadIntid);
        };
        let was = bank.line & place.bit != 0;
        if level {
            if !was {
                bank.latch |= bank.edge & place.bit;
            }
            bank.line |= place.bit;
        } else {
            bank.line &= !place.bit;
        }
        if was == level {
            return Ok(0);
        }
        Ok(self.affected(0, place.bank, place.bit))
    }

    fn declared_spi(&self, intid: u64) -> Option<Place> {
        let intid = u32::try_from(intid).ok()?;
        let number = intid.checked_sub(SPI_BASE)?;
        (number < self.config.spis)
            .then(|| Place::of(intid))
            .flatten()
    }

    /// A message to the GICv2m frame: an edge on one of its SPIs. Others are ignored.
    pub fn message(&mut self, intid: u32) -> VcpuMask {
        let offset = intid.wrapping_sub(self.config.msi_base);
        if offset >= self.config.msi_count {
            return 0;
        }
        let Some(place) = self.declared_spi(u64::from(intid)) else {
            return 0;
        };
        if let Some(bank) = self.bank_mut(0, place.bank) {
            bank.latch |= place.bit;
        }
        self.affected(0, place.bank, place.bit)
    }

    /// A write to ICC_SGI1R_EL1: makes an SGI pending on its targets.
    pub fn send_sgi(&mut self, sender: usize, value: u64) -> VcpuMask {
        let all = (1u32 << self.vcpus()) - 1;
        let targets = if value >> 40 & 1 != 0 {
            // IRM: all but the sender.
            all & !1u32.wrapping_shl(sender as u32)
        } else if value & 0x00ff_f0ff_00ff_0000 != 0 {
            // Aff3, RS, Aff2 or Aff1: no such vCPU.
            0
        } else {
            value as u32 & all
        };
        let bit = 1u32 << (value >> 24 & 15);
        let mut mask = 0;
        for vcpu in (0..self.vcpus()).filter(|v| targets >> v & 1 != 0) {
            self.private[vcpu].latch |= bit;
            mask |= self.affected(vcpu, 0, bit);
        }
        mask
    }

    /// Level of the virtual timer of a vCPU.
    pub fn set_timer(&mut self, vcpu: usize, asserted: bool) {
        let bit = 1 << TIMER_INTID;
        if let Some(bank) = self.private.get_mut(vcpu) {
            bank.line = if asserted { bit } else { 0 };
        }
    }

    /// Whether the guest has the timer's interrupt active on this vCPU.
    pub fn timer_active(&self, vcpu: usize) -> bool {
        self.held
            .get(vcpu)
            .is_some_and(|h| h.active[0] >> TIMER_INTID & 1 != 0)
    }

    /// Whether an interrupt is pending that hardware would signal to a vCPU with this priority mask. The
    /// vCPU's list registers are empty.
    pub fn signals(&self, vcpu: usize, priority_mask: u8) -> bool {
        let Some(held) = self.held.get(vcpu) else {
            return false;
        };
        (0..self.banks()).any(|bank| {
            let bits = self.deliverable(vcpu, bank) & !held.active[bank];
            self.bank(vcpu, bank)
                .is_some_and(|state| Bits(bits).any(|index| state.priority[index] < priority_mask))
        })
    }

    /// Deactivates one interrupt of a vCPU, as a write to ICC_DIR_EL1 does.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32) -> VcpuMask {
        let Some(place) = Place::of(intid) else {
            return 0;
        };
        if let Some(held) = self.held.get_mut(vcpu) {
            held.active[place.bank] &= !place.bit;
        }
        self.affected(vcpu, place.bank, place.bit)
    }
}

/// Positions of the set bits of a word.
struct Bits(u32);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let index = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (index < BANK).then_some(index as usize)
    }
}
