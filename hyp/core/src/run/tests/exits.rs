//! Aborts, MMIO and system registers.

use porthole_abi::{ExitKind, VmState};

use super::*;
use crate::hw::{GuestException, SysReg};

fn injected(host: &Host) -> Vec<GuestException> {
    std::mem::take(&mut host.machine().cpu.script().injected)
}

#[test]
fn a_missing_page_of_ram_is_the_hosts_to_donate() {
    let (mut host, vm) = ready();
    let ipa = Host::GUEST_RAM + 0x5678;
    let fault = (ExitKind::RamFault, [Host::GUEST_RAM + 0x5000, 0, 0]);
    for (class, iss) in [
        (0x24, 0x07),
        (0x24, 0x87),
        (0x20, 0x07),
        (0x24, 1 << 24 | 0x46),
    ] {
        assert_eq!(
            host.run_through(vm, 0, &[abort(class, iss, ipa)]),
            Ok(fault)
        );
    }
    let context = look(&host, vm, 0, 0);
    assert_eq!(context.pc, Host::GUEST_RAM, "the access is repeated");
    let page = host.pages(1);
    host.call(HostFunction::VmDonate, &[vm, page, fault.1[0], 1, 0])
        .unwrap();
    assert!(injected(&host).is_empty());
}

#[test]
fn a46_a_read_is_complete_with_the_next_run() {
    let (host, vm) = ready();
    let read = play(&host, vm, 0, 0, |context, _| {
        context.x[5] = u64::MAX;
        Some(mmio(0x0b00_0004, 2, 5, false))
    });
    assert_eq!(read, (ExitKind::MmioRead, [0x0b00_0004, 4, 0]));
    let context = look(&host, vm, 0, 0xffff_ffff_1234_5678);
    assert_eq!(context.x[5], 0x1234_5678);
    assert_eq!(context.pc, Host::GUEST_RAM + 4);
    // The value of a later run means nothing.
    let context = look(&host, vm, 0, 0x7777);
    assert_eq!(
        (context.x[5], context.pc),
        (0x1234_5678, Host::GUEST_RAM + 4)
    );
}

#[test]
fn a46_reads_are_masked_and_extended_as_the_instruction_says() {
    let (host, vm) = ready();
    for (iss, given, expect) in [
        (1 << 24 | 1 << 15, 0x1ff, 0xff),
        (1 << 24 | 1 << 15 | 1 << 21, 0x80, 0xffff_ffff_ffff_ff80),
        (1 << 24 | 1 << 21 | 1 << 22, 0x8001, 0xffff_8001),
        (1 << 24 | 1 << 15 | 3 << 22, u64::MAX, u64::MAX),
    ] {
        let exit = abort(0x24, iss | 0x06, 0x0b00_0000);
        assert_eq!(
            host.run_through(vm, 0, &[exit]).unwrap().0,
            ExitKind::MmioRead
        );
        assert_eq!(look(&host, vm, 0, given).x[0], expect);
    }
}

#[test]
fn a46_the_zero_register_reads_zero_and_takes_nothing() {
    let (host, vm) = ready();
    let write = play(&host, vm, 0, 0, |context, _| {
        context.x = [u64::MAX; 31];
        Some(mmio(0x0b00_0000, 3, 31, true))
    });
    assert_eq!(write, (ExitKind::MmioWrite, [0x0b00_0000, 8, 0]));
    host.run_through(vm, 0, &[mmio(0x0b00_0000, 3, 31, false)])
        .unwrap();
    let context = look(&host, vm, 0, 0x1234);
    assert_eq!(context.x, [u64::MAX; 31]);
    assert_eq!(context.pc, Host::GUEST_RAM + 8);
}

#[test]
fn a41_a_write_shows_the_bits_it_writes_only() {
    let (host, vm) = ready();
    for (width_log2, expect) in [(0, 0x88), (1, 0x7788), (2, 0x5566_7788)] {
        let write = play(&host, vm, 0, 0, move |context, _| {
            context.x[3] = 0x1122_3344_5566_7788;
            Some(mmio(0x0b00_0000, width_log2, 3, true))
        });
        assert_eq!(
            write,
            (ExitKind::MmioWrite, [0x0b00_0000, 1 << width_log2, expect])
        );
    }
}

