//! A guest's self-hosted debug: its accesses to debug registers always trap and are done here. Breakpoints and
//! watchpoints reach hardware only while the guest has them enabled (MDSCR_EL1.MDE); then the host's are put away.
//! External debug, the debug communication channel and the OS locks do not exist for guests.

use aarch64_cpu::registers::{MDSCR_EL1, Readable, Writeable};
use core::arch::asm;
use porthole_core::context::{DebugRegs, VcpuContext};

use super::features::CpuFeatures;
use super::regs::*;

/// MDSCR_EL1 bits that a guest has: SS, TDCC, KDE, MDE.
const MDSCR_SS: u64 = 1 << 0;
const MDSCR_MDE: u64 = 1 << 15;
const MDSCR_GUEST: u64 = MDSCR_SS | 1 << 12 | 1 << 13 | MDSCR_MDE;
/// OSLSR_EL1: OS lock implemented (OSLM = 0b10), not locked.
const OSLSR_UNLOCKED: u64 = 1 << 3;
/// PSTATE.SS and BTYPE as in SPSR_EL2: cleared when an instruction was done for the guest.
const PSTATE_AFTER_INSTRUCTION: u64 = !(1 << 21 | 3 << 10);

macro_rules! numbered {
    ($n:expr, $access:ident, $op2:literal $(, $value:expr)?) => {
        match $n {
            0 => $access!("0", $op2 $(, $value)?),
            1 => $access!("1", $op2 $(, $value)?),
            2 => $access!("2", $op2 $(, $value)?),
            3 => $access!("3", $op2 $(, $value)?),
            4 => $access!("4", $op2 $(, $value)?),
            5 => $access!("5", $op2 $(, $value)?),
            6 => $access!("6", $op2 $(, $value)?),
            7 => $access!("7", $op2 $(, $value)?),
            8 => $access!("8", $op2 $(, $value)?),
            9 => $access!("9", $op2 $(, $value)?),
            10 => $access!("10", $op2 $(, $value)?),
            11 => $access!("11", $op2 $(, $value)?),
            12 => $access!("12", $op2 $(, $value)?),
            13 => $access!("13", $op2 $(, $value)?),
            14 => $access!("14", $op2 $(, $value)?),
            _ => $access!("15", $op2 $(, $value)?),
        }
    };
}

