//! The tests. Each builds a vCPU, plays core with it, and says whether what came back is right.

mod interrupts;

use core::arch::asm;

use aarch64_cpu::registers::*;
use porthole_arch::guest::{self, GuestCpu};
use porthole_core::context::VcpuContext;
use porthole_core::hw::{GuestException, GuestExit, SysReg};

use crate::{machine, println};

unsafe extern "C" {
    fn guest_hvc_loop();
    fn guest_registers();
    fn guest_fp();
    fn guest_el1();
    fn guest_read_pmcr();
    fn guest_read_cntpct();
    fn guest_read_cntp_ctl();
    fn guest_read_id();
    fn guest_read_actlr();
    fn guest_read_zcr();
    fn guest_read_tpidr2();
    fn guest_read_gcr();
    fn guest_read_tcr2();
    fn guest_read_pir();
    fn guest_read_lorid();
    fn guest_read_erridr();
    fn guest_smc();
    fn guest_wfi();
    fn guest_sgi();
    fn guest_vectors();
    fn guest_debug();
    fn breakpoint_here();
    fn guest_debug_watch();
    fn watchpoint_here();
    fn guest_debug_step();
    fn step_here();
    fn guest_abort();
    fn abort_here();
}

const EC_HVC: u64 = 0x16;
const EC_SMC: u64 = 0x17;
const EC_WFX: u64 = 0x01;
const EC_SYSREG: u64 = 0x18;
const EC_SVE: u64 = 0x19;
const EC_DATA_ABORT: u64 = 0x24;

type Case = (&'static str, fn(&GuestCpu) -> Result<(), &'static str>);

const CASES: &[Case] = &[
    ("general_registers_go_both_ways", general_registers),
    ("el1_registers_are_switched", el1_registers),
    ("fp_is_switched_on_first_use", fp),
    ("what_is_not_switched_traps", traps),
    ("breakpoints_watchpoints_and_steps_are_the_guests", debug),
    ("aborts_are_injected_at_el1", abort),
    (
        "a_list_register_raises_an_interrupt",
        interrupts::list_register,
    ),
    (
        "the_virtual_timer_fires_and_its_eoi_deactivates",
        interrupts::timer,
    ),
    ("a_kick_leaves_the_guest", interrupts::kick),
    ("a_host_interrupt_stays_pending", interrupts::host_interrupt),
    (
        "el2s_interrupts_are_off_while_the_host_runs",
        interrupts::own_interrupts,
    ),
    ("pointer_authentication_keys_are_switched", keys),
    ("round_trip_is_short", round_trip),
];

/// Runs them all.
pub fn run() -> bool {
    guest::init_this(machine::redistributor());
    let cpu = guest::this();
    println!("features: {:?}", cpu.features());
    let mut passed = true;
    for (name, case) in CASES {
        match case(cpu) {
            Ok(()) => println!("test {name} ... ok"),
            Err(why) => {
                passed = false;
                println!("test {name} ... FAILED: {why}");
            }
        }
    }
    passed
}

fn check(condition: bool, why: &'static str) -> Result<(), &'static str> {
    condition.then_some(()).ok_or(why)
}

fn class(exit: GuestExit) -> Option<u64> {
    match exit {
        GuestExit::Sync { esr, .. } => Some((esr >> 26) & 0x3f),
        _ => None,
    }
}

/// Whether the guest came to HVC #immediate.
fn is_hvc(exit: GuestExit, immediate: u64) -> bool {
    matches!(exit, GuestExit::Sync { esr, .. } if class(exit) == Some(EC_HVC) && esr & 0xffff == immediate)
}

fn enter_to_hvc(
    cpu: &GuestCpu,
    vcpu: &mut VcpuContext,
    immediate: u64,
) -> Result<(), &'static str> {
    let exit = cpu.enter(vcpu);
    if is_hvc(exit, immediate) {
        return Ok(());
    }
    println!("unexpected exit {exit:x?} at {:#x}", vcpu.pc);
    Err("not the HVC expected")
}

fn address(label: unsafe extern "C" fn()) -> u64 {
    label as usize as u64
}

