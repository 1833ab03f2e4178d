//! a45, and the host's own interrupts that other tests need.

use core::sync::atomic::{AtomicBool, Ordering};

use porthole_abi::{Error, ExitKind, HostFunction, SPI_BASE, SPIS_MAX};
use porthole_runtime::{exception, gic, read_reg, reg, write_reg};

use crate::harness::Failure;
use crate::hyp::{call, vcpu_run};
use crate::puppet::insn;
use crate::vm::{self, GICD, GICR, SPIS, V2M, Vm};
use crate::{check, check_eq, ok, tests};

tests![
    a45_host_cannot_raise_sgi_ppi_or_timer,
    a45_host_cannot_raise_undeclared_spi,
    a45_declared_spi_reaches_the_guest,
    a45_disabled_spi_does_not_reach_the_guest,
    a45_more_spis_than_list_registers,
    a45_level_is_sampled_again_after_end,
    a45_guest_sgi_to_itself,
    a45_guest_sgi_wakes_other_vcpu,
    a45_guest_timer_fires_without_the_host,
    a45_host_physical_interrupt_is_not_seen_by_guest,
    a45_msi_frame_offers_declared_spis_only,
    a45_distributor_registers_beyond_the_spis,
    a45_interrupt_interface_of_the_host_comes_back,
];

static READY: AtomicBool = AtomicBool::new(false);

/// The machine's own GIC (QEMU `virt`).
const GIC: gic::Gic = gic::Gic {
    dist: 0x0800_0000,
    redist: 0x080a_0000,
};

fn on_irq(_: &mut exception::Frame) -> bool {
    loop {
        let intid = gic::acknowledge();
        if intid >= 1020 {
            return true;
        }
        gic::end(intid);
    }
}

/// Prepares this CPU of the host for SGI 1.
pub fn init_cpu() {
    if !READY.swap(true, Ordering::AcqRel) {
        exception::on_irq(Some(on_irq));
        GIC.init();
    }
    GIC.init_cpu(reg::cpu_index());
    GIC.enable_private(reg::cpu_index(), 1);
}

/// Whether an SGI or PPI waits for this CPU of the host, or is being taken there.
pub fn pending(cpu: usize, intid: u32) -> bool {
    // GICR_ISPENDR0, GICR_ISACTIVER0.
    [0x1_0200, 0x1_0300]
        .into_iter()
        .any(|register| GIC.read_redist(cpu, register) & 1 << intid != 0)
}

/// The handler of these tests again, after another one.
pub fn restore_handler() {
    exception::on_irq(Some(on_irq));
}

/// Takes what is pending for this CPU of the host.
pub fn take() {
    reg::irq_enable();
    reg::barrier();
    reg::irq_disable();
}

fn spi(vm: &Vm, intid: u64, level: u64) -> Result<u64, Error> {
    call(HostFunction::SpiSet, &[vm.handle, intid, level]).map(|r| r[1])
}

/// `str w1, [x0]`
const STORE32: u32 = 0xb900_0001;
/// `ldr w0, [x0]`
const LOAD32: u32 = 0xb940_0000;
/// `msr daifclr, #2`
const IRQ_ON: u32 = 0xd503_42ff;
/// `msr daifset, #2`
const IRQ_OFF: u32 = 0xd503_42df;

/// Lets the guest take what is pending: the last INTID it acknowledged.
fn taken(vm: &Vm, vcpu: u64) -> Result<Option<u64>, Failure> {
    let on = ok!(vm.pull(vcpu, IRQ_ON, [0; 6])).irq;
    let off = ok!(vm.pull(vcpu, IRQ_OFF, [0; 6])).irq;
    Ok(on.or(off))
}

fn poke32(vm: &Vm, vcpu: u64, at: u64, value: u32) -> Result<(), Failure> {
    let r = ok!(vm.pull(vcpu, STORE32, [at, u64::from(value), 0, 0, 0, 0]));
    check_eq!(r.esr, 0);
    Ok(())
}

fn peek32(vm: &Vm, at: u64) -> Result<u32, Failure> {
    let r = ok!(vm.pull(0, LOAD32, [at, 0, 0, 0, 0, 0]));
    check_eq!(r.esr, 0);
    Ok(r.x[0] as u32)
}

