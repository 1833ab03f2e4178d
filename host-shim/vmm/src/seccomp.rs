//! What a device's worker thread may ask of the kernel: an allow-list by seccomp; anything else kills the process
//! (and with it the VM, whose pages the driver takes back). The vCPU threads and the main thread are not filtered:
//! they look at nothing that a guest wrote beyond an address, a width and a value.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Right {
    call: libc::c_long,
    /// Only if this argument is as it says.
    only: Option<(u8, Only)>,
}

#[derive(Clone, Copy, Debug)]
enum Only {
    Value(u32),
    Without(u32),
}

impl Right {
    /// Whatever its arguments.
    pub const fn call(call: libc::c_long) -> Self {
        Self { call, only: None }
    }

    /// Only if the low 32 bits of argument `index` (0 to 5) are `value`.
    pub const fn if_value(call: libc::c_long, index: u8, value: u32) -> Self {
        Self {
            call,
            only: Some((index, Only::Value(value))),
        }
    }

    /// Only if none of `bits` are in the low 32 bits of argument `index`.
    pub const fn if_without(call: libc::c_long, index: u8, bits: u32) -> Self {
        Self {
            call,
            only: Some((index, Only::Without(bits))),
        }
    }

    fn rules(&self) -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let Some((index, only)) = self.only else {
            return Ok(Vec::new());
        };
        let (operation, value) = match only {
            Only::Value(value) => (SeccompCmpOp::Eq, value.into()),
            Only::Without(bits) => (SeccompCmpOp::MaskedEq(bits.into()), 0),
        };
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    }
}

const EXECUTABLE: u32 = libc::PROT_EXEC as u32;

/// What every worker does: wait, wake, log, allocate memory (none of it executable), end.
const COMMON: &[Right] = &[
    Right::call(libc::SYS_read),
    Right::call(libc::SYS_write),
    Right::call(libc::SYS_writev),
    Right::call(libc::SYS_close),
    Right::call(libc::SYS_epoll_create1),
    Right::call(libc::SYS_epoll_ctl),
    Right::call(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    Right::call(libc::SYS_epoll_wait),
    Right::call(libc::SYS_futex),
    Right::call(libc::SYS_sched_yield),
    Right::call(libc::SYS_clock_gettime),
    Right::call(libc::SYS_clock_nanosleep),
    Right::call(libc::SYS_brk),
    Right::if_without(libc::SYS_mmap, 2, EXECUTABLE),
    Right::if_without(libc::SYS_mprotect, 2, EXECUTABLE),
    Right::call(libc::SYS_munmap),
    Right::call(libc::SYS_mremap),
    Right::call(libc::SYS_madvise),
    Right::call(libc::SYS_getrandom),
    Right::call(libc::SYS_gettid),
    Right::call(libc::SYS_rt_sigprocmask),
    Right::call(libc::SYS_rt_sigreturn),
    Right::call(libc::SYS_sigaltstack),
    Right::call(libc::SYS_restart_syscall),
    Right::call(libc::SYS_exit),
    Right::call(libc::SYS_exit_group),
    // The standard library asks whether a descriptor it closes was open.
    #[cfg(debug_assertions)]
    Right::if_value(libc::SYS_fcntl, 1, libc::F_GETFD as u32),
];

/// A compiled filter.
pub struct Filter(BpfProgram);

impl Filter {
    /// The filter of a device's worker thread: what all of them may do, and `rights`.
    pub fn device_worker(rights: &[Right]) -> Result<Self, seccompiler::Error> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for right in COMMON.iter().chain(rights) {
            let conditions = right.rules()?;
            match rules.get_mut(&right.call) {
                None => _ = rules.insert(right.call, conditions),
                // Several conditions: any of them. None at all: always.
                Some(all) if conditions.is_empty() => all.clear(),
                Some(all) if all.is_empty() => {}
                Some(all) => all.extend(conditions),
            }
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
pub(crate) mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// Held by a test that starts programs: one that is just being started has every descriptor of this process for a
    /// moment, and then a script that was being written cannot be run, and a port that was closed is still in use.
    pub(crate) fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn the_filter_is_installed_and_lets_a_worker_work() {
        let filter = Filter::device_worker(&[]).unwrap();
        let thread = std::thread::spawn(move || {
            filter.apply().unwrap();
            let event = vec![1u8; 1 << 20];
            event.iter().map(|b| u64::from(*b)).sum::<u64>()
        });
        assert_eq!(thread.join().unwrap(), 1 << 20);
    }

    const CHILD: &str = "PORTHOLE_TEST_SECCOMP";

    /// Runs the test named `test` again in a process of its own, which is to try something; the signal it dies of.
    fn in_a_child(test: &str, what: &str) -> Option<i32> {
        let _alone = alone();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, what)
            .output()
            .unwrap()
            .status;
        status.signal()
    }

    /// What a child tries under a filter with the right to duplicate descriptors 0 and 1.
    fn attempt(what: &str) {
        let rights = [
            Right::if_value(libc::SYS_dup, 0, 0),
            Right::if_value(libc::SYS_dup, 0, 1),
        ];
        Filter::device_worker(&rights).unwrap().apply().unwrap();
        let duplicate = |fd| {
            let _: Result<_, _> = match fd {
                0 => rustix::io::dup(io::stdin()),
                1 => rustix::io::dup(io::stdout()),
                _ => rustix::io::dup(io::stderr()),
            };
        };
        match what {
            "allowed" => (0..2).for_each(duplicate),
            "argument" => duplicate(2),
            _ => _ = std::fs::File::open("/dev/null"),
        }
        std::process::exit(0);
    }

    #[test]
    fn a_call_without_a_right_kills_the_process() {
        if let Ok(what) = std::env::var(CHILD) {
            attempt(&what);
        }
        let name = "seccomp::tests::a_call_without_a_right_kills_the_process";
        assert_eq!(in_a_child(name, "allowed"), None);
        assert_eq!(in_a_child(name, "argument"), Some(libc::SIGSYS));
        assert_eq!(in_a_child(name, "open"), Some(libc::SIGSYS));
    }
}