fn general_registers(cpu: &GuestCpu) -> Result<(), &'static str> {
    let mut vcpu = machine::vcpu(guest_registers);
    cpu.load(&mut vcpu);
    enter_to_hvc(cpu, &mut vcpu, 0)?;
    let seen = vcpu.x;
    for (n, x) in vcpu.x.iter_mut().enumerate() {
        *x = 0x2000 + n as u64;
    }
    let second = enter_to_hvc(cpu, &mut vcpu, 1);
    cpu.put(&mut vcpu);
    second?;
    check(
        seen.iter()
            .enumerate()
            .all(|(n, x)| *x == 0x1000 + n as u64),
        "registers out",
    )?;
    check(
        vcpu.x.iter().enumerate().all(|(n, x)| *x == n as u64),
        "registers in",
    )
}

macro_rules! host_pattern {
    ($($register:ident)*) => {
        fn set_host_pattern(value: u64) { $($register.set(value);)* }
        fn is_host_pattern(value: u64) -> bool { true $(&& $register.get() == value)* }
    };
}

host_pattern! {
    TTBR0_EL1 TTBR1_EL1 MAIR_EL1 FAR_EL1 VBAR_EL1 TPIDR_EL0 TPIDRRO_EL0 TPIDR_EL1 SP_EL0 SP_EL1
    ELR_EL1 CNTV_CVAL_EL0
}

fn el1_registers(cpu: &GuestCpu) -> Result<(), &'static str> {
    const HOST: u64 = 0xaaaa_0000;
    const GUEST: u64 = 0x5555_0000;
    set_host_pattern(HOST);
    SCTLR_EL1.set(0x30d0_0801);
    TCR_EL1.set(0x19);
    CPACR_EL1.set(3 << 20);
    MDSCR_EL1.set(1);
    let hcr = HCR_EL2.get();
    let mut vcpu = machine::vcpu(guest_el1);
    vcpu.x[0] = GUEST;
    cpu.load(&mut vcpu);
    check(
        TTBR0_EL1.get() == 0 && SP_EL1.get() == 0,
        "host values seen by the guest",
    )?;
    check(
        MDSCR_EL1.get() == 0,
        "the host's single step is on in the guest",
    )?;
    check(HCR_EL2.get() & 0xffff_ffff == 0x803c_263f, "HCR_EL2")?;
    check(CPTR_EL2.get() & 0x3fff_ffff == 0x10_37ff, "CPTR_EL2")?;
    check(MDCR_EL2.get() & 0xfe0 == 0xe60, "MDCR_EL2")?;
    let first = enter_to_hvc(cpu, &mut vcpu, 0);
    cpu.put(&mut vcpu);
    first?;
    check(is_host_pattern(HOST), "host EL1 registers")?;
    check(
        SCTLR_EL1.get() == 0x30d0_0801 && TCR_EL1.get() == 0x19 && CPACR_EL1.get() == 3 << 20,
        "host SCTLR, TCR, CPACR",
    )?;
    check(
        MDSCR_EL1.get() == 1 && HCR_EL2.get() == hcr,
        "host MDSCR, HCR_EL2",
    )?;
    cpu.load(&mut vcpu);
    let second = enter_to_hvc(cpu, &mut vcpu, 1);
    cpu.put(&mut vcpu);
    MDSCR_EL1.set(0);
    SCTLR_EL1.set(0x30d0_0800);
    second?;
    check(
        vcpu.x[1..7].iter().all(|x| *x == GUEST),
        "guest EL1 registers",
    )
}

