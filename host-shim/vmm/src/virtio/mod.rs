//! virtio devices: the interface between a device and the modern PCI transport, and what both share.
//! Transport registers live in `transport`, queues in `queue` and `chain`, each device in its own module.
//! Source: Virtual I/O Device (VIRTIO) 1.2; `VIRTIO_F_SWIOTLB` as in docs (proposed, not ratified).

pub mod chain;
pub mod console;
pub mod queue;
pub mod shared;
pub mod transport;
pub mod window;
pub mod worker;

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::queue::{DeviceQueue, Fault};

/// The mask of a feature bit.
pub const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// What every device offers besides its own features and SWIOTLB.
pub const COMMON_FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_EVENT_IDX)
    | feature(VIRTIO_RING_F_INDIRECT_DESC);

/// A device model, without its transport.
pub trait VirtioDevice: Send {
    /// virtio device id (VIRTIO 1.2, chapter 5).
    fn id(&self) -> u16;
    /// PCI class, subclass and programming interface.
    fn class(&self) -> [u8; 3];
    /// Most entries of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device's own feature bits.
    fn features(&self) -> u64;
    /// The device configuration, as long as it is; what lies beyond reads as zero.
    fn config(&self) -> &[u8];
    /// The driver wrote to the device configuration.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// The driver is ready: what serves the queues from now on, in a thread of its own. `features` were negotiated.
    fn start(&mut self, features: u64, queues: Vec<DeviceQueue>) -> io::Result<Box<dyn Handler>>;
}

/// Serves a device's queues in the worker thread.
pub trait Handler: Send {
    /// Descriptors to wait for beside the queues' doorbells; the position is the `source` of [`Handler::event`].
    fn sources(&self) -> Vec<RawFd>;
    /// The driver rang the doorbell of queue `queue`.
    fn doorbell(&mut self, queue: u16) -> Result<(), Fault>;
    /// A source is readable.
    fn event(&mut self, source: usize) -> Result<(), Fault>;
    /// The queues, for their doorbells.
    fn queues(&self) -> &[DeviceQueue];
}
