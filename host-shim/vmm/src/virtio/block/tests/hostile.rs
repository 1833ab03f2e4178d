//! Guests that break the rules (a25), hosts that fail, and images that change meanwhile.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::bus::lock;
use crate::virtio::block::disk::Shape;
use crate::virtio::chain::Slice;
use crate::virtio::window::tests::SIZE;

#[test]
fn a25_a_request_without_a_byte_for_its_status_is_a_fault() {
    let file = image();
    for chain in [
        vec![(HEADER, 16, READ)],
        vec![(HEADER, 16, READ), (STATUS, 0, WRITE)],
        vec![(HEADER, 16, READ), (STATUS, 1, READ)],
    ] {
        with_rig(raw(file.path()), &settings(), 0, |mut rig| {
            rig.header(VIRTIO_BLK_T_FLUSH, 0);
            rig.driver.post(&chain);
            assert!(matches!(rig.ring(), Err(Fault::Setup(_))), "{chain:?}");
            assert_eq!(rig.driver.used(), 0);
        });
    }
}

#[test]
fn a25_a_header_that_is_too_short_fails_the_request() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        rig.header(VIRTIO_BLK_T_IN, 0);
        rig.driver
            .post(&[(HEADER, 15, READ), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        rig.ring().unwrap();
        assert_eq!(rig.data(STATUS, 1), [1]);
        rig.driver.post(&[(STATUS, 1, WRITE)]);
        rig.ring().unwrap();
        assert_eq!(rig.data(STATUS, 1), [1]);
    });
}

#[test]
fn a25_buffers_outside_the_window_reach_nothing() {
    let file = image();
    for outside in [(0x8000_0000, 512, WRITE), (BASE + SIZE - 256, 512, WRITE)] {
        with_rig(raw(file.path()), &settings(), 0, |mut rig| {
            rig.header(VIRTIO_BLK_T_IN, 1);
            rig.driver
                .post(&[(HEADER, 16, READ), outside, (STATUS, 1, WRITE)]);
            assert!(rig.ring().is_err());
            assert_eq!(rig.data(BASE + SIZE - 256, 256), [0; 256]);
        });
    }
}

/// A disk whose guest changes the header while the data is being read.
struct Racing {
    driver: Mutex<Option<GuestMemoryMmap>>,
    offsets: Mutex<Vec<u64>>,
}

impl Disk for Racing {
    fn shape(&self) -> Shape {
        Shape {
            size: SECTORS * 512,
            logical: 512,
            physical: 4096,
            optimal: 0,
            discard: true,
        }
    }
    fn read(&self, to: &[Slice<'_>], offset: u64) -> io::Result<()> {
        lock(&self.offsets).push(offset);
        to[0].copy_from(&[0xabu8; 512]);
        // The header lies in the buffer: kind and sector are another's now.
        Ok(())
    }
    fn write(&self, _: &[Slice<'_>], offset: u64) -> io::Result<()> {
        lock(&self.offsets).push(offset);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        lock(&self.offsets).push(u64::MAX);
        Ok(())
    }
    fn discard(&self, offset: u64, _: u64) -> io::Result<()> {
        // The guest turns the second range around as the first is carried out.
        if let Some(driver) = &*lock(&self.driver) {
            driver.write_obj(u64::MAX, GuestAddress(DATA + 16)).unwrap();
        }
        lock(&self.offsets).push(offset);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, _: u64, _: bool) -> io::Result<()> {
        lock(&self.offsets).push(offset);
        Ok(())
    }
    fn rights(&self) -> &'static [Right] {
        &[]
    }
}

#[test]
fn a25_a_header_or_range_changed_after_the_check_changes_nothing() {
    let disk = Arc::new(Racing {
        driver: Mutex::new(None),
        offsets: Mutex::default(),
    });
    with_rig(disk.clone(), &settings(), 0, |mut rig| {
        // The data overwrites the header of its own request.
        rig.header(VIRTIO_BLK_T_IN, 5);
        rig.driver.post(&[
            (HEADER, 16, READ),
            (HEADER, 1024, WRITE),
            (STATUS, 1, WRITE),
        ]);
        rig.ring().unwrap();
        assert_eq!(rig.data(STATUS, 1), [0]);
        assert_eq!(*lock(&disk.offsets), [5 * 512]);
        *lock(&disk.driver) = Some(rig.memory.clone());
        assert_eq!(
            rig.ranges(VIRTIO_BLK_T_DISCARD, &[(8, 8, 0), (64, 8, 0)]),
            0
        );
        assert_eq!(*lock(&disk.offsets), [5 * 512, 8 * 512, 64 * 512]);
    });
}

#[test]
fn without_flush_every_write_lasts_before_it_is_done() {
    let disk = Arc::new(Racing {
        driver: Mutex::new(None),
        offsets: Mutex::default(),
    });
    let no_flush = feature(VIRTIO_BLK_F_FLUSH);
    with_rig(disk.clone(), &settings(), no_flush, |mut rig| {
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 1, &[(DATA, 512, READ)]), 0);
        assert_eq!(*lock(&disk.offsets), [512, u64::MAX]);
    });
    with_rig(disk.clone(), &settings(), 0, |mut rig| {
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 1, &[(DATA, 512, READ)]), 0);
        assert_eq!(lock(&disk.offsets)[2..], [512]);
    });
}