/// Fills the host's vectors (at full length with SVE), or says whether they are still so.
fn host_vectors(sve: bool, fill: bool) -> bool {
    let mut sum: u64 = 0;
    // SAFETY: EL2's compiled code uses no vector registers; the buffer holds the longest vector.
    unsafe {
        match (sve, fill) {
            (true, true) => asm!(
                ".arch_extension sve", "dup z0.d, {v}", "dup z31.d, {v}", "ptrue p3.b", "setffr", "msr fpcr, xzr",
                v = in(reg) 0x7777u64
            ),
            (true, false) => asm!(
                ".arch_extension sve",
                "dup z1.d, {v}",
                "ptrue p0.d",
                "cmpne p1.d, p0/z, z0.d, z1.d",
                "cntp {a}, p0, p1.d",
                "cmpne p1.d, p0/z, z31.d, z1.d",
                "cntp {b}, p0, p1.d",
                "add {a}, {a}, {b}",
                "ptrue p0.b",
                "cntp {b}, p0, p3.b",
                "cntb {c}",
                "sub {b}, {b}, {c}",
                "add {a}, {a}, {b}",
                "rdffr p1.b",
                "cntp {b}, p0, p1.b",
                "sub {b}, {b}, {c}",
                "add {a}, {a}, {b}",
                "mrs {b}, fpcr",
                "add {a}, {a}, {b}",
                v = in(reg) 0x7777u64, a = out(reg) sum, b = out(reg) _, c = out(reg) _
            ),
            (false, true) => asm!(
                ".arch_extension fp", ".arch_extension simd", "dup v0.2d, {v}", "dup v31.2d, {v}", "msr fpcr, xzr",
                v = in(reg) 0x7777u64
            ),
            (false, false) => asm!(
                ".arch_extension fp", ".arch_extension simd",
                "fmov {a}, d0", "fmov {b}, v31.d[1]", "eor {a}, {a}, {v}", "eor {b}, {b}, {v}", "orr {a}, {a}, {b}",
                "mrs {b}, fpcr", "orr {a}, {a}, {b}",
                v = in(reg) 0x7777u64, a = out(reg) sum, b = out(reg) _
            ),
        }
    }
    sum == 0
}

fn fp(cpu: &GuestCpu) -> Result<(), &'static str> {
    let sve = cpu.features().sve;
    host_vectors(sve, true);
    let mut vcpu = machine::vcpu(guest_fp);
    cpu.load(&mut vcpu);
    let first = enter_to_hvc(cpu, &mut vcpu, 0);
    let zero = vcpu.x[0] | vcpu.x[1];
    let second = enter_to_hvc(cpu, &mut vcpu, 0);
    let live = vcpu.fp_live;
    cpu.put(&mut vcpu);
    first?;
    second?;
    check(zero == 0, "the guest saw the host's vectors")?;
    check(live && !vcpu.fp_live, "fp_live")?;
    check(host_vectors(sve, false), "the host's vectors changed")?;
    check(
        vcpu.fp.v[0] == 0x1111_0000_0000_0000_1111 && vcpu.fp.v[31] as u64 == 0x3131,
        "the guest's vectors in its context",
    )?;
    cpu.load(&mut vcpu);
    let third = enter_to_hvc(cpu, &mut vcpu, 1);
    cpu.put(&mut vcpu);
    third?;
    check(host_vectors(sve, false), "the host's vectors changed later")?;
    check(
        vcpu.x[..3] == [0x1111, 0x3131, 1 << 24],
        "the guest's vectors after a reload",
    )
}

fn traps(cpu: &GuestCpu) -> Result<(), &'static str> {
    let f = cpu.features();
    let fgt2_era = f.fgt;
    let cases: [(&'static str, unsafe extern "C" fn(), u64, bool); 15] = [
        ("PMCR_EL0", guest_read_pmcr, EC_SYSREG, f.pmu),
        ("CNTPCT_EL0", guest_read_cntpct, EC_SYSREG, true),
        ("CNTP_CTL_EL0", guest_read_cntp_ctl, EC_SYSREG, true),
        ("ID_AA64PFR0_EL1", guest_read_id, EC_SYSREG, true),
        ("ACTLR_EL1", guest_read_actlr, EC_SYSREG, true),
        ("ZCR_EL1", guest_read_zcr, EC_SVE, f.sve),
        (
            "TPIDR2_EL0",
            guest_read_tpidr2,
            EC_SYSREG,
            fgt2_era && has(cpu, 4, 1, 24),
        ),
        ("GCR_EL1", guest_read_gcr, EC_SYSREG, f.mte),
        ("TCR2_EL1", guest_read_tcr2, EC_SYSREG, has(cpu, 7, 3, 0)),
        ("PIR_EL1", guest_read_pir, EC_SYSREG, has(cpu, 7, 3, 8)),
        ("LORID_EL1", guest_read_lorid, EC_SYSREG, f.lor),
        ("ERRIDR_EL1", guest_read_erridr, EC_SYSREG, f.ras),
        ("SMC", guest_smc, EC_SMC, true),
        ("WFI", guest_wfi, EC_WFX, true),
        ("ICC_SGI1R_EL1", guest_sgi, EC_SYSREG, true),
    ];
    for (name, entry, want, present) in cases {
        let mut vcpu = machine::vcpu(entry);
        cpu.load(&mut vcpu);
        CPACR_EL1.set(3 << 16 | 3 << 20 | 3 << 24);
        VBAR_EL1.set(address(guest_vectors));
        let exit = cpu.enter(&mut vcpu);
        cpu.put(&mut vcpu);
        if present && class(exit) != Some(want) {
            println!("{name}: {exit:x?}");
            return Err("a trap is missing");
        }
    }
    Ok(())
}

