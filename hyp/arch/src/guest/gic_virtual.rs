//! The virtual CPU interface (ICH_*): moves a vCPU's part between context and hardware.
//! What the list registers mean is the business of core's vGIC. Source: Arm IHI 0069, chapter 12.

use core::cell::Cell;

use aarch64_cpu::registers::*;
use porthole_core::context::GicRegs;

use super::features::CpuFeatures;

/// ICH_HCR_EL2.LRENPIE: ends of interrupt without a list register are counted in EOIcount and signalled.
const HCR_LRENPIE: u64 = 1 << 2;

macro_rules! list_register {
    ($index:expr, $register:ident => $access:expr) => {
        match $index {
            0 => {
                let $register = ICH_LR0_EL2;
                $access
            }
            1 => {
                let $register = ICH_LR1_EL2;
                $access
            }
            2 => {
                let $register = ICH_LR2_EL2;
                $access
            }
            3 => {
                let $register = ICH_LR3_EL2;
                $access
            }
            4 => {
                let $register = ICH_LR4_EL2;
                $access
            }
            5 => {
                let $register = ICH_LR5_EL2;
                $access
            }
            6 => {
                let $register = ICH_LR6_EL2;
                $access
            }
            7 => {
                let $register = ICH_LR7_EL2;
                $access
            }
            8 => {
                let $register = ICH_LR8_EL2;
                $access
            }
            9 => {
                let $register = ICH_LR9_EL2;
                $access
            }
            10 => {
                let $register = ICH_LR10_EL2;
                $access
            }
            11 => {
                let $register = ICH_LR11_EL2;
                $access
            }
            12 => {
                let $register = ICH_LR12_EL2;
                $access
            }
            13 => {
                let $register = ICH_LR13_EL2;
                $access
            }
            14 => {
                let $register = ICH_LR14_EL2;
                $access
            }
            _ => {
                let $register = ICH_LR15_EL2;
                $access
            }
        }
    };
}

#[rustfmt::skip]
fn write_lr(index: usize, value: u64) {
    list_register!(index, register => register.set(value));
}

#[rustfmt::skip]
fn read_lr(index: usize) -> u64 {
    list_register!(index, register => register.get())
}

/// What hardware holds of the loaded vCPU's virtual interface.
#[derive(Debug)]
pub struct VirtualInterface {
    /// List registers that may be other than zero.
    in_use: Cell<usize>,
    /// ICH_HCR_EL2 as last written.
    hcr: Cell<u64>,
}

impl VirtualInterface {
    /// Nothing loaded.
    pub const fn new() -> Self {
        Self {
            in_use: Cell::new(0),
            hcr: Cell::new(0),
        }
    }

    /// Clears the list registers of this CPU, whose reset value is unknown.
    pub fn reset(&self, features: &CpuFeatures) {
        ICH_HCR_EL2.set(0);
        for index in 0..usize::from(features.list_registers) {
            write_lr(index, 0);
        }
        self.in_use.set(0);
        self.hcr.set(0);
    }

    /// Loads everything but the list registers, which [`Self::enter`] does.
    pub fn load(&self, gic: &GicRegs, features: &CpuFeatures) {
        ICH_VMCR_EL2.set(gic.vmcr);
        ICH_AP0R0_EL2.set(gic.ap0r[0]);
        ICH_AP1R0_EL2.set(gic.ap1r[0]);
        if features.active_priorities >= 2 {
            ICH_AP0R1_EL2.set(gic.ap0r[1]);
            ICH_AP1R1_EL2.set(gic.ap1r[1]);
        }
        if features.active_priorities >= 4 {
            ICH_AP0R2_EL2.set(gic.ap0r[2]);
            ICH_AP0R3_EL2.set(gic.ap0r[3]);
            ICH_AP1R2_EL2.set(gic.ap1r[2]);
            ICH_AP1R3_EL2.set(gic.ap1r[3]);
        }
        ICH_HCR_EL2.set(gic.hcr);
        self.hcr.set(gic.hcr);
    }

    /// Saves what [`Self::load`] loads (but `hcr`, see [`Self::exit`]) and switches the interface off.
    pub fn put(&self, gic: &mut GicRegs, features: &CpuFeatures) {
        gic.vmcr = ICH_VMCR_EL2.get();
        gic.ap0r[0] = ICH_AP0R0_EL2.get();
        gic.ap1r[0] = ICH_AP1R0_EL2.get();
        if features.active_priorities >= 2 {
            gic.ap0r[1] = ICH_AP0R1_EL2.get();
            gic.ap1r[1] = ICH_AP1R1_EL2.get();
        }
        if features.active_priorities >= 4 {
            gic.ap0r[2] = ICH_AP0R2_EL2.get();
            gic.ap0r[3] = ICH_AP0R3_EL2.get();
            gic.ap1r[2] = ICH_AP1R2_EL2.get();
            gic.ap1r[3] = ICH_AP1R3_EL2.get();
        }
        if self.in_use.get() != 0 {
            self.write_list_registers(&[]);
        }
        ICH_HCR_EL2.set(0);
        self.hcr.set(0);
    }

    /// Before an entry: list registers and control, where they changed.
    #[inline]
    pub fn enter(&self, gic: &GicRegs) {
        if gic.used != 0 || self.in_use.get() != 0 {
            self.write_list_registers(gic.lr.get(..gic.used as usize).unwrap_or(&gic.lr));
        }
        if gic.hcr != self.hcr.get() {
            ICH_HCR_EL2.set(gic.hcr);
            self.hcr.set(gic.hcr);
        }
    }

    /// After an exit: the list registers in use, and the control register with its count of ends of interrupt if
    /// core asked for them.
    #[inline]
    pub fn exit(&self, gic: &mut GicRegs) {
        if gic.hcr & HCR_LRENPIE != 0 {
            gic.hcr = ICH_HCR_EL2.get();
            self.hcr.set(gic.hcr);
        }
        for (index, lr) in gic.lr.iter_mut().take(self.in_use.get()).enumerate() {
            *lr = read_lr(index);
        }
    }

    fn write_list_registers(&self, values: &[u64]) {
        for (index, value) in values.iter().enumerate() {
            write_lr(index, *value);
        }
        for index in values.len()..self.in_use.get() {
            write_lr(index, 0);
        }
        self.in_use.set(values.len());
    }
}
