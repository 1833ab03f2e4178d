//! The block device as a driver uses it, friendly and not, over images in files.

mod ends;
mod hostile;
mod images;

use std::fs;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::disk::Disk;
use super::raw::{RawDisk, RawOptions};
use super::request::ID_LEN;
use super::*;
use crate::virtio::queue::tests::{Driver, memories, shared};
use crate::virtio::window::tests::BASE;

const HEADER: u64 = BASE + 0x1_0000;
const DATA: u64 = BASE + 0x2_0000;
const STATUS: u64 = BASE + 0x1_1000;
const SECTORS: u64 = 256;

/// The flags of a descriptor.
const READ: u16 = 0;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;

/// An image of [`SECTORS`] sectors, each filled with its number.
pub(crate) fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; 512]).unwrap();
    }
    file
}

fn raw(path: &Path) -> Arc<dyn Disk> {
    Arc::new(RawDisk::open(path, RawOptions::default()).unwrap())
}

fn settings() -> BlockSettings {
    BlockSettings {
        id: "disk0".to_owned(),
        readonly: false,
        queues: 1,
        queue_size: 16,
    }
}

/// A driver of one queue, and the device's side of it.
pub(crate) struct Rig<'a> {
    pub(crate) memory: &'a GuestMemoryMmap,
    pub(crate) driver: Driver<'a>,
    handler: Box<dyn Handler>,
    shared: Arc<Shared>,
}

/// A rig over `disk` with these settings and all features but those in `declined`.
pub(crate) fn with_rig(
    disk: Arc<dyn Disk>,
    settings: &BlockSettings,
    declined: u64,
    test: impl FnOnce(Rig<'_>),
) {
    let (memory, window) = memories();
    let driver = Driver::new(&memory, BASE, 16);
    let shared = shared();
    let queues = vec![driver.device(0, window, shared.clone())];
    let mut block = Block::new(disk, settings);
    let features = block.features() & !declined;
    let handler = block.start(features, queues, &shared).unwrap().remove(0);
    test(Rig {
        memory: &memory,
        driver,
        handler,
        shared,
    });
}

impl Rig<'_> {
    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory
            .write_slice(&header, GuestAddress(HEADER))
            .unwrap();
    }

    pub(crate) fn ring(&mut self) -> Result<(), Fault> {
        self.handler.doorbell(0)
    }

    /// Makes a request and returns its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> u8 {
        self.header(kind, sector);
        let mut chain = vec![(HEADER, 16, READ)];
        chain.extend(data);
        chain.push((STATUS, 1, WRITE));
        self.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
        self.driver.post(&chain);
        self.ring().unwrap();
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn data(&self, at: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        self.request(kind, 0, &[(DATA, bytes.len() as u32, READ)])
    }
}

#[test]
fn sectors_are_read_into_buffers_wherever_they_lie() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let buffers = [(DATA + 1, 512, WRITE), (DATA + 0x1000, 512, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 7, &buffers), 0);
        assert_eq!(rig.data(DATA + 1, 512), [7; 512]);
        assert_eq!(rig.data(DATA + 0x1000, 512), [8; 512]);
        assert_eq!(rig.data(DATA + 513, 1), [0], "nothing between them");
        assert_eq!(rig.driver.used_len(), 1025);
        // Buffers that are no sectors, and one that the status shares.
        let buffers = [(DATA, 100, WRITE), (DATA + 0x1000, 412, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 255, &buffers), 0);
        assert_eq!(rig.data(DATA, 100), [255; 100]);
        rig.header(VIRTIO_BLK_T_IN, 3);
        rig.driver.post(&[(HEADER, 16, READ), (DATA, 513, WRITE)]);
        rig.ring().unwrap();
        assert_eq!(rig.data(DATA, 512), [3; 512]);
        assert_eq!(rig.data(DATA + 512, 1), [0]);
    });
}

#[test]
fn what_is_written_is_in_the_image_and_read_back() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let text = [b'p'; 1024];
        rig.memory.write_slice(&text, GuestAddress(DATA)).unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 10, &[(DATA, 1024, READ)]), 0);
        assert_eq!(rig.driver.used_len(), 1);
        let buffer = [(DATA + 0x1000, 2048, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 9, &buffer), 0);
        let back = rig.data(DATA + 0x1000, 2048);
        assert_eq!(back[..512], [9; 512]);
        assert_eq!(back[512..1536], text);
        assert_eq!(back[1536..], [12; 512]);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
    });
    assert_eq!(fs::read(file.path()).unwrap()[5120..5122], *b"pp");
}

#[test]
fn header_and_data_in_one_buffer_are_told_apart() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        rig.header(VIRTIO_BLK_T_OUT, 20);
        rig.memory
            .write_slice(&[0x77; 512], GuestAddress(HEADER + 16))
            .unwrap();
        rig.driver
            .post(&[(HEADER, 16 + 512, READ), (STATUS, 1, WRITE)]);
        rig.ring().unwrap();
    });
    assert_eq!(
        fs::read(file.path()).unwrap()[20 * 512..21 * 512],
        [0x77; 512]
    );
}

#[test]
fn a_batch_of_requests_is_served_whole() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        rig.header(VIRTIO_BLK_T_IN, 1);
        for i in 0..5 {
            let at = DATA + 0x1000 * i;
            rig.driver
                .post(&[(HEADER, 16, READ), (at, 512, WRITE), (STATUS, 1, WRITE)]);
        }
        rig.ring().unwrap();
        assert_eq!(rig.driver.used(), 5);
        assert_eq!(rig.shared.stats().snapshot().interrupts, 1);
        assert_eq!(rig.data(DATA + 0x4000, 512), [1; 512]);
    });
}

