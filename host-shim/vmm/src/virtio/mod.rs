//! virtio devices: the interface between a device and the modern PCI transport, and what both share.
//! Transport registers live in `transport`, queues in `queue` and `chain`, each device in its own module.
//! Source: Virtual I/O Device (VIRTIO) 1.2; `VIRTIO_F_SWIOTLB` as in host-shim/vmm/README.md (proposed, not ratified).

pub mod block;
pub mod chain;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
pub mod shared;
pub mod stats;
pub mod transport;
pub mod vsock;
pub mod window;
pub mod worker;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use self::queue::{DeviceQueue, Fault};
use self::shared::Shared;
use crate::seccomp::Right;

/// The mask of a feature bit.
pub const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// What every device offers besides its own features and SWIOTLB. Rings are split ones: virtio-queue has no packed
/// queue (0.18 knows the layout of their descriptors only).
pub const COMMON_FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_EVENT_IDX)
    | feature(VIRTIO_RING_F_INDIRECT_DESC);

/// Bits 32 to 41 and those of event suppression and indirect tables: of every virtio device (VIRTIO 1.3, chapter 6), or
/// of ours, whether we offer them or not.
pub const RESERVED_FEATURES: u64 = COMMON_FEATURES | 0x3ff << 32;

/// A device model, without its transport.
pub trait VirtioDevice: Send {
    /// virtio device id (VIRTIO 1.2, chapter 5).
    fn id(&self) -> u16;
    /// PCI class, subclass and programming interface.
    fn class(&self) -> [u8; 3];
    /// Most entries of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device's own feature bits.
    fn features(&self) -> u64 {
        0
    }
    /// Bytes of the device configuration.
    fn config_len(&self) -> usize {
        0
    }
    /// Reads it at `offset`; what lies beyond it stays as it is in `data`: zero. A device that changes it while the
    /// driver runs calls [`Shared::config_changed`].
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}
    /// The driver wrote to it. Most have nothing there that a driver may change.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}
    /// Bytes of pool for buffers, beside the rings.
    fn buffers(&self) -> BufferNeed;
    /// What the device's threads may ask of the kernel beside what all do.
    fn rights(&self) -> &'static [Right];
    /// The driver is ready: who serves the queues from now on, each handler in a thread of its own. Queues that the
    /// driver did not enable are missing. `features` were negotiated; the queues are dropped on reset.
    fn start(
        &mut self,
        features: u64,
        queues: Vec<DeviceQueue>,
        shared: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>>;
}

/// Copies from a configuration of these bytes, for [`VirtioDevice::read_config`].
pub fn read_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    let from = config.get(offset..).unwrap_or(&[]);
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Bytes of pool that a device's buffers take, for the size of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferNeed {
    /// Below this nothing goes.
    pub least: u64,
    /// With this its queues can be filled.
    pub usual: u64,
}

/// Bytes of pool that split rings of these sizes take: both parts of each in pages of their own.
pub fn rings_len(queue_sizes: &[u16]) -> u64 {
    let pages = |bytes: u64| bytes.next_multiple_of(porthole_abi::PAGE_SIZE);
    let ring = |entries: u64| pages(16 * entries + 6 + 2 * entries) + pages(6 + 8 * entries);
    queue_sizes.iter().map(|size| ring((*size).into())).sum()
}

/// A descriptor that a handler waits for.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The descriptor; it stays open as long as the handler lives.
    pub fd: RawFd,
    /// What to wait for.
    pub events: EventSet,
}

impl Source {
    /// Readable, said again until it is not.
    pub fn readable(fd: RawFd) -> Self {
        Self {
            fd,
            events: EventSet::IN,
        }
    }

    /// Says once what became possible (reading, or writing too), until it was tried in vain.
    pub fn edges(fd: RawFd, events: EventSet) -> Self {
        Self {
            fd,
            events: events | EventSet::EDGE_TRIGGERED,
        }
    }
}

/// Serves queues of a device in a worker thread.
pub trait Handler: Send {
    /// What to wait for beside the queues' doorbells; the position is the `source` of [`Handler::event`]. For a set
    /// that changes: an epoll descriptor of the handler's own.
    fn sources(&self) -> Vec<Source>;
    /// The driver rang the doorbell of queue `queue`; also called once for each queue before anything else.
    fn doorbell(&mut self, queue: u16) -> Result<(), Fault>;
    /// A source is ready.
    fn event(&mut self, source: usize) -> Result<(), Fault>;
    /// The queues, for their doorbells.
    fn queues(&self) -> &[DeviceQueue];
}
