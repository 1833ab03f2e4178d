//! PSCI of a guest, and what the host may do when.

use porthole_abi::{Error, ExitKind, PAGE_SIZE, VmState};

use super::*;
use crate::hw::Memory;
use crate::smccc::*;
use crate::testing::Meanwhile;

const NOT_SUPPORTED: u64 = u64::MAX;

fn psci(
    host: &Host,
    vm: u64,
    vcpu: u64,
    function: u32,
    args: [u64; 3],
) -> (u64, (ExitKind, [u64; 3])) {
    let mut x = vec![u64::from(function)];
    x.extend(args);
    let (x, exit) = guest_call(host, vm, vcpu, &x);
    (x[0], exit)
}

#[test]
fn versions_and_features() {
    let (host, vm) = ready();
    assert_eq!(psci(&host, vm, 0, PSCI_VERSION, [0; 3]).0, 0x1_0001);
    assert_eq!(psci(&host, vm, 0, PSCI_MIGRATE_INFO_TYPE, [0; 3]).0, 2);
    for function in [
        PSCI_CPU_ON_64,
        PSCI_CPU_SUSPEND_64,
        PSCI_SYSTEM_RESET2_64,
        SMCCC_VERSION,
    ] {
        let arguments = [u64::from(function), 0, 0];
        assert_eq!(psci(&host, vm, 0, PSCI_FEATURES, arguments).0, 0);
    }
    // SYSTEM_SUSPEND, MEM_PROTECT, CPU_FREEZE
    for function in [0xc400_000e, 0x8400_0013, 0x8400_000b] {
        assert_eq!(
            psci(&host, vm, 0, PSCI_FEATURES, [function, 0, 0]).0,
            NOT_SUPPORTED
        );
        assert_eq!(psci(&host, vm, 0, function as u32, [0; 3]).0, NOT_SUPPORTED);
    }
}

#[test]
fn a_vcpu_starts_where_the_guest_says() {
    let (host, vm) = ready();
    assert_eq!(
        host.run(vm, 1, 0).unwrap().0,
        ExitKind::CpuOff,
        "off at first"
    );
    assert_eq!(host.machine().cpu.script().entries, 0);
    let entry = Host::GUEST_RAM + 0x1_0000;
    let affinity = |level| psci(&host, vm, 0, PSCI_AFFINITY_INFO_64, [1, level, 0]).0;
    assert_eq!(affinity(0), 1);
    assert_eq!(affinity(1), result::INVALID_PARAMETERS);
    let on = [1, entry, 0x1234];
    let (_, exit) = psci(&host, vm, 0, PSCI_CPU_ON_64, on);
    assert_eq!(exit, (ExitKind::CpuOn, [1, 0, 0]));
    assert_eq!(look(&host, vm, 0, 0).x[0], 0, "success");
    assert_eq!(affinity(0), 2);
    assert_eq!(psci(&host, vm, 0, PSCI_CPU_ON_64, on).0, result::ON_PENDING);
    let context = look(&host, vm, 1, 0);
    assert_eq!(
        (context.pc, context.x[0], context.pstate),
        (entry, 0x1234, 0x3c5)
    );
    assert_eq!(context.vmpidr, 1 << 31 | 1);
    assert_eq!(affinity(0), 0);
    assert_eq!(psci(&host, vm, 0, PSCI_CPU_ON_64, on).0, result::ALREADY_ON);
    // Off and on again: nothing of the registers is left.
    let off = play(&host, vm, 1, 0, |context, _| {
        context.x = [9; 31];
        context.x[0] = u64::from(PSCI_CPU_OFF);
        context.el1.ttbr0 = 9;
        Some(hvc())
    });
    assert_eq!(off.0, ExitKind::CpuOff);
    assert_eq!(host.run(vm, 1, 0).unwrap().0, ExitKind::CpuOff);
    psci(
        &host,
        vm,
        0,
        PSCI_CPU_ON_32,
        [1 | 7 << 32, entry | 7 << 32, 5],
    );
    let context = look(&host, vm, 1, 0);
    assert_eq!((context.x[0], context.x[1], context.el1.ttbr0), (5, 0, 0));
}

