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
pub struct Workers(Vec<Worker>);

impl Workers {
    /// Starts a thread for each handler. It serves until it is stopped or the device needs a reset.
    pub fn start(
        handlers: Vec<Box<dyn Handler>>,
        shared: &Arc<Shared>,
        filter: &Arc<Filter>,
    ) -> io::Result<Self> {
        let mut all = Self(Vec::new());
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
            all.0.push(Worker {
                stop,
                thread: Some(thread),
            });
        }
        Ok(all)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let stopped: Vec<_> = self.0.iter().map(|w| w.stop.write(1).is_ok()).collect();
        for (worker, stopped) in self.0.iter_mut().zip(stopped) {
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
