//! The virtual GIC alone, driven as guest, host and CPU drive it. List registers are moved here as hardware does.

mod random;

use super::*;
use crate::context::GicRegs;
use lists::ListRegister;

const GICD_CTLR: u64 = 0;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
const SGI_FRAME: u64 = 0x1_0000;

/// A controller of two vCPUs with 64 SPIs, all groups on, and its vCPUs' registers.
struct Rig {
    gic: Gic,
    regs: [GicRegs; 2],
    physical: bool,
    registers: usize,
}

impl Rig {
    fn new() -> Self {
        let mut gic = Gic::new(GicConfig {
            vcpus: 2,
            spis: 64,
            msi_base: 80,
            msi_count: 8,
        });
        gic.write_distributor(GICD_CTLR, 4, 0x12);
        Self {
            gic,
            regs: [GicRegs::default(); 2],
            physical: false,
            registers: 4,
        }
    }

    /// Enables an SPI: edge or level, priority, target.
    fn spi(&mut self, intid: u32, edge: bool, priority: u8, target: u64) {
        let n = u64::from(intid);
        let config = ICFGR + n / 16 * 4;
        let shift = n % 16 * 2 + 1;
        let old = self.gic.read_distributor(config, 4) & !(1 << shift);
        self.gic
            .write_distributor(config, 4, old | u64::from(edge) << shift);
        self.gic
            .write_distributor(IPRIORITYR + n, 1, u64::from(priority));
        self.gic.write_distributor(IROUTER + 8 * n, 8, target);
        self.gic
            .write_distributor(ISENABLER + n / 32 * 4, 4, 1 << (n % 32));
    }

    fn exchange(&mut self, vcpu: usize) -> VcpuMask {
        let regs = &mut self.regs[vcpu];
        let mask = self.gic.evacuate(vcpu, regs, &mut self.physical);
        self.gic.fill(vcpu, regs, self.registers, self.physical);
        mask
    }

    fn listed(&self, vcpu: usize) -> Vec<ListRegister> {
        let regs = &self.regs[vcpu];
        regs.lr[..regs.used as usize]
            .iter()
            .map(|raw| ListRegister(*raw))
            .collect()
    }

    fn ids(&self, vcpu: usize) -> Vec<u32> {
        self.listed(vcpu).iter().map(|lr| lr.intid()).collect()
    }

    /// The guest acknowledges: the pending one of highest priority becomes active.
    fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        let regs = &mut self.regs[vcpu];
        let lr = regs.lr[..regs.used as usize]
            .iter_mut()
            .filter(|lr| ListRegister(**lr).pending() && !ListRegister(**lr).active())
            .min_by_key(|lr| **lr >> 48 & 0xff)?;
        *lr = *lr & !(3 << 62) | 2 << 62;
        Some(*lr as u32)
    }

    /// The guest ends it; true for a maintenance interrupt.
    fn end(&mut self, vcpu: usize, intid: u32) -> bool {
        let regs = &mut self.regs[vcpu];
        let used = regs.used as usize;
        let found = regs.lr[..used]
            .iter_mut()
            .find(|lr| **lr as u32 == intid && ListRegister(**lr).active());
        let Some(lr) = found else {
            regs.hcr += 1 << 27;
            return regs.hcr & hcr::LRENPIE != 0;
        };
        *lr &= !(2 << 62);
        let hardware = *lr >> 61 & 1 != 0;
        !hardware && *lr >> 41 & 1 != 0 && *lr >> 62 == 0
    }

    /// Acknowledges and ends until nothing is left; what was taken, in order.
    fn take_all(&mut self, vcpu: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        for _ in 0..1000 {
            self.exchange(vcpu);
            let Some(intid) = self.acknowledge(vcpu) else {
                return taken;
            };
            taken.push(intid);
            self.end(vcpu, intid);
        }
        panic!("interrupts never end: {taken:?}");
    }

    fn bit(&self, base: u64, intid: u32) -> bool {
        let word = self
            .gic
            .read_distributor(base + u64::from(intid) / 32 * 4, 4);
        word >> (intid % 32) & 1 != 0
    }
}

