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
        Ok(())
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
        drop(disk);
        let disk = Qcow2Disk::open(file.path(), false, false).unwrap();
        disk.flush().unwrap();
    }
}
