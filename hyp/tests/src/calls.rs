//! a42, a43: calls that do not exist, SMCs that are not on the list, CPUs switched on wrongly.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_abi::{
    CALL_COUNT, CALL_REVISION, CALL_UID, Error, GuestFunction, HostFunction, StatKind, UID,
};
use porthole_runtime::call::{Args, hvc, hvc_1, hvc_ffff, hvc_with, smc, smc_1};
use porthole_runtime::probe::{self, El0};
use porthole_runtime::{mmu, psci, smp};

use crate::harness::{self, Failure};
use crate::hyp::{call, owners, stat};
use crate::memory::USER_OFFSET;
use crate::puppet::insn;
use crate::vm::{RAM, Vm};
use crate::{arena, check, check_eq, ok, tests};

tests![
    a42_unknown_host_calls,
    a42_upper_half_of_function_id,
    a42_immediates,
    a42_hvc_from_el0,
    a42_random_host_calls,
    a42_host_calls_guest_functions,
    a42_guest_calls_host_functions,
    a42_guest_unknown_calls_and_immediates,
    a42_discovery_calls,
    a42_what_implementations_define,
    a43_smc_not_on_the_list,
    a43_smc_of_guest,
    a43_smc_from_el0,
    a43_cpu_on_bad_entry,
    a43_cpu_on_bad_cpu,
    a43_cpu_on_of_running_cpu,
    a43_cpu_on_race_has_one_winner,
    a43_cpu_off_and_on_keeps_stage_2,
];

const NOT_SUPPORTED: u64 = u64::MAX;

fn with_id(id: u64) -> Args {
    let mut args = [0x5a5a; 18];
    args[0] = id;
    args
}

fn a42_unknown_host_calls() -> Result<(), Failure> {
    let before = owners();
    for base in [0xc600_0000u64, 0x8600_0000, 0x4600_0000, 0x0600_0000] {
        for n in 0..0x300 {
            let id = base | n;
            if HostFunction::from_id(id as u32).is_none() {
                check_eq!(hvc(with_id(id))[0], NOT_SUPPORTED);
            }
        }
    }
    for id in [
        0,
        1,
        0x7fff_ffff,
        0xffff_ffff,
        0xc700_0000,
        0xc500_0001,
        0x8200_0000,
        0xbf00_ff01,
    ] {
        check_eq!(hvc(with_id(id))[0], NOT_SUPPORTED);
    }
    check_eq!(owners(), before);
    Ok(())
}

fn a42_upper_half_of_function_id() -> Result<(), Failure> {
    // Bits 63:32 of the function identifier are ignored (SMCCC 1.2, 3.1): they name no other function.
    let id = u64::from(HostFunction::Features.id());
    let plain = ok!(call(HostFunction::Features, &[]));
    for upper in [1u64 << 32, 1 << 63, 0xffff_ffff << 32] {
        let mut args = [0; 18];
        args[0] = id | upper;
        let r = hvc(args);
        check!(r[0] == NOT_SUPPORTED || r[..4] == plain[..4]);
    }
    Ok(())
}

fn a42_immediates() -> Result<(), Failure> {
    for id in HostFunction::ALL
        .iter()
        .map(|f| u64::from(f.id()))
        .chain([0x8400_0000, 0x8000_0000])
    {
        check_eq!(hvc_1(with_id(id))[0], NOT_SUPPORTED);
        check_eq!(hvc_ffff(with_id(id))[0], NOT_SUPPORTED);
        check_eq!(smc_1(with_id(id))[0], NOT_SUPPORTED);
    }
    Ok(())
}

fn map_user() {
    mmu::map(USER_OFFSET + (1 << 30), 1 << 30, 1 << 30, mmu::Attr::User);
}

fn a42_hvc_from_el0() -> Result<(), Failure> {
    map_user();
    let r = probe::at_el0(
        El0::Hvc,
        USER_OFFSET,
        u64::from(HostFunction::Features.id()),
    );
    check!(matches!(r, Err(f) if f.class() == 0));
    Ok(())
}

/// Such instructions know nothing of stage 2: Cortex-A72's RAMINDEX reads lines of the caches, whosever they are.
fn a42_what_implementations_define() -> Result<(), Failure> {
    for attempt in [
        probe::implementation_register,
        probe::implementation_instruction,
    ] {
        let r = attempt(0, 0);
        if !matches!(r, Err(f) if f.class() == 0) {
            porthole_runtime::println!("  {r:x?}");
        }
        check!(matches!(r, Err(f) if f.class() == 0));
    }
    Ok(())
}

fn a43_smc_from_el0() -> Result<(), Failure> {
    map_user();
    let r = probe::at_el0(El0::Smc, USER_OFFSET, 0x8400_0000);
    check!(matches!(r, Err(f) if f.class() == 0));
    Ok(())
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A value that a range check might get wrong.
    fn value(&mut self) -> u64 {
        let r = self.next();
        match r % 10 {
            0 => 0,
            1 => 1 << (self.next() % 64),
            2 => u64::MAX - self.next() % 8192,
            3 => arena::RAM_BASE + ((self.next() % 0x4000_0000) & !0xfff),
            4 => RAM + ((self.next() % 0x40_0000) & !0xfff),
            5 => self.next() % 64,
            6 => 0x1000_0000 + ((self.next() % 0x10_0000) & !0xfff),
            _ => self.next(),
        }
    }
}

