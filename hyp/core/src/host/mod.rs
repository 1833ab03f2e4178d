//! What the host at EL1 can ask for: hypercalls by HVC, PSCI and SMCCC by SMC, and its stage-2 faults.
//! Each call is an untrusted request: copied once, checked whole, then done or refused with nothing changed.

mod calls;
pub(crate) mod dma;
mod mmio;
pub mod psci;
#[cfg(test)]
mod tests;

use core::sync::atomic::Ordering;

use porthole_abi::{
    CALL_COUNT, CALL_REVISION, CALL_UID, HVC_IMMEDIATE, HostFunction, NO_ADDRESS, UID,
};

use crate::addr::PhysAddr;
use crate::hw::Machine;
use crate::hypervisor::{HostFaultAction, Hypervisor};
use crate::smccc::{Call, result};
use crate::stats::{count, count_own};
use crate::syndrome::{Fault, Syndrome, fault_ipa};

/// Number of calls that `CALL_COUNT` tells: those of the host plus the three discovery calls.
const HOST_CALL_COUNT: u64 = HostFunction::ALL.len() as u64 + 3;

/// Answers the discovery calls, which host and guest share; `None` for another function.
pub(crate) fn discovery(function: u32, calls: u64, x: &mut [u64; 31]) -> Option<()> {
    match function {
        CALL_COUNT => x[0] = calls,
        CALL_UID => {
            for (register, word) in x.iter_mut().zip(UID) {
                *register = u64::from(word);
            }
        }
        CALL_REVISION => {
            x[0] = u64::from(porthole_abi::ABI_VERSION >> 16);
            x[1] = u64::from(porthole_abi::ABI_VERSION & 0xffff);
        }
        _ => return None,
    }
    Some(())
}

impl<M: Machine> Hypervisor<M> {
    /// An HVC64 from the host's EL1: `x` holds its x0 to x30 and takes the results.
    ///
    /// An unknown function or immediate is answered with -1 in x0; a refused call changes x0 only.
    pub fn host_hvc(&self, immediate: u16, x: &mut [u64; 31]) {
        if immediate != HVC_IMMEDIATE {
            x[0] = result::NOT_SUPPORTED;
            return;
        }
        let call = Call::new(x);
        if let Some(function) = HostFunction::from_id(call.function) {
            if let Some(counters) = self.stats.cpu(self.machine.id()) {
                count_own(&counters.host_calls);
            }
            x[0] = match self.host_call(function, x) {
                Ok(()) => result::SUCCESS,
                Err(error) => error.code() as u64,
            };
        } else if discovery(call.function, HOST_CALL_COUNT, x).is_none()
            && self.host_firmware_call(call, x).is_none()
        {
            x[0] = result::NOT_SUPPORTED;
        }
    }

    /// An SMC64 of the host, trapped. The binary steps the host over the instruction.
    pub fn host_smc(&self, immediate: u16, x: &mut [u64; 31]) {
        if immediate != 0 || self.host_firmware_call(Call::new(x), x).is_none() {
            count(&self.stats.smcs_refused);
            x[0] = result::NOT_SUPPORTED;
        }
    }

    /// A stage-2 fault of the host, whose x0 to x30 are `x`.
    ///
    /// An access to a register that EL2 answers for is made here. A refused one becomes an abort: a user, or the
    /// kernel through a user address, gets an external abort, which Linux turns into a signal; the kernel through its
    /// own address gets a translation fault, which its exception tables can repair, or, at a register that does not
    /// take such an access, an external abort.
    ///
    /// A permission fault, which only a fetch from MMIO makes, leaves HPFAR_EL2 undefined unless it fell on a
    /// table walk (Arm ARM D24.2.73); its address is told as [`NO_ADDRESS`]. EL2 does not walk the host's tables
    /// to find it: they may have changed, and a walk that meets a bus error is an exception of EL2 itself.
    pub fn host_fault(
        &self,
        esr: u64,
        far: u64,
        hpfar: u64,
        from_el0: bool,
        x: &mut [u64; 31],
    ) -> HostFaultAction {
        let syndrome = Syndrome(esr);
        let fault = syndrome.fault();
        let address = if fault == Fault::Permission && !syndrome.is_walk() {
            PhysAddr::new(NO_ADDRESS)
        } else {
            PhysAddr::new(fault_ipa(far, hpfar).raw())
        };
        let mut at_register = false;
        if fault == Fault::Translation {
            at_register = self.gic.find(address).is_some();
            if !from_el0 && self.host_access(syndrome, address, x) {
                return HostFaultAction::Skip;
            }
            if self.memory.host_reaches(&self.machine, address) {
                return HostFaultAction::Retry;
            }
        }
        self.stats
            .last_abort
            .store(address.raw(), Ordering::Relaxed);
        let before = self.stats.host_aborts.fetch_add(1, Ordering::Relaxed);
        // A host that touches a page in a loop must not flood the log.
        if before < 32 || before.is_power_of_two() {
            log::warn!(
                "host access refused: address {address}, CPU {}, FAR {far:#x}, ESR {esr:#x}, number {}",
                self.machine.id().0,
                before.saturating_add(1)
            );
        }
        let kernel_address = far >> 55 & 1 != 0;
        if from_el0 || !kernel_address || at_register {
            HostFaultAction::ExternalAbort
        } else {
            HostFaultAction::TranslationFault
        }
    }
}
