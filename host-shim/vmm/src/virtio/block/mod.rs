//! virtio-blk (VIRTIO 1.2, 5.2): the device, its configuration, and the thread that serves each of its queues.
//! What a request means is in `request`, where the bytes are in `raw` and `qcow2`. Data goes between the window and
//! the image without a copy in between where the backend can do that.

pub mod disk;
pub mod qcow2;
pub mod raw;
mod request;

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::disk::Disk;
use self::request::{ID_LEN, Limits, RANGE_SECTORS_MAX, RANGES_MAX, Server};
use super::queue::{DeviceQueue, Fault};
use super::shared::Shared;
use super::{BufferNeed, Handler, Source, VirtioDevice, feature, read_bytes};
use crate::seccomp::Right;

const ID: u16 = 2;
/// Bytes of a sector, whatever the image's blocks are (VIRTIO 1.2, 5.2.4).
pub const SECTOR: u64 = 512;
/// Entries of a queue, unless the user says otherwise.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of pool for a request of 4 KiB: slots for header, status and indirect table, and a page.
const REQUEST_POOL: u64 = 12 << 10;
/// Requests completed before the driver is told although there are more.
const BATCH: u32 = 16;
/// Bytes moved before it is.
const BATCH_BYTES: u64 = 256 << 10;
/// Requests, and bytes moved, before whoever wants the thread to end gets its turn.
const TURN: u16 = 256;
const TURN_BYTES: u64 = 16 << 20;

/// `struct virtio_blk_config` up to write zeroes: bytes.
const CONFIG_LEN: usize = 60;

/// How the device is to be.
#[derive(Clone, Debug)]
pub struct BlockSettings {
    /// What GET_ID says; the first 20 bytes count.
    pub id: String,
    /// Writes are refused.
    pub readonly: bool,
    /// Request queues, each with a thread.
    pub queues: u16,
    /// Entries of each: a power of two from 4 on.
    pub queue_size: u16,
}

/// The device.
pub struct Block {
    disk: Arc<dyn Disk>,
    id: [u8; ID_LEN],
    readonly: bool,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_LEN],
    features: u64,
    /// See [`request::Server`].
    lost: Arc<Mutex<bool>>,
}

impl Block {
    /// A device over `disk`.
    pub fn new(disk: Arc<dyn Disk>, settings: &BlockSettings) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(settings.id.bytes()) {
            *to = from;
        }
        let shape = disk.shape();
        let queues = settings.queues.max(1);
        let mut features = feature(VIRTIO_BLK_F_SEG_MAX)
            | feature(VIRTIO_BLK_F_BLK_SIZE)
            | feature(VIRTIO_BLK_F_TOPOLOGY)
            | feature(VIRTIO_BLK_F_FLUSH)
            | feature(VIRTIO_BLK_F_MQ);
        if settings.readonly {
            features |= feature(VIRTIO_BLK_F_RO);
        } else {
            features |= feature(VIRTIO_BLK_F_WRITE_ZEROES);
            if shape.discard {
                features |= feature(VIRTIO_BLK_F_DISCARD);
            }
        }
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let per_block = |bytes: u32| bytes / shape.logical;
        put(0, &(shape.size / SECTOR).to_le_bytes());
        // seg_max: a chain has a header and a status too, and is never longer than its queue.
        let segments = u32::from(settings.queue_size).saturating_sub(2).max(1);
        put(12, &segments.to_le_bytes());
        put(20, &shape.logical.to_le_bytes());
        put(24, &[per_block(shape.physical).trailing_zeros() as u8, 0]);
        let least = u16::try_from(per_block(shape.physical)).unwrap_or(1);
        put(26, &least.to_le_bytes());
        put(28, &per_block(shape.optimal).to_le_bytes());
        // writeback
        put(32, &[1]);
        put(34, &queues.to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &(RANGES_MAX as u32).to_le_bytes());
        let alignment = shape.physical / SECTOR as u32;
        put(44, &alignment.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &(RANGES_MAX as u32).to_le_bytes());
        // write_zeroes_may_unmap
        put(56, &[shape.discard.into()]);
        Self {
            disk,
            id,
            readonly: settings.readonly,
            queue_sizes: vec![settings.queue_size; queues.into()],
            config,
            features,
            lost: Arc::default(),
        }
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        // Mass storage controller, SCSI: what guests' firmware takes for a disk.
        [0x01, 0x00, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, _: usize, _: &[u8]) {
        // Only `writeback` is writable, with a feature that is not offered.
    }

    fn buffers(&self) -> BufferNeed {
        let all: u64 = self.queue_sizes.iter().map(|s| u64::from(*s)).sum();
        BufferNeed {
            least: 4 * REQUEST_POOL,
            usual: all * REQUEST_POOL,
        }
    }

    fn rights(&self) -> &'static [Right] {
        self.disk.rights()
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<DeviceQueue>,
        shared: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        let limits = Limits {
            readonly: self.readonly,
            // Without the feature the driver cannot flush, so every write has to last (VIRTIO 1.2, 5.2.6.2).
            write_through: features & feature(VIRTIO_BLK_F_FLUSH) == 0,
            discard: features & feature(VIRTIO_BLK_F_DISCARD) != 0,
            write_zeroes: features & feature(VIRTIO_BLK_F_WRITE_ZEROES) != 0,
            id: self.id,
        };
        let handlers = queues.into_iter().map(|queue| {
            let server = Server::new(self.disk.clone(), limits, self.lost.clone(), shared.clone());
            let queue = [queue];
            Box::new(Worker { queue, server }) as Box<dyn Handler>
        });
        Ok(handlers.collect())
    }
}

/// One queue at work.
struct Worker {
    queue: [DeviceQueue; 1],
    server: Server,
}

impl Handler for Worker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Serves requests until there are none or the turn is over.
    fn doorbell(&mut self, _: u16) -> Result<(), Fault> {
        let [queue] = &mut self.queue;
        let (mut requests, mut bytes) = (0, 0);
        let (mut turn, mut moved) = (0..TURN, 0);
        'work: loop {
            queue.disable_notification()?;
            while let Some(chain) = queue.pop()? {
                if moved >= TURN_BYTES || turn.next().is_none() {
                    queue.undo_pop(chain);
                    queue.again();
                    break 'work;
                }
                let written = self
                    .server
                    .serve(queue.memory(), &chain)
                    .map_err(|error| error.on(queue))?;
                let length = u64::from(chain.readable_len()) + u64::from(written);
                (bytes, moved) = (bytes + length, moved + length);
                requests += 1;
                queue.complete(chain, written)?;
                // A driver with many requests under way can go on with the first of them.
                if requests >= BATCH || bytes >= BATCH_BYTES {
                    queue.notify()?;
                    (requests, bytes) = (0, 0);
                }
            }
            if !queue.enable_notification()? {
                break;
            }
        }
        if requests > 0 { queue.notify() } else { Ok(()) }
    }

    fn event(&mut self, _: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queue
    }
}