#[test]
fn an_edge_is_taken_once() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    assert_eq!(rig.gic.set_line(40, true), Ok(1));
    assert_eq!(rig.gic.set_line(40, false), Ok(1));
    assert_eq!(rig.take_all(0), [40]);
    assert!(rig.take_all(0).is_empty());
}

#[test]
fn an_edge_while_active_is_taken_again() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.set_line(40, true).unwrap();
    rig.exchange(0);
    assert_eq!(rig.acknowledge(0), Some(40));
    rig.gic.set_line(40, false).unwrap();
    assert_eq!(rig.gic.set_line(40, true), Ok(1), "the vCPU must look");
    rig.exchange(0);
    let lr = rig.listed(0)[0];
    assert!(lr.pending() && lr.active());
    rig.end(0, 40);
    assert_eq!(rig.take_all(0), [40]);
}

#[test]
fn a45_a_level_is_sampled_again_at_its_end() {
    let mut rig = Rig::new();
    rig.spi(41, false, 0xa0, 0);
    rig.gic.set_line(41, true).unwrap();
    for _ in 0..3 {
        rig.exchange(0);
        assert_eq!(rig.acknowledge(0), Some(41));
        rig.exchange(0);
        let lr = rig.listed(0)[0];
        assert!(lr.active() && !lr.pending(), "not twice at once");
        assert!(rig.end(0, 41), "its end comes back to EL2");
    }
    rig.gic.set_line(41, false).unwrap();
    assert!(rig.take_all(0).is_empty());
}

#[test]
fn a_level_that_falls_before_it_is_taken_is_gone() {
    let mut rig = Rig::new();
    rig.spi(41, false, 0xa0, 0);
    rig.gic.set_line(41, true).unwrap();
    rig.exchange(0);
    assert_eq!(rig.ids(0), [41]);
    assert_eq!(rig.gic.set_line(41, false), Ok(1));
    rig.exchange(0);
    assert!(rig.ids(0).is_empty());
}

#[test]
fn software_pending_of_a_level_is_consumed_by_the_acknowledge() {
    let mut rig = Rig::new();
    rig.spi(41, false, 0xa0, 0);
    rig.gic.write_distributor(ISPENDR + 4, 4, 1 << 9);
    assert!(rig.bit(ISPENDR, 41));
    assert_eq!(rig.take_all(0), [41]);
    assert!(!rig.bit(ISPENDR, 41));
}

#[test]
fn a45_more_interrupts_than_list_registers_all_arrive_by_priority() {
    for registers in [1, 2, 4, 16, 200] {
        let mut rig = Rig::new();
        rig.registers = registers;
        for n in 0..64u32 {
            rig.spi(32 + n, true, ((63 - n) * 8 % 248) as u8, 0);
            rig.gic.set_line(u64::from(32 + n), true).unwrap();
        }
        rig.exchange(0);
        let room = registers.min(16);
        assert_eq!(rig.listed(0).len(), room);
        assert_ne!(rig.regs[0].hcr & (hcr::UIE | hcr::NPIE), 0);
        let taken = rig.take_all(0);
        assert_eq!(taken.len(), 64, "{registers} list registers");
        let priority = |intid: u32| (63 - (intid - 32)) * 8 % 248;
        let order: Vec<_> = taken.iter().map(|i| priority(*i)).collect();
        assert!(order.is_sorted(), "{registers}: {order:?}");
        assert_eq!(rig.regs[0].hcr & (hcr::UIE | hcr::NPIE), 0);
    }
}