fn has(cpu: &GuestCpu, crm: u8, op2: u8, shift: u32) -> bool {
    (cpu.id_register(SysReg::new(3, 0, 0, crm, op2)) >> shift) & 0xf != 0
}

fn debug(cpu: &GuestCpu) -> Result<(), &'static str> {
    const MDE_KDE: u64 = 1 << 15 | 1 << 13;
    static WATCHED: u64 = 7;
    // A breakpoint of the host on the guest's first instruction, and its own value to come back to.
    // SAFETY: DBGBVR0_EL1; breakpoints are off.
    unsafe { asm!("msr S2_0_C0_C0_4, {}", in(reg) address(guest_debug)) };
    let mut vcpu = machine::vcpu(guest_debug);
    vcpu.x[0] = MDE_KDE;
    vcpu.x[1] = (&raw const WATCHED) as u64;
    cpu.load(&mut vcpu);
    let result = debug_in_guest(cpu, &mut vcpu);
    cpu.put(&mut vcpu);
    result?;
    let (value, mdscr): (u64, u64);
    // SAFETY: reads of debug registers.
    unsafe {
        asm!("mrs {}, S2_0_C0_C0_4", "mrs {}, S2_0_C0_C2_2", out(reg) value, out(reg) mdscr);
    }
    check(
        value == address(guest_debug) && mdscr == 0,
        "the host's debug registers",
    )
}

fn debug_in_guest(cpu: &GuestCpu, vcpu: &mut VcpuContext) -> Result<(), &'static str> {
    enter_to_hvc(cpu, vcpu, 0)?;
    check(
        vcpu.x[10] >> 26 == 0x31 && vcpu.x[11] == address(breakpoint_here),
        "breakpoint",
    )?;
    // The handler's ERET would hit it again: go on behind it.
    ELR_EL1.set(address(breakpoint_here) + 4);
    enter_to_hvc(cpu, vcpu, 1)?;
    check(vcpu.x[5] == address(breakpoint_here), "DBGBVR0 read back")?;
    check(vcpu.x[6] == 8, "OSLSR")?;
    vcpu.pc = address(guest_debug_watch);
    enter_to_hvc(cpu, vcpu, 0)?;
    check(
        vcpu.x[10] >> 26 == 0x35
            && vcpu.x[11] == address(watchpoint_here)
            && vcpu.x[12] == vcpu.x[1],
        "watchpoint",
    )?;
    ELR_EL1.set(address(watchpoint_here) + 4);
    enter_to_hvc(cpu, vcpu, 1)?;
    vcpu.pc = address(guest_debug_step);
    vcpu.x[0] = 1;
    for step in 1..=2 {
        enter_to_hvc(cpu, vcpu, 0)?;
        check(
            vcpu.x[10] >> 26 == 0x32
                && vcpu.x[11] == address(step_here) + 4 * step
                && vcpu.x[14] == 0x400,
            "single step",
        )?;
        SPSR_EL1.set(vcpu.x[13] | 1 << 21);
    }
    Ok(())
}