fn a42_random_host_calls() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Calls that would take pages of our own for good are left to tests that track them.
    let keep = [
        HostFunction::VmCreate,
        HostFunction::VmDonate,
        HostFunction::VmDonateMeta,
        HostFunction::VmTeardown,
        HostFunction::WindowRegister,
        HostFunction::VcpuRun,
    ];
    for _ in 0..20_000 {
        let n = random.next() as usize % HostFunction::ALL.len();
        let function = HostFunction::ALL[n];
        let handle = if random.next() & 1 == 0 {
            vm.handle
        } else {
            random.value()
        };
        let args = [
            handle,
            random.value(),
            random.value(),
            random.value(),
            random.value(),
        ];
        if keep.contains(&function) && handle == vm.handle {
            continue;
        }
        if function == HostFunction::VmCreate || function == HostFunction::WindowRegister {
            continue;
        }
        let r = hvc_with(function.id(), &args);
        let status = r[0].cast_signed();
        check!(status == 0 || Error::from_code(status).is_some());
    }
    ok!(vm.pull(0, insn::NOP, [0; 6]));
    ok!(vm.destroy());
    Ok(())
}

fn a42_host_calls_guest_functions() -> Result<(), Failure> {
    for f in GuestFunction::ALL {
        check_eq!(hvc(with_id(u64::from(f.id())))[0], NOT_SUPPORTED);
    }
    Ok(())
}

fn guest_hvc(vm: &Vm, what: u32, id: u64, a: u64) -> Result<[u64; 4], Failure> {
    Ok(ok!(vm.pull(0, what, [id, a, a, a, a, a])).x)
}

fn a42_guest_calls_host_functions() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let before = owners();
    for f in HostFunction::ALL {
        for a in [0, vm.handle, RAM, u64::MAX] {
            check_eq!(
                guest_hvc(&vm, insn::HVC, u64::from(f.id()), a)?[0],
                NOT_SUPPORTED
            );
        }
    }
    check_eq!(owners(), before);
    ok!(vm.destroy());
    Ok(())
}

fn a42_guest_unknown_calls_and_immediates() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for id in [
        0,
        0xc600_0000,
        0xc600_0fff,
        0x8600_0000,
        0xffff_ffff,
        0x8400_ffff,
        0xc400_00ff,
    ] {
        check_eq!(guest_hvc(&vm, insn::HVC, id, 7)?[0], NOT_SUPPORTED);
    }
    let id = u64::from(GuestFunction::GuestFeatures.id());
    check_eq!(guest_hvc(&vm, insn::HVC, id, 0)?[0], 0);
    // hvc #1, hvc #0xffff
    for what in [insn::HVC | 1 << 5, insn::HVC | 0xffff << 5] {
        check_eq!(guest_hvc(&vm, what, id, 0)?[0], NOT_SUPPORTED);
    }
    ok!(vm.destroy());
    Ok(())
}

fn a42_discovery_calls() -> Result<(), Failure> {
    let uid = hvc(with_id(u64::from(CALL_UID)));
    check_eq!([uid[0], uid[1], uid[2], uid[3]], UID.map(u64::from));
    check_eq!(hvc(with_id(u64::from(CALL_REVISION)))[0], 1);
    check!(hvc(with_id(u64::from(CALL_COUNT)))[0] >= HostFunction::ALL.len() as u64);
    Ok(())
}

fn a43_smc_not_on_the_list() -> Result<(), Failure> {
    let before = stat(StatKind::SmcsRefused, 0);
    let mut sent = 0;
    for id in [
        0x8400_0060u64, // FF-A
        0x8400_0063,
        0x8400_0066,
        0xc400_0066,
        0x8400_0073,
        0xc400_007f,
        0x8200_0000,
        0xb200_0000,
        0xbf00_ff00,
        0x3200_0000,
        0xc200_0001,
        0x8300_0000,
        0x0000_0000,
        0xffff_ffff,
        0xc600_0110,
        0x8500_0000,
        0x7200_0000,
    ] {
        check_eq!(smc(with_id(id))[0], NOT_SUPPORTED);
        sent += 1;
    }
    check_eq!(stat(StatKind::SmcsRefused, 0), before + sent);
    Ok(())
}

fn a43_smc_of_guest() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for id in [0x8400_0063, 0xb200_0000, 0xffff_ffff, 0] {
        check_eq!(guest_hvc(&vm, insn::SMC, id, 0)?[0], NOT_SUPPORTED);
    }
    // PSCI_VERSION is a guest's too.
    check!(guest_hvc(&vm, insn::SMC, 0x8400_0000, 0)?[0] >= 0x1_0001);
    // PSCI speaks of the guest's CPUs, not of the machine's: this one has no CPU 3, the firmware has.
    let affinity_info = [0xc400_0004, 3, 0, 0, 0, 0];
    let report = ok!(vm.pull(0, insn::SMC, affinity_info));
    check_eq!((report.x[0] as i64, report.esr), (INVALID_PARAMETERS, 0));
    ok!(vm.destroy());
    Ok(())
}