#[test]
fn a45_active_interrupts_beyond_the_list_registers_end_by_count_or_by_name() {
    let mut rig = Rig::new();
    rig.registers = 2;
    // Five nested: each preempts the one before.
    for n in 0..5u32 {
        rig.spi(32 + n, true, (0xa0 - 0x10 * n) as u8, 0);
        rig.gic.set_line(u64::from(32 + n), true).unwrap();
        rig.exchange(0);
        assert_eq!(rig.acknowledge(0), Some(32 + n), "preempts");
    }
    rig.exchange(0);
    assert_ne!(rig.regs[0].hcr & hcr::LRENPIE, 0);
    assert_ne!(rig.regs[0].hcr & hcr::TDIR, 0);
    // By name, as a write to ICC_DIR_EL1 traps.
    rig.gic.evacuate(0, &mut rig.regs[0], &mut rig.physical);
    rig.gic.deactivate(0, 32);
    assert!(!rig.bit(ISACTIVER, 32));
    rig.exchange(0);
    // The rest in order of priority; those without a register are counted.
    for n in (1..5u32).rev() {
        rig.end(0, 32 + n);
        rig.exchange(0);
        assert!(!rig.bit(ISACTIVER, 32 + n), "{n}");
    }
    assert!(rig.ids(0).is_empty());
    assert_eq!(rig.regs[0].hcr, hcr::EN);
}

#[test]
fn a45_only_declared_spis_can_be_raised() {
    let mut rig = Rig::new();
    for intid in (0..32).chain([96, 97, 255, 256, 1019, 1020, 1023, 8192, 1 << 32, u64::MAX]) {
        for level in [false, true] {
            assert_eq!(rig.gic.set_line(intid, level), Err(Error::BadIntid));
        }
    }
    for intid in [0, 27, 32, 79, 88, 95, 96, 1023] {
        assert_eq!(rig.gic.message(intid), 0);
    }
    assert!((1..3).all(|n| rig.gic.read_distributor(ISPENDR + 4 * n, 4) == 0));
    rig.spi(80, true, 0xa0, 1);
    assert_eq!(rig.gic.message(80), 2);
}

#[test]
fn undeclared_spis_have_no_registers() {
    let mut rig = Rig::new();
    for base in [0x80, ISENABLER, ISPENDR, ISACTIVER] {
        for n in 0..32u64 {
            rig.gic.write_distributor(base + 4 * n, 4, u64::MAX);
            let value = rig.gic.read_distributor(base + 4 * n, 4);
            let exists = (1..3).contains(&n);
            assert_eq!(value == 0xffff_ffff, exists, "{base:#x} {n}");
            assert!(exists || value == 0);
        }
    }
    rig.gic.write_distributor(IROUTER + 8 * 96, 8, 1);
    assert_eq!(rig.gic.read_distributor(IROUTER + 8 * 96, 8), 0);
    rig.gic.write_distributor(IPRIORITYR + 96, 1, 0x50);
    assert_eq!(rig.gic.read_distributor(IPRIORITYR + 96, 1), 0);
}

#[test]
fn sgis_go_to_their_targets_and_nobody_else() {
    let mut rig = Rig::new();
    assert_eq!(rig.gic.send_sgi(0, 5 << 24 | 0b10), 0b10);
    assert!(rig.take_all(0).is_empty());
    assert_eq!(rig.take_all(1), [5]);
    assert_eq!(rig.gic.send_sgi(1, 1 << 40 | 6 << 24), 0b01, "all but self");
    assert_eq!(rig.take_all(0), [6]);
    for other in [0xfffc, 1 << 16 | 1, 1 << 32 | 1, 1 << 44 | 1, 1 << 48 | 1] {
        assert_eq!(rig.gic.send_sgi(0, other), 0, "{other:#x}");
    }
    rig.gic.send_sgi(0, 1);
    rig.gic.send_sgi(0, 15 << 24 | 1);
    assert_eq!(rig.take_all(0), [0, 15]);
}

