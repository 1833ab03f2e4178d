//! Tests of interrupts and of the virtual timer.

use porthole_arch::guest::{self, GuestCpu, KICK_SGI, VIRTUAL_TIMER_PPI};
use porthole_core::hw::{GuestExit, IrqSource};

use super::{check, enter_to_hvc};
use crate::machine;

unsafe extern "C" {
    fn guest_hvc_loop();
    fn guest_irq();
    fn guest_timer();
}

/// A list register: pending, Group 1, priority, virtual INTID, and the physical one of a hardware interrupt.
fn lr(intid: u32, physical: Option<u32>) -> u64 {
    let hw = physical.map_or(0, |p| 1 << 61 | u64::from(p) << 32);
    1 << 62 | hw | 1 << 60 | 0x80 << 48 | u64::from(intid)
}

pub fn list_register(cpu: &GuestCpu) -> Result<(), &'static str> {
    let mut vcpu = machine::vcpu(guest_irq);
    cpu.load(&mut vcpu);
    vcpu.gic.used = 1;
    vcpu.gic.lr[0] = lr(40, None);
    let first = enter_to_hvc(cpu, &mut vcpu, 0);
    let active = vcpu.gic.lr[0] >> 62;
    let second = enter_to_hvc(cpu, &mut vcpu, 1);
    let done = vcpu.gic.lr[0] >> 62;
    cpu.put(&mut vcpu);
    first?;
    second?;
    check(vcpu.x[20] == 40, "INTID")?;
    check(active == 2 && done == 0, "states of the list register")?;
    check(
        vcpu.gic.vmcr >> 24 == 0xf8 || vcpu.gic.vmcr >> 24 == 0xff || vcpu.gic.vmcr >> 27 == 0x1f,
        "VMCR",
    )
}

pub fn timer(cpu: &GuestCpu) -> Result<(), &'static str> {
    let mut vcpu = machine::vcpu(guest_timer);
    vcpu.timer.cntvoff = guest::counter();
    cpu.load(&mut vcpu);
    let exit = cpu.enter(&mut vcpu);
    check(exit == GuestExit::Irq, "no interrupt")?;
    check(vcpu.x[0] < 1 << 32, "the virtual counter starts near zero")?;
    check(cpu.take_irq() == IrqSource::VirtualTimer, "not the timer's")?;
    let (ctl, cval) = cpu.guest_timer();
    check(ctl == 0b101 && cval == vcpu.x[1], "timer registers")?;
    check(
        machine::is_active(VIRTUAL_TIMER_PPI),
        "the PPI is not active",
    )?;
    check(
        cpu.take_irq() == IrqSource::Spurious,
        "still something pending",
    )?;
    vcpu.gic.used = 1;
    vcpu.gic.lr[0] = lr(27, Some(27));
    // Away and back with the interrupt in flight, as core does it.
    cpu.deactivate_timer();
    check(!machine::is_active(VIRTUAL_TIMER_PPI), "not deactivated")?;
    cpu.put(&mut vcpu);
    cpu.load(&mut vcpu);
    cpu.activate_timer();
    check(machine::is_active(VIRTUAL_TIMER_PPI), "not activated")?;
    let first = enter_to_hvc(cpu, &mut vcpu, 0);
    let still = machine::is_active(VIRTUAL_TIMER_PPI);
    let second = enter_to_hvc(cpu, &mut vcpu, 1);
    let after = machine::is_active(VIRTUAL_TIMER_PPI);
    cpu.put(&mut vcpu);
    first?;
    second?;
    check(vcpu.x[20] == 27, "INTID")?;
    check(still && !after, "deactivation by the guest's EOI")
}

pub fn kick(cpu: &GuestCpu) -> Result<(), &'static str> {
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    cpu.load(&mut vcpu);
    guest::kick(0);
    let exit = cpu.enter(&mut vcpu);
    let source = cpu.take_irq();
    let after = cpu.take_irq();
    cpu.put(&mut vcpu);
    check(exit == GuestExit::Irq, "no exit")?;
    check(source == IrqSource::Kick, "not a kick")?;
    check(
        after == IrqSource::Spurious && !machine::is_active(KICK_SGI),
        "not done",
    )
}

pub fn host_interrupt(cpu: &GuestCpu) -> Result<(), &'static str> {
    const PPI: u32 = 20;
    machine::set_pending(PPI);
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    cpu.load(&mut vcpu);
    let exit = cpu.enter(&mut vcpu);
    let source = cpu.take_irq();
    cpu.put(&mut vcpu);
    let pending = machine::is_pending(PPI);
    machine::clear_pending(PPI);
    check(
        exit == GuestExit::Irq && source == IrqSource::Host,
        "source",
    )?;
    check(pending && !machine::is_active(PPI), "it was acknowledged")
}

pub fn own_interrupts(cpu: &GuestCpu) -> Result<(), &'static str> {
    const OWN: u32 = 1 << 15 | 1 << 25 | 1 << 27;
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    cpu.load(&mut vcpu);
    let during = machine::enabled() & OWN;
    cpu.put(&mut vcpu);
    check(during == OWN && machine::enabled() & OWN == 0, "enables")
}
