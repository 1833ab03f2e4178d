//! PSCI and SMCCC of the host: a list of calls, relayed to the firmware or answered here.
//! Anything else, FF-A and every vendor's calls among it, is refused by the caller.
//!
//! A CPU that the host starts comes up in the hypervisor, which asks [`Hypervisor::cpu_started`] where to
//! enter EL1; what the host asked for is kept in its `HostCpu`.

use crate::lock::Mutex;

use crate::addr::PhysAddr;
use crate::hw::{CpuId, Firmware, Machine};
use crate::hypervisor::{HostEntry, Hypervisor};
use crate::smccc::*;
use crate::tracker::PageState;

/// Bits of MPIDR_EL1 that make up an affinity, as PSCI's target_cpu has them.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;
/// StateType of a power_state: power-down, in the original format (PSCI 5.4.2.1).
const POWER_DOWN: u64 = 1 << 16;
/// StateType in the extended format.
const POWER_DOWN_EXTENDED: u64 = 1 << 30;

/// Power of one physical CPU, as the host drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    /// Off, or on its way there.
    Off,
    /// CPU_ON was accepted; the CPU has not reached [`Hypervisor::cpu_started`].
    Starting(HostEntry),
    /// It runs the host.
    On,
}

/// One physical CPU and its power. The lock is a leaf and never held across a firmware call.
pub(crate) struct HostCpu {
    mpidr: u64,
    power: Mutex<Power>,
}

impl HostCpu {
    pub(crate) fn new(mpidr: u64, on: bool) -> Self {
        Self {
            mpidr: mpidr & AFFINITY_MASK,
            power: Mutex::new(if on { Power::On } else { Power::Off }),
        }
    }

    /// Moves from one state to another; tells whether the CPU was in the first.
    fn exchange(&self, from: Power, to: Power) -> bool {
        let mut power = self.power.lock();
        let matches = *power == from;
        if matches {
            *power = to;
        }
        matches
    }
}

/// Which optional architecture calls the firmware has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArchCalls {
    present: [bool; OPTIONAL.len()],
}

const OPTIONAL: [u32; 4] = [
    SMCCC_ARCH_WORKAROUND_1,
    SMCCC_ARCH_WORKAROUND_2,
    SMCCC_ARCH_WORKAROUND_3,
    SMCCC_ARCH_SOC_ID,
];

impl ArchCalls {
    /// Asks the firmware, in the order in which SMCCC 1.1 (appendix B) says a caller must.
    pub(crate) fn probe<F: Firmware>(firmware: &F) -> Self {
        let ask = |function: u32, argument: u32| {
            firmware.call(function, [u64::from(argument), 0, 0])[0] as i32
        };
        let mut calls = Self::default();
        if ask(PSCI_VERSION, 0) < 0x1_0000
            || ask(PSCI_FEATURES, SMCCC_VERSION) < 0
            || ask(SMCCC_VERSION, 0) < 0x1_0001
        {
            return calls;
        }
        for (present, function) in calls.present.iter_mut().zip(OPTIONAL) {
            *present = ask(SMCCC_ARCH_FEATURES, function) >= 0;
        }
        calls
    }

    /// Whether the firmware has this optional call.
    pub(crate) fn has(&self, function: u32) -> bool {
        OPTIONAL
            .iter()
            .zip(self.present)
            .any(|(f, present)| *f == function && present)
    }
}

/// Whether PSCI_FEATURES may ask the firmware about this function.
const fn is_listed(function: u32) -> bool {
    matches!(
        function,
        PSCI_VERSION
            | PSCI_FEATURES
            | PSCI_CPU_ON_32
            | PSCI_CPU_ON_64
            | PSCI_CPU_OFF
            | PSCI_CPU_SUSPEND_32
            | PSCI_CPU_SUSPEND_64
            | PSCI_AFFINITY_INFO_32
            | PSCI_AFFINITY_INFO_64
            | PSCI_MIGRATE_INFO_TYPE
            | PSCI_SYSTEM_OFF
            | PSCI_SYSTEM_RESET
            | PSCI_SYSTEM_RESET2_32
            | PSCI_SYSTEM_RESET2_64
    )
}

