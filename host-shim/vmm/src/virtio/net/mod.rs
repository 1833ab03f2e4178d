//! virtio-net: Ethernet frames between the guest and a TAP interface or a stream of frames.
//! Here is the device: features, configuration, who serves which queue. Queues are served in `pair` and `control`,
//! frames carried by `tap` and `stream`. Source: VIRTIO 1.2, 5.1.

mod backend;
mod control;
mod header;
mod pair;
mod passt;
mod stream;
mod tap;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::backend::Backend;
use self::control::{Control, GUEST_OFFLOADS, offload};
use self::pair::Pair;
pub use self::passt::Forward;
use self::passt::{PasstError, PasstOptions};
use self::stream::{Stream, StreamBackend, StreamError};
use self::tap::{Steering, TapBackend, TapError, TapQueues};
use super::queue::DeviceQueue;
use super::shared::Shared;
use super::{BufferNeed, Handler, VirtioDevice, feature, read_bytes};
use crate::bus::lock;
use crate::seccomp::Right;

const ID: u16 = 1;
/// Entries of a receive or transmit queue, unless the user says otherwise.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 16;
/// Bytes of window for a receive buffer of Linux, which posts most of a page once long packets have come.
const BUFFER: u64 = 4096;
/// Bytes of window for a packet that is to be cut: 64 KiB, and a slot for what is in front of it.
const LONG: u64 = (64 << 10) + 2048;
/// Such packets on their way out at once: with these two MiB are full.
const LONG_IN_FLIGHT: u64 = 15;

/// Every offload that a TAP interface has, but for cutting UDP.
const TAP_FEATURES: u64 = feature(VIRTIO_NET_F_CSUM)
    | feature(VIRTIO_NET_F_HOST_TSO4)
    | feature(VIRTIO_NET_F_HOST_TSO6)
    | feature(VIRTIO_NET_F_HOST_ECN)
    | GUEST_OFFLOADS & !USO
    | feature(VIRTIO_NET_F_CTRL_VQ)
    | feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
const USO: u64 = feature(VIRTIO_NET_F_GUEST_USO4)
    | feature(VIRTIO_NET_F_GUEST_USO6)
    | feature(VIRTIO_NET_F_HOST_USO);
/// The driver takes frames that are still to be cut.
const GUEST_LONG: u64 = feature(VIRTIO_NET_F_GUEST_TSO4)
    | feature(VIRTIO_NET_F_GUEST_TSO6)
    | feature(VIRTIO_NET_F_GUEST_USO4)
    | feature(VIRTIO_NET_F_GUEST_USO6);

const TAP_RIGHTS: &[Right] = &[
    Right::call(libc::SYS_readv),
    Right::call(libc::SYS_writev),
    Right::if_value(libc::SYS_ioctl, 1, TUNSETOFFLOAD),
    Right::if_value(libc::SYS_ioctl, 1, TUNSETQUEUE),
];
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETQUEUE: u32 = 0x4004_54d9;

const STREAM_RIGHTS: &[Right] = &[
    // `std` writes to a socket with sendto and reads with recvfrom.
    Right::call(libc::SYS_recvfrom),
    Right::call(libc::SYS_sendto),
    Right::call(libc::SYS_accept4),
    Right::if_value(libc::SYS_ioctl, 1, libc::FIONBIO as u32),
];

/// Why a network device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The TAP interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The socket.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Queues that have no TAP interface.
    #[error("queues={0} needs tap=NAME: other networks have one stream of frames; leave it out")]
    Queues(u16),
    /// Something of the operating system.
    #[error("cannot set up the network device: {0}")]
    System(#[from] io::Error),
}

/// What a network device is like, whoever carries its frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetOptions {
    /// Its address; a random one otherwise.
    pub mac: Option<[u8; 6]>,
    /// Pairs of queues, 1 if not said.
    pub queues: Option<u16>,
    /// Entries of each queue, a power of two.
    pub queue_size: Option<u16>,
    /// The longest packets, as the guest is told.
    pub mtu: Option<u16>,
}

enum Carrier {
    Tap(Arc<Steering>),
    Stream(Arc<Mutex<Stream>>),
}

/// The device.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    pairs: u16,
    queue_sizes: Vec<u16>,
    features: u64,
    carrier: Carrier,
    up: Arc<AtomicBool>,
}

impl Net {
    /// Over the TAP interface `name`; with `create` it need not exist.
    pub fn tap(name: &str, create: bool, options: NetOptions) -> Result<Self, NetError> {
        let pairs = options.queues.unwrap_or(1);
        Self::over_tap(tap::open(name, pairs, create)?, options)
    }

    fn over_tap(opened: TapQueues, options: NetOptions) -> Result<Self, NetError> {
        let uso = if opened.uso { USO } else { 0 };
        let steering = Steering::new(opened.taps);
        let carrier = Carrier::Tap(Arc::new(steering));
        Self::new(carrier, TAP_FEATURES | uso, options)
    }

    /// Through passt, which is started for it. `tcp` and `udp`: ports of the host that lead to the guest.
    pub fn user(options: NetOptions, tcp: &[Forward], udp: &[Forward]) -> Result<Self, NetError> {
        let options = one_pair(options)?;
        let mtu = options.mtu.unwrap_or(passt::MTU);
        let socket = passt::start(PasstOptions { mtu, tcp, udp })?;
        let options = NetOptions {
            mtu: Some(mtu),
            ..options
        };
        Self::over(Stream::connected(socket)?, options)
    }

