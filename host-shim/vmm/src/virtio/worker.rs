//! The thread that serves one device: an event loop over doorbells and the device's own sources, under seccomp.
//! It starts when the driver is ready and ends with the device's reset or the VM.
//! What is done on an event is the device's `Handler`.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use super::Handler;
use super::queue::Fault;
use super::shared::Shared;
use crate::seccomp::Filter;

/// Event data: the transport wants the thread to end.
const STOP: u32 = 0;
/// Event data of the first doorbell.
const DOORBELL: u32 = 1;
/// Event data of the device's first source.
const SOURCE: u32 = 0x1_0000;

/// A running worker.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that serves `handler` until it is stopped or the guest breaks the rules.
    pub fn start(
        handler: Box<dyn Handler>,
        shared: Arc<Shared>,
        filter: Arc<Filter>,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let subscriber = Subscriber {
            handler,
            shared: shared.clone(),
            stop: stop.try_clone()?,
            running: true,
        };
        let thread = std::thread::Builder::new()
            .name(format!("dev-{}", shared.name()))
            .spawn(move || {
                let watch = Watch(shared);
                if let Err(e) = filter.apply().and_then(|()| serve(subscriber)) {
                    watch.0.fault(&Fault::Host(e));
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let stopped = self.stop.write(1);
        if let (Ok(()), Some(thread)) = (stopped, self.thread.take()) {
            // A panic in the thread was printed by its hook.
            let _ = thread.join();
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

fn serve(subscriber: Subscriber) -> io::Result<()> {
    let mut manager = EventManager::new().map_err(io::Error::other)?;
    let id = manager.add_subscriber(subscriber);
    loop {
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(io::Error::other(e)),
        }
        let subscriber = manager.subscriber_mut(id).map_err(io::Error::other)?;
        if !subscriber.running {
            return Ok(());
        }
    }
}

struct Subscriber {
    handler: Box<dyn Handler>,
    shared: Arc<Shared>,
    stop: EventFd,
    running: bool,
}

impl Subscriber {
    fn settle(&mut self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.shared.fault(&fault);
            self.running = false;
        }
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps) {
        let mut add = |events| ops.add(events).map_err(io::Error::other);
        let mut all = add(Events::with_data(&self.stop, STOP, EventSet::IN));
        for (data, queue) in (DOORBELL..).zip(self.handler.queues()) {
            let events = Events::with_data(queue.doorbell(), data, EventSet::IN);
            all = all.and_then(|()| add(events));
        }
        for (data, source) in (SOURCE..).zip(self.handler.sources()) {
            let events = Events::with_data_raw(source, data, EventSet::IN);
            all = all.and_then(|()| add(events));
        }
        self.settle(all.map_err(Fault::Host));
        // Notifications that came before the thread did are not lost: each queue is looked at once.
        for queue in 0..self.handler.queues().len() {
            if self.running {
                let index = self.handler.queues()[queue].index();
                let result = self.handler.doorbell(index);
                self.settle(result);
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let data = events.data();
        if data == STOP {
            self.running = false;
        }
        if !self.running {
            return;
        }
        let result = if data >= SOURCE {
            self.handler.event((data - SOURCE) as usize)
        } else {
            let queues = self.handler.queues();
            match queues.get((data - DOORBELL) as usize) {
                Some(queue) => {
                    // Level-triggered: empty the counter, whoever filled it.
                    let _ = queue.doorbell().read();
                    let index = queue.index();
                    self.handler.doorbell(index)
                }
                None => Ok(()),
            }
        };
        self.settle(result);
    }
}
