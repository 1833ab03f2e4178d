//! The threads that serve one device: event loops over doorbells and the handler's own sources, under seccomp.
//! They start when the driver is ready and end with the device's reset or the VM.
//! What is done on an event is the device's `Handler`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Handler;
use super::queue::Fault;
use super::shared::Shared;
use crate::seccomp::Filter;

/// Event data: the transport wants the thread to end.
const STOP: u64 = 0;
/// Event data of the first doorbell.
const DOORBELL: u64 = 1;
/// Event data of the handler's first source.
const SOURCE: u64 = 0x1_0000;
/// Events taken from the kernel at once.
const EVENTS: usize = 16;

struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// The running workers of a device. Dropping them ends them.
pub struct Workers {
    all: Vec<Worker>,
    shared: Arc<Shared>,
}

impl Workers {
    /// Starts a thread for each handler. It serves until it is stopped or the device needs a reset.
    pub fn start(
        handlers: Vec<Box<dyn Handler>>,
        shared: &Arc<Shared>,
        filter: &Arc<Filter>,
    ) -> io::Result<Self> {
        let mut workers = Self {
            all: Vec::new(),
            shared: shared.clone(),
        };
        shared.set_halting(false);
        for handler in handlers {
            let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            let (stopped, shared, filter) = (stop.try_clone()?, shared.clone(), filter.clone());
            let thread = std::thread::Builder::new()
                .name(format!("dev-{}", shared.name()))
                .spawn(move || {
                    let watch = Watch(shared);
                    let served = filter
                        .apply()
                        .map_err(Fault::Host)
                        .and_then(|()| serve(handler, &watch.0, &stopped));
                    if let Err(fault) = served {
                        watch.0.fault(&fault);
                    }
                })?;
            workers.all.push(Worker {
                stop,
                thread: Some(thread),
            });
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.set_halting(true);
        let stopped: Vec<_> = self.all.iter().map(|w| w.stop.write(1).is_ok()).collect();
        for (worker, stopped) in self.all.iter_mut().zip(stopped) {
            if let (true, Some(thread)) = (stopped, worker.thread.take()) {
                // A panic in the thread was printed by its hook.
                let _ = thread.join();
            }
        }
    }
}

/// Tells the driver when the thread died of a mistake in the device model.
struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fault(&Fault::Setup("its thread died of a mistake in the VMM"));
        }
    }
}

fn serve(mut handler: Box<dyn Handler>, shared: &Shared, stop: &EventFd) -> Result<(), Fault> {
    let epoll = Epoll::new()?;
    let add = |fd: RawFd, events, data| {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
    };
    add(stop.as_raw_fd(), EventSet::IN, STOP)?;
    for (data, queue) in (DOORBELL..).zip(handler.queues()) {
        // Each ring is an edge, whatever the counter says: nobody has to read it.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        add(queue.doorbell().as_raw_fd(), events, data)?;
    }
    for (data, source) in (SOURCE..).zip(handler.sources()) {
        add(source.fd, source.events, data)?;
    }
    // Notifications that came before the thread did are not lost: each queue is looked at once.
    let queues: Vec<u16> = handler.queues().iter().map(|q| q.index()).collect();
    for queue in &queues {
        handler.doorbell(*queue)?;
    }
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        for event in &events[..count] {
            let data = event.data();
            // A mistake that another thread of the device found stops this one too.
            if data == STOP || shared.needs_reset() {
                return Ok(());
            }
            if data >= SOURCE {
                handler.event((data - SOURCE) as usize)?;
            } else if let Some(queue) = queues.get((data - DOORBELL) as usize) {
                shared.stats().notified();
                handler.doorbell(*queue)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::virtio::Source;
    use crate::virtio::queue::DeviceQueue;
    use crate::virtio::queue::tests::shared;

    const WORKING: u8 = 1;
    const GAVE_UP: u8 = 2;

    /// Works until it is told that somebody waits.
    struct Endless {
        shared: Arc<Shared>,
        start: EventFd,
        said: Arc<AtomicU8>,
    }

    impl Handler for Endless {
        fn sources(&self) -> Vec<Source> {
            vec![Source::readable(self.start.as_raw_fd())]
        }
        fn doorbell(&mut self, _: u16) -> Result<(), Fault> {
            Ok(())
        }
        fn event(&mut self, _: usize) -> Result<(), Fault> {
            self.said.store(WORKING, Ordering::SeqCst);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(300) {
                if self.shared.halting() {
                    self.said.store(GAVE_UP, Ordering::SeqCst);
                    break;
                }
                std::hint::spin_loop();
            }
            Ok(())
        }
        fn queues(&self) -> &[DeviceQueue] {
            &[]
        }
    }

    #[test]
    fn a26_who_works_for_long_hears_that_the_thread_is_to_end() {
        let shared = shared();
        let filter = Arc::new(Filter::device_worker(&[]).unwrap());
        for _ in 0..2 {
            let said = Arc::new(AtomicU8::new(0));
            let start = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            start.write(1).unwrap();
            let handler = Box::new(Endless {
                shared: shared.clone(),
                start,
                said: said.clone(),
            });
            let workers = Workers::start(vec![handler], &shared, &filter).unwrap();
            while said.load(Ordering::SeqCst) != WORKING {
                std::thread::yield_now();
            }
            drop(workers);
            assert_eq!(said.load(Ordering::SeqCst), GAVE_UP);
        }
    }
}
