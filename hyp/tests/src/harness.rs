//! Runs the tests one after another: resets the arena, runs, then checks what must hold after every attack:
//! the audit finds exactly the windows (none are left), and the tracker stands as it stood at boot.

use core::sync::atomic::{AtomicUsize, Ordering};

use porthole_abi::NO_ADDRESS;
use porthole_runtime::{entry::CPUS_MAX, println, reg, smp};

use crate::{arena, hyp, reset};

/// A test: its name and its function.
pub type Test = (&'static str, fn() -> Result<(), Failure>);

/// Where and why a test failed; the values are in the log line that the macro printed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Source file.
    pub file: &'static str,
    /// Line.
    pub line: u32,
    /// The expectation.
    pub what: &'static str,
}

/// Fails the test unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr) => {
        if !$cond {
            return Err($crate::harness::Failure {
                file: file!(),
                line: line!(),
                what: stringify!($cond),
            });
        }
    };
}

/// Fails the test unless both are equal; prints both.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr) => {{
        let (left, right) = ($left, $right);
        if left != right {
            porthole_runtime::println!(
                "  {}:{}: {:x?} is not {:x?}",
                file!(),
                line!(),
                left,
                right
            );
            return Err($crate::harness::Failure {
                file: file!(),
                line: line!(),
                what: concat!(stringify!($left), " == ", stringify!($right)),
            });
        }
    }};
}

/// Unwraps, or fails the test with the error printed.
#[macro_export]
macro_rules! ok {
    ($e:expr) => {
        match $e {
            Ok(v) => v,
            Err(e) => {
                porthole_runtime::println!("  {}:{}: {:x?}", file!(), line!(), e);
                return Err($crate::harness::Failure {
                    file: file!(),
                    line: line!(),
                    what: stringify!($e),
                });
            }
        }
    };
}

static JOBS: [AtomicUsize; CPUS_MAX] = [const { AtomicUsize::new(0) }; CPUS_MAX];

/// Work for another CPU.
pub type Job = fn();

/// Waits for a job at an index, runs it, waits again.
pub extern "C" fn worker(index: u64) -> ! {
    let slot = &JOBS[index as usize];
    loop {
        let raw = slot.load(Ordering::Acquire);
        if raw == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: slots hold 0 or a `Job` stored by `start`.
        let job = unsafe { core::mem::transmute::<usize, Job>(raw) };
        job();
        slot.store(0, Ordering::Release);
    }
}

/// Gives CPU `index` (not 0) a job.
pub fn start(index: usize, job: Job) {
    wait(index);
    JOBS[index].store(job as usize, Ordering::Release);
}

/// Waits until CPU `index` has done its job.
pub fn wait(index: usize) {
    while JOBS[index].load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
}

/// Whether CPU `index` has no job.
pub fn idle(index: usize) -> bool {
    JOBS[index].load(Ordering::Acquire) == 0
}

/// Forgets the job of a CPU that switched itself off in it.
pub fn forget(index: usize) {
    JOBS[index].store(0, Ordering::Release);
}

/// CPUs that work, the boot CPU included.
pub fn cpus() -> usize {
    CPUS.load(Ordering::Acquire)
}

static CPUS: AtomicUsize = AtomicUsize::new(1);

/// Starts the workers on all other CPUs (MPIDR = index, as on QEMU `virt` up to 8 CPUs).
pub fn start_workers() {
    for index in 1..CPUS_MAX {
        if smp::start(index as u64, index, worker, index as u64) != 0 {
            break;
        }
        CPUS.store(index + 1, Ordering::Release);
    }
    println!("{} CPUs, this is {}", cpus(), reg::cpu_index());
}

fn one(test: &Test, before: [u64; 8]) -> Result<(), Failure> {
    arena::reset();
    (test.1)()?;
    for index in 1..cpus() {
        wait(index);
    }
    let audit = hyp::audit();
    check_eq!(
        (audit.shared, audit.windows, audit.offender),
        (0, 0, NO_ADDRESS)
    );
    check_eq!(hyp::owners(), before);
    Ok(())
}

/// Runs all; the last test ends this boot.
pub fn run(groups: &[&[Test]]) -> ! {
    arena::reset();
    let before = hyp::owners();
    let (mut passed, mut failed) = (0, 0);
    for test in groups.iter().copied().flatten() {
        match one(test, before) {
            Ok(()) => {
                println!("test {} ... ok", test.0);
                passed += 1;
            }
            Err(f) => {
                println!(
                    "test {} ... FAILED: {}:{}: {}",
                    test.0, f.file, f.line, f.what
                );
                failed += 1;
                hyp::clean_up();
                if hyp::owners() != before {
                    println!(
                        "  the tracker differs from its state at boot; later tests may fail for it"
                    );
                }
            }
        }
    }
    reset::with_a_guest(passed, failed)
}

/// A list of tests by name.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::harness::Test] = &[$((stringify!($name), $name)),*];
    };
}