#[test]
fn a46_accesses_without_syndrome_abort_in_the_guest() {
    let (host, vm) = ready();
    let far = 0x0b00_0000;
    let data = GuestException::DataAbort { far };
    for (iss, expect) in [
        (0x06, data),           // load pair
        (1 << 24 | 0x86, data), // page table
        (0x10, data),           // external abort
        (1 << 24 | 0x0e, data), // permission
        (1 << 24, data),        // address size
        (1 << 24 | 0x31, data), // unsupported atomic
    ] {
        assert_eq!(
            host.run_through(vm, 0, &[abort(0x24, iss, far)]).unwrap().0,
            ExitKind::HostInterrupt
        );
        assert_eq!(injected(&host), [expect], "{iss:#x}");
    }
    // Not aligned: no register is there.
    host.run_through(vm, 0, &[mmio(0x0b00_0001, 2, 0, false)])
        .unwrap();
    assert_eq!(
        injected(&host),
        [GuestException::DataAbort { far: 0x0b00_0001 }]
    );
}

#[test]
fn a46_fetches_from_mmio_and_windows_abort_in_the_guest() {
    let (host, vm) = ready();
    for (ipa, iss) in [
        (0x0b00_0000, 0x06),
        (Host::GICD, 0x06),
        (Host::APERTURE, 0x0f),
        (Host::GUEST_RAM, 0x0f),
        (1 << 35, 0x00),
    ] {
        host.run_through(vm, 0, &[abort(0x20, iss, ipa)]).unwrap();
        assert_eq!(
            injected(&host),
            [GuestException::InstructionAbort { far: ipa }]
        );
    }
}

#[test]
fn a46_cache_maintenance_of_mmio_does_nothing() {
    let (host, vm) = ready();
    host.run_through(vm, 0, &[abort(0x24, 1 << 8 | 1 << 6 | 0x06, 0x0b00_0000)])
        .unwrap();
    assert!(injected(&host).is_empty());
    assert_eq!(look(&host, vm, 0, 0).pc, Host::GUEST_RAM + 4);
}