#[test]
fn a07_a_cpu_forgets_a_vms_translations_before_it_runs_another_of_its_vcpus() {
    // Two vCPUs may use one ASID for different address spaces; both have the VM's VMID.
    let (host, vm) = ready();
    psci(&host, vm, 0, PSCI_CPU_ON_64, [1, Host::GUEST_RAM, 0]);
    host.machine().cpu.script().local_flushes.clear();
    let flushes_of = |cpu: u8, vcpu: u64| {
        host.machine().cpu.script().id = cpu;
        host.run(vm, vcpu, 0).unwrap();
        std::mem::take(&mut host.machine().cpu.script().local_flushes)
    };
    let vmid = host.hyp.slots.with(vm, |vm| Ok(vm.vmid)).unwrap();
    assert_eq!(flushes_of(0, 0), [], "the same as before");
    assert_eq!(flushes_of(0, 1), [(0, vmid)]);
    assert_eq!(flushes_of(0, 1), []);
    assert_eq!(flushes_of(3, 1), [(3, vmid)], "whoever ran there last");
    assert_eq!(flushes_of(0, 0), [(0, vmid)]);
    assert_eq!(flushes_of(3, 1), []);
}

#[test]
fn a43_bad_targets_and_entries_of_a_guest() {
    let (host, vm) = ready();
    let ram = Host::GUEST_RAM;
    for target in [2, 8, 1 << 8, 1 << 31 | 1, 1 << 32 | 1, u64::MAX] {
        let (x0, _) = psci(&host, vm, 0, PSCI_CPU_ON_64, [target, ram, 0]);
        assert_eq!(x0, result::INVALID_PARAMETERS);
    }
    for entry in [
        0,
        Host::GICD,
        Host::APERTURE,
        ram - 4,
        ram + 2,
        ram + (64 << 20),
        u64::MAX,
    ] {
        let (x0, _) = psci(&host, vm, 0, PSCI_CPU_ON_64, [1, entry, 0]);
        assert_eq!(x0, result::INVALID_ADDRESS, "{entry:#x}");
    }
    assert_eq!(psci(&host, vm, 0, PSCI_AFFINITY_INFO_64, [1, 0, 0]).0, 1);
}

#[test]
fn off_and_reset_end_the_guest() {
    for (function, argument, kind, payload) in [
        (PSCI_SYSTEM_OFF, 0, ExitKind::SystemOff, 0),
        (PSCI_SYSTEM_RESET, 0, ExitKind::SystemReset, 0),
        (PSCI_SYSTEM_RESET2_32, 0, ExitKind::SystemReset, 0),
        (
            PSCI_SYSTEM_RESET2_64,
            0x8000_0001,
            ExitKind::SystemReset,
            0x8000_0001,
        ),
    ] {
        let (host, vm) = ready();
        let (_, exit) = psci(&host, vm, 0, function, [argument, 0, 0]);
        assert_eq!(exit, (kind, [payload, 0, 0]));
        assert_eq!(state(&host, vm), VmState::Stopped as u64);
        assert_eq!(host.run(vm, 0, 0), Err(Error::BadState));
        assert_eq!(host.run(vm, 1, 0), Err(Error::BadState));
    }
    let (host, vm) = ready();
    let (x0, _) = psci(&host, vm, 0, PSCI_SYSTEM_RESET2_64, [1, 0, 0]);
    assert_eq!(x0, result::INVALID_PARAMETERS);
}

#[test]
fn a_stop_kicks_the_other_vcpus_out() {
    let (host, vm) = ready();
    psci(&host, vm, 0, PSCI_CPU_ON_64, [1, Host::GUEST_RAM, 0]);
    let hyp = host.hyp;
    let exit = play(&host, vm, 1, 0, move |_, entry| {
        assert_eq!(entry, 0, "never entered again");
        // Meanwhile vCPU 0 switches the system off on another CPU.
        hyp.machine().cpu.script().id = 1;
        hyp.slots
            .with(vm, |vm| {
                vm.stop();
                hyp.poke_all(vm, 3);
                Ok(())
            })
            .unwrap();
        hyp.machine().cpu.script().id = 0;
        hyp.machine()
            .cpu
            .script()
            .irqs
            .push_back(crate::hw::IrqSource::Kick);
        Some(GuestExit::Irq)
    });
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    assert_eq!(host.machine().cpu.script().kicks, [crate::hw::CpuId(0)]);
    assert_eq!(host.run(vm, 1, 0), Err(Error::BadState));
}