#[test]
fn a_disabled_group_or_interrupt_stays_pending() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.write_distributor(GICD_CTLR, 4, 0);
    rig.gic.set_line(40, true).unwrap();
    assert!(rig.take_all(0).is_empty());
    rig.gic.write_distributor(GICD_CTLR, 4, 2);
    rig.gic.write_distributor(ICENABLER + 4, 4, 1 << 8);
    assert!(rig.take_all(0).is_empty());
    assert!(rig.bit(ISPENDR, 40));
    assert_eq!(rig.gic.write_distributor(ISENABLER + 4, 4, 1 << 8), 1);
    assert_eq!(rig.take_all(0), [40]);
}

#[test]
fn disabling_takes_a_pending_one_out_of_the_list_registers() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.set_line(40, true).unwrap();
    rig.exchange(0);
    assert_eq!(rig.gic.write_distributor(ICENABLER + 4, 4, 1 << 8), 1);
    rig.exchange(0);
    assert!(rig.ids(0).is_empty());
    assert!(rig.bit(ISPENDR, 40), "not lost");
}

#[test]
fn clearing_pending_reaches_another_vcpus_list_register() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 1);
    rig.gic.set_line(40, true).unwrap();
    rig.exchange(1);
    assert!(rig.bit(ISPENDR, 40));
    assert_eq!(rig.gic.write_distributor(ICPENDR + 4, 4, 1 << 8), 2);
    rig.exchange(1);
    assert!(rig.ids(1).is_empty());
    assert!(!rig.bit(ISPENDR, 40));
}

#[test]
fn an_spi_is_never_on_two_vcpus() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.set_line(40, true).unwrap();
    rig.exchange(0);
    // Rerouted while it is in a list register of vCPU 0.
    let mask = rig.gic.write_distributor(IROUTER + 8 * 40, 8, 1);
    assert_ne!(mask & 1, 0, "the old one must let it go");
    rig.exchange(1);
    assert!(rig.ids(1).is_empty(), "not before the old one has");
    assert_eq!(rig.exchange(0), 2, "and tells the new one");
    assert!(rig.ids(0).is_empty());
    assert_eq!(rig.take_all(1), [40]);
}

#[test]
fn a_rerouted_active_interrupt_ends_where_it_was_taken() {
    let mut rig = Rig::new();
    rig.spi(41, false, 0xa0, 0);
    rig.gic.set_line(41, true).unwrap();
    rig.exchange(0);
    assert_eq!(rig.acknowledge(0), Some(41));
    rig.gic.write_distributor(IROUTER + 8 * 41, 8, 1);
    rig.exchange(0);
    rig.exchange(1);
    assert_eq!((rig.ids(0), rig.ids(1)), (vec![41], vec![]));
    assert!(rig.end(0, 41));
    assert_eq!(rig.exchange(0), 2);
    rig.exchange(1);
    assert_eq!(rig.acknowledge(1), Some(41));
}

#[test]
fn the_active_state_can_be_read_set_and_cleared() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.set_line(40, true).unwrap();
    rig.exchange(0);
    rig.acknowledge(0);
    rig.gic.evacuate(0, &mut rig.regs[0], &mut rig.physical);
    assert!(rig.bit(ISACTIVER, 40) && !rig.bit(ISPENDR, 40));
    rig.gic.write_distributor(ICACTIVER + 4, 4, 1 << 8);
    assert!(!rig.bit(ISACTIVER, 40));
    rig.exchange(0);
    assert!(rig.ids(0).is_empty());
    rig.gic.write_distributor(ISACTIVER + 4, 4, 1 << 8);
    rig.exchange(0);
    assert!(rig.listed(0)[0].active());
}

#[test]
fn the_timer_is_a_hardware_list_register_while_its_physical_interrupt_is_active() {
    let mut rig = Rig::new();
    rig.gic
        .write_redistributor(SGI_FRAME + ISENABLER, 4, 1 << TIMER_INTID);
    rig.gic.set_timer(0, true);
    rig.physical = true;
    rig.exchange(0);
    let lr = rig.listed(0)[0];
    assert_eq!(lr.intid(), TIMER_INTID);
    assert!(lr.hardware() && lr.pending() && !lr.active());
    assert_eq!(lr.0 >> 32 & 0x3ff, u64::from(TIMER_INTID));
    rig.acknowledge(0);
    rig.exchange(0);
    let lr = rig.listed(0)[0];
    assert!(lr.hardware() && lr.active() && !lr.pending());
    assert!(rig.gic.timer_active(0));
    rig.end(0, TIMER_INTID);
    rig.gic.set_timer(0, false);
    rig.exchange(0);
    assert!(!rig.physical, "the guest deactivated it");
    assert!(rig.ids(0).is_empty());
}

