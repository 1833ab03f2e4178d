//! Interrupts between vCPUs, host, timer and the CPU that runs.

use porthole_abi::{Error, ExitKind};

use super::*;
use crate::hw::{CpuId, IrqSource};
use crate::smccc::PSCI_CPU_ON_64;
use crate::vgic::TIMER_INTID;

/// Writes a 32-bit register of the interrupt controller as the guest.
fn write(host: &Host, vm: u64, at: u64, value: u64) {
    let exit = play(host, vm, 0, 0, move |context, entry| {
        context.x[1] = value;
        (entry == 0).then(|| mmio(at, 2, 1, true))
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
}

/// Groups on, priority mask open, these interrupts of vCPU 0 enabled and SPI 40 edge-triggered.
fn open(host: &Host, vm: u64) {
    write(host, vm, Host::GICD, 2);
    write(host, vm, Host::GICR + 0x1_0100, 0xffff_ffff);
    write(host, vm, Host::GICD + 0x100 + 4, 1 << 8);
    write(host, vm, Host::GICD + 0xc08, 2 << 16);
    play(host, vm, 0, 0, |context, _| {
        context.gic.vmcr = 0xf0 << 24;
        None
    });
}

fn start_other(host: &Host, vm: u64) {
    let x = [u64::from(PSCI_CPU_ON_64), 1, Host::GUEST_RAM, 0];
    assert_eq!(guest_call(host, vm, 0, &x).1.0, ExitKind::CpuOn);
    play(host, vm, 1, 0, |context, _| {
        context.gic.vmcr = 0xf0 << 24;
        None
    });
}

fn listed(context: &crate::context::VcpuContext) -> Vec<u32> {
    context.gic.lr[..context.gic.used as usize]
        .iter()
        .map(|lr| *lr as u32)
        .collect()
}

fn spi(host: &Host, vm: u64, intid: u64, level: u64) -> Result<u64, Error> {
    host.call(HostFunction::SpiSet, &[vm, intid, level])
        .map(|x| x[1])
}

#[test]
fn a45_the_host_raises_declared_spis_only() {
    let (host, vm) = ready();
    for intid in (0..32).chain([96, 255, 1020, 1 << 32, u64::MAX]) {
        for level in [0, 1] {
            assert_eq!(spi(&host, vm, intid, level), Err(Error::BadIntid));
        }
    }
    for level in [2, u64::MAX] {
        assert_eq!(spi(&host, vm, 40, level), Err(Error::InvalidParameter));
    }
    assert_eq!(spi(&host, vm + 1, 40, 1), Err(Error::BadHandle));
    assert!(listed(&look(&host, vm, 0, 0)).is_empty());
}

#[test]
fn an_spi_wakes_the_vcpu_that_waits_for_it_once() {
    let (host, vm) = ready();
    open(&host, vm);
    assert_eq!(spi(&host, vm, 40, 0), Ok(0));
    let wait = host.run_through(vm, 0, &[wfi()]).unwrap();
    assert_eq!(wait, (ExitKind::Wfi, [u64::MAX, 0, 0]));
    assert_eq!(spi(&host, vm, 40, 1), Ok(1));
    assert_eq!(spi(&host, vm, 40, 0), Ok(0), "told already");
    assert_eq!(spi(&host, vm, 40, 1), Ok(0));
    let context = look(&host, vm, 0, 0);
    assert_eq!(listed(&context), [40]);
    assert_eq!(context.pc, Host::GUEST_RAM + 4 * 5, "behind the WFI");
}

#[test]
fn a_wait_does_not_begin_while_something_is_pending() {
    let (host, vm) = ready();
    open(&host, vm);
    spi(&host, vm, 40, 1).unwrap();
    let exit = host.run_through(vm, 0, &[wfi()]).unwrap();
    assert_eq!(
        exit.0,
        ExitKind::HostInterrupt,
        "it went on to the next exit"
    );
    // Masked by priority, it does begin.
    play(&host, vm, 0, 0, |context, _| {
        context.gic.vmcr = 0;
        None
    });
    assert_eq!(host.run_through(vm, 0, &[wfi()]).unwrap().0, ExitKind::Wfi);
}

#[test]
fn an_interrupt_between_the_last_look_and_the_wait_is_not_slept_over() {
    let (host, vm) = ready();
    open(&host, vm);
    let hyp = host.hyp;
    let exit = play(&host, vm, 0, 0, move |context, entry| {
        if entry == 0 {
            // Another CPU of the host raises it while this one is on its way out.
            let mut x = [0; 31];
            let id = u64::from(HostFunction::SpiSet.id());
            x[..4].copy_from_slice(&[id, vm, 40, 1]);
            hyp.host_hvc(0, &mut x);
            assert_eq!(x[..2], [0, 0], "kicked, not woken");
            return Some(wfi());
        }
        assert_eq!(listed(context), [40]);
        None
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    assert_eq!(host.machine().cpu.script().kicks, [CpuId(0)]);
}

#[test]
fn an_sgi_kicks_a_running_vcpu_and_wakes_a_waiting_one() {
    let (host, vm) = ready();
    open(&host, vm);
    start_other(&host, vm);
    let send = |host: &Host| {
        play(host, vm, 0, 0, |context, entry| {
            context.x[2] = 5 << 24 | 0b10;
            (entry == 0).then(|| sysreg(3, 0, 12, 11, 5, 2, false))
        })
    };
    // Between two runs: it looks by itself.
    assert_eq!(send(&host).0, ExitKind::HostInterrupt);
    assert_eq!(listed(&look(&host, vm, 1, 0)), [5]);
    play(&host, vm, 1, 0, |context, _| {
        context.gic.lr[0] &= !(3 << 62);
        None
    });
    // Waiting: the sender's run tells the host whom to wake.
    assert_eq!(host.run_through(vm, 1, &[wfi()]).unwrap().0, ExitKind::Wfi);
    assert_eq!(send(&host), (ExitKind::Wake, [0b10, 0, 0]));
    assert_eq!(send(&host).0, ExitKind::HostInterrupt, "told already");
    // Running on another CPU: kicked, and the host learns nothing.
    let hyp = host.hyp;
    host.machine().cpu.script().kicks.clear();
    host.machine().cpu.script().id = 3;
    play(&host, vm, 1, 0, move |context, entry| {
        if entry == 0 {
            context.gic.lr[0] &= !(3 << 62);
            hyp.machine().cpu.script().id = 0;
            let mut script = hyp.machine().cpu.script();
            script.loaded = false;
            script.exits.push_back(sysreg(3, 0, 12, 11, 5, 2, false));
            drop(script);
            let mut x = [0; 31];
            x[..4].copy_from_slice(&[u64::from(HostFunction::VcpuRun.id()), vm, 0, 0]);
            hyp.host_hvc(0, &mut x);
            assert_eq!(x[1], ExitKind::HostInterrupt as u64);
            let mut script = hyp.machine().cpu.script();
            (script.id, script.loaded) = (3, true);
            assert_eq!(script.kicks, [CpuId(3)]);
            script.irqs.push_back(IrqSource::Kick);
            return Some(GuestExit::Irq);
        }
        assert_eq!(listed(context), [5]);
        None
    });
}

#[test]
fn the_timer_is_injected_only_when_it_is_asserted() {
    let (host, vm) = ready();
    open(&host, vm);
    // The PPI was made pending by the host: EL2 lets go of it and the guest sees nothing.
    host.machine()
        .cpu
        .script()
        .irqs
        .push_back(IrqSource::VirtualTimer);
    let exit = play(&host, vm, 0, 0, |context, entry| {
        assert!(listed(context).is_empty());
        (entry == 0).then_some(GuestExit::Irq)
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    assert!(!host.machine().cpu.script().timer_active);
    // The real one.
    let hyp = host.hyp;
    host.machine()
        .cpu
        .script()
        .irqs
        .push_back(IrqSource::VirtualTimer);
    play(&host, vm, 0, 0, move |context, entry| match entry {
        0 => {
            hyp.machine().cpu.script().guest_timer = (0b101, 0);
            hyp.machine().cpu.script().timer_active = true;
            Some(GuestExit::Irq)
        }
        _ => {
            assert_eq!(listed(context), [TIMER_INTID]);
            assert_eq!(
                context.gic.lr[0] >> 61,
                0b011,
                "pending, linked to hardware"
            );
            assert!(hyp.machine().cpu.script().timer_active);
            // Acknowledged, then the host wants the CPU.
            context.gic.lr[0] = context.gic.lr[0] & !(3 << 62) | 2 << 62;
            hyp.machine().cpu.script().guest_timer = (0b001, 0);
            None
        }
    });
    assert!(
        !host.machine().cpu.script().timer_active,
        "not left to the host"
    );
    // On any CPU the active interrupt comes back as it was.
    host.machine().cpu.script().id = 2;
    play(&host, vm, 0, 0, move |context, _| {
        assert_eq!(context.gic.lr[0] >> 61, 0b101, "active, linked to hardware");
        assert!(hyp.machine().cpu.script().timer_active);
        // The guest ends it: hardware deactivates.
        context.gic.lr[0] &= !(3 << 62);
        hyp.machine().cpu.script().timer_active = false;
        None
    });
    assert!(listed(&look(&host, vm, 0, 0)).is_empty());
    assert!(!host.machine().cpu.script().timer_active);
}

#[test]
fn a_wait_tells_when_the_timer_ends_it() {
    let (host, vm) = ready();
    for (ctl, cval, deadline) in [
        (0b001, 1000, 1000),
        (0b011, 1000, u64::MAX),
        (0b000, 1000, u64::MAX),
        (0b001, u64::MAX, u64::MAX),
    ] {
        let exit = play(&host, vm, 0, 0, move |context, _| {
            (context.timer.cntv_ctl, context.timer.cntv_cval) = (ctl, cval);
            Some(wfi())
        });
        assert_eq!(exit, (ExitKind::Wfi, [deadline, 0, 0]));
    }
    // Counter values of the host: the guest's zero was at its creation.
    let mut host = Host::new();
    host.machine().cpu.script().counter = 500;
    let vm = host.vm(VmPlan::default());
    let exit = play(&host, vm, 0, 0, |context, _| {
        assert_eq!(context.timer.cntvoff, 500);
        (context.timer.cntv_ctl, context.timer.cntv_cval) = (1, 1000);
        Some(wfi())
    });
    assert_eq!(exit, (ExitKind::Wfi, [1500, 0, 0]));
}

#[test]
fn an_untouched_guest_keeps_its_list_registers_through_fast_exits() {
    let (host, vm) = ready();
    open(&host, vm);
    spi(&host, vm, 40, 1).unwrap();
    play(&host, vm, 0, 0, |context, entry| {
        assert_eq!(listed(context), [40]);
        match entry {
            0 => {
                context.gic.lr[0] = context.gic.lr[0] & !(3 << 62) | 2 << 62;
                Some(hvc())
            }
            1 => {
                assert_eq!(context.gic.lr[0] >> 62, 2, "still active");
                Some(mmio(Host::GICD + 8, 2, 1, false))
            }
            _ => None,
        }
    });
}

#[test]
fn msis_reach_the_guest_through_its_frame_and_by_the_host() {
    let (host, vm) = ready();
    open(&host, vm);
    let intid = u64::from(Host::MSI_BASE);
    write(&host, vm, Host::GICD + 0x108, 1 << (intid % 32));
    write(
        &host,
        vm,
        Host::GICD + 0xc00 + intid / 16 * 4,
        2 << (intid % 16 * 2),
    );
    write(&host, vm, Host::V2M + 0x40, intid);
    assert_eq!(listed(&look(&host, vm, 0, 0)), [intid as u32]);
    play(&host, vm, 0, 0, |context, _| {
        context.gic.lr[0] &= !(3 << 62);
        None
    });
    spi(&host, vm, intid, 1).unwrap();
    spi(&host, vm, intid, 0).unwrap();
    assert_eq!(listed(&look(&host, vm, 0, 0)), [intid as u32]);
}
