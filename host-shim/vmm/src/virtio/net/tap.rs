//! TAP interfaces as the carrier of frames: opening them with errors that help, and one queue at work.
//! Frames go from the guest's memory to the kernel and back without a copy of ours; the kernel cuts and checks them.

use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use porthole_uapi::tap::{Offload, OpenError, TUN_DEVICE, Tap, bring_up};
use porthole_uapi::{read_vectored, write_vectored};
use vmm_sys_util::epoll::EventSet;

use super::backend::{Backend, Received, Sent};
use super::header::{HEADER_SIZE, Header};
use crate::bus::lock;
use crate::virtio::Source;
use crate::virtio::chain::Slice;

/// Most bytes of a frame that is to be cut: a whole IP packet and an Ethernet header with a VLAN tag.
const LONG_FRAME: usize = 65535 + 18;
/// Bytes around an IP packet in a frame.
const AROUND: usize = 18;
/// Parts that the kernel reads into at once (UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;
/// MTU of an interface that nobody changed.
const USUAL_MTU: u16 = 1500;

/// Why a TAP interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is none of this name.
    #[error(
        "there is no TAP interface {name}; make it with `ip tuntap add {name} mode tap{}`, or write tap={name},create",
        if *several { " multi_queue" } else { "" }
    )]
    Missing {
        /// As given.
        name: String,
        /// Several queues are wanted.
        several: bool,
    },
    /// An interface of another kind.
    #[error("{0} is no TAP interface; name one made with `ip tuntap add NAME mode tap`")]
    NotATap(String),
    /// No such device, or no right to open it.
    #[error("cannot open {TUN_DEVICE}: {0}; load the tun module and check the permissions")]
    Device(io::Error),
    /// The user may not.
    #[error(
        "no right to use the TAP interface {0}: run as a user with CAP_NET_ADMIN, or give it to this user with `ip tuntap add {0} mode tap user NAME`"
    )]
    NoRight(String),
    /// Somebody has it.
    #[error("the TAP interface {0} is in use by another process; end that one or name another")]
    Busy(String),
    /// It was made with other flags.
    #[error(
        "the TAP interface {name} was made {} multi_queue, which does not go with queues={queues}; make it anew or change queues",
        if *queues > 1 { "without" } else { "with" }
    )]
    Queues {
        /// As given.
        name: String,
        /// As asked for.
        queues: u16,
    },
    /// Anything else.
    #[error("cannot set up the TAP interface {name} ({step}): {source}")]
    Other {
        /// As given.
        name: String,
        /// The call that failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What is asked of one queue of an interface: the kernel's, or a test's. None of it blocks.
pub trait TapQueue: Debug + Send + Sync {
    /// Readable when there is a frame.
    fn fd(&self) -> RawFd;
    /// The next frame into `room`, behind its header: bytes read. The kernel cuts off what does not fit.
    fn read(&self, room: &[Slice<'_>]) -> io::Result<usize>;
    /// One frame to the interface: bytes written.
    fn write(&self, header: &Header, frame: &[Slice<'_>]) -> io::Result<usize>;
    /// As [`Tap::attach`].
    fn attach(&self, attach: bool) -> io::Result<()>;
    /// As [`Tap::set_offload`].
    fn set_offload(&self, offload: Offload) -> io::Result<()>;
}

impl TapQueue for Tap {
    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn read(&self, room: &[Slice<'_>]) -> io::Result<usize> {
        read_vectored(self, &mut [], room)
    }

    fn write(&self, header: &Header, frame: &[Slice<'_>]) -> io::Result<usize> {
        write_vectored(self, &header.0, frame)
    }

    fn attach(&self, attach: bool) -> io::Result<()> {
        self.attach(attach)
    }

    fn set_offload(&self, offload: Offload) -> io::Result<()> {
        self.set_offload(offload)
    }
}

/// An interface's queues, open.
#[derive(Debug)]
pub struct TapQueues {
    /// One for each pair.
    pub taps: Vec<Arc<dyn TapQueue>>,
    /// The kernel can cut UDP.
    pub uso: bool,
}

/// Opens `queues` queues of the interface `name`, and switches it on if it may. With `create`, an interface that does
/// not exist comes into being, and goes with the process.
pub fn open(name: &str, queues: u16, create: bool) -> Result<TapQueues, TapError> {
    let several = queues > 1;
    let place = Path::new("/sys/class/net").join(name);
    match (place.exists(), place.join("tun_flags").exists()) {
        (true, false) => return Err(TapError::NotATap(name.to_owned())),
        (false, _) if !create => {
            let name = name.to_owned();
            return Err(TapError::Missing { name, several });
        }
        _ => {}
    }
    let taps = (0..queues)
        .map(|_| -> Result<Arc<dyn TapQueue>, _> {
            Ok(Arc::new(Tap::open(name, several, HEADER_SIZE as u8)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| explain(name, queues, e))?;
    let uso = cuts_udp(&*taps[0]).map_err(|source| TapError::Other {
        name: name.to_owned(),
        step: "TUNSETOFFLOAD",
        source,
    })?;
    if let Err(e) = bring_up(name) {
        // Whoever prepared it for this user switches it on, too.
        tracing::info!("cannot switch {name} on: {e}");
    }
    Ok(TapQueues { taps, uso })
}

/// Whether the kernel can cut UDP: older ones refuse what they do not know. Afterwards nothing is asked for, until a driver
/// says what it can take.
fn cuts_udp(first: &dyn TapQueue) -> io::Result<bool> {
    let wish = Offload {
        checksum: true,
        uso: true,
        ..Offload::default()
    };
    let uso = first.set_offload(wish).is_ok();
    first.set_offload(Offload::default())?;
    Ok(uso)
}

pub(super) fn explain(name: &str, queues: u16, error: OpenError) -> TapError {
    let name = name.to_owned();
    match (error.step, error.source.raw_os_error()) {
        (TUN_DEVICE, _) => TapError::Device(error.source),
        (_, Some(libc::EPERM)) => TapError::NoRight(name),
        (_, Some(libc::EBUSY)) => TapError::Busy(name),
        (_, Some(libc::EINVAL)) => TapError::Queues { name, queues },
        (step, _) => TapError::Other {
            name,
            step,
            source: error.source,
        },
    }
}

/// Which queues of an interface take part in its traffic: the kernel spreads frames over those that do.
#[derive(Debug)]
pub struct Steering {
    taps: Vec<Arc<dyn TapQueue>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    active: usize,
    queues: Vec<QueueState>,
}

#[derive(Clone, Copy, Debug)]
struct QueueState {
    attached: bool,
    /// Its worker waits for it. A queue that is detached before that never wakes anybody again.
    watched: bool,
}

impl Steering {
    /// All queues are attached, as they were opened.
    pub fn new(taps: Vec<Arc<dyn TapQueue>>) -> Self {
        let fresh = QueueState {
            attached: true,
            watched: false,
        };
        let queues = vec![fresh; taps.len()];
        let state = Mutex::new(State { active: 1, queues });
        Self { taps, state }
    }

    /// Before a device starts, none of whose workers runs yet: one queue is active.
    pub fn restart(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.active = 1;
        for (tap, queue) in self.taps.iter().zip(&mut state.queues) {
            if !queue.attached {
                tap.attach(true)?;
            }
            *queue = QueueState {
                attached: true,
                watched: false,
            };
        }
        Ok(())
    }

    /// The worker of a queue waits for it, or will never run.
    pub fn watched(&self, index: usize) -> io::Result<()> {
        let mut state = lock(&self.state);
        if let Some(queue) = state.queues.get_mut(index) {
            queue.watched = true;
        }
        self.settle(&mut state)
    }

    /// The first `count` queues are active from now on.
    pub fn set_active(&self, count: usize) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.active = count;
        self.settle(&mut state)
    }

    fn settle(&self, state: &mut State) -> io::Result<()> {
        let active = state.active;
        for (index, (tap, queue)) in self.taps.iter().zip(&mut state.queues).enumerate() {
            let wanted = index < active;
            if queue.watched && queue.attached != wanted {
                tap.attach(wanted)?;
                queue.attached = wanted;
            }
        }
        Ok(())
    }

    /// What the guest can take.
    pub fn set_offload(&self, offload: Offload) -> io::Result<()> {
        self.taps[0].set_offload(offload)
    }
}

/// One queue at work.
pub struct TapBackend {
    tap: Arc<dyn TapQueue>,
    index: usize,
    steering: Arc<Steering>,
    /// Bytes that a frame from the kernel may have.
    longest: usize,
    /// There may be a frame.
    readable: bool,
}

impl TapBackend {
    /// `long`: the guest takes frames that are still to be cut.
    pub fn new(steering: Arc<Steering>, index: usize, long: bool, mtu: Option<u16>) -> Self {
        let frame = usize::from(mtu.unwrap_or(USUAL_MTU)) + AROUND;
        Self {
            tap: steering.taps[index].clone(),
            index,
            steering,
            longest: if long { LONG_FRAME } else { frame },
            readable: true,
        }
    }

    /// `EBADFD` says that the queue is detached; any event after attaching says more.
    fn stopped(error: &io::Error) -> bool {
        error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EBADFD)
    }
}

impl Backend for TapBackend {
    fn sources(&self) -> Vec<Source> {
        vec![Source::edges(self.tap.fd(), EventSet::IN)]
    }

    fn watched(&mut self) -> io::Result<()> {
        self.steering.watched(self.index)
    }

    fn event(&mut self, _: usize) -> io::Result<()> {
        self.readable = true;
        Ok(())
    }

    fn send(&mut self, header: &Header, frame: &[Slice<'_>]) -> io::Result<Sent> {
        // What the kernel does not take (a malformed header, no memory, the interface is off) is lost, as on a wire.
        Ok(match self.tap.write(header, frame) {
            Ok(_) => Sent::Done,
            Err(_) => Sent::Dropped,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn expect(&mut self) -> io::Result<Option<usize>> {
        Ok(self.readable.then_some(HEADER_SIZE + self.longest))
    }

    fn receive(&mut self, room: &[Slice<'_>]) -> io::Result<Received> {
        let room = &room[..room.len().min(VECTORS_MAX)];
        let bytes: usize = room.iter().map(|part| part.len()).sum();
        match self.tap.read(room) {
            Ok(count) if count < HEADER_SIZE => Ok(Received::Dropped),
            // The kernel cuts off what does not fit, and does not say so.
            Ok(count) if count == bytes && bytes < HEADER_SIZE + self.longest => {
                Ok(Received::Dropped)
            }
            Ok(count) => Ok(Received::Frame(count)),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(e) if Self::stopped(&e) => {
                self.readable = false;
                Ok(Received::Nothing)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests;
