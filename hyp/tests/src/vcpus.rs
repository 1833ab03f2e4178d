//! a40, a41: vCPUs run wrongly, registers that must not leak.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_abi::{Error, ExitKind, HostFunction};
use porthole_runtime::{gic, read_reg, write_reg};

use crate::harness::{self, Failure};
use crate::hyp::{call, vcpu_run};
use crate::interrupts;
use crate::puppet::insn;
use crate::vm::{self, RAM, RAM_SIZE, Vm};
use crate::{check, check_eq, ok, tests};

tests![
    a40_run_before_finalize,
    a40_run_after_teardown_or_off,
    a40_run_with_bad_index,
    a40_same_vcpu_on_two_cpus,
    a40_destroy_while_running,
    a40_create_vcpu_twice_or_late,
    a40_finalize_twice_or_elsewhere,
    a41_exit_carries_nothing_but_its_payload,
    a41_general_registers_of_host_survive,
    a41_system_registers_are_apart,
    a41_fp_registers_are_apart,
    a41_debug_registers_are_apart,
    a41_two_guests_are_apart,
];

/// `b .`
pub const LOOP: u32 = 0x1400_0000;

fn a40_run_before_finalize() -> Result<(), Failure> {
    let vm = ok!(vm::create(&vm::config(1)));
    check_eq!(vcpu_run(vm.handle, 0, 0), Err(Error::BadState));
    ok!(vm.create_vcpu(0));
    check_eq!(vcpu_run(vm.handle, 0, 0), Err(Error::BadState));
    ok!(vm.destroy());
    Ok(())
}

fn a40_run_after_teardown_or_off() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let exit = vm.pull(0, insn::HVC, [0x8400_0008, 0, 0, 0, 0, 0]);
    check!(matches!(exit, Err(e) if e.kind == ExitKind::SystemOff));
    check_eq!(vcpu_run(vm.handle, 0, 0), Err(Error::BadState));
    ok!(vm.teardown());
    check_eq!(vcpu_run(vm.handle, 0, 0), Err(Error::BadState));
    ok!(vm.destroy());
    Ok(())
}

fn a40_run_with_bad_index() -> Result<(), Failure> {
    let vm = Vm::puppet(2);
    for index in [2, 8, 255, 256, 1 << 32, u64::MAX] {
        check_eq!(vcpu_run(vm.handle, index, 0), Err(Error::BadVcpu));
        check_eq!(vm.create_vcpu(index).is_err(), true);
    }
    ok!(vm.destroy());
    Ok(())
}

/// VM whose vCPU 0 [`spinner`] runs.
pub static VM: AtomicU64 = AtomicU64::new(0);
/// Tells it to stop.
pub static STOP: AtomicBool = AtomicBool::new(false);
/// Runs that ended with an interrupt of the host.
pub static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs vCPU 0, which loops for ever, again after every interrupt of this CPU.
pub fn spinner() {
    interrupts::init_cpu();
    let vm = VM.load(Ordering::Acquire);
    while !STOP.load(Ordering::Acquire) {
        match vcpu_run(vm, 0, 0) {
            Ok(e) if e.kind == ExitKind::HostInterrupt => {
                interrupts::take();
                RUNS.fetch_add(1, Ordering::AcqRel);
            }
            // CPU 0 got it between two runs here, and nothing else would bring it back.
            Err(Error::Busy) => gic::send_sgi(1, 1),
            _ => break,
        }
    }
}

/// Makes vCPU 0 loop on CPU 1 until `f` has run here.
fn while_running(vm: &Vm, f: &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    interrupts::init_cpu();
    // Give the puppet its instruction; the read of x5 is the last string it pulls before it loops.
    let mut value = u64::from(LOOP);
    ok!(vm.run(0, 0));
    for _ in 0..6 {
        ok!(vm.run(0, value));
        value = 0;
    }
    VM.store(vm.handle, Ordering::Release);
    STOP.store(false, Ordering::Release);
    RUNS.store(0, Ordering::Release);
    harness::start(1, spinner);
    // An interrupt for CPU 1 comes back as an exit: so it runs. One at a time, so that none is left over to end a run
    // under `f`; again if CPU 1 was not yet ready to take it.
    let mut spins = 0_u32;
    for wanted in 1..=3 {
        gic::send_sgi(1, 1 << 1);
        while RUNS.load(Ordering::Acquire) < wanted {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(1 << 24) {
                gic::send_sgi(1, 1 << 1);
            }
        }
    }
    // A second one for a CPU that was late may be left over after all: no run that it could end is waited for.
    while interrupts::pending(1, 1) {
        core::hint::spin_loop();
    }
    // Nothing ends another run of CPU 1; when ours is refused it is inside it.
    while let Ok(exit) = vcpu_run(vm.handle, 0, 0) {
        check_eq!(exit.kind, ExitKind::HostInterrupt);
        interrupts::take();
    }
    let result = f();
    STOP.store(true, Ordering::Release);
    while !harness::idle(1) {
        gic::send_sgi(1, 1 << 1);
    }
    interrupts::take();
    result
}