extern "C" fn never(_: u64) -> ! {
    STARTED.fetch_add(1, Ordering::AcqRel);
    loop {
        core::hint::spin_loop();
    }
}

static STARTED: AtomicU64 = AtomicU64::new(0);
const INVALID_ADDRESS: i64 = -9;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;

/// The last CPU switches itself off; returns its index.
fn last_cpu_off() -> usize {
    fn off() {
        psci::psci(psci::CPU_OFF, 0, 0, 0);
    }
    let last = harness::cpus() - 1;
    harness::start(last, off);
    while psci::psci(psci::AFFINITY_INFO, last as u64, 0, 0) != 1 {
        core::hint::spin_loop();
    }
    harness::forget(last);
    last
}

/// Switches it on again as a worker.
fn back_on(index: usize) -> i64 {
    let r = smp::start(index as u64, index, harness::worker, index as u64);
    if r == 0 {
        harness::start(index, || {});
        harness::wait(index);
    }
    r
}

fn a43_cpu_on_bad_entry() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    let cpu = last_cpu_off();
    for entry in [
        page,
        arena::hyp_page(),
        0x0900_0000,
        0,
        arena::ram_end(),
        1 << 52,
        u64::MAX,
        u64::MAX - 3,
    ] {
        let r = psci::psci(psci::CPU_ON, cpu as u64, entry, 0);
        check!(r == INVALID_ADDRESS || r == INVALID_PARAMETERS);
    }
    check_eq!(back_on(cpu), 0);
    ok!(vm.destroy());
    Ok(())
}

fn a43_cpu_on_bad_cpu() -> Result<(), Failure> {
    for cpu in [
        harness::cpus() as u64,
        255,
        256,
        1 << 24,
        1 << 32,
        1 << 40,
        u64::MAX,
    ] {
        let r = psci::psci(psci::CPU_ON, cpu, smp::entry_point(), 0);
        check_eq!(r, INVALID_PARAMETERS);
    }
    Ok(())
}

fn a43_cpu_on_of_running_cpu() -> Result<(), Failure> {
    for cpu in 0..harness::cpus() as u64 {
        let r = psci::psci(psci::CPU_ON, cpu, smp::entry_point(), 0);
        check_eq!(r, ALREADY_ON);
    }
    let _ = never as extern "C" fn(u64) -> !;
    check_eq!(STARTED.load(Ordering::Acquire), 0);
    Ok(())
}

static TARGET: AtomicU64 = AtomicU64::new(0);
static WON: AtomicU64 = AtomicU64::new(0);
static TRIED: AtomicU64 = AtomicU64::new(0);

fn race() {
    let cpu = TARGET.load(Ordering::Acquire);
    let context = smp::entry_point();
    let _ = context;
    if psci::psci(
        psci::CPU_ON,
        cpu,
        smp::entry_point(),
        CONTEXT.load(Ordering::Acquire),
    ) == 0
    {
        WON.fetch_add(1, Ordering::AcqRel);
    }
    TRIED.fetch_add(1, Ordering::AcqRel);
}

static CONTEXT: AtomicU64 = AtomicU64::new(0);

fn a43_cpu_on_race_has_one_winner() -> Result<(), Failure> {
    for _ in 0..8 {
        let cpu = last_cpu_off();
        TARGET.store(cpu as u64, Ordering::Release);
        CONTEXT.store(
            smp::prepare(cpu, harness::worker, cpu as u64),
            Ordering::Release,
        );
        WON.store(0, Ordering::Release);
        for other in 1..cpu {
            harness::start(other, race);
        }
        race();
        for other in 1..cpu {
            harness::wait(other);
        }
        check_eq!(WON.load(Ordering::Acquire), 1);
        harness::start(cpu, || {});
        harness::wait(cpu);
    }
    Ok(())
}

static PAGE: AtomicU64 = AtomicU64::new(0);
static READ: AtomicU64 = AtomicU64::new(0);

fn try_read() {
    let r = probe::read(PAGE.load(Ordering::Acquire), 0);
    READ.store(if r.is_err() { 1 } else { 2 }, Ordering::Release);
}

fn a43_cpu_off_and_on_keeps_stage_2() -> Result<(), Failure> {
    let mut vm = Vm::puppet(1);
    let page = arena::page();
    ok!(vm.donate(page, RAM + 0x10_0000, 1, 0));
    PAGE.store(page, Ordering::Release);
    for _ in 0..4 {
        let cpu = last_cpu_off();
        check_eq!(back_on(cpu), 0);
        READ.store(0, Ordering::Release);
        harness::start(cpu, try_read);
        harness::wait(cpu);
        check_eq!(READ.load(Ordering::Acquire), 1);
    }
    ok!(vm.destroy());
    Ok(())
}
