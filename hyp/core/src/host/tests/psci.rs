//! SMCs of the host.

use porthole_abi::{Features, HostFunction, StatKind};

use crate::addr::PhysAddr;
use crate::addr::PhysPages;
use crate::hw::CpuId;
use crate::hypervisor::HostEntry;
use crate::smccc::*;
use crate::testing::{FakeMachine, Host, Meanwhile, VmPlan};

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

fn relayed(host: &Host) -> Vec<(u32, [u64; 3])> {
    std::mem::take(&mut host.machine().cpu.script().relayed)
}

fn refused(host: &Host) -> u64 {
    let kind = StatKind::SmcsRefused as u64;
    host.call(HostFunction::Stats, &[kind, 0]).unwrap()[1]
}

/// A host whose firmware speaks PSCI 1.1, SMCCC 1.1 and ARCH_WORKAROUND_1.
fn modern() -> Host {
    let pool = PhysPages::new(PhysAddr::new(Host::RAM + 0x10_0000), 64).unwrap();
    let machine = FakeMachine::new(pool);
    machine.cpu.script().firmware.extend([
        (PSCI_VERSION, 0x1_0001),
        (PSCI_FEATURES, 0),
        (SMCCC_VERSION, 0x1_0001),
        (SMCCC_ARCH_FEATURES, 0),
    ]);
    Host::boot(machine, Features::UNSAFE_DMA)
}

#[test]
fn a43_smcs_off_the_list_never_reach_the_firmware() {
    let host = Host::new();
    relayed(&host);
    let list = [
        0x8400_0000u32,
        0x8400_0001,
        0x8400_0002,
        0x8400_0003,
        0x8400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0x8400_0012,
        0xc400_0001,
        0xc400_0003,
        0xc400_0004,
        0xc400_0012,
        0x8000_0000,
        0x8000_0001,
    ];
    let mut tried = 0;
    // Arm, CPU, SiP, OEM, standard, hypervisor, trusted services; FF-A among the standard ones.
    for owner in 0..64u32 {
        for kind in [0x8000_0000u32, 0xc000_0000, 0, 0x4000_0000] {
            let range = kind | owner << 24;
            for n in (0..0x100).chain([0x3fff, 0x7fff, 0x8000, 0xff00, 0xff01, 0xff03, 0xffff]) {
                let function = range | n;
                if !list.contains(&function) {
                    assert_eq!(
                        host.smc(function, &[1, 2, 3]),
                        NOT_SUPPORTED,
                        "{function:#x}"
                    );
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(relayed(&host), []);
    assert_eq!(refused(&host), tried);
    for immediate in [1, 0xffff] {
        let mut x = [0; 31];
        x[0] = u64::from(PSCI_VERSION);
        host.hyp.host_smc(immediate, &mut x);
        assert_eq!(x[0].cast_signed(), NOT_SUPPORTED);
    }
}

#[test]
fn calls_on_the_list_are_relayed_or_answered() {
    let host = Host::new();
    relayed(&host);
    host.machine()
        .cpu
        .script()
        .firmware
        .insert(PSCI_VERSION, 0x1_0001);
    assert_eq!(host.smc(PSCI_VERSION, &[]), 0x1_0001);
    assert_eq!(host.smc(PSCI_AFFINITY_INFO_64, &[1, 0]), 0);
    assert_eq!(
        relayed(&host),
        [(PSCI_VERSION, [0; 3]), (PSCI_AFFINITY_INFO_64, [1, 0, 0])]
    );
    assert_eq!(host.smc(SMCCC_VERSION, &[]), 0x1_0002);
    for unlisted in [0xc400_000e, 0x8400_0013, 0x8400_000b] {
        assert_eq!(host.smc(PSCI_FEATURES, &[unlisted]), NOT_SUPPORTED);
    }
    assert_eq!(relayed(&host), []);
    assert_eq!(host.smc(PSCI_FEATURES, &[u64::from(PSCI_CPU_ON_64)]), 0);
    assert_eq!(relayed(&host).len(), 1);
    // The same by HVC, which a host may choose as its conduit.
    assert_eq!(host.hvc(u64::from(PSCI_VERSION), &[])[0], 0x1_0001);
}

#[test]
fn workarounds_are_there_when_the_firmware_has_them() {
    let host = Host::new();
    assert_eq!(host.smc(SMCCC_ARCH_WORKAROUND_1, &[]), NOT_SUPPORTED);
    let features = |host: &Host, f: u32| host.smc(SMCCC_ARCH_FEATURES, &[u64::from(f)]);
    assert_eq!(features(&host, SMCCC_ARCH_WORKAROUND_1), NOT_SUPPORTED);
    let host = modern();
    relayed(&host);
    assert_eq!(features(&host, SMCCC_ARCH_WORKAROUND_1), 0);
    assert_eq!(host.smc(SMCCC_ARCH_WORKAROUND_1, &[]), 0);
    assert_eq!(relayed(&host).len(), 2);
    assert_eq!(features(&host, 0x8000_1234), NOT_SUPPORTED);
}

#[test]
fn a43_cpu_on_wants_a_cpu_that_is_off_and_an_entry_of_the_hosts() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let page = host.pages(1);
    host.call(HostFunction::VmDonate, &[vm, page, Host::GUEST_RAM, 1, 0])
        .unwrap();
    let window = host.pages(1);
    let block = host.window(vm, window, 1);
    let block = host.block(zerocopy::IntoBytes::as_bytes(&block));
    host.call(HostFunction::WindowRegister, &[block]).unwrap();
    let good = host.pages(1);
    for entry in [
        page,
        Host::RAM,
        0x0900_0000,
        0,
        Host::RAM + Host::RAM_BYTES,
        good + 2,
        window,
        u64::MAX,
    ] {
        assert_eq!(
            host.smc(PSCI_CPU_ON_64, &[1, entry, 0]),
            INVALID_ADDRESS,
            "{entry:#x}"
        );
    }
    for target in [2, 4, 0x102, 1 << 31 | 1, 1 << 32, 1 << 24 | 1, u64::MAX] {
        assert_eq!(
            host.smc(PSCI_CPU_ON_64, &[target, good, 0]),
            INVALID_PARAMETERS
        );
    }
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[0, good, 0]), ALREADY_ON);
    assert!(host.machine().cpu.script().started.is_empty());
    assert_eq!(host.hyp.cpu_started(CpuId(2)), None, "nobody asked");
    assert_eq!(host.hyp.cpu_started(CpuId(200)), None);
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[0x100, good, 77]), 0);
    assert_eq!(host.machine().cpu.script().started, [CpuId(2)]);
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[0x100, good, 78]), ON_PENDING);
    let entry = HostEntry { pc: good, x0: 77 };
    assert_eq!(host.hyp.cpu_started(CpuId(2)), Some(entry));
    assert_eq!(host.hyp.cpu_started(CpuId(2)), None, "once");
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[0x100, good, 78]), ALREADY_ON);
    // The 32-bit call takes 32-bit arguments.
    assert_eq!(
        host.smc(PSCI_CPU_ON_32, &[0x101 | 1 << 40, good | 5 << 32, 9 << 32]),
        0
    );
    let entry = HostEntry { pc: good, x0: 0 };
    assert_eq!(host.hyp.cpu_started(CpuId(3)), Some(entry));
}

