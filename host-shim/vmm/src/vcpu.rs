//! One thread for each vCPU: it runs the guest until the guest, the user or the system ends it.
//! Only MMIO comes out of the driver while the guest runs; the bus answers it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use porthole_uapi::{Error, RunExit, RunPage, Vcpu};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::MmioBus;
use crate::cli::Affinity;
use crate::end::End;

/// How long the threads may take to leave the guest.
const PATIENCE: Duration = Duration::from_secs(2);

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Says so when a thread that must not die does.
struct Watch(mpsc::Sender<End>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "a vCPU thread died of a mistake in the VMM (see above); please report it";
            let _ = self.0.send(End::Failed(why.to_owned()));
        }
    }
}

/// The running vCPUs.
pub struct VcpuThreads {
    threads: Vec<(JoinHandle<()>, RunPage)>,
    stopping: Arc<AtomicBool>,
}

impl VcpuThreads {
    /// Starts all vCPUs; whichever ends the VM says so on `events`.
    pub fn start(
        vcpus: Vec<Vcpu>,
        bus: &Arc<MmioBus>,
        events: &mpsc::Sender<End>,
        affinity: &Affinity,
    ) -> io::Result<Self> {
        // A signal with a handler makes RUN return.
        register_signal_handler(SIGRTMIN(), ignore)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut all = Self {
            threads: Vec::new(),
            stopping,
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, events, page) = (bus.clone(), events.clone(), vcpu.page().clone());
            let stopping = all.stopping.clone();
            let cpu = affinity.cpu(index);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    let watch = Watch(events);
                    if let Some(cpu) = cpu
                        && let Err(e) = pin(cpu)
                    {
                        let _ = watch.0.send(End::Failed(format!(
                            "vCPU {index} cannot be kept on CPU {cpu} of the host ({e}); see --cpu-affinity"
                        )));
                        return;
                    }
                    if let Some(end) = run(&vcpu, &bus, &stopping) {
                        // Nobody listens any more if the VM is over already.
                        let _ = watch.0.send(end);
                    }
                })?;
            all.threads.push((thread, page));
        }
        Ok(all)
    }

    /// Takes every vCPU out of the guest, for good.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        for (thread, page) in &self.threads {
            page.stop();
            if let Err(e) = thread.kill(SIGRTMIN()) {
                tracing::debug!("cannot signal a vCPU thread: {e}");
            }
        }
        // A thread may be stuck in a write to a console that nobody reads. The process ends anyway, and the
        // driver takes the VM apart then.
        let deadline = Instant::now() + PATIENCE;
        for (thread, _) in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Keeps the calling thread on one CPU of the host.
fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs one vCPU; how the VM ended, if it was this one that ended it.
fn run(vcpu: &Vcpu, bus: &MmioBus, stopping: &AtomicBool) -> Option<End> {
    while !stopping.load(Ordering::SeqCst) {
        match vcpu.run() {
            Ok(RunExit::MmioRead { ipa, width }) => vcpu.page().answer(bus.read(ipa, width)),
            Ok(RunExit::MmioWrite { ipa, width, value }) => bus.write(ipa, width, value),
            Ok(RunExit::Interrupted) => {}
            Ok(RunExit::Stopped) => return None,
            Ok(RunExit::SystemOff) => return Some(End::Off),
            Ok(RunExit::SystemReset(kind)) => return Some(End::Reset(kind)),
            Ok(RunExit::Crash(class)) => return Some(End::Crash(class)),
            Err(e) => return Some(End::Failed(explain(&e))),
        }
    }
    None
}

fn explain(error: &Error) -> String {
    if error.errno() == Some(libc::ENOMEM) {
        return "the host has no memory left for the guest; free some, or give the guest less with --mem"
            .to_owned();
    }
    format!("the guest cannot run on: {error}")
}