fn a40_same_vcpu_on_two_cpus() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    while_running(&vm, &|| {
        let mut busy = 0;
        for _ in 0..1000 {
            match vcpu_run(vm.handle, 0, 0) {
                Err(Error::Busy) => busy += 1,
                // It was between two runs there; here it runs until our own interrupt.
                Ok(e) => {
                    check_eq!(e.kind, ExitKind::HostInterrupt);
                    interrupts::take();
                }
                Err(_) => check!(false),
            }
            if busy == 100 {
                break;
            }
        }
        check_eq!(busy, 100);
        Ok(())
    })?;
    ok!(vm.destroy());
    Ok(())
}

fn a40_destroy_while_running() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    while_running(&vm, &|| {
        for _ in 0..100 {
            check_eq!(
                call(HostFunction::VmTeardown, &[vm.handle]),
                Err(Error::Busy)
            );
            let r = call(HostFunction::VmDestroy, &[vm.handle]);
            check!(r == Err(Error::Busy) || r == Err(Error::BadState));
        }
        Ok(())
    })?;
    ok!(vm.destroy());
    Ok(())
}

fn a40_create_vcpu_twice_or_late() -> Result<(), Failure> {
    let vm = ok!(vm::create(&vm::config(2)));
    ok!(vm.create_vcpu(0));
    check_eq!(vm.create_vcpu(0), Err(Error::BadVcpu));
    ok!(vm.destroy());
    let vm = Vm::puppet(1);
    check_eq!(vm.create_vcpu(0).err(), Some(Error::BadState));
    ok!(vm.destroy());
    Ok(())
}

fn a40_finalize_twice_or_elsewhere() -> Result<(), Failure> {
    let mut vm = ok!(vm::create(&vm::config(1)));
    ok!(vm.create_vcpu(0));
    for entry in [0, vm::GICD, RAM - 4, RAM + RAM_SIZE, 1 << 36, u64::MAX] {
        check_eq!(vm.finalize(entry, 0).is_err(), true);
    }
    vm.load_puppet();
    ok!(vm.finalize(RAM, 0));
    check_eq!(vm.finalize(RAM, 0), Err(Error::BadState));
    ok!(vm.destroy());
    Ok(())
}

fn a41_exit_carries_nothing_but_its_payload() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let secret = 0x5ec2_e75e_c2e7_0001u64;
    // The guest's x0 to x5 hold secrets while it reads MMIO; the host gets address and width.
    let x = [0x0b00_0000, secret, secret, secret, secret, secret];
    let mut seen = None;
    let r = vm.pull_until(0, insn::LOAD, x, 0, &mut |e| {
        seen = Some(e);
        None
    });
    check!(r.is_err());
    check_eq!(
        seen.map(|e| (e.kind, e.p)),
        Some((ExitKind::MmioRead, [0x0b00_0000, 8, 0]))
    );
    // All of x0 to x17 after an exit: a secret in a guest register is in none of them.
    let raw = ok!(call(HostFunction::VcpuRun, &[vm.handle, 0, 0]));
    check!(raw[5..].iter().all(|v| *v != secret));
    check!(raw[2..5].iter().all(|v| *v != secret));
    ok!(vm.destroy());
    Ok(())
}

fn a41_general_registers_of_host_survive() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let id = u64::from(HostFunction::VcpuRun.id());
    let (mut x18, mut x20, mut x21, mut x22): (u64, u64, u64, u64);
    let (mut x23, mut x24, mut x25, mut x26, mut x27, mut x28): (u64, u64, u64, u64, u64, u64);
    // SAFETY: an HVC by SMCCC; the registers that it must keep are checked below.
    unsafe {
        asm!("hvc #0",
            inout("x0") id => _, inout("x1") vm.handle => _, inout("x2") 0u64 => _, inout("x3") 0u64 => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _,
            out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            inout("x18") 18u64 => x18, inout("x20") 20u64 => x20, inout("x21") 21u64 => x21,
            inout("x22") 22u64 => x22, inout("x23") 23u64 => x23, inout("x24") 24u64 => x24,
            inout("x25") 25u64 => x25, inout("x26") 26u64 => x26, inout("x27") 27u64 => x27,
            inout("x28") 28u64 => x28, options(nostack));
    }
    check_eq!([x18, x20, x21, x22, x23], [18, 20, 21, 22, 23]);
    check_eq!([x24, x25, x26, x27, x28], [24, 25, 26, 27, 28]);
    x18 = 0;
    let _ = (
        x18, &mut x20, &mut x21, &mut x22, &mut x23, &mut x24, &mut x25, &mut x26, &mut x27,
        &mut x28,
    );
    ok!(vm.destroy());
    Ok(())
}