#[test]
fn a_suspended_vcpu_goes_on_where_psci_says() {
    let (host, vm) = ready();
    let standby = psci(&host, vm, 0, PSCI_CPU_SUSPEND_64, [0, 0, 0]);
    assert_eq!(standby.1, (ExitKind::Wfi, [u64::MAX, 0, 0]));
    assert_eq!(look(&host, vm, 0, 0).x[0], 0);
    let entry = Host::GUEST_RAM + 0x40;
    let down = psci(&host, vm, 0, PSCI_CPU_SUSPEND_64, [1 << 16, entry, 77]);
    assert_eq!(down.1.0, ExitKind::Wfi);
    let context = look(&host, vm, 0, 0);
    assert_eq!((context.pc, context.x[0], context.x[1]), (entry, 77, 0));
    for (state, entry, expect) in [
        (1 << 30, entry, result::INVALID_PARAMETERS),
        (1 << 16, Host::GICD, result::INVALID_ADDRESS),
    ] {
        let (x0, _) = psci(&host, vm, 0, PSCI_CPU_SUSPEND_64, [state, entry, 0]);
        assert_eq!(x0, expect);
    }
}

#[test]
fn a40_a_vcpu_runs_once_at_a_time_and_only_in_a_final_vm() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    assert_eq!(host.run(vm, 0, 0), Err(Error::BadState));
    for index in [0, 1] {
        host.call(HostFunction::VcpuCreate, &[vm, index]).unwrap();
    }
    assert_eq!(host.run(vm, 0, 0), Err(Error::BadState));
    host.call(HostFunction::VmFinalize, &[vm, Host::GUEST_RAM, 0])
        .unwrap();
    for index in [2, 8, 255, 1 << 32, u64::MAX] {
        assert_eq!(host.run(vm, index, 0), Err(Error::BadVcpu));
    }
    let hyp = host.hyp;
    play(&host, vm, 0, 0, move |_, _| {
        let call = |function: HostFunction, args: &[u64]| {
            let mut x = [0; 31];
            x[0] = u64::from(function.id());
            x[1..=args.len()].copy_from_slice(args);
            hyp.host_hvc(0, &mut x);
            Error::from_code(x[0].cast_signed())
        };
        // From another CPU, while this one runs it.
        assert_eq!(call(HostFunction::VcpuRun, &[vm, 0, 0]), Some(Error::Busy));
        assert_eq!(call(HostFunction::VmTeardown, &[vm]), Some(Error::Busy));
        assert_eq!(call(HostFunction::VmDestroy, &[vm]), Some(Error::Busy));
        None
    });
    host.call(HostFunction::VmTeardown, &[vm]).unwrap();
    assert_eq!(host.run(vm, 0, 0), Err(Error::BadState));
}

#[test]
fn a82_the_hosts_reset_wipes_every_guest_first() {
    for function in [
        PSCI_SYSTEM_RESET,
        PSCI_SYSTEM_OFF,
        PSCI_SYSTEM_RESET2_32,
        PSCI_SYSTEM_RESET2_64,
    ] {
        goes_down_clean(function);
    }
}