fn abort(cpu: &GuestCpu) -> Result<(), &'static str> {
    let mut vcpu = machine::vcpu(guest_abort);
    cpu.load(&mut vcpu);
    let exit = cpu.enter(&mut vcpu);
    let GuestExit::Sync { far, hpfar, .. } = exit else {
        return Err("no exit");
    };
    check(class(exit) == Some(EC_DATA_ABORT), "class of the exit")?;
    check(
        far == 0x8000_0008 && hpfar == 0x8_0000 << 4,
        "addresses of the exit",
    )?;
    cpu.inject(&mut vcpu, GuestException::DataAbort { far });
    let second = enter_to_hvc(cpu, &mut vcpu, 0);
    let reported = (vcpu.x[10], vcpu.x[11], vcpu.x[12], vcpu.x[14]);
    cpu.inject(&mut vcpu, GuestException::Undefined);
    let third = enter_to_hvc(cpu, &mut vcpu, 0);
    // The same from EL0.
    vcpu.pstate = 0;
    cpu.inject(&mut vcpu, GuestException::InstructionAbort { far: 0x1234 });
    let fourth = enter_to_hvc(cpu, &mut vcpu, 0);
    cpu.put(&mut vcpu);
    second?;
    third?;
    fourth?;
    check(
        reported
            == (
                0x25 << 26 | 1 << 25 | 0x10,
                address(abort_here),
                0x8000_0008,
                0x200,
            ),
        "what the guest's handler saw",
    )?;
    check(
        vcpu.x[10] == 0x20 << 26 | 1 << 25 | 0x10 && vcpu.x[12] == 0x1234 && vcpu.x[14] == 0x400,
        "instruction abort from EL0",
    )
}

fn keys(cpu: &GuestCpu) -> Result<(), &'static str> {
    if !cpu.features().pauth {
        return Ok(());
    }
    fn apia() -> u64 {
        let key;
        // SAFETY: APIAKeyLo_EL1; the CPU has FEAT_PAuth.
        unsafe { asm!("mrs {}, S3_0_C2_C1_0", out(reg) key) };
        key
    }
    // SAFETY: as above; EL2 signs nothing.
    unsafe { asm!("msr S3_0_C2_C1_0, {}", in(reg) 0x1234u64) };
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    vcpu.pauth.0[0] = 0x5678;
    cpu.load(&mut vcpu);
    let during = apia();
    cpu.put(&mut vcpu);
    check(
        during == 0x5678 && apia() == 0x1234 && vcpu.pauth.0[0] == 0x5678,
        "APIA key",
    )
}

/// A fault of EL2 while a guest's vectors are in force must reach the host's fault handler. Ends the run.
pub fn fault_under_guest_vectors() -> ! {
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    guest::this().load(&mut vcpu);
    machine::expect_fault();
    // SAFETY: an undefined instruction at EL2; the fault handler does not return.
    unsafe { asm!("udf #0", options(noreturn)) }
}

/// Instructions of EL2 and guest from one HVC to the next, and of a put and load. The counter counts instructions
/// only under `-icount shift=0`, so this test needs it.
fn round_trip(cpu: &GuestCpu) -> Result<(), &'static str> {
    const ROUNDS: u64 = 4000;
    let mut vcpu = machine::vcpu(guest_hvc_loop);
    cpu.load(&mut vcpu);
    let start = guest::counter();
    for _ in 0..ROUNDS {
        enter_to_hvc(cpu, &mut vcpu, 0)?;
    }
    let hvc = guest::counter() - start;
    let start = guest::counter();
    for _ in 0..ROUNDS {
        cpu.put(&mut vcpu);
        cpu.load(&mut vcpu);
    }
    let switch = guest::counter() - start;
    cpu.put(&mut vcpu);
    let frequency = CNTFRQ_EL0.get();
    let ns = |ticks: u64| ticks * (1_000_000_000 / frequency) / ROUNDS;
    println!(
        "instructions: {} from HVC to HVC, {} for put and load",
        ns(hvc),
        ns(switch)
    );
    // Of the round trip the test's own loop is about 20.
    let most = if cfg!(debug_assertions) { 800 } else { 650 };
    check(
        ns(hvc) <= 170 && ns(switch) <= most,
        "too many instructions (or no -icount shift=0)",
    )
}