macro_rules! read_one {
    ($n:literal, $op2:literal) => {{
        let value: u64;
        // SAFETY: reads DBG{B,W}{V,C}R<n>_EL1; the callers stay below the number that the CPU has.
        unsafe {
            asm!(concat!("mrs {}, S2_0_C0_C", $n, "_", $op2), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

macro_rules! write_one {
    ($n:literal, $op2:literal, $value:expr) => {
        // SAFETY: writes DBG{B,W}{V,C}R<n>_EL1, as above. With MDCR_EL2.TDE clear EL2 takes no debug exception
        // (DDI 0487, D2.4), whatever the value.
        unsafe {
            asm!(concat!("msr S2_0_C0_C", $n, "_", $op2, ", {}"), in(reg) $value, options(nostack, preserves_flags));
        }
    };
}

/// The four register groups, by their Op2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Bvr,
    Bcr,
    Wvr,
    Wcr,
}

impl Group {
    fn read(self, n: usize) -> u64 {
        match self {
            Self::Bvr => numbered!(n, read_one, "4"),
            Self::Bcr => numbered!(n, read_one, "5"),
            Self::Wvr => numbered!(n, read_one, "6"),
            Self::Wcr => numbered!(n, read_one, "7"),
        }
    }

    fn write(self, n: usize, value: u64) {
        match self {
            Self::Bvr => numbered!(n, write_one, "4", value),
            Self::Bcr => numbered!(n, write_one, "5", value),
            Self::Wvr => numbered!(n, write_one, "6", value),
            Self::Wcr => numbered!(n, write_one, "7", value),
        }
    }

    fn bank(self, regs: &mut DebugRegs) -> &mut [u64; 16] {
        match self {
            Self::Bvr => &mut regs.bvr,
            Self::Bcr => &mut regs.bcr,
            Self::Wvr => &mut regs.wvr,
            Self::Wcr => &mut regs.wcr,
        }
    }

    fn count(self, features: &CpuFeatures) -> usize {
        match self {
            Self::Bvr | Self::Bcr => usize::from(features.breakpoints).min(16),
            Self::Wvr | Self::Wcr => usize::from(features.watchpoints).min(16),
        }
    }

    const ALL: [Self; 4] = [Self::Bvr, Self::Bcr, Self::Wvr, Self::Wcr];
}

/// The host's debug registers while a guest is loaded, and whose are in hardware.
#[derive(Clone, Copy)]
pub struct HostDebug {
    regs: DebugRegs,
    /// The guest's breakpoints and watchpoints are in hardware, the host's in `regs`.
    guest_live: bool,
    /// The host had the OS lock locked, which would keep the guest's debug exceptions away.
    os_locked: bool,
}

impl HostDebug {
    /// Nothing saved.
    pub const fn new() -> Self {
        Self {
            regs: DebugRegs {
                mdscr: 0,
                mdccint: 0,
                bvr: [0; 16],
                bcr: [0; 16],
                wvr: [0; 16],
                wcr: [0; 16],
            },
            guest_live: false,
            os_locked: false,
        }
    }

    /// Switches from the host to a guest. A host that steps itself does not step the guest.
    pub fn load(&mut self, guest: &mut DebugRegs, features: &CpuFeatures) {
        self.regs.mdscr = MDSCR_EL1.get();
        guest.mdscr &= MDSCR_GUEST;
        self.set_guest_mdscr(guest, features);
    }

    /// Switches back. The guest's values are in its context already: every write of them passed here.
    pub fn put(&mut self, features: &CpuFeatures) {
        if self.guest_live {
            for group in Group::ALL {
                for n in 0..group.count(features) {
                    group.write(n, group.bank(&mut self.regs)[n]);
                }
            }
            self.guest_live = false;
        }
        MDSCR_EL1.set(self.regs.mdscr);
        if self.os_locked {
            OSLAR_EL1.set(1);
            self.os_locked = false;
        }
    }

    /// Brings `guest.mdscr` into force.
    fn set_guest_mdscr(&mut self, guest: &mut DebugRegs, features: &CpuFeatures) {
        if guest.mdscr & MDSCR_MDE != 0 && !self.guest_live {
            for group in Group::ALL {
                for n in 0..group.count(features) {
                    group.bank(&mut self.regs)[n] = group.read(n);
                    group.write(n, group.bank(guest)[n]);
                }
            }
            self.guest_live = true;
        }
        if guest.mdscr & (MDSCR_MDE | MDSCR_SS) != 0 && OSLSR_EL1.is_set(OSLSR::OSLK) {
            self.os_locked = true;
            OSLAR_EL1.set(0);
        }
        MDSCR_EL1.set(guest.mdscr);
    }

    /// Does a trapped access to a debug register (`esr` with exception class 0x18). `false` if it is none that a
    /// guest has: core decides then.
    pub fn access(&mut self, vcpu: &mut VcpuContext, esr: u64, features: &CpuFeatures) -> bool {
        let iss = Iss(esr);
        let Some(register) = Register::decode(&iss, features) else {
            return false;
        };
        if iss.is_read() {
            let value = match register {
                Register::Mdscr => vcpu.debug.mdscr,
                Register::Numbered(group, n) => group.bank(&mut vcpu.debug)[n],
                Register::OsLockStatus => OSLSR_UNLOCKED,
                Register::Zero => 0,
            };
            if let Some(x) = vcpu.x.get_mut(iss.rt()) {
                *x = value;
            }
        } else {
            let value = vcpu.x.get(iss.rt()).copied().unwrap_or(0);
            match register {
                Register::Mdscr => {
                    vcpu.debug_used = true;
                    vcpu.debug.mdscr = value & MDSCR_GUEST;
                    self.set_guest_mdscr(&mut vcpu.debug, features);
                }
                Register::Numbered(group, n) => {
                    vcpu.debug_used = true;
                    group.bank(&mut vcpu.debug)[n] = value;
                    if self.guest_live {
                        group.write(n, value);
                        // Hardware decides which bits stick.
                        group.bank(&mut vcpu.debug)[n] = group.read(n);
                    }
                }
                Register::OsLockStatus | Register::Zero => {}
            }
        }
        vcpu.pc = vcpu.pc.wrapping_add(4);
        vcpu.pstate &= PSTATE_AFTER_INSTRUCTION;
        true
    }
}

/// Syndrome of a trapped MSR or MRS (DDI 0487, ESR_EL2, EC 0x18).
struct Iss(u64);

impl Iss {
    fn encoding(&self) -> (u64, u64, u64, u64, u64) {
        let f = |shift: u32, mask: u64| (self.0 >> shift) & mask;
        (f(20, 3), f(14, 7), f(10, 15), f(1, 15), f(17, 7))
    }

    /// Register number; 31 is XZR.
    fn rt(&self) -> usize {
        ((self.0 >> 5) & 31) as usize
    }

    fn is_read(&self) -> bool {
        self.0 & 1 != 0
    }
}

/// A debug register that a guest may access.
enum Register {
    Mdscr,
    Numbered(Group, usize),
    OsLockStatus,
    /// Reads as zero, ignores writes.
    Zero,
}

impl Register {
    fn decode(iss: &Iss, features: &CpuFeatures) -> Option<Self> {
        let (op0, op1, crn, crm, op2) = iss.encoding();
        if op0 != 2 {
            return None;
        }
        let numbered = |group: Group| {
            let n = crm as usize;
            (n < group.count(features)).then_some(Self::Numbered(group, n))
        };
        match (op1, crn, crm, op2) {
            (0, 0, 2, 2) => Some(Self::Mdscr),
            (0, 0, _, 4) => numbered(Group::Bvr),
            (0, 0, _, 5) => numbered(Group::Bcr),
            (0, 0, _, 6) => numbered(Group::Wvr),
            (0, 0, _, 7) => numbered(Group::Wcr),
            (0, 1, 1, 4) => Some(Self::OsLockStatus),
            // MDCCINT, OSDTRRX, OSDTRTX, OSECCR; MDRAR, OSLAR, OSDLR, DBGPRCR; DBGCLAIMSET, DBGCLAIMCLR,
            // DBGAUTHSTATUS; MDCCSR, DBGDTR, DBGDTRRX or DBGDTRTX of EL0.
            (0, 0, 2, 0) | (0, 0, 0 | 3 | 6, 2) => Some(Self::Zero),
            (0, 1, 0, 0 | 4) | (0, 1, 3 | 4, 4) => Some(Self::Zero),
            (0, 7, 8 | 9 | 14, 6) => Some(Self::Zero),
            (3, 0, 1 | 4 | 5, 0) => Some(Self::Zero),
            _ => None,
        }
    }
}