/// The host calls `function`; a guest's page is zero when the firmware hears of it.
fn goes_down_clean(function: u32) {
    let (mut host, vm) = ready();
    let pages = host.pages(4);
    host.machine()
        .poke(crate::addr::PhysAddr::new(pages), 3, 0x5ec2e7);
    let config = host.config(VmPlan::default());
    let other = host.create(&config).unwrap();
    host.call(
        HostFunction::VmDonate,
        &[other, pages, Host::GUEST_RAM, 4, 1],
    )
    .unwrap();
    let (hyp, machine) = (host.hyp, host.machine());
    let down = Meanwhile(Box::new(move || {
        assert!(machine.is_zero(crate::addr::PhysAddr::new(pages)));
        let mut x = [0; 31];
        x[..3].copy_from_slice(&[u64::from(HostFunction::VcpuRun.id()), vm, 0]);
        hyp.host_hvc(0, &mut x);
        assert_eq!(
            x[0].cast_signed(),
            Error::Busy.code(),
            "nothing runs any more"
        );
    }));
    let mut down = Some(down);
    machine.cpu.script().meanwhile =
        if matches!(function, PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64) {
            // The firmware is asked first whether it has the call.
            Some(Meanwhile(Box::new(move || {
                machine.cpu.script().meanwhile = down.take();
            })))
        } else {
            down
        };
    assert!(!machine.is_zero(crate::addr::PhysAddr::new(pages)));
    host.smc(function, &[]);
    assert!(machine.cpu.script().meanwhile.is_none());
    assert_eq!(
        machine.cpu.script().relayed.last(),
        Some(&(function, [0; 3]))
    );
}

#[test]
fn a82_a_reset_writes_nothing_to_pages_that_a_dead_guest_gave_back() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let vm = host.create(&config).unwrap();
    host.call(HostFunction::VmTeardown, &[vm]).unwrap();
    let metadata = [vm, config.meta_pa, config.meta_pages];
    host.call(HostFunction::VmReclaim, &metadata).unwrap();
    // Not destroyed: its slot is in use. Its root is another's page now.
    let pages: Vec<_> = (0..config.meta_pages)
        .map(|n| crate::addr::PhysAddr::new(config.meta_pa + n * PAGE_SIZE))
        .collect();
    for page in &pages {
        (0..512).for_each(|word| host.machine().poke(*page, word, 0x5ec2e7));
    }
    host.smc(PSCI_SYSTEM_RESET, &[]);
    for page in &pages {
        assert!((0..512).all(|word| host.machine().read_word(*page, word) == 0x5ec2e7));
    }
}

#[test]
fn a82_a_guest_that_no_interrupt_reaches_does_not_hold_the_reset_up() {
    let (mut host, vm) = ready();
    let page = host.pages(1);
    host.call(HostFunction::VmDonate, &[vm, page, Host::GUEST_RAM, 1, 0])
        .unwrap();
    let (hyp, machine) = (host.hyp, host.machine());
    let (vmid, regime) = hyp
        .slots
        .with(vm, |vm| Ok((vm.vmid, vm.memory.lock().regime())))
        .unwrap();
    machine.watch(regime);
    let (running, runs) = std::sync::mpsc::channel();
    let fetch = move || machine.access(vmid, crate::addr::Ipa::new(Host::GUEST_RAM));
    // A loop of one instruction: what ends it is a fetch that faults, and nothing else.
    let guest = move |_: &mut crate::context::VcpuContext| {
        assert!(fetch().is_some());
        running.send(()).unwrap();
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(300);
        while fetch().is_some() {
            assert!(std::time::Instant::now() < patience, "the guest runs on");
            std::thread::yield_now();
        }
        Some(abort(0x20, 0x07, Host::GUEST_RAM))
    };
    machine.cpu.script().guest = Some(crate::testing::Guest(Box::new(guest)));
    let vcpu = std::thread::spawn(move || {
        let mut x = [0; 31];
        x[..3].copy_from_slice(&[u64::from(HostFunction::VcpuRun.id()), vm, 0]);
        hyp.host_hvc(0, &mut x);
        x[1]
    });
    runs.recv().unwrap();
    machine.poke(crate::addr::PhysAddr::new(page), 5, 0x5ec2e7);
    host.smc(PSCI_SYSTEM_RESET, &[]);
    assert_eq!(
        vcpu.join().expect("the guest ended"),
        ExitKind::RamFault as u64
    );
    assert!(machine.is_zero(crate::addr::PhysAddr::new(page)));
    assert_eq!(
        machine.cpu.script().relayed.last(),
        Some(&(PSCI_SYSTEM_RESET, [0; 3]))
    );
}
