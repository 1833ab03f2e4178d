//! PSCI 1.1 of a guest (Arm DEN 0022): its vCPUs' power, which the host may only act on.
//! Requests are checked and kept here; the host learns which vCPU to run, or that the guest is over.

use core::ops::ControlFlow;

use porthole_abi::ExitKind;

use super::{Exit, Flow, RESUME, Run, leave};
use crate::addr::Ipa;
use crate::hw::Machine;
use crate::smccc::*;
use crate::vcpu::{Power, Start};

/// PSCI_VERSION: 1.1.
const PSCI_1_1: u64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: no trusted OS to migrate.
const NO_TRUSTED_OS: u64 = 2;
/// power_state.StateType, original format: power-down.
const POWER_DOWN: u64 = 1 << 16;
/// Bits of power_state that must be zero in the original format.
const POWER_STATE_RESERVED: u64 = !0x0301_ffff;
/// AFFINITY_INFO: on, off, on its way.
const AFFINITY_ON: u64 = 0;
const AFFINITY_OFF: u64 = 1;
const AFFINITY_ON_PENDING: u64 = 2;
/// SYSTEM_RESET2: reset types of a vendor have bit 31 set; of the architecture's there is 0.
const VENDOR_RESET: u64 = 1 << 31;

impl<M: Machine> Run<'_, M> {
    /// Answers a PSCI call; `None` if it is none.
    pub(super) fn power_call(&mut self, call: Call) -> Option<Flow> {
        let [a1, a2, a3] = [1, 2, 3].map(|n| call.argument(&self.vcpu.context.x, n));
        let status = match call.function {
            PSCI_VERSION => PSCI_1_1,
            PSCI_FEATURES => features(a1 as u32),
            PSCI_MIGRATE_INFO_TYPE => NO_TRUSTED_OS,
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => self.affinity_info(a1, a2),
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => return Some(self.cpu_on(a1, a2, a3)),
            PSCI_CPU_OFF => return Some(self.cpu_off()),
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => {
                return Some(self.cpu_suspend(a1, a2, a3));
            }
            PSCI_SYSTEM_OFF => return Some(self.stop(ExitKind::SystemOff, 0)),
            PSCI_SYSTEM_RESET => return Some(self.stop(ExitKind::SystemReset, 0)),
            PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => {
                let kind = a1 & 0xffff_ffff;
                if kind == 0 || kind & VENDOR_RESET != 0 {
                    return Some(self.stop(ExitKind::SystemReset, kind));
                }
                result::INVALID_PARAMETERS
            }
            _ => return None,
        };
        self.answer(status);
        Some(RESUME)
    }

    /// The vCPU with this affinity, which is its index.
    fn target(&self, mpidr: u64) -> Option<usize> {
        usize::try_from(mpidr)
            .ok()
            .filter(|index| *index < self.vm.vcpu_count)
    }

    fn affinity_info(&self, mpidr: u64, level: u64) -> u64 {
        let link = self
            .target(mpidr)
            .filter(|_| level == 0)
            .and_then(|index| self.vm.links.get(index));
        let Some(link) = link else {
            return result::INVALID_PARAMETERS;
        };
        match *link.power.lock() {
            Power::On => AFFINITY_ON,
            Power::Starting(_) => AFFINITY_ON_PENDING,
            Power::Off => AFFINITY_OFF,
        }
    }

    fn cpu_on(&mut self, mpidr: u64, entry: u64, x0: u64) -> Flow {
        let status = match self.target(mpidr) {
            None => result::INVALID_PARAMETERS,
            Some(_) if !self.vm.map.is_entry(Ipa::new(entry)) => result::INVALID_ADDRESS,
            Some(index) => self.start(index, Start { entry, x0 }),
        };
        self.answer(status);
        if status == result::SUCCESS {
            return leave(ExitKind::CpuOn, [mpidr, 0, 0]);
        }
        RESUME
    }

    /// Of two callers that start the same vCPU, one succeeds.
    fn start(&self, index: usize, start: Start) -> u64 {
        let Some(link) = self.vm.links.get(index) else {
            return result::INVALID_PARAMETERS;
        };
        let mut power = link.power.lock();
        match *power {
            Power::On => result::ALREADY_ON,
            Power::Starting(_) => result::ON_PENDING,
            Power::Off => {
                *power = Power::Starting(start);
                result::SUCCESS
            }
        }
    }

    fn cpu_off(&mut self) -> Flow {
        *self.link.power.lock() = Power::Off;
        ControlFlow::Break(Exit::plain(ExitKind::CpuOff))
    }

    /// Waits for an interrupt. A power-down loses the registers and goes on at the entry point.
    fn cpu_suspend(&mut self, state: u64, entry: u64, x0: u64) -> Flow {
        if state & POWER_STATE_RESERVED != 0 {
            self.answer(result::INVALID_PARAMETERS);
            return RESUME;
        }
        if state & POWER_DOWN == 0 {
            self.answer(result::SUCCESS);
            return leave(ExitKind::Wfi, [0; 3]);
        }
        if !self.vm.map.is_entry(Ipa::new(entry)) {
            self.answer(result::INVALID_ADDRESS);
            return RESUME;
        }
        self.suspended = Some(Start { entry, x0 });
        leave(ExitKind::Wfi, [0; 3])
    }
}

/// PSCI_FEATURES: 0 for what is there (CPU_SUSPEND: original format, no OS-initiated mode).
fn features(function: u32) -> u64 {
    match function {
        PSCI_VERSION
        | PSCI_FEATURES
        | PSCI_MIGRATE_INFO_TYPE
        | PSCI_AFFINITY_INFO_32
        | PSCI_AFFINITY_INFO_64
        | PSCI_CPU_ON_32
        | PSCI_CPU_ON_64
        | PSCI_CPU_OFF
        | PSCI_CPU_SUSPEND_32
        | PSCI_CPU_SUSPEND_64
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET
        | PSCI_SYSTEM_RESET2_32
        | PSCI_SYSTEM_RESET2_64
        | SMCCC_VERSION => result::SUCCESS,
        _ => result::NOT_SUPPORTED,
    }
}