#[test]
fn priorities_mask_what_ends_a_wait() {
    let mut rig = Rig::new();
    rig.spi(40, true, 0xa0, 0);
    rig.gic.set_line(40, true).unwrap();
    assert!(rig.gic.signals(0, 0xf0));
    assert!(!rig.gic.signals(0, 0xa0));
    assert!(!rig.gic.signals(0, 0));
    assert!(!rig.gic.signals(1, 0xff));
}

#[test]
fn identification_registers_tell_what_is_there() {
    let rig = Rig::new();
    assert_eq!(rig.gic.read_distributor(0x0000, 4), 0x52);
    assert_eq!(rig.gic.read_distributor(0x0004, 4) & 0x1f, 2);
    assert_eq!(rig.gic.read_distributor(0xffe8, 4), 0x30);
    assert_eq!(rig.gic.read_redistributor(0xffe8, 4), 0x30);
    assert_eq!(rig.gic.read_redistributor(8, 8), 0);
    assert_eq!(
        rig.gic.read_redistributor(0x2_0008, 8),
        1 << 32 | 1 << 8 | 1 << 4
    );
    assert_eq!(rig.gic.read_redistributor(0x2_000c, 4), 1);
    assert_eq!(rig.gic.read_redistributor(0x4_0008, 8), 0, "no third vCPU");
    assert_eq!(rig.gic.read_message_frame(8, 4), 80 << 16 | 8);
}

#[test]
fn a_redistributor_that_sleeps_takes_nothing() {
    let mut rig = Rig::new();
    rig.gic.write_redistributor(0x14, 4, 2);
    assert_eq!(rig.gic.read_redistributor(0x14, 4), 6);
    rig.gic.send_sgi(1, 1);
    assert!(rig.take_all(0).is_empty());
    rig.gic.write_redistributor(0x14, 4, 0);
    assert_eq!(rig.take_all(0), [0]);
}

#[test]
fn sgi_and_ppi_triggers_are_fixed() {
    let mut rig = Rig::new();
    for offset in [0xc00, 0xc04] {
        rig.gic
            .write_redistributor(SGI_FRAME + offset, 4, 0xffff_ffff);
    }
    assert_eq!(
        rig.gic.read_redistributor(SGI_FRAME + 0xc00, 4),
        0xaaaa_aaaa
    );
    assert_eq!(rig.gic.read_redistributor(SGI_FRAME + 0xc04, 4), 0);
    // The distributor has no view of them.
    assert_eq!(rig.gic.read_distributor(ISENABLER, 4), 0);
}

#[test]
fn a45_no_maintenance_interrupt_is_asked_for_that_is_there_at_once() {
    for registers in [1, 2, 4] {
        let mut rig = Rig::new();
        rig.registers = registers;
        for n in 0..8u32 {
            rig.spi(32 + n, true, (0xb0 - 8 * n) as u8, 0);
        }
        for n in 0..8u64 {
            rig.gic.set_line(32 + n, true).unwrap();
            // Some stay active, as they nest.
            rig.exchange(0);
            if n % 2 == 0 {
                rig.acknowledge(0);
                rig.exchange(0);
            }
            let regs = &rig.regs[0];
            let listed = rig.listed(0);
            if regs.hcr & hcr::UIE != 0 {
                assert!(listed.len() > 1, "{registers} registers, {n} raised");
            }
            if regs.hcr & hcr::NPIE != 0 {
                assert!(listed.iter().any(|lr| lr.pending()));
            }
        }
    }
}