/// The guest switches its GIC on: distributor, this vCPU's redistributor and CPU interface.
fn guest_gic(vm: &Vm, vcpu: u64) -> Result<(), Failure> {
    poke32(vm, vcpu, GICD, 0x12)?;
    let rd = GICR + vcpu * 0x2_0000;
    poke32(vm, vcpu, rd + 0x14, 0)?;
    poke32(vm, vcpu, rd + 0x1_0080, u32::MAX)?;
    poke32(vm, vcpu, rd + 0x1_0100, u32::MAX)?;
    for (encoding, value) in [
        (insn::msr(3, 0, 12, 12, 5), 7),
        (insn::msr(3, 0, 4, 6, 0), 0xf0),
        (insn::msr(3, 0, 12, 12, 7), 1),
    ] {
        ok!(vm.pull(vcpu, encoding, [value, 0, 0, 0, 0, 0]));
    }
    Ok(())
}

fn guest_spi(vm: &Vm, intid: u32, edge: bool) -> Result<(), Failure> {
    let word = u64::from(intid / 32) * 4;
    let bit = 1 << (intid % 32);
    let group = peek32(vm, GICD + 0x80 + word)?;
    poke32(vm, 0, GICD + 0x80 + word, group | bit)?;
    let cfg = GICD + 0xc00 + u64::from(intid / 16) * 4;
    let shift = (intid % 16) * 2 + 1;
    let old = peek32(vm, cfg)? & !(1 << shift);
    poke32(vm, 0, cfg, old | u32::from(edge) << shift)?;
    poke32(vm, 0, GICD + 0x6000 + u64::from(intid) * 8, 0)?;
    poke32(vm, 0, GICD + 0x100 + word, bit)
}

fn a45_host_cannot_raise_sgi_ppi_or_timer() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    for intid in 0..32 {
        for level in [0, 1] {
            check_eq!(spi(&vm, intid, level), Err(Error::BadIntid));
        }
    }
    check_eq!(taken(&vm, 0)?, None);
    ok!(vm.destroy());
    Ok(())
}

fn a45_host_cannot_raise_undeclared_spi() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let end = u64::from(SPI_BASE + SPIS);
    for intid in [
        end,
        end + 1,
        u64::from(SPI_BASE + SPIS_MAX),
        1019,
        1020,
        1023,
        8192,
        1 << 32,
        u64::MAX,
    ] {
        check_eq!(spi(&vm, intid, 1), Err(Error::BadIntid));
    }
    for level in [2, u64::MAX] {
        check_eq!(spi(&vm, 40, level), Err(Error::InvalidParameter));
    }
    ok!(vm.destroy());
    Ok(())
}

fn a45_declared_spi_reaches_the_guest() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    for intid in [32, 40, 95] {
        guest_spi(&vm, intid, true)?;
        ok!(spi(&vm, u64::from(intid), 1));
        ok!(spi(&vm, u64::from(intid), 0));
        check_eq!(taken(&vm, 0)?, Some(u64::from(intid)));
        check_eq!(taken(&vm, 0)?, None);
    }
    ok!(vm.destroy());
    Ok(())
}

fn a45_disabled_spi_does_not_reach_the_guest() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    ok!(spi(&vm, 50, 1));
    check_eq!(taken(&vm, 0)?, None);
    ok!(vm.destroy());
    Ok(())
}

fn a45_more_spis_than_list_registers() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    for intid in 32..32 + SPIS {
        guest_spi(&vm, intid, true)?;
    }
    for intid in 32..u64::from(32 + SPIS) {
        ok!(spi(&vm, intid, 1));
        ok!(spi(&vm, intid, 0));
    }
    // The handler takes them all, one report each.
    let mut seen = [false; SPIS as usize];
    for _ in 0..4 * SPIS {
        let mut one = None;
        let r = ok!(vm.pull_until(0, IRQ_ON, [0; 6], 0, &mut |e| {
            one = Some(e);
            None
        }));
        if let Some(intid) = r.irq {
            seen[(intid as usize).wrapping_sub(32) % seen.len()] = true;
        } else {
            break;
        }
    }
    let missed = interrupts_missed(&vm, &mut seen);
    check_eq!(missed, 0);
    ok!(vm.destroy());
    Ok(())
}