    /// Over the Unix stream socket at `path`, which somebody listens at, or this process with `listen`.
    pub fn socket(path: &Path, listen: bool, options: NetOptions) -> Result<Self, NetError> {
        let options = one_pair(options)?;
        let stream = if listen {
            Stream::listen(path)?
        } else {
            Stream::connect(path)?
        };
        Self::over(stream, options)
    }

    /// Over a stream socket whose other side is there already.
    pub fn connected(socket: UnixStream, options: NetOptions) -> Result<Self, NetError> {
        Self::over(Stream::connected(socket)?, one_pair(options)?)
    }

    fn over(stream: Stream, options: NetOptions) -> Result<Self, NetError> {
        Self::new(Carrier::Stream(Arc::new(Mutex::new(stream))), 0, options)
    }

    fn new(carrier: Carrier, features: u64, options: NetOptions) -> Result<Self, NetError> {
        let pairs = options.queues.unwrap_or(1);
        let size = options.queue_size.unwrap_or(QUEUE_SIZE);
        let mut queue_sizes = vec![size; 2 * usize::from(pairs)];
        let mut features = features
            | feature(VIRTIO_NET_F_MAC)
            | feature(VIRTIO_NET_F_STATUS)
            | feature(VIRTIO_NET_F_MRG_RXBUF);
        if features & feature(VIRTIO_NET_F_CTRL_VQ) != 0 {
            queue_sizes.push(CONTROL_SIZE);
        }
        if pairs > 1 {
            features |= feature(VIRTIO_NET_F_MQ);
        }
        if options.mtu.is_some() {
            features |= feature(VIRTIO_NET_F_MTU);
        }
        let up = match &carrier {
            Carrier::Tap(_) => true,
            Carrier::Stream(stream) => lock(stream).up(),
        };
        Ok(Self {
            mac: match options.mac {
                Some(mac) => mac,
                None => random_mac()?,
            },
            mtu: options.mtu,
            pairs,
            queue_sizes,
            features,
            carrier,
            up: Arc::new(AtomicBool::new(up)),
        })
    }

    fn backend(&self, index: u16, features: u64, shared: &Arc<Shared>) -> Box<dyn Backend> {
        match &self.carrier {
            Carrier::Tap(steering) => Box::new(TapBackend::new(
                steering.clone(),
                index.into(),
                features & GUEST_LONG != 0,
                self.mtu,
            )),
            Carrier::Stream(stream) => {
                let (up, shared) = (self.up.clone(), shared.clone());
                let on_link = move |is_up| {
                    up.store(is_up, Ordering::SeqCst);
                    shared.config_changed();
                };
                Box::new(StreamBackend::new(stream.clone(), Box::new(on_link)))
            }
        }
    }
}

/// Options of a device that has a single stream of frames.
fn one_pair(options: NetOptions) -> Result<NetOptions, NetError> {
    match options.queues {
        None | Some(1) => Ok(options),
        Some(more) => Err(NetError::Queues(more)),
    }
}

/// An address for a device that got none: locally administered, of one device.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & !1 | 2;
    Ok(mac)
}

impl VirtioDevice for Net {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        // Network controller, Ethernet.
        [0x02, 0x00, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_len(&self) -> usize {
        // mac, status, max_virtqueue_pairs, mtu.
        12
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 12];
        let up = self.up.load(Ordering::SeqCst);
        let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn buffers(&self) -> BufferNeed {
        let pairs = u64::from(self.pairs);
        let size = u64::from(self.queue_sizes[0]);
        // Linux fills the receive queue before it sends anything: with less it would find no room to send.
        BufferNeed {
            least: pairs * (size * BUFFER + LONG),
            usual: pairs * (size * BUFFER + LONG_IN_FLIGHT * LONG),
        }
    }

    fn rights(&self) -> &'static [Right] {
        match self.carrier {
            Carrier::Tap(_) => TAP_RIGHTS,
            Carrier::Stream(_) => STREAM_RIGHTS,
        }
    }

    fn start(
        &mut self,
        features: u64,
        mut queues: Vec<DeviceQueue>,
        shared: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        let has = |bit| features & feature(bit) != 0;
        // Without MQ the control queue is behind the first pair (VIRTIO 1.2, 5.1.2).
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs } else { 1 };
        let mut control = None;
        if let Carrier::Tap(steering) = &self.carrier {
            steering.restart()?;
            steering.set_offload(offload(features))?;
            if has(VIRTIO_NET_F_CTRL_VQ) {
                control = Some(Control::new(steering.clone(), features, pairs));
            }
        }
        let mut handlers: Vec<Box<dyn Handler>> = Vec::new();
        for index in 0..self.pairs {
            let first = 2 * index;
            let mine: Vec<_> = queues
                .extract_if(.., |queue| {
                    let number = queue.index();
                    index < pairs
                        && (number / 2 == index && number < 2 * pairs
                            || index == 0 && number == 2 * pairs)
                })
                .collect();
            let served = mine.iter().any(|queue| queue.index() == first);
            if let (Carrier::Tap(steering), false) = (&self.carrier, served) {
                // No worker will ever wait for it.
                steering.watched(index.into())?;
            }
            if !mine.is_empty() {
                let backend = self.backend(index, features, shared);
                let control = control.take();
                let pair = Pair::new(mine, index, backend, control, features, shared);
                handlers.push(Box::new(pair));
            }
        }
        Ok(handlers)
    }
}

#[cfg(test)]
mod tests;
