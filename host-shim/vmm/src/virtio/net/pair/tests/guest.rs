//! A back end that remembers, and a guest's driver of the two queues.

use std::sync::Mutex;

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::*;
use crate::bus::lock;
use crate::virtio::queue::tests::{memories, shared};
use crate::virtio::window::tests::BASE;

pub const RX_BUFFERS: u64 = BASE + 0x1_0000;
pub const TX_BUFFER: u64 = BASE + 0x8_0000;
pub const ENTRIES: u16 = 16;
pub const MERGE: u64 = feature(VIRTIO_NET_F_MRG_RXBUF);

pub type Mock<'a> = MockSplitQueue<'a, GuestMemoryMmap>;

/// What the backend has, and has taken.
#[derive(Default)]
pub struct Wire {
    /// Frames for the guest.
    pub coming: VecDeque<Vec<u8>>,
    /// Tells their length beforehand, as a stream does, or not.
    pub knows_length: bool,
    pub gone: Vec<Vec<u8>>,
    /// Frames that it still takes.
    pub room: usize,
    pub flushes: usize,
}

pub struct Fake(pub Arc<Mutex<Wire>>);

impl Backend for Fake {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn watched(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn event(&mut self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &Header, frame: &[Slice<'_>]) -> std::io::Result<Sent> {
        let mut wire = lock(&self.0);
        if wire.room == 0 {
            return Ok(Sent::Full);
        }
        wire.room -= 1;
        let mut bytes = Vec::new();
        for part in frame {
            let start = bytes.len();
            bytes.resize(start + part.len(), 0);
            part.copy_to(&mut bytes[start..]);
        }
        wire.gone.push(bytes);
        Ok(Sent::Done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        lock(&self.0).flushes += 1;
        Ok(())
    }

    fn expect(&mut self) -> std::io::Result<Option<usize>> {
        let wire = lock(&self.0);
        let known = |frame: &Vec<u8>| {
            if wire.knows_length {
                HEADER_SIZE + frame.len()
            } else {
                HEADER_SIZE + 4096
            }
        };
        Ok(wire.coming.front().map(known))
    }

    fn receive(&mut self, room: &[Slice<'_>]) -> std::io::Result<Received> {
        let Some(frame) = lock(&self.0).coming.pop_front() else {
            return Ok(Received::Nothing);
        };
        let all = [&Header::default().0[..], &frame].concat();
        if room.iter().map(|part| part.len()).sum::<usize>() < all.len() {
            return Ok(Received::Dropped);
        }
        let mut left = &all[..];
        for part in room {
            let count = part.len().min(left.len());
            part.copy_from(&left[..count]);
            left = &left[count..];
        }
        Ok(Received::Frame(all.len()))
    }
}

pub struct Guest<'a> {
    pub driver: &'a GuestMemoryMmap,
    pub rx: Mock<'a>,
    pub tx: Mock<'a>,
    pub pair: Pair,
    pub wire: Arc<Mutex<Wire>>,
    pub shared: Arc<Shared>,
    /// Receive buffers by the head of their chain.
    pub posted: Vec<(u16, Vec<(u64, usize)>)>,
    pub next_buffer: u64,
    pub seen: u16,
}

pub fn with_guest(features: u64, test: impl FnOnce(Guest<'_>)) {
    let (driver, memory) = memories();
    let shared = shared();
    // The mock's rings overlap from half their length on, so that they are made twice as long.
    let rx = MockSplitQueue::create(&driver, GuestAddress(BASE), 2 * ENTRIES);
    let tx = MockSplitQueue::create(&driver, GuestAddress(BASE + 0x4000), 2 * ENTRIES);
    let queue = |mock: &Mock<'_>, index| {
        let mut rings: Queue = mock.create_queue().unwrap();
        rings.set_size(ENTRIES);
        let doorbell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        DeviceQueue::new(rings, index, memory.clone(), shared.clone(), doorbell, true)
    };
    let queues = vec![queue(&rx, 0), queue(&tx, 1)];
    let wire = Arc::new(Mutex::new(Wire {
        room: usize::MAX,
        knows_length: true,
        ..Wire::default()
    }));
    let backend = Box::new(Fake(wire.clone()));
    let pair = Pair::new(queues, 0, backend, None, features, &shared);
    test(Guest {
        driver: &driver,
        rx,
        tx,
        pair,
        wire,
        shared,
        posted: Vec::new(),
        next_buffer: RX_BUFFERS,
        seen: 0,
    });
}

pub fn descriptor(address: u64, length: usize, writable: bool) -> RawDescriptor {
    let flags = if writable {
        VRING_DESC_F_WRITE as u16
    } else {
        0
    };
    RawDescriptor::from(Descriptor::new(address, length as u32, flags, 0))
}

pub fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 3 + seed) as u8).collect()
}

