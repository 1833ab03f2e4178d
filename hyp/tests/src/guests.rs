//! a44, a46: what a guest must not reach, guests that misbehave at EL2's expense, guests' own debugging.

use core::sync::atomic::Ordering;

use porthole_abi::{ExitKind, PAGE_SIZE};
use porthole_runtime::gic;

use crate::harness::{self, Failure};
use crate::puppet::insn;
use crate::vcpus::{LOOP, RUNS, STOP, VM, spinner};
use crate::vm::{self, RAM, Report, Vm};
use crate::{arena, check, check_eq, interrupts, ok, tests};

tests![
    a44_registers_a_guest_must_not_reach,
    a44_hidden_features_are_not_shown,
    a46_vector_table_in_a_hole,
    a46_vector_table_and_stack_in_mmio,
    a46_page_tables_in_mmio,
    a46_loads_without_syndrome,
    a46_unaligned_and_executed_mmio,
    a46_mmio_widths_and_signs,
    a46_wait_loops_leave_to_the_host,
    a46_endless_loop_leaves_to_the_host,
    a46_guest_breakpoint_fires,
    a46_guest_watchpoint_fires,
    a46_guest_single_step_fires,
];

fn undefined(vm: &Vm, what: u32) -> Result<(), Failure> {
    let report: Report = ok!(vm.pull(0, what, [0; 6]));
    // EL1's own trap of SVE and SME (CPACR_EL1, closed in the puppet) comes before EL2's.
    let class = report.class();
    let refused = report.esr != 0 && matches!(class, 0x00 | 0x19 | 0x1d);
    if !refused {
        porthole_runtime::println!("  {what:#x}: esr {:#x} x0 {:#x}", report.esr, report.x[0]);
    }
    check!(refused);
    Ok(())
}

fn a44_registers_a_guest_must_not_reach() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for (op0, op1, crn, crm, op2) in [
        (3, 4, 1, 1, 0),   // HCR_EL2
        (3, 4, 2, 1, 0),   // VTTBR_EL2
        (3, 4, 12, 11, 0), // ICH_HCR_EL2
        (3, 4, 12, 12, 0), // ICH_LR0_EL2
        (3, 3, 9, 12, 0),  // PMCR_EL0
        (3, 3, 9, 13, 0),  // PMCCNTR_EL0
        (3, 3, 14, 8, 0),  // PMEVCNTR0_EL0
        (3, 0, 9, 14, 1),  // PMINTENSET_EL1
        (3, 3, 14, 2, 1),  // CNTP_CTL_EL0
        (3, 3, 14, 2, 2),  // CNTP_CVAL_EL0
        (3, 0, 1, 2, 0),   // ZCR_EL1
        (3, 0, 1, 2, 6),   // SMCR_EL1
        (3, 0, 9, 9, 0),   // PMSCR_EL1
        (3, 0, 9, 11, 0),  // TRBLIMITR_EL1
        (3, 3, 13, 2, 0),  // AMCR_EL0
        (3, 0, 10, 5, 0),  // MPAM1_EL1
        (3, 0, 5, 3, 1),   // ERRSELR_EL1
        (3, 0, 1, 0, 5),   // RGSR_EL1
        (3, 3, 13, 0, 5),  // TPIDR2_EL0
        (2, 1, 0, 0, 1),   // TRCTRACEIDR
        (3, 0, 15, 0, 0),  // implementation defined
    ] {
        undefined(&vm, insn::mrs(op0, op1, crn, crm, op2))?;
        undefined(&vm, insn::msr(op0, op1, crn, crm, op2))?;
    }
    ok!(vm.destroy());
    Ok(())
}

fn a44_hidden_features_are_not_shown() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let id = |crm, op2| -> Result<u64, Failure> {
        let r = ok!(vm.pull(0, insn::mrs(3, 0, 0, crm, op2), [0; 6]));
        check_eq!(r.esr, 0);
        Ok(r.x[0])
    };
    let pfr0 = id(4, 0)?;
    let field = |value: u64, at: u32| value >> at & 0xf;
    // EL3, EL2, RAS, SVE, MPAM, AMU.
    for at in [12, 8, 28, 32, 40, 44] {
        check_eq!(field(pfr0, at), 0);
    }
    let pfr1 = id(4, 1)?;
    // MTE, SME.
    for at in [8, 24] {
        check_eq!(field(pfr1, at), 0);
    }
    let dfr0 = id(5, 0)?;
    // PMUVer, PMSVer, TraceVer, TraceBuffer.
    for at in [8, 32, 4, 44] {
        check!(matches!(field(dfr0, at), 0 | 0xf));
    }
    check!(field(id(7, 0)?, 0) <= 1);
    // Unallocated ID space reads as zero.
    check_eq!(id(7, 7)?, 0);
    let mpidr = ok!(vm.pull(0, insn::mrs(3, 0, 0, 0, 5), [0; 6])).x[0];
    check_eq!(mpidr & 0xff_00ff_ffff, 0);
    ok!(vm.destroy());
    Ok(())
}