#[test]
fn the_interrupt_controller_is_answered_inside() {
    let (host, vm) = ready();
    let exit = play(&host, vm, 0, 0, |context, entry| match entry {
        0 => Some(mmio(Host::GICD + 8, 2, 1, false)),
        1 => {
            assert_eq!(context.x[1], 0x5000_043b);
            Some(mmio(Host::GICR + 0x2_0008, 3, 2, false))
        }
        2 => {
            assert_eq!(context.x[2], 1 << 32 | 1 << 8 | 1 << 4);
            Some(mmio(Host::V2M + 8, 2, 3, false))
        }
        3 => {
            assert_eq!(context.x[3], u64::from(Host::MSI_BASE) << 16 | 8);
            assert_eq!(context.pc, Host::GUEST_RAM + 12);
            None
        }
        _ => unreachable!(),
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
}

#[test]
fn an_aperture_without_a_window_is_the_hosts() {
    let (host, vm) = ready();
    assert_eq!(
        host.run_through(vm, 0, &[mmio(Host::APERTURE + 8, 2, 1, false)]),
        Ok((ExitKind::MmioRead, [Host::APERTURE + 8, 4, 0]))
    );
}

#[test]
fn a44_trapped_registers_are_undefined_but_for_a_few() {
    let (host, vm) = ready();
    // PMCR_EL0, CNTP_CTL_EL0, ZCR_EL1, LORC_EL1, ICH_HCR_EL2, SCTLR_EL2, TRFCR_EL1, ERRIDR_EL1
    for (op0, op1, crn, crm, op2) in [
        (3, 3, 9, 12, 0),
        (3, 3, 14, 2, 1),
        (3, 0, 1, 2, 0),
        (3, 0, 10, 4, 3),
        (3, 4, 12, 11, 0),
        (3, 4, 1, 0, 0),
        (3, 0, 1, 2, 1),
        (3, 0, 5, 3, 0),
    ] {
        for read in [false, true] {
            let exit = sysreg(op0, op1, crn, crm, op2, 0, read);
            host.run_through(vm, 0, &[exit]).unwrap();
            assert_eq!(injected(&host), [GuestException::Undefined]);
        }
    }
    assert_eq!(look(&host, vm, 0, 0).pc, Host::GUEST_RAM, "not skipped");
}

#[test]
fn a44_id_registers_are_filtered_and_read_only() {
    let (host, vm) = ready();
    host.machine()
        .cpu
        .script()
        .id_registers
        .insert(SysReg::new(3, 0, 0, 4, 0), u64::MAX);
    let exit = play(&host, vm, 0, 0, |context, entry| match entry {
        0 => Some(sysreg(3, 0, 0, 4, 0, 9, true)),
        _ => {
            assert_eq!(context.x[9] >> 32 & 0xf, 0, "no SVE");
            assert_eq!(context.x[9] & 0xff, 0x11);
            None
        }
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    host.run_through(vm, 0, &[sysreg(3, 0, 0, 4, 0, 0, false)])
        .unwrap();
    assert_eq!(injected(&host), [GuestException::Undefined]);
}

#[test]
fn the_system_register_interface_is_always_on() {
    let (host, vm) = ready();
    let exit = play(&host, vm, 0, 0, |context, entry| match entry {
        0 => Some(sysreg(3, 0, 12, 12, 5, 9, true)),
        1 => {
            assert_eq!(context.x[9], 7);
            context.x[9] = 0;
            Some(sysreg(3, 0, 12, 12, 5, 9, false))
        }
        _ => {
            assert_eq!(context.pc, Host::GUEST_RAM + 8);
            None
        }
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    assert!(injected(&host).is_empty());
}

#[test]
fn what_no_machine_can_answer_ends_the_guest() {
    for (exit, class) in [
        (sync(0x0e << 26), 0x0e),
        (sync(0x3f << 26), 0x3f),
        (GuestExit::SError { esr: 0x2f << 26 }, 0x2f),
    ] {
        let (host, vm) = ready();
        assert_eq!(
            host.run_through(vm, 0, &[exit]),
            Ok((ExitKind::Crash, [class, 0, 0]))
        );
        assert_eq!(state(&host, vm), VmState::Stopped as u64);
        assert_eq!(host.run(vm, 0, 0), Err(porthole_abi::Error::BadState));
    }
}

#[test]
fn exits_are_counted_by_who_answered() {
    use porthole_abi::StatKind;
    let (host, vm) = ready();
    let count = |kind: StatKind| host.call(HostFunction::Stats, &[kind as u64, 0]).unwrap()[1];
    host.run_through(vm, 0, &[hvc(), hvc(), mmio(0x0b00_0000, 2, 0, true)])
        .unwrap();
    assert_eq!(count(StatKind::GuestExitsInside), 2);
    assert_eq!(count(StatKind::GuestExitsToHost), 1);
}

#[test]
fn a46_an_instruction_done_for_the_guest_was_its_step() {
    // PSTATE.SS and BTYPE: as the CPU would leave them behind an instruction that it did itself.
    const SS: u64 = 1 << 21;
    const BTYPE: u64 = 3 << 10;
    let (host, vm) = ready();
    for exit in [
        mmio(0x0b00_0000, 2, 0, false),
        mmio(0x0b00_0000, 2, 0, true),
        mmio(0x0800_0008, 2, 0, false),
        sysreg(3, 0, 0, 4, 0, 0, true),
        sync(0x17 << 26),
        wfi(),
    ] {
        play(&host, vm, 0, 0, move |context, entry| {
            if entry == 0 {
                context.x[0] = 0;
                context.pstate |= SS | BTYPE;
                return Some(exit);
            }
            None
        });
        let context = look(&host, vm, 0, 0);
        assert_eq!(context.pstate & (SS | BTYPE), 0, "{exit:x?}");
    }
}
