//! Requests that take long are given up when somebody waits for the device's thread; an image on which the qcow2 code
//! failed is not touched again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_blk::*;

use super::images::qcow2_image;
use super::*;
use crate::virtio::block::disk::Shape;
use crate::virtio::block::qcow2::Qcow2Disk;
use crate::virtio::chain::Slice;

/// A disk whose device is reset during its first access, if it is told of the device.
#[derive(Default)]
struct Long {
    device: Mutex<Option<Arc<Shared>>>,
    accesses: AtomicU32,
}

impl Long {
    fn access(&self) -> io::Result<()> {
        self.accesses.fetch_add(1, Ordering::SeqCst);
        if let Some(device) = &*self.device.lock().unwrap() {
            device.set_halting(true);
        }
        Ok(())
    }
}

impl Disk for Long {
    fn shape(&self) -> Shape {
        Shape {
            size: 1 << 30,
            logical: 512,
            physical: 512,
            optimal: 0,
            discard: true,
        }
    }
    fn read(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        self.access()
    }
    fn write(&self, _: &[Slice<'_>], _: u64) -> io::Result<()> {
        self.access()
    }
    fn flush(&self) -> io::Result<()> {
        self.access()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.access()
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.access()
    }
    fn rights(&self) -> &'static [Right] {
        &[]
    }
}

/// Status and number of accesses of a request, with a reset during the first of them or without.
fn long_request(reset: bool, request: impl FnOnce(&mut Rig<'_>) -> u8) -> (u8, u32) {
    let disk = Arc::new(Long::default());
    let mut status = 0;
    with_rig(disk.clone(), &settings(), 0, |mut rig| {
        *disk.device.lock().unwrap() = reset.then(|| rig.shared.clone());
        status = request(&mut rig);
    });
    (status, disk.accesses.load(Ordering::SeqCst))
}

#[test]
fn a26_long_requests_are_given_up_when_the_device_is_to_stop() {
    let whole = [(DATA, 512 << 10, WRITE); 13];
    let read = |rig: &mut Rig<'_>| rig.request(VIRTIO_BLK_T_IN, 0, &whole);
    assert_eq!(long_request(false, read), (0, 2));
    assert_eq!(long_request(true, read), (1, 1));
    let whole = [(DATA, 512 << 10, READ); 13];
    let write = |rig: &mut Rig<'_>| rig.request(VIRTIO_BLK_T_OUT, 0, &whole);
    assert_eq!(long_request(false, write), (0, 2));
    assert_eq!(long_request(true, write), (1, 1));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let range = |rig: &mut Rig<'_>| rig.ranges(kind, &[(0, 1 << 20, 0)]);
        assert_eq!(long_request(false, range), (0, 8));
        assert_eq!(long_request(true, range), (1, 1));
    }
}

/// A guest copies as many bytes out of the window as the device says it has written, and gives them to whoever reads:
/// none must be left there by somebody else (guest/linux/README.md).
#[test]
fn a25_no_request_reports_more_than_it_has_written() {
    let file = image();
    with_rig(raw(file.path()), &settings(), 0, |mut rig| {
        let data = [(DATA, 1024, WRITE), (DATA + 0x1000, 512, WRITE)];
        let sectors = [0, SECTORS - 3].map(|at| (VIRTIO_BLK_T_IN, at, 0, 1537));
        let outside = [SECTORS - 2, u64::MAX].map(|at| (VIRTIO_BLK_T_IN, at, 1, 0));
        let unknown = [2, u32::MAX].map(|kind| (kind, 0, 2, 0));
        let refused = (VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0);
        let others = [refused, (VIRTIO_BLK_T_FLUSH, 0, 0, 0)];
        for (kind, at, status, length) in [sectors, outside, unknown, others].concat() {
            assert_eq!(rig.request(kind, at, &data), status, "{kind} at {at}");
            assert_eq!(rig.driver.used_len(), length, "{kind} at {at}");
        }
        // Half of it is there, and read.
        file.as_file().set_len(513).unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &data), 1);
        assert_eq!(rig.driver.used_len(), 0);
    });
    let whole = [(DATA, 512 << 10, WRITE); 13];
    for (reset, length) in [(false, 13 * (512 << 10) + 1), (true, 0)] {
        long_request(reset, |rig| {
            let status = rig.request(VIRTIO_BLK_T_IN, 0, &whole);
            assert_eq!(rig.driver.used_len(), length);
            status
        });
    }
}

#[test]
fn a26_flushes_that_wait_are_given_up_when_the_device_is_to_stop() {
    let flushes = |rig: &mut Rig<'_>| {
        rig.header(VIRTIO_BLK_T_FLUSH, 0);
        for _ in 0..5 {
            rig.driver.post(&[(HEADER, 16, READ), (STATUS, 1, WRITE)]);
        }
        rig.ring().unwrap();
        let status = rig.memory.read_obj(GuestAddress(STATUS)).unwrap();
        // None was lost: the next driver's are done.
        rig.shared.set_halting(false);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
        status
    };
    assert_eq!(long_request(false, flushes), (0, 6));
    assert_eq!(long_request(true, flushes), (1, 2));
    // Nor does a write that has to last wait for one.
    let disk = Arc::new(Long::default());
    let no_flush = feature(VIRTIO_BLK_F_FLUSH);
    with_rig(disk.clone(), &settings(), no_flush, |mut rig| {
        *disk.device.lock().unwrap() = Some(rig.shared.clone());
        let data = [(DATA, 512, READ)];
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &data), 1);
    });
    assert_eq!(disk.accesses.load(Ordering::SeqCst), 1);
}

#[test]
fn an_image_on_which_the_qcow2_code_panicked_is_not_touched_again() {
    for exclusive in [false, true] {
        let file = qcow2_image(1 << 20);
        let disk = Qcow2Disk::open(file.path(), false, false).unwrap();
        disk.flush().unwrap();
        catch_unwind(AssertUnwindSafe(|| disk.panic_inside(exclusive))).unwrap_err();
        let refusals = [
            disk.read(&[], 0),
            disk.write(&[], 0),
            disk.flush(),
            disk.discard(0, 65536),
            disk.write_zeroes(0, 65536, true),
            disk.write_zeroes(0, 65536, false),
        ];
        for refusal in refusals {
            let why = refusal.unwrap_err().to_string();
            assert!(why.contains("until the VM starts anew"), "{why}");
        }
    }
}

/// The image's bytes before and after its disk is dropped with a table that was not written yet.
fn dropped(panic: impl FnOnce(&Qcow2Disk)) -> (Vec<u8>, Vec<u8>) {
    let file = qcow2_image(1 << 20);
    let disk = Qcow2Disk::open(file.path(), false, false).unwrap();
    disk.write(&[Slice::from(&mut [0x61; 512][..])], 0).unwrap();
    panic(&disk);
    let before = fs::read(file.path()).unwrap();
    drop(disk);
    (before, fs::read(file.path()).unwrap())
}

#[test]
fn an_image_on_which_the_qcow2_code_panicked_is_not_written_at_the_end() {
    let (before, after) = dropped(|_| {});
    assert!(before != after, "otherwise there was something to write");
    for exclusive in [false, true] {
        let (before, after) = dropped(|disk| {
            catch_unwind(AssertUnwindSafe(|| disk.panic_inside(exclusive))).unwrap_err();
        });
        assert!(before == after, "the end wrote to the image");
        // And another start of the VM can read it.
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), after).unwrap();
        let disk = Qcow2Disk::open(file.path(), false, false).unwrap();
        disk.flush().unwrap();
    }
}
