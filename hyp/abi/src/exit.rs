//! Why `VCPU_RUN` returned: the exit kinds and what each carries in x2 to x4.
//! Nothing beside these registers tells the host about the guest.

/// Kind of a vCPU's exit, in x1 after `VCPU_RUN`. Payloads are zero where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum ExitKind {
    /// A physical interrupt of the host is pending; run again after it was taken. Also once when another vCPU
    /// ended the VM: the next run is refused with `BadState`.
    HostInterrupt = 0,
    /// x2 IPA, x3 width in bytes (1, 2, 4 or 8). The next `VCPU_RUN` carries the value read.
    MmioRead = 1,
    /// x2 IPA, x3 width in bytes, x4 value, zero-extended.
    MmioWrite = 2,
    /// x2 page-aligned IPA inside a RAM region that has no page yet. Donate one, run again.
    RamFault = 3,
    /// The vCPU waits for an interrupt. x2: counter value (CNTVCT of the host) at which its timer fires,
    /// or `u64::MAX`.
    Wfi = 4,
    /// The guest started vCPU x2: run it.
    CpuOn = 5,
    /// This vCPU switched itself off; run it again after a `CpuOn` for it.
    CpuOff = 6,
    /// PSCI SYSTEM_OFF; no vCPU of the VM runs again.
    SystemOff = 7,
    /// PSCI SYSTEM_RESET; x2 the reset type (0 cold, else SYSTEM_RESET2's). No vCPU runs again.
    SystemReset = 8,
    /// An interrupt was made pending on vCPUs whose last exit was `Wfi`: x2 is the mask of those to wake, each
    /// named once. Others need no waking: they run, or the host runs them again anyway.
    Wake = 9,
    /// The guest did something that no virtual machine can answer; x2 the exception class. The VM is stopped.
    Crash = 10,
}

impl ExitKind {
    /// Every kind, in order of its number.
    pub const ALL: &'static [Self] = &[
        Self::HostInterrupt,
        Self::MmioRead,
        Self::MmioWrite,
        Self::RamFault,
        Self::Wfi,
        Self::CpuOn,
        Self::CpuOff,
        Self::SystemOff,
        Self::SystemReset,
        Self::Wake,
        Self::Crash,
    ];

    /// The kind with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number)
            .ok()
            .and_then(|n| Self::ALL.get(n).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_match_positions() {
        for (i, k) in ExitKind::ALL.iter().enumerate() {
            assert_eq!(*k as u64, i as u64);
            assert_eq!(ExitKind::from_number(i as u64), Some(*k));
        }
        assert_eq!(ExitKind::from_number(ExitKind::ALL.len() as u64), None);
        assert_eq!(ExitKind::from_number(u64::MAX), None);
    }
}
