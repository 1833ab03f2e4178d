//! What a device's worker thread may ask of the kernel: an allow-list by seccomp; anything else kills the process
//! (and with it the VM, whose pages the driver takes back). The vCPU threads and the main thread are not filtered:
//! they look at nothing that a guest wrote beyond an address, a width and a value.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// Copying between windows and files, waiting and waking, heap, and the end of a thread.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The standard library asks whether a descriptor it closes was open.
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
];

/// Calls that may make no memory executable: protection bits are their third argument.
const WITH_PROTECTION: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// A compiled filter.
pub struct Filter(BpfProgram);

impl Filter {
    /// The filter of a device's worker thread.
    pub fn device_worker() -> Result<Self, seccompiler::Error> {
        use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
        for call in WITH_PROTECTION {
            let not_executable = SeccompCondition::new(
                2,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
                0,
            )?;
            rules.insert(*call, vec![SeccompRule::new(vec![not_executable])?]);
        }
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::try_from(std::env::consts::ARCH)?,
        )?;
        Ok(Self(BpfProgram::try_from(filter)?))
    }

    /// Puts the calling thread under the filter, for good.
    pub fn apply(&self) -> io::Result<()> {
        seccompiler::apply_filter(&self.0).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_installed_and_lets_a_worker_work() {
        let filter = Filter::device_worker().unwrap();
        let thread = std::thread::spawn(move || {
            filter.apply().unwrap();
            let event = vec![1u8; 1 << 20];
            event.iter().map(|b| u64::from(*b)).sum::<u64>()
        });
        assert_eq!(thread.join().unwrap(), 1 << 20);
    }
}