/// Counts what is still pending in the distributor: all must have been delivered by now.
fn interrupts_missed(vm: &Vm, _: &mut [bool]) -> u32 {
    (1..3)
        .map(|n| {
            peek32(vm, GICD + 0x200 + n * 4)
                .unwrap_or(u32::MAX)
                .count_ones()
        })
        .sum()
}

fn a45_level_is_sampled_again_after_end() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    guest_spi(&vm, 44, false)?;
    ok!(spi(&vm, 44, 1));
    // Taken again and again while the line is high; the third time the host lowers it.
    let mut taken = 0;
    let mut value = u64::from(IRQ_ON);
    for _ in 0..200 {
        let exit = ok!(vm.run(0, value));
        value = 0;
        if exit.kind == ExitKind::MmioRead && exit.p[0] == crate::puppet::STRINGS {
            if taken >= 3 {
                break;
            }
            value = u64::from(IRQ_ON);
        }
        if exit.kind == ExitKind::MmioWrite
            && exit.p[0] == crate::puppet::STRINGS + crate::puppet::IRQ
        {
            check_eq!(exit.p[2], 44);
            taken += 1;
            if taken == 3 {
                ok!(spi(&vm, 44, 0));
            }
        }
    }
    check!(taken >= 3);
    ok!(vm.destroy());
    Ok(())
}

fn sgi(intid: u64, targets: u64) -> [u64; 6] {
    [intid << 24 | targets, 0, 0, 0, 0, 0]
}

const SEND_SGI: u32 = insn::msr(3, 0, 12, 11, 5);

fn a45_guest_sgi_to_itself() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    for intid in [0, 7, 15] {
        ok!(vm.pull(0, SEND_SGI, sgi(intid, 1)));
        check_eq!(taken(&vm, 0)?, Some(intid));
    }
    // To CPUs that do not exist: nothing.
    ok!(vm.pull(0, SEND_SGI, sgi(3, 0xfffe)));
    ok!(vm.pull(0, SEND_SGI, [!(1 << 40), 0, 0, 0, 0, 0]));
    check_eq!(taken(&vm, 0)?, None);
    ok!(vm.destroy());
    Ok(())
}

fn a45_guest_sgi_wakes_other_vcpu() -> Result<(), Failure> {
    let vm = Vm::puppet(2);
    guest_gic(&vm, 0)?;
    // vCPU 0 starts vCPU 1 on the puppet, which then waits to be pulled.
    let mut on = None;
    let report = ok!(vm.pull_until(
        0,
        insn::HVC,
        [0xc400_0003, 1, vm::RAM, 0, 0, 0],
        0,
        &mut |e| {
            on = Some(e);
            Some(0)
        }
    ));
    check_eq!(report.x[0], 0);
    check!(matches!(on, Some(e) if e.kind == ExitKind::CpuOn && e.p[0] == 1));
    guest_gic(&vm, 1)?;
    // It waits; then an SGI from vCPU 0 wakes it.
    let exit = vm.pull(1, insn::WFI, [0; 6]);
    check!(matches!(exit, Err(e) if e.kind == ExitKind::Wfi));
    let mut wake = None;
    ok!(vm.pull_until(0, SEND_SGI, sgi(5, 2), 0, &mut |e| {
        wake = Some(e);
        Some(0)
    }));
    check!(matches!(wake, Some(e) if e.kind == ExitKind::Wake && e.p[0] == 2));
    let report = ok!(vm.pull_rest(1));
    check_eq!(report.irq.or(taken(&vm, 1)?), Some(5));
    ok!(vm.destroy());
    Ok(())
}

fn a45_guest_timer_fires_without_the_host() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    init_cpu();
    guest_gic(&vm, 0)?;
    ok!(vm.pull(0, insn::msr(3, 3, 14, 3, 2), [1, 0, 0, 0, 0, 0]));
    ok!(vm.pull(0, insn::msr(3, 3, 14, 3, 1), [1, 0, 0, 0, 0, 0]));
    // Pending at once; the guest has its interrupts masked until here.
    let exit = vm.pull(0, insn::WFI, [0; 6]);
    check!(exit.is_ok());
    // Nobody silences it, so it fires again after each end.
    let mut taken = 0;
    let mut value = 0;
    for _ in 0..200 {
        let exit = ok!(vm.run(0, value));
        value = 0;
        let offset = exit.p[0].wrapping_sub(crate::puppet::STRINGS);
        match (exit.kind, offset) {
            (ExitKind::MmioRead, 0) => value = u64::from(IRQ_ON),
            (ExitKind::MmioWrite, crate::puppet::IRQ) => {
                check_eq!(exit.p[2], 27);
                taken += 1;
            }
            _ => {}
        }
        if taken == 3 {
            break;
        }
    }
    check_eq!(taken, 3);
    ok!(vm.destroy());
    Ok(())
}

