//! State of a vCPU that the world switch saves and loads: plain data with a fixed layout.
//! `porthole-arch` moves it in and out of registers; the rest of core reads and edits it between runs.

/// Number of list registers that a context can hold (GICv3, Arm IHI 0069: at most 16).
pub const LIST_REGISTERS_MAX: usize = 16;

/// EL1 system registers of a vCPU, named as in the Arm ARM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct El1Regs {
    pub sctlr: u64,
    pub actlr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub mair: u64,
    pub amair: u64,
    pub esr: u64,
    pub far: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el1: u64,
    pub cntkctl: u64,
    pub par: u64,
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub elr: u64,
    pub spsr: u64,
    pub csselr: u64,
}

/// Pointer-authentication keys: low and high half of APIA, APIB, APDA, APDB, APGA.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PauthKeys(pub [u64; 10]);

/// SIMD and floating-point registers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(16))]
#[allow(missing_docs)]
pub struct FpRegs {
    pub v: [u128; 32],
    pub fpcr: u64,
    pub fpsr: u64,
}

/// Self-hosted debug registers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct DebugRegs {
    pub mdscr: u64,
    pub mdccint: u64,
    pub bvr: [u64; 16],
    pub bcr: [u64; 16],
    pub wvr: [u64; 16],
    pub wcr: [u64; 16],
}

/// The guest's virtual timer (CNTV). Its counter is the physical one minus the VM's offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct TimerRegs {
    pub cntv_ctl: u64,
    pub cntv_cval: u64,
    pub cntvoff: u64,
}

/// Virtual CPU interface: ICH_* registers. Of `lr`, the first `used` are in use at an entry (the others are
/// empty in hardware); after an exit they hold what hardware left there.
///
/// `hcr` is written to ICH_HCR_EL2 at every entry (core changes UIE, LRENPIE and TDIR between runs) and read
/// back at the exit when it had LRENPIE set: core then wants EOIcount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct GicRegs {
    pub hcr: u64,
    pub vmcr: u64,
    pub ap0r: [u64; 4],
    pub ap1r: [u64; 4],
    pub used: u64,
    pub lr: [u64; LIST_REGISTERS_MAX],
}

/// All register state of a vCPU. `porthole-arch` takes field offsets with `offset_of!`.
#[derive(Clone, Default)]
#[repr(C)]
pub struct VcpuContext {
    /// x0 to x30.
    pub x: [u64; 31],
    /// ELR_EL2: where the guest goes on.
    pub pc: u64,
    /// SPSR_EL2: the guest's PSTATE.
    pub pstate: u64,
    /// VTTBR_EL2: stage-2 root and VMID.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VMPIDR_EL2: what the guest reads as MPIDR_EL1.
    pub vmpidr: u64,
    /// HCR_EL2 bits on top of those that every guest runs with.
    pub hcr_extra: u64,
    /// EL1 system registers; in hardware while the vCPU is loaded.
    pub el1: El1Regs,
    /// Pointer-authentication keys; in hardware while loaded.
    pub pauth: PauthKeys,
    /// Virtual timer; in hardware while loaded.
    pub timer: TimerRegs,
    /// Virtual CPU interface; in hardware while loaded, list registers while in the guest.
    pub gic: GicRegs,
    /// FP registers; in hardware when `fp_live`.
    pub fp: FpRegs,
    /// Debug registers; in hardware while loaded when `debug_used`.
    pub debug: DebugRegs,
    /// The guest has touched FP since it was loaded on this CPU.
    pub fp_live: bool,
    /// The guest has written a debug register since its reset.
    pub debug_used: bool,
}
