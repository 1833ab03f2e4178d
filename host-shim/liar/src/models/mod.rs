//! Device models as small as their drivers allow, each with the lies of its kind. They answer at once and keep
//! nothing that a driver could wait for; queues are `device`'s.

mod console;
mod disk;
mod net;
mod rng;
mod vsock;

use crate::lie::Lie;

/// What a model makes of a request.
#[derive(Default)]
pub struct Answer {
    /// Offsets in the writable buffers, and what is written there.
    pub writes: Vec<(u32, Vec<u8>)>,
    /// How many bytes that is, as an honest device reports it.
    pub written: u32,
    /// What is put into buffers of other queues.
    pub says: Vec<(u16, Vec<u8>)>,
    /// The driver is told that the configuration changed.
    pub config_changed: bool,
}

impl Answer {
    /// Bytes from the first on, and nothing else.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            written: bytes.len() as u32,
            writes: vec![(0, bytes)],
            ..Self::default()
        }
    }
}

/// A device but for its queues.
pub trait Model: Send {
    /// virtio device id.
    fn id(&self) -> u16;
    /// PCI class, subclass and programming interface.
    fn class(&self) -> [u8; 3];
    /// Entries of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// The device's own feature bits.
    fn features(&self) -> u64;
    /// The configuration.
    fn config(&self, lie: &Lie) -> Vec<u8>;
    /// Whether buffers of the queue wait for what another queue brings.
    fn keeps(&self, queue: u16) -> bool;
    /// Whether lies about the used ring are told on the queue.
    fn lies_on(&self, queue: u16) -> bool;
    /// The driver starts the device.
    fn restart(&mut self) {}
    /// Answers a request; `room`: bytes of its writable buffers.
    fn serve(&mut self, lie: &Lie, queue: u16, request: &[u8], room: u32) -> Answer;
}

/// A disk.
pub fn disk() -> Box<dyn Model> {
    Box::new(disk::Disk::new())
}

/// An entropy device.
pub fn rng() -> Box<dyn Model> {
    Box::new(rng::Rng::default())
}

/// A console with ports.
pub fn console() -> Box<dyn Model> {
    Box::new(console::Console)
}

/// A network device.
pub fn net() -> Box<dyn Model> {
    Box::new(net::Net)
}

/// A socket device.
pub fn vsock() -> Box<dyn Model> {
    Box::new(vsock::Vsock::default())
}

/// Little-endian number of `N` bytes at `at`; zero where there are not so many.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + N).unwrap_or(&[]);
    field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
