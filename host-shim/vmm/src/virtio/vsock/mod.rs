//! virtio-vsock: sockets between the guest and Unix sockets of the host.
//! Here are the device and its queues; connections are in `hub` and `connection`, packets in `packet`.
//! Source: VIRTIO 1.2, 5.10.

mod connection;
mod credit;
mod hub;
mod packet;

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use self::hub::Hub;
pub use self::hub::{CONNECTIONS_MAX, HubStats};
use self::packet::{HEADER_SIZE, Header};
use super::chain::Chain;
use super::queue::{DeviceQueue, Fault};
use super::shared::Shared;
use super::{BufferNeed, Handler, Source, VirtioDevice, feature, read_bytes};
use crate::seccomp::Right;

const ID: u16 = 19;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// Few packets to send at once, so that the window has room for all of them. The credit of one connection is four.
const QUEUE_SIZES: [u16; 3] = [128, 16, 8];
/// Bytes that the guest takes from its window at once, for however little.
const SLOT: u64 = 2048;
/// Bytes of window for a receive buffer of Linux: most of a page.
const RECEIVE_BUFFER: u64 = 4096;
/// Bytes of window for the longest packet that Linux sends: 64 KiB, its header, its indirect table.
const PACKET: u64 = (64 << 10) + 2 * SLOT;
/// Packets in one direction before the other one, and whoever wants the thread to end, get their turn.
const TURN: usize = 256;
/// VIRTIO_VSOCK_F_STREAM: stream sockets, and no others.
const F_STREAM: u32 = 0;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, as it stands in an event buffer.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();
/// Bytes of the longest path: a Unix socket's address less the zero and `_4294967295`.
pub const PATH_MAX: usize = 108 - 1 - 11;
/// Context ids for guests: 0 to 2 and the highest mean something else.
pub const CIDS: std::ops::Range<u32> = 3..u32::MAX;

const RIGHTS: &[Right] = &[
    Right::call(libc::SYS_readv),
    Right::call(libc::SYS_writev),
    Right::call(libc::SYS_recvfrom),
    Right::call(libc::SYS_sendto),
    Right::call(libc::SYS_accept4),
    Right::if_value(libc::SYS_socket, 0, libc::AF_UNIX as u32),
    Right::call(libc::SYS_connect),
    Right::call(libc::SYS_shutdown),
    // Only to make an accepted socket not block.
    Right::if_value(libc::SYS_ioctl, 1, libc::FIONBIO as u32),
];

/// Why the device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The path does not fit a socket's address.
    #[error(
        "vsock path {path} has {length} bytes; at most {PATH_MAX} go into a socket's address, with _PORT behind it"
    )]
    TooLong {
        /// As given.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Somebody else's socket, or none.
    #[error(
        "vsock path {0} is in use: another process listens there, or it is no socket; choose another path"
    )]
    InUse(PathBuf),
    /// The system's refusal.
    #[error("cannot make the vsock socket {path}: {source}; check its folder and permissions")]
    Bind {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The device.
pub struct Vsock {
    cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
    stats: Arc<HubStats>,
    /// A driver ran the device before.
    started: bool,
}

impl Vsock {
    /// A device whose guest is `cid`, with the host's socket at `path`. A socket that nobody listens at is replaced.
    pub fn new(cid: u32, path: &Path) -> Result<Self, VsockError> {
        let length = path.as_os_str().len();
        if length > PATH_MAX {
            return Err(VsockError::TooLong {
                path: path.to_owned(),
                length,
            });
        }
        Ok(Self {
            cid: cid.into(),
            path: path.to_owned(),
            listener: Arc::new(listen(path)?),
            stats: Arc::default(),
            started: false,
        })
    }

    /// Counters of its connections.
    pub fn stats(&self) -> Arc<HubStats> {
        self.stats.clone()
    }
}

fn listen(path: &Path) -> Result<UnixListener, VsockError> {
    crate::unix::listen(path).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => VsockError::InUse(path.to_owned()),
        _ => VsockError::Bind {
            path: path.to_owned(),
            source,
        },
    })
}

impl Drop for Vsock {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::debug!("vsock: cannot remove {}: {e}", self.path.display());
        }
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        // Simple communication controller, other.
        [0x07, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature(F_STREAM)
    }

    fn config_len(&self) -> usize {
        size_of_val(&self.cid)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn buffers(&self) -> BufferNeed {
        // Linux fills the receive queue first, before it sends anything: with less it would never find room to send.
        let posted = u64::from(QUEUE_SIZES[0]) * RECEIVE_BUFFER + u64::from(QUEUE_SIZES[2]) * SLOT;
        BufferNeed {
            least: posted + PACKET,
            // Those that were taken stay in the window until the guest has looked after them, whatever the credit.
            usual: posted + u64::from(QUEUE_SIZES[1]) * PACKET,
        }
    }

    fn rights(&self) -> &'static [Right] {
        RIGHTS
    }

    fn start(
        &mut self,
        _: u64,
        queues: Vec<DeviceQueue>,
        _: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        let (path, listener) = (self.path.clone(), self.listener.clone());
        let hub = Hub::new(self.cid, path, listener, self.stats.clone())?;
        let reset_due = std::mem::replace(&mut self.started, true);
        Ok(vec![Box::new(Port {
            queues,
            hub,
            reset_due,
        })])
    }
}