#[test]
fn requests_outside_the_disk_or_of_no_whole_sectors_fail_and_change_nothing() {
    let file = image();
    let before = fs::read(file.path()).unwrap();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        for (kind, flags) in [(VIRTIO_BLK_T_IN, WRITE), (VIRTIO_BLK_T_OUT, READ)] {
            for (sector, length) in [
                (SECTORS, 512),
                (SECTORS - 1, 1024),
                (u64::MAX, 512),
                (u64::MAX / 512, 512),
                (u64::MAX / 512 + 1, 512),
                (0, 511),
                (0, 513),
                (0, 0),
            ] {
                let status = rig.request(kind, sector, &[(DATA, length, flags)]);
                assert_eq!(status, 1, "{kind}: {length} bytes at {sector}");
            }
        }
        assert_eq!(rig.data(DATA, 1024), [0; 1024]);
        assert_eq!(rig.shared.stats().snapshot().faults, 0);
    });
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn unknown_requests_are_unsupported() {
    let file = image();
    let no_ranges = feature(VIRTIO_BLK_F_DISCARD) | feature(VIRTIO_BLK_F_WRITE_ZEROES);
    with_rig(raw(file.path()), &settings(), no_ranges, |mut rig| {
        for kind in [2, 10, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(rig.request(kind, 0, &[(DATA, 512, READ)]), 2, "{kind}");
        }
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), 2);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), 2);
    });
}

#[test]
fn the_id_is_what_it_was_called() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let buffer = [(DATA, ID_LEN as u32, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &buffer), 0);
        assert_eq!(
            rig.data(DATA, ID_LEN),
            *b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(rig.driver.used_len(), 21);
        let short = [(DATA + 0x1000, 3, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &short), 0);
        assert_eq!(rig.data(DATA + 0x1000, 5), *b"dis\0\0");
        let long = [(DATA + 0x2000, 64, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &long), 0);
        assert_eq!(rig.driver.used_len(), 20);
    });
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = image();
    let before = fs::read(file.path()).unwrap();
    let options = RawOptions {
        readonly: true,
        ..RawOptions::default()
    };
    let disk = Arc::new(RawDisk::open(file.path(), options).unwrap());
    let readonly = BlockSettings {
        readonly: true,
        ..settings()
    };
    let features = Block::new(disk.clone(), &readonly).features();
    assert_ne!(features & feature(VIRTIO_BLK_F_RO), 0);
    let changing = feature(VIRTIO_BLK_F_DISCARD) | feature(VIRTIO_BLK_F_WRITE_ZEROES);
    assert_eq!(features & changing, 0);
    with_rig(disk, &readonly, 0, |mut rig| {
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, READ)]), 1);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), 2);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE)]), 0);
    });
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let zeroed = [(8, 8, 0), (32, 1, 1)];
        assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &zeroed), 0);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(64, 64, 0)]), 0);
    });
    let after = fs::read(file.path()).unwrap();
    assert_eq!(after.len() as u64, SECTORS * 512);
    for sector in 0..64 {
        let zero = (8..16).contains(&sector) || sector == 32;
        let expected = if zero { 0 } else { sector as u8 };
        assert_eq!(after[sector * 512..][..512], [expected; 512], "{sector}");
    }
    assert_eq!(after[128 * 512], 128);
}

#[test]
fn a_bad_range_fails_the_request_before_the_first_is_touched() {
    let file = image();
    let before = fs::read(file.path()).unwrap();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let zeroes = VIRTIO_BLK_T_WRITE_ZEROES;
        for (second, status) in [
            ((SECTORS, 1, 0), 1),
            ((SECTORS - 1, 2, 0), 1),
            ((u64::MAX, 1, 0), 1),
            ((0, u32::MAX, 0), 1),
            ((0, 0, 0), 1),
            ((0, 1, 2), 2),
        ] {
            assert_eq!(rig.ranges(zeroes, &[(8, 8, 0), second]), status);
        }
        let unmap = [(8, 8, 0), (16, 8, 1)];
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &unmap), 2);
        assert_eq!(rig.ranges(zeroes, &[(8, 8, 0); RANGES_MAX + 1]), 1);
        assert_eq!(rig.request(zeroes, 0, &[]), 1, "no range");
        assert_eq!(rig.request(zeroes, 0, &[(DATA, 17, READ)]), 1);
    });
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let file = image();
    let settings = BlockSettings {
        queues: 3,
        queue_size: 64,
        ..settings()
    };
    let block = Block::new(raw(file.path()), &settings);
    let read = |at: usize, length: usize| {
        let mut data = [0; 8];
        block.read_config(at, &mut data[..length]);
        u64::from_le_bytes(data)
    };
    assert_eq!(read(0, 8), SECTORS, "capacity");
    assert_eq!(read(12, 4), 62, "seg_max");
    assert_eq!(read(20, 4), 512, "blk_size");
    assert_eq!(read(24, 1), 3, "physical_block_exp");
    assert_eq!(read(34, 2), 3, "num_queues");
    assert_eq!(read(40, 4), RANGES_MAX as u64);
    assert_eq!(read(CONFIG_LEN, 8), 0);
    assert_eq!(block.queue_sizes(), [64; 3]);
    assert_eq!(block.config_len(), CONFIG_LEN);
}