impl<M: Machine> Hypervisor<M> {
    /// Where a secondary CPU that has finished its EL2 set-up enters the host: what CPU_ON asked for.
    /// `None` if nobody asked for this CPU; it must then never leave EL2.
    pub fn cpu_started(&self, cpu: CpuId) -> Option<HostEntry> {
        let mut power = self.cpus.get(usize::from(cpu.0))?.power.lock();
        let Power::Starting(entry) = *power else {
            return None;
        };
        *power = Power::On;
        Some(entry)
    }

    /// Answers or relays a call of the list; `None` for any other function.
    pub(super) fn host_firmware_call(&self, call: Call, x: &mut [u64; 31]) -> Option<()> {
        let [a1, a2, a3] = [1, 2, 3].map(|n| call.argument(x, n));
        let relay = || self.machine.call(call.function, [a1, a2, a3])[0];
        x[0] = match call.function {
            PSCI_VERSION | PSCI_MIGRATE_INFO_TYPE => relay(),
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => relay(),
            PSCI_FEATURES => self.host_psci_features(a1 as u32),
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => self.host_cpu_on(a1, a2, a3),
            PSCI_CPU_OFF => self.host_cpu_off(),
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => {
                // The firmware would wake a powered-down CPU in the host, at EL1 state of its own making
                // and without stage 2: standby states only.
                if a1 & (POWER_DOWN | POWER_DOWN_EXTENDED) != 0 {
                    result::INVALID_PARAMETERS
                } else {
                    self.machine.call(call.function, [a1, 0, 0])[0]
                }
            }
            PSCI_SYSTEM_OFF | PSCI_SYSTEM_RESET => {
                self.wipe_guests();
                relay()
            }
            PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => {
                // Type 0 is the architectural warm reset; the others are the vendor's.
                if a1 != 0 {
                    result::INVALID_PARAMETERS
                } else if self
                    .machine
                    .call(PSCI_FEATURES, [u64::from(call.function), 0, 0])[0]
                    as i32
                    == -1
                {
                    result::NOT_SUPPORTED
                } else {
                    self.wipe_guests();
                    relay()
                }
            }
            SMCCC_VERSION => VERSION_1_2,
            SMCCC_ARCH_FEATURES => match a1 as u32 {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => result::SUCCESS,
                function if self.arch_calls.has(function) => relay(),
                _ => result::NOT_SUPPORTED,
            },
            function if self.arch_calls.has(function) => relay(),
            _ => return None,
        };
        Some(())
    }

    fn host_psci_features(&self, function: u32) -> u64 {
        if function == SMCCC_VERSION {
            result::SUCCESS
        } else if is_listed(function) {
            self.machine
                .call(PSCI_FEATURES, [u64::from(function), 0, 0])[0]
        } else {
            result::NOT_SUPPORTED
        }
    }

    fn host_cpu_on(&self, target: u64, entry: u64, context: u64) -> u64 {
        let Some((index, cpu)) = self
            .cpus
            .iter()
            .enumerate()
            .find(|(_, cpu)| cpu.mpidr == target)
        else {
            return result::INVALID_PARAMETERS;
        };
        let Ok(id) = u8::try_from(index) else {
            return result::INVALID_PARAMETERS;
        };
        let host_ram = self.memory.page_state(PhysAddr::new(entry)) == Some(PageState::Host);
        if !entry.is_multiple_of(4) || !host_ram {
            return result::INVALID_ADDRESS;
        }
        let starting = Power::Starting(HostEntry {
            pc: entry,
            x0: context,
        });
        {
            let mut power = cpu.power.lock();
            match *power {
                Power::On => return result::ALREADY_ON,
                Power::Starting(_) => return result::ON_PENDING,
                Power::Off => *power = starting,
            }
        }
        let status = self.machine.cpu_on(CpuId(id)) as u64;
        if status != result::SUCCESS {
            cpu.exchange(starting, Power::Off);
        }
        status
    }

    fn host_cpu_off(&self) -> u64 {
        let Some(cpu) = self.cpus.get(usize::from(self.machine.id().0)) else {
            return result::DENIED;
        };
        // Off before the call: once the firmware has taken the CPU, nobody is left here to say so.
        *cpu.power.lock() = Power::Off;
        let status = self.machine.call(PSCI_CPU_OFF, [0; 3])[0];
        // Refused. A CPU_ON that came in between fails at the firmware and finds its own state gone.
        *cpu.power.lock() = Power::On;
        status
    }
}