/// Registers both may write freely: encoding, host's access by name.
macro_rules! apart {
    ($vm:expr, $(($name:literal, $op0:expr, $op1:expr, $crn:expr, $crm:expr, $op2:expr, $mask:expr)),* $(,)?) => {
        $({
            let old = read_reg!($name);
            let (mine, theirs) = (0x1234_5678_9abc_def0u64 & $mask, 0x0fed_cba9_8765_4321u64 & $mask);
            write_reg!($name, mine);
            ok!($vm.pull(0, insn::msr($op0, $op1, $crn, $crm, $op2), [theirs, 0, 0, 0, 0, 0]));
            let host = read_reg!($name);
            write_reg!($name, !mine & $mask);
            let report = ok!($vm.pull(0, insn::mrs($op0, $op1, $crn, $crm, $op2), [0; 6]));
            let after = read_reg!($name);
            write_reg!($name, old);
            if host != mine || after != !mine & $mask || report.x[0] != theirs || report.esr != 0 {
                porthole_runtime::println!("  {}: host {:#x} guest {:#x} host {:#x}", $name, host, report.x[0], after);
                return Err(Failure { file: file!(), line: line!(), what: concat!($name, " is apart") });
            }
        })*
    };
}

fn a41_system_registers_are_apart() -> Result<(), Failure> {
    // Those that this program lives by; the puppet has vectors of its own, and its MMU is off.
    let ours = || {
        [
            read_reg!("vbar_el1"),
            read_reg!("ttbr0_el1"),
            read_reg!("tcr_el1"),
            read_reg!("mair_el1"),
            read_reg!("sctlr_el1"),
        ]
    };
    let before = ours();
    let vm = Vm::puppet(1);
    let all = u64::MAX;
    apart!(
        vm,
        ("tpidr_el0", 3, 3, 13, 0, 2, all),
        ("tpidrro_el0", 3, 3, 13, 0, 3, all),
        // The low byte is our CPU's index, 0; an address that nobody walks; the flags alone.
        ("tpidr_el1", 3, 0, 13, 0, 4, 0xffff_ffff_ffff_ff00),
        ("ttbr1_el1", 3, 0, 2, 0, 1, 0x0000_ffff_ffff_f000),
        ("spsr_el1", 3, 0, 4, 0, 0, 0xf000_0000),
        ("contextidr_el1", 3, 0, 13, 0, 1, 0xffff_ffff),
        ("far_el1", 3, 0, 6, 0, 0, all),
        ("esr_el1", 3, 0, 5, 2, 0, 0xffff_ffff),
        ("mair_el1", 3, 0, 10, 2, 0, 0x0000_0000_0000_0000),
        ("sp_el0", 3, 0, 4, 1, 0, all),
        ("elr_el1", 3, 0, 4, 0, 1, all),
        ("cntkctl_el1", 3, 0, 14, 1, 0, 0x3),
        ("csselr_el1", 3, 2, 0, 0, 0, 0x3),
        ("par_el1", 3, 0, 7, 4, 0, 0x0000_0000_0000_0001),
        ("cntv_cval_el0", 3, 3, 14, 3, 2, all),
    );
    check_eq!(ours(), before);
    let vectors = ok!(vm.pull(0, insn::mrs(3, 0, 12, 0, 0), [0; 6])).x[0];
    check!(vectors >= RAM && vectors != read_reg!("vbar_el1"));
    for (crn, crm, op2, value) in [(2, 0, 0, 0x1_2345_6000), (2, 0, 2, 25), (10, 2, 0, 0x44)] {
        ok!(vm.pull(0, insn::msr(3, 0, crn, crm, op2), [value, 0, 0, 0, 0, 0]));
        check_eq!(ours(), before);
        let report = ok!(vm.pull(0, insn::mrs(3, 0, crn, crm, op2), [0; 6]));
        check_eq!((report.x[0], report.esr), (value, 0));
    }
    ok!(vm.destroy());
    Ok(())
}

fn fp_set(value: u64) {
    // SAFETY: the target has no use for FP registers of its own; the test owns them.
    unsafe {
        asm!(".arch_extension simd", "dup v0.2d, {0}", "dup v7.2d, {0}", "dup v15.2d, {0}", "dup v31.2d, {0}",
            "msr fpcr, {1}", in(reg) value, in(reg) (value & 1) << 24);
    }
}