/// A disk that fails as its host does.
struct Failing(i32);

impl Failing {
    fn error(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }
}

impl Disk for Failing {
    fn shape(&self) -> Shape {
        Racing {
            driver: Mutex::new(None),
            offsets: Mutex::default(),
        }
        .shape()
    }
    fn read(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        self.error()
    }
    fn write(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        self.error()
    }
    fn flush(&self) -> io::Result<()> {
        self.error()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.error()
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.error()
    }
    fn rights(&self) -> &'static [Right] {
        &[]
    }
}

#[test]
fn what_the_host_cannot_do_is_an_io_error_and_the_device_goes_on() {
    for errno in [libc::ENOSPC, libc::EIO, libc::EDQUOT] {
        with_rig(Arc::new(Failing(errno)), &settings(), 0, |mut rig| {
            for (kind, buffer) in [
                (VIRTIO_BLK_T_IN, (DATA, 512, WRITE)),
                (VIRTIO_BLK_T_OUT, (DATA, 512, READ)),
                (VIRTIO_BLK_T_FLUSH, (DATA, 0, READ)),
            ] {
                assert_eq!(rig.request(kind, 0, &[buffer]), 1, "{kind}");
            }
            assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), 1);
            assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), 1);
            assert_eq!(rig.shared.stats().snapshot().faults, 0);
        });
    }
}

/// A disk whose host loses what it was to write, and says so once.
#[derive(Default)]
struct Forgetful {
    flushes: AtomicU32,
}

impl Disk for Forgetful {
    fn shape(&self) -> Shape {
        Failing(0).shape()
    }
    fn read(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        match self.flushes.fetch_add(1, Ordering::Relaxed) {
            1 => Failing(libc::EIO).error(),
            _ => Ok(()),
        }
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn rights(&self) -> &'static [Right] {
        &[]
    }
}

#[test]
fn after_a_flush_that_failed_none_succeeds_on_any_queue_or_after_a_reset() {
    let (memory, window) = memories();
    let drivers = [0u16, 1].map(|n| Driver::new(&memory, BASE + 0x8000 * u64::from(n), 16));
    let shared = shared();
    let mut block = Block::new(Arc::new(Forgetful::default()), &settings());
    memory
        .write_obj(VIRTIO_BLK_T_FLUSH, GuestAddress(HEADER))
        .unwrap();
    let mut start = || {
        let queues =
            [0u16, 1].map(|n| drivers[usize::from(n)].device(n, window.clone(), shared.clone()));
        block
            .start(block.features(), queues.into(), &shared)
            .unwrap()
    };
    let flush = |handlers: &mut [Box<dyn Handler>], queue: u16| -> u8 {
        drivers[usize::from(queue)].post(&[(HEADER, 16, READ), (STATUS, 1, WRITE)]);
        handlers[usize::from(queue)].doorbell(queue).unwrap();
        memory.read_obj(GuestAddress(STATUS)).unwrap()
    };
    let mut handlers = start();
    let said = [1, 0, 1, 0].map(|queue| flush(&mut handlers, queue));
    assert_eq!(said, [0, 1, 1, 1]);
    drop(handlers);
    for queue in 0..2u64 {
        memory
            .write_slice(&[0; 0x2010], GuestAddress(BASE + 0x8000 * queue + 0x1000))
            .unwrap();
    }
    drivers.iter().for_each(Driver::forget);
    let mut handlers = start();
    assert_eq!(flush(&mut handlers, 0), 1);
}

#[test]
fn a_driver_that_never_stops_asking_keeps_no_thread() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        rig.header(VIRTIO_BLK_T_GET_ID, 0);
        rig.driver
            .post(&[(HEADER, 16, READ), (DATA, 20, WRITE), (STATUS, 1, WRITE)]);
        let handler = &mut rig.handler;
        rig.driver.flood(TURN, || handler.doorbell(0).unwrap());
    });
}

#[test]
fn long_requests_end_a_turn_early() {
    with_rig(Arc::new(Forgetful::default()), &settings(), 0, |mut rig| {
        rig.header(VIRTIO_BLK_T_OUT, 0);
        // Refused for its length, but the device went through its buffers to know.
        let data = (DATA, 512 << 10, READ);
        let mut chain = vec![(HEADER, 16, READ)];
        chain.extend([data; 12]);
        chain.push((STATUS, 1, WRITE));
        rig.driver.post(&chain);
        rig.driver.flood(3, || rig.handler.doorbell(0).unwrap());
    });
}

#[test]
fn an_image_that_became_shorter_is_an_io_error() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        file.as_file().set_len(100 * 512 + 7).unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 99, &[(DATA, 512, WRITE)]), 0);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 99, &[(DATA, 1024, WRITE)]), 1);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 200, &[(DATA, 512, WRITE)]), 1);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
    });
}
