//! A disk in memory that insists on being asked for what it has.

use std::io;
use std::sync::{Mutex, PoisonError};

use porthole_vmm::seccomp::Right;
use porthole_vmm::virtio::block::disk::{Disk, Shape};
use porthole_vmm::virtio::chain::Slice;

const SIZE: usize = 64 << 10;

/// The disk.
pub struct Checked(Mutex<Vec<u8>>);

impl Default for Checked {
    fn default() -> Self {
        Self(Mutex::new(vec![0x3c; SIZE]))
    }
}

impl Checked {
    fn with(&self, offset: u64, length: u64, f: impl FnOnce(&mut [u8])) -> io::Result<()> {
        assert!(length > 0 && (offset | length).is_multiple_of(512));
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = (offset + length) as usize;
        f(bytes
            .get_mut(offset as usize..end)
            .expect("a range outside the disk"));
        Ok(())
    }

    /// Parts of a request that the device hands over in several calls may be no whole sectors.
    fn each(&self, slices: &[Slice<'_>], offset: u64, f: impl Fn(&Slice<'_>, &mut [u8])) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset as usize;
        for slice in slices {
            let part = bytes.get_mut(at..at + slice.len());
            f(slice, part.expect("bytes outside the disk"));
            at += slice.len();
        }
    }
}

impl Disk for Checked {
    fn shape(&self) -> Shape {
        Shape {
            size: SIZE as u64,
            logical: 512,
            physical: 4096,
            optimal: 0,
            discard: true,
        }
    }

    fn read(&self, to: &[Slice<'_>], offset: u64) -> io::Result<()> {
        self.each(to, offset, |slice, bytes| slice.copy_from(bytes));
        Ok(())
    }

    fn write(&self, from: &[Slice<'_>], offset: u64) -> io::Result<()> {
        self.each(from, offset, |slice, bytes| {
            slice.copy_to(bytes);
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.with(offset, length, |bytes| bytes.fill(0xdd))
    }

    fn write_zeroes(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.with(offset, length, |bytes| bytes.fill(0))
    }

    fn rights(&self) -> &'static [Right] {
        &[]
    }
}