fn fp_get() -> [u64; 6] {
    let mut r = [0u64; 6];
    // SAFETY: reads registers only.
    unsafe {
        asm!(".arch_extension simd", "umov {0}, v0.d[0]", "umov {1}, v0.d[1]", "umov {2}, v7.d[0]",
            "umov {3}, v15.d[1]", "umov {4}, v31.d[1]", "mrs {5}, fpcr",
            out(reg) r[0], out(reg) r[1], out(reg) r[2], out(reg) r[3], out(reg) r[4], out(reg) r[5]);
    }
    r
}

fn a41_fp_registers_are_apart() -> Result<(), Failure> {
    const FMOV_D0_X0: u32 = 0x9e67_0000;
    const FMOV_X0_D0: u32 = 0x9e66_0000;
    let vm = Vm::puppet(1);
    fp_set(0x1111_2222_3333_4441);
    let before = fp_get();
    // A fresh guest finds zeros, not the host's.
    let report = ok!(vm.pull(0, FMOV_X0_D0, [9; 6]));
    check_eq!((report.x[0], report.esr), (0, 0));
    check_eq!(fp_get(), before);
    ok!(vm.pull(0, FMOV_D0_X0, [0x7777, 0, 0, 0, 0, 0]));
    check_eq!(fp_get(), before);
    fp_set(0x5555_6666_7777_8880);
    let before = fp_get();
    let report = ok!(vm.pull(0, FMOV_X0_D0, [0; 6]));
    check_eq!(report.x[0], 0x7777);
    check_eq!(fp_get(), before);
    ok!(vm.destroy());
    Ok(())
}

fn a41_debug_registers_are_apart() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    apart!(
        vm,
        ("dbgbvr0_el1", 2, 0, 0, 0, 4, 0x0000_ffff_ffff_fffc),
        ("dbgwvr0_el1", 2, 0, 0, 0, 6, 0x0000_ffff_ffff_fffc),
        ("dbgbvr1_el1", 2, 0, 0, 1, 4, 0x0000_ffff_ffff_fffc),
    );
    // Once the guest has them enabled (MDSCR_EL1.MDE), its values are in hardware while it runs.
    ok!(vm.pull(0, insn::msr(2, 0, 0, 2, 2), [1 << 15, 0, 0, 0, 0, 0]));
    apart!(
        vm,
        ("dbgbvr0_el1", 2, 0, 0, 0, 4, 0x0000_ffff_ffff_fffc),
        ("dbgwvr0_el1", 2, 0, 0, 0, 6, 0x0000_ffff_ffff_fffc),
    );
    ok!(vm.pull(0, insn::msr(2, 0, 0, 2, 2), [0; 6]));
    // The host's single step does not step the guest.
    let old = read_reg!("mdscr_el1");
    write_reg!("mdscr_el1", old | 1);
    let report = ok!(vm.pull(0, insn::mrs(2, 0, 0, 2, 2), [0; 6]));
    let host = read_reg!("mdscr_el1");
    write_reg!("mdscr_el1", old);
    check_eq!((report.x[0] & 1, report.esr, host & 1), (0, 0, 1));
    ok!(vm.destroy());
    Ok(())
}

fn a41_two_guests_are_apart() -> Result<(), Failure> {
    let (one, two) = (Vm::puppet(1), Vm::puppet(1));
    let set = insn::msr(3, 3, 13, 0, 2);
    let get = insn::mrs(3, 3, 13, 0, 2);
    ok!(one.pull(0, set, [0x1111, 0, 0, 0, 0, 0]));
    check_eq!(ok!(two.pull(0, get, [0; 6])).x[0], 0);
    ok!(two.pull(0, set, [0x2222, 0, 0, 0, 0, 0]));
    check_eq!(ok!(one.pull(0, get, [0; 6])).x[0], 0x1111);
    const FMOV_D0_X0: u32 = 0x9e67_0000;
    const FMOV_X0_D0: u32 = 0x9e66_0000;
    ok!(one.pull(0, FMOV_D0_X0, [0x3333, 0, 0, 0, 0, 0]));
    check_eq!(ok!(two.pull(0, FMOV_X0_D0, [0; 6])).x[0], 0);
    check_eq!(ok!(one.pull(0, FMOV_X0_D0, [0; 6])).x[0], 0x3333);
    // Same IPA, same virtual address, other pages.
    ok!(one.pull(0, insn::STORE, [RAM + 0x8000, 0x0a0a, 0, 0, 0, 0]));
    check_eq!(
        ok!(two.pull(0, insn::LOAD, [RAM + 0x8000, 0, 0, 0, 0, 0])).x[0],
        0
    );
    ok!(one.destroy());
    ok!(two.destroy());
    Ok(())
}