/// Runs vCPU 0 for a while on CPU 1 with nothing but host interrupts coming back.
fn only_interrupts_come_back(vm: &Vm, what: u32, x0: u64) -> Result<(), Failure> {
    interrupts::init_cpu();
    let mut value = u64::from(what);
    ok!(vm.run(0, 0));
    for i in 0..6 {
        ok!(vm.run(0, value));
        value = if i == 0 { x0 } else { 0 };
    }
    VM.store(vm.handle, Ordering::Release);
    STOP.store(false, Ordering::Release);
    RUNS.store(0, Ordering::Release);
    harness::start(1, spinner);
    while RUNS.load(Ordering::Acquire) < 20 && !harness::idle(1) {
        gic::send_sgi(1, 1 << 1);
    }
    STOP.store(true, Ordering::Release);
    while !harness::idle(1) {
        gic::send_sgi(1, 1 << 1);
    }
    check!(RUNS.load(Ordering::Acquire) >= 20);
    Ok(())
}

const MSR_VBAR: u32 = insn::msr(3, 0, 12, 0, 0);
const MSR_TTBR0: u32 = insn::msr(3, 0, 2, 0, 0);
const MSR_TCR: u32 = insn::msr(3, 0, 2, 0, 2);
const MSR_SCTLR: u32 = insn::msr(3, 0, 1, 0, 0);

fn a46_vector_table_in_a_hole() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    ok!(vm.pull(0, MSR_VBAR, [0x7000_0000, 0, 0, 0, 0, 0]));
    only_interrupts_come_back(&vm, insn::BRANCH, 0x7100_0000)?;
    ok!(vm.destroy());
    Ok(())
}

fn a46_vector_table_and_stack_in_mmio() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    ok!(vm.pull(0, MSR_VBAR, [vm::GICD, 0, 0, 0, 0, 0]));
    only_interrupts_come_back(&vm, insn::LOAD_PAIR, 0x0b00_0000)?;
    ok!(vm.destroy());
    Ok(())
}

fn a46_page_tables_in_mmio() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    ok!(vm.pull(0, MSR_TTBR0, [vm::GICD, 0, 0, 0, 0, 0]));
    ok!(vm.pull(0, MSR_TCR, [25 | 1 << 23 | 1 << 32, 0, 0, 0, 0, 0]));
    only_interrupts_come_back(&vm, MSR_SCTLR, 0x30d0_0801)?;
    ok!(vm.destroy());
    Ok(())
}

fn a46_loads_without_syndrome() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for what in [insn::LOAD_PAIR, insn::LOAD_WRITE_BACK] {
        for at in [0x0b00_0000, vm::GICD, 0x7000_0000] {
            let report = ok!(vm.pull(0, what, [at, 0, 0, 0, 0, 0]));
            check_eq!(
                (report.class(), report.esr & 0x3f, report.far),
                (0x25, 0x10, at)
            );
        }
    }
    ok!(vm.destroy());
    Ok(())
}

fn a46_unaligned_and_executed_mmio() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    for at in [0x0b00_0000, vm::GICD, 0x7000_0000, 1 << 35] {
        let report = ok!(vm.pull(0, insn::BRANCH, [at, 0, 0, 0, 0, 0]));
        check_eq!((report.class(), report.far), (0x21, at));
    }
    // With the MMU off data is Device memory: an unaligned access is the guest's own alignment fault.
    let report = ok!(vm.pull(0, insn::LOAD, [0x0b00_0001, 0, 0, 0, 0, 0]));
    check_eq!(report.class(), 0x25);
    // Cache maintenance on what is not there: either nothing or an abort.
    let report = ok!(vm.pull(0, insn::DC_CIVAC, [0x0b00_0000, 0, 0, 0, 0, 0]));
    check!(report.esr == 0 || report.class() == 0x25);
    ok!(vm.destroy());
    Ok(())
}

fn a46_mmio_widths_and_signs() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let at = 0x0b00_0000;
    for (what, width, given, expect) in [
        (insn::LOAD, 8, u64::MAX, u64::MAX),
        (insn::LOAD_BYTE, 1, 0xffff_ffff_ffff_ff80, 0x80),
        (
            insn::LOAD_SIGNED_HALF,
            2,
            0xffff_8001,
            0xffff_ffff_ffff_8001,
        ),
    ] {
        let mut seen = 0;
        let report = ok!(vm.pull_until(0, what, [at, 0, 0, 0, 0, 0], 0, &mut |e| {
            seen = e.p[1];
            Some(given)
        }));
        check_eq!((seen, report.x[0], report.esr), (width, expect, 0));
    }
    for (what, width, expect) in [
        (insn::STORE, 8, 0x1122_3344_5566_7788u64),
        (insn::STORE_BYTE, 1, 0x88),
    ] {
        let mut seen = (0, 0);
        ok!(vm.pull_until(
            0,
            what,
            [at, 0x1122_3344_5566_7788, 0, 0, 0, 0],
            0,
            &mut |e| {
                seen = (e.p[1], e.p[2]);
                Some(0)
            }
        ));
        check_eq!(seen, (width, expect));
    }
    ok!(vm.destroy());
    Ok(())
}