impl Guest<'_> {
    /// Posts a receive buffer of these parts.
    pub fn post(&mut self, sizes: &[usize]) {
        let mut parts = Vec::new();
        for size in sizes {
            parts.push((self.next_buffer, *size));
            self.next_buffer += 0x1000;
        }
        // Free descriptors follow those of the chains before.
        let head: usize = self.posted.iter().map(|(_, parts)| parts.len()).sum();
        let head = head as u16 % ENTRIES;
        let chain: Vec<_> = parts
            .iter()
            .map(|(a, l)| descriptor(*a, *l, true))
            .collect();
        self.rx
            .add_desc_chains(&chained(chain, head), head)
            .unwrap();
        self.posted.push((head, parts));
    }

    /// The frames that arrived since, from used entries and headers.
    pub fn arrived(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while self.seen != self.rx.used().idx().load() {
            let mut bytes = Vec::new();
            let mut buffers = 1;
            let mut taken = 0;
            while taken < buffers {
                let place = usize::from(self.seen % ENTRIES);
                let entry = self.rx.used().ring().ref_at(place).unwrap().load();
                let (_, parts) = self
                    .posted
                    .iter()
                    .find(|(head, _)| u32::from(*head) == entry.id())
                    .unwrap()
                    .clone();
                let mut left = entry.len() as usize;
                for (address, size) in parts {
                    let start = bytes.len();
                    let count = left.min(size);
                    bytes.resize(start + count, 0);
                    self.driver
                        .read_slice(&mut bytes[start..], GuestAddress(address))
                        .unwrap();
                    left -= count;
                }
                assert_eq!(left, 0, "more is used than the buffer has");
                self.seen = self.seen.wrapping_add(1);
                taken += 1;
                if taken == 1 {
                    buffers = u16::from_le_bytes([bytes[NUM_BUFFERS], bytes[NUM_BUFFERS + 1]]);
                }
            }
            assert!(buffers >= 1);
            frames.push(bytes[HEADER_SIZE..].to_vec());
        }
        frames
    }

    pub fn come(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        lock(&self.wire).coming.extend(frames);
    }

    pub fn send(&mut self, parts: &[(u64, usize)], head: u16) {
        let chain: Vec<_> = parts
            .iter()
            .map(|(a, l)| descriptor(*a, *l, false))
            .collect();
        self.tx
            .add_desc_chains(&chained(chain, head), head)
            .unwrap();
    }

    pub fn lost(&self) -> u64 {
        self.shared.stats().snapshot().lost
    }
}

/// `add_desc_chains` wants the links.
pub fn chained(chain: Vec<RawDescriptor>, head: u16) -> Vec<RawDescriptor> {
    let last = chain.len() - 1;
    (0..)
        .zip(chain)
        .map(|(i, descriptor)| {
            let d = Descriptor::from(descriptor);
            let next = if i == last { 0 } else { 1 };
            RawDescriptor::from(Descriptor::new(
                d.addr().0,
                d.len(),
                d.flags() | next,
                head + i as u16 + 1,
            ))
        })
        .collect()
}