fn a45_host_physical_interrupt_is_not_seen_by_guest() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    init_cpu();
    guest_gic(&vm, 0)?;
    ok!(vm.pull(0, IRQ_ON, [0; 6]));
    gic::send_sgi(1, 1);
    // The host's PPI of the virtual timer set pending by hand: no timer runs, so the guest sees nothing.
    GIC.write_redist(0, 0x1_0200, 1 << 27);
    check_eq!(taken(&vm, 0)?, None);
    GIC.write_redist(0, 0x1_0280, 1 << 27);
    let exit = ok!(vcpu_run(vm.handle, 0, 0));
    check!(exit.kind == ExitKind::MmioRead || exit.kind == ExitKind::HostInterrupt);
    take();
    ok!(vm.destroy());
    Ok(())
}

fn a45_msi_frame_offers_declared_spis_only() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    guest_gic(&vm, 0)?;
    check_eq!(peek32(&vm, V2M + 8)?, 64 << 16 | 16);
    guest_spi(&vm, 64, true)?;
    guest_spi(&vm, 33, true)?;
    // Beside the frame's range: ignored.
    for intid in [0, 27, 33, 80, 1023, u32::MAX] {
        poke32(&vm, 0, V2M + 0x40, intid)?;
    }
    check_eq!(taken(&vm, 0)?, None);
    poke32(&vm, 0, V2M + 0x40, 64)?;
    check_eq!(taken(&vm, 0)?, Some(64));
    ok!(vm.destroy());
    Ok(())
}

fn a45_distributor_registers_beyond_the_spis() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for offset in (0..0x1_0000u64).step_by(0xffc) {
        let at = GICD + (offset & !3);
        ok!(vm.pull(0, STORE32, [at, u64::from(u32::MAX), 0, 0, 0, 0]));
        ok!(vm.pull(0, LOAD32, [at, 0, 0, 0, 0, 0]));
        ok!(vm.pull(0, insn::LOAD, [at & !7, 0, 0, 0, 0, 0]));
        ok!(vm.pull(0, insn::LOAD_BYTE, [at + 3, 0, 0, 0, 0, 0]));
    }
    for offset in (0..0x2_0000u64).step_by(0x1ffc) {
        let at = GICR + (offset & !3);
        ok!(vm.pull(0, STORE32, [at, u64::from(u32::MAX), 0, 0, 0, 0]));
        ok!(vm.pull(0, LOAD32, [at, 0, 0, 0, 0, 0]));
    }
    // No enable bit stands where no SPI was declared.
    for n in 0..32u64 {
        poke32(&vm, 0, GICD + 0x100 + n * 4, u32::MAX)?;
        let enabled = peek32(&vm, GICD + 0x100 + n * 4)?;
        if n > u64::from(SPIS / 32) {
            check_eq!(enabled, 0);
        }
    }
    ok!(vm.destroy());
    Ok(())
}

fn a45_interrupt_interface_of_the_host_comes_back() -> Result<(), Failure> {
    // SGI 15 and PPIs 25 and 27 are EL2's, and enabled only while a guest is loaded.
    const OWN: u32 = 1 << 15 | 1 << 25 | 1 << 27;
    const ISENABLER0: u64 = 0x1_0100;
    let vm = Vm::puppet(1);
    init_cpu();
    let cpu = reg::cpu_index();
    let old = read_reg!("S3_0_C4_C6_0");
    for mask in [0x80, 0xc0] {
        write_reg!("S3_0_C4_C6_0", mask);
        let seen = vm.pull(0, insn::NOP, [0; 6]);
        let after = read_reg!("S3_0_C4_C6_0");
        write_reg!("S3_0_C4_C6_0", old);
        ok!(seen);
        check_eq!(after, mask);
        check_eq!(GIC.read_redist(cpu, ISENABLER0) & OWN, 0);
    }
    ok!(vm.destroy());
    Ok(())
}