#[test]
fn a43_of_two_cpu_ons_one_wins() {
    let mut host = Host::new();
    let good = host.pages(1);
    let hyp = host.hyp;
    // The second comes while the first is at the firmware.
    host.machine().cpu.script().meanwhile = Some(Meanwhile(Box::new(move || {
        let mut x = [0; 31];
        x[..4].copy_from_slice(&[u64::from(PSCI_CPU_ON_64), 1, good, 2]);
        hyp.host_smc(0, &mut x);
        assert_eq!(x[0].cast_signed(), ON_PENDING);
    })));
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[1, good, 1]), 0);
    assert_eq!(host.machine().cpu.script().started, [CpuId(1)]);
    assert_eq!(host.hyp.cpu_started(CpuId(1)).map(|e| e.x0), Some(1));
}

#[test]
fn a_cpu_that_the_firmware_does_not_start_is_off_again() {
    let mut host = Host::new();
    let good = host.pages(1);
    host.machine().cpu.script().cpu_on_status = -6;
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[1, good, 1]), -6);
    assert_eq!(host.hyp.cpu_started(CpuId(1)), None);
    host.machine().cpu.script().cpu_on_status = 0;
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[1, good, 2]), 0);
}

#[test]
fn a_cpu_goes_off_before_the_firmware_takes_it() {
    let mut host = Host::new();
    let good = host.pages(1);
    let hyp = host.hyp;
    host.machine().cpu.script().id = 1;
    host.smc(PSCI_CPU_ON_64, &[1, good, 1]);
    hyp.cpu_started(CpuId(1)).unwrap();
    // CPU 0 starts it again as soon as it is off; the call never returns on real hardware.
    host.machine().cpu.script().meanwhile = Some(Meanwhile(Box::new(move || {
        let mut x = [0; 31];
        x[..4].copy_from_slice(&[u64::from(PSCI_CPU_ON_64), 1, good, 2]);
        hyp.host_smc(0, &mut x);
        assert_eq!(x[0], 0);
        assert_eq!(hyp.cpu_started(CpuId(1)).map(|e| e.x0), Some(2));
    })));
    host.smc(PSCI_CPU_OFF, &[]);
    // Refused by the firmware, it is on as before.
    host.machine()
        .cpu
        .script()
        .firmware
        .insert(PSCI_CPU_OFF, -3i64 as u64);
    assert_eq!(host.smc(PSCI_CPU_OFF, &[]), -3);
    assert_eq!(host.smc(PSCI_CPU_ON_64, &[1, good, 1]), ALREADY_ON);
}

#[test]
fn a43_power_down_states_and_vendor_resets_are_refused() {
    let host = Host::new();
    relayed(&host);
    for state in [1 << 16, 1 << 30, 1 << 16 | 1 << 30] {
        assert_eq!(
            host.smc(PSCI_CPU_SUSPEND_64, &[state, Host::RAM, 0]),
            INVALID_PARAMETERS
        );
    }
    for kind in [1, 1 << 31] {
        assert_eq!(
            host.smc(PSCI_SYSTEM_RESET2_64, &[kind, 0]),
            INVALID_PARAMETERS
        );
    }
    assert_eq!(relayed(&host), []);
    assert_eq!(host.smc(PSCI_CPU_SUSPEND_64, &[0, Host::RAM, 7]), 0);
    assert_eq!(
        relayed(&host),
        [(PSCI_CPU_SUSPEND_64, [0, 0, 0])],
        "no entry of the host's"
    );
}