fn a46_wait_loops_leave_to_the_host() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let exit = vm.pull(0, insn::WFI, [0; 6]);
    check!(matches!(exit, Err(e) if e.kind == ExitKind::Wfi && e.p[0] == u64::MAX));
    // With a timer set, the deadline comes with it.
    let vm2 = Vm::puppet(1);
    ok!(vm2.pull(0, insn::msr(3, 3, 14, 3, 2), [1 << 40, 0, 0, 0, 0, 0]));
    ok!(vm2.pull(0, insn::msr(3, 3, 14, 3, 1), [1, 0, 0, 0, 0, 0]));
    let exit = vm2.pull(0, insn::WFI, [0; 6]);
    check!(
        matches!(exit, Err(e) if e.kind == ExitKind::Wfi && e.p[0] >= 1 << 40 && e.p[0] != u64::MAX)
    );
    ok!(vm2.destroy());
    ok!(vm.destroy());
    Ok(())
}

fn a46_endless_loop_leaves_to_the_host() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    only_interrupts_come_back(&vm, LOOP, 0)?;
    ok!(vm.destroy());
    Ok(())
}

/// `msr daifclr, #8`: debug exceptions on.
const DEBUG_ON: u32 = 0xd503_48ff;

/// Programs a two-instruction routine in the free page (`ldr x0, [x0]; ret` behind `daifclr`) and calls it.
fn debug_routine(vm: &Vm) -> Result<u64, Failure> {
    let at = RAM + 0x9000;
    for (i, word) in [
        u64::from(DEBUG_ON) | 0xd503_3fdf << 32, // isb
        u64::from(insn::LOAD) | 0xd503_201f << 32,
        0xd65f_03c0,
    ]
    .into_iter()
    .enumerate()
    {
        ok!(vm.pull(0, insn::STORE, [at + i as u64 * 8, word, 0, 0, 0, 0]));
    }
    Ok(at)
}

const MSR_MDSCR: u32 = insn::msr(2, 0, 0, 2, 2);
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;

fn a46_guest_breakpoint_fires() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let at = debug_routine(&vm)?;
    // DBGBVR0 = the load; DBGBCR0: enabled, EL1, all bytes. BRANCH_TWO: br x1.
    ok!(vm.pull(0, insn::msr(2, 0, 0, 0, 4), [at + 8, 0, 0, 0, 0, 0]));
    ok!(vm.pull(
        0,
        insn::msr(2, 0, 0, 0, 5),
        [1 | 1 << 1 | 0xf << 5, 0, 0, 0, 0, 0]
    ));
    ok!(vm.pull(0, MSR_MDSCR, [MDE | KDE, 0, 0, 0, 0, 0]));
    ok!(vm.pull(0, insn::msr(2, 0, 1, 0, 4), [0; 6])); // OSLAR_EL1: unlock
    let report = ok!(vm.pull(0, 0xd61f_0020, [RAM, at, 0, 0, 0, 0]));
    check_eq!(report.class(), 0x31);
    ok!(vm.destroy());
    Ok(())
}

fn a46_guest_watchpoint_fires() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let at = debug_routine(&vm)?;
    let watched = RAM + 0x8000;
    // DBGWVR0; DBGWCR0: enabled, EL1, loads and stores, eight bytes.
    ok!(vm.pull(0, insn::msr(2, 0, 0, 0, 6), [watched, 0, 0, 0, 0, 0]));
    ok!(vm.pull(
        0,
        insn::msr(2, 0, 0, 0, 7),
        [1 | 1 << 1 | 3 << 3 | 0xff << 5, 0, 0, 0, 0, 0]
    ));
    ok!(vm.pull(0, MSR_MDSCR, [MDE | KDE, 0, 0, 0, 0, 0]));
    ok!(vm.pull(0, insn::msr(2, 0, 1, 0, 4), [0; 6]));
    let report = ok!(vm.pull(0, 0xd61f_0020, [watched, at, 0, 0, 0, 0]));
    check_eq!((report.class(), report.far), (0x35, watched));
    let report = ok!(vm.pull(0, 0xd61f_0020, [watched + 16, at, 0, 0, 0, 0]));
    check_eq!(report.esr, 0);
    ok!(vm.destroy());
    Ok(())
}

fn a46_guest_single_step_fires() -> Result<(), Failure> {
    let vm = Vm::puppet(1);
    let at = debug_routine(&vm)?;
    ok!(vm.pull(0, MSR_MDSCR, [KDE | 1, 0, 0, 0, 0, 0]));
    ok!(vm.pull(0, insn::msr(2, 0, 1, 0, 4), [0; 6]));
    // PSTATE.SS is 0, so with D clear the first instruction behind it takes the step exception.
    let report = ok!(vm.pull(0, 0xd61f_0020, [RAM, at, 0, 0, 0, 0]));
    check_eq!(report.class(), 0x33);
    let page = arena::pages(1, PAGE_SIZE);
    check_eq!(arena::peek(page), 0);
    ok!(vm.destroy());
    Ok(())
}