/// The device at work.
struct Port {
    queues: Vec<DeviceQueue>,
    hub: Hub,
    /// Connections of an earlier run are gone: the driver is to be told, in case it kept its sockets.
    reset_due: bool,
}

fn find(queues: &mut [DeviceQueue], index: u16) -> Option<&mut DeviceQueue> {
    queues.iter_mut().find(|q| q.index() == index)
}

impl Port {
    /// Packets of the guest to the hub, while there are any.
    fn transmit(&mut self) -> Result<(), Fault> {
        let Some(queue) = find(&mut self.queues, TRANSMIT) else {
            return Ok(());
        };
        queue.serve(TURN, |queue, chain| {
            take_packet(queue, chain, &mut self.hub)?;
            Ok(Some(0))
        })
    }

    /// Packets of the hub to the guest, while there are packets and buffers.
    fn receive(&mut self) -> Result<(), Fault> {
        let Some(queue) = find(&mut self.queues, RECEIVE) else {
            return Ok(());
        };
        let mut used = false;
        let mut turn = 0..TURN;
        while self.hub.has_packets() {
            if turn.next().is_none() {
                queue.again();
                break;
            }
            let Some(chain) = queue.pop()? else {
                // With this its doorbell will be rung, and no buffer comes unseen before.
                if queue.enable_notification()? {
                    continue;
                }
                break;
            };
            match give_packet(queue, &chain, &mut self.hub)? {
                Some(length) => {
                    queue.complete(chain, length)?;
                    used = true;
                }
                None => queue.undo_pop(chain),
            }
        }
        if used { queue.notify() } else { Ok(()) }
    }

    fn tell_reset(&mut self) -> Result<(), Fault> {
        let Some(queue) = find(&mut self.queues, EVENT).filter(|_| self.reset_due) else {
            return Ok(());
        };
        let Some(chain) = queue.pop()? else {
            return Ok(());
        };
        let written = chain
            .write(queue.memory(), 0, &TRANSPORT_RESET)
            .map_err(|error| queue.broken(error))?;
        queue.complete(chain, written as u32)?;
        self.reset_due = false;
        queue.notify()
    }
}

/// One packet of the guest.
fn take_packet(queue: &DeviceQueue, chain: &Chain, hub: &mut Hub) -> Result<(), Fault> {
    let memory = queue.memory();
    let broken = |error| queue.broken(error);
    // The header is copied once; the guest may change it afterwards as it likes.
    let mut header = Header::new_zeroed();
    let read = chain
        .read(memory, 0, header.as_mut_bytes())
        .map_err(broken)?;
    if read < HEADER_SIZE {
        return Err(Fault::Setup("a packet is shorter than its header"));
    }
    let length = header.len.get() as usize;
    let parts = chain
        .readable_slices(memory, HEADER_SIZE as u32, length)
        .collect::<Result<Vec<_>, _>>()
        .map_err(broken)?;
    hub.receive(&header, &parts);
    Ok(())
}

/// One packet for the guest into the buffers of `chain`: bytes written, if there was one.
fn give_packet(queue: &DeviceQueue, chain: &Chain, hub: &mut Hub) -> Result<Option<u32>, Fault> {
    let memory = queue.memory();
    let broken = |error| queue.broken(error);
    if chain.writable_len() < HEADER_SIZE as u32 {
        return Err(Fault::Setup("a receive buffer is shorter than a header"));
    }
    let room = chain
        .writable_slices(memory, HEADER_SIZE as u32, usize::MAX)
        .collect::<Result<Vec<_>, _>>()
        .map_err(broken)?;
    let Some(header) = hub.send(&room) else {
        return Ok(None);
    };
    chain.write(memory, 0, header.as_bytes()).map_err(broken)?;
    Ok(Some(HEADER_SIZE as u32 + header.len.get()))
}

impl Handler for Port {
    fn sources(&self) -> Vec<Source> {
        vec![Source::readable(self.hub.descriptor())]
    }

    fn doorbell(&mut self, queue: u16) -> Result<(), Fault> {
        match queue {
            TRANSMIT => self.transmit()?,
            EVENT => return self.tell_reset(),
            _ => {}
        }
        self.receive()
    }

    fn event(&mut self, _: usize) -> Result<(), Fault> {
        self.hub.poll()?;
        self.receive()
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

#[cfg(test)]
mod tests;
