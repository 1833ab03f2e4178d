//! A qcow2 image, by the crate imago in its synchronous form. It sees private memory only: what a guest may change
//! meanwhile is copied first, since the crate takes plain slices.
//! Images that name other files (backing images, external data files) are refused: who made the image would choose
//! which of the host's files the guest reads.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, StorageOpenOptions};

use super::SECTOR;
use super::disk::{Disk, ImageError, Shape};
use super::raw::{copy, open_locked, with_bounce, write_zeros};
use crate::seccomp::Right;
use crate::virtio::chain::Slice;

/// Usual size of a cluster: what the image stores as one.
const CLUSTER: u32 = 64 << 10;

const RIGHTS: &[Right] = &[
    Right::call(libc::SYS_preadv),
    Right::call(libc::SYS_pwritev),
    Right::call(libc::SYS_pread64),
    Right::call(libc::SYS_pwrite64),
    Right::call(libc::SYS_fsync),
    Right::call(libc::SYS_fdatasync),
    Right::call(libc::SYS_fallocate),
    Right::call(libc::SYS_ftruncate),
];

/// A qcow2 image.
pub struct Qcow2Disk {
    /// Writing for what moves clusters away under readers: discards. There until the disk is dropped.
    image: RwLock<Option<FormatAccess<File>>>,
    size: u64,
    /// The crate panicked in the middle of something: what it holds of the image's tables may be half of a change, and
    /// what goes on with it may write over data. Nothing does, until the VM starts anew and the image is read again.
    broken: AtomicBool,
}

/// Notes that the thread panics while it is in the crate.
struct InCrate<'a>(&'a AtomicBool);

impl Drop for InCrate<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        let image = self.image.get_mut().unwrap_or_else(PoisonError::into_inner);
        if *self.broken.get_mut() {
            // Dropped, it would write its tables. Its file stays open, and locked, until the process ends.
            std::mem::forget(image.take());
        }
    }
}

impl Qcow2Disk {
    /// Opens an image.
    pub fn open(path: &Path, readonly: bool, direct: bool) -> Result<Self, ImageError> {
        let wrong = |source| ImageError::Qcow2 {
            path: path.to_owned(),
            source,
        };
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = open_locked(path, readonly, flags)?;
        let options = StorageOpenOptions::new()
            .filename(path)
            .write(!readonly)
            .direct(direct);
        let storage = File::from_open_file(file, options).map_err(wrong)?;
        let mut image: Qcow2<File> = Qcow2::open_image(storage, !readonly).map_err(wrong)?;
        let other = image
            .implicit_backing_file()
            .map(|name| format!("it has the backing file {name}"))
            .or_else(|| {
                let external = image.requires_external_data_file();
                external.then(|| "its data is in another file".to_owned())
            });
        if let Some(other) = other {
            let text = format!("{other}; make one file of it with `qemu-img convert`");
            return Err(wrong(io::Error::other(text)));
        }
        image.set_backing(None);
        image.set_data_file(None);
        let image = FormatAccess::new(image);
        let size = image.size() / SECTOR * SECTOR;
        if size == 0 {
            return Err(ImageError::TooSmall {
                path: path.to_owned(),
                size,
                least: SECTOR as u32,
            });
        }
        Ok(Self {
            image: RwLock::new(Some(image)),
            size,
            broken: AtomicBool::new(false),
        })
    }

    fn enter(&self) -> io::Result<InCrate<'_>> {
        if self.broken.load(Ordering::SeqCst) {
            let why = "the qcow2 code failed before, and what it holds of the image may be wrong until the VM starts anew";
            return Err(io::Error::other(why));
        }
        Ok(InCrate(&self.broken))
    }

    fn shared<T>(&self, f: impl FnOnce(&FormatAccess<File>) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        let _inside = self.enter()?;
        f(image.as_ref().ok_or_else(gone)?)
    }

    fn exclusive<T>(
        &self,
        f: impl FnOnce(&mut FormatAccess<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let _inside = self.enter()?;
        f(image.as_mut().ok_or_else(gone)?)
    }
}

fn gone() -> io::Error {
    io::Error::other("the image is closed")
}

impl Disk for Qcow2Disk {
    fn shape(&self) -> Shape {
        Shape {
            size: self.size,
            logical: SECTOR as u32,
            physical: 4096,
            optimal: CLUSTER,
            discard: true,
        }
    }

    fn read(&self, to: &[Slice<'_>], offset: u64) -> io::Result<()> {
        self.shared(|image| {
            with_bounce(to, |bounce, done| {
                image.read(&mut *bounce, offset + done)?;
                copy(to, done, bounce, false);
                Ok(())
            })
        })
    }

    fn write(&self, from: &[Slice<'_>], offset: u64) -> io::Result<()> {
        self.shared(|image| {
            with_bounce(from, |bounce, done| {
                copy(from, done, bounce, true);
                image.write(&*bounce, offset + done)
            })
        })
    }

    fn flush(&self) -> io::Result<()> {
        // First what the crate still holds of the image's tables, then to the medium.
        self.shared(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.exclusive(|image| image.discard_to_any(offset, length)) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let done = if unmap {
            self.exclusive(|image| image.discard_to_zero(offset, length))
        } else {
            self.shared(|image| image.write_zeroes(offset, length))
        };
        match done {
            // Version 2 of the format has no clusters that are zero.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => write_zeros(self, offset, length),
            done => done,
        }
    }

    fn rights(&self) -> &'static [Right] {
        RIGHTS
    }
}

#[cfg(test)]
impl Qcow2Disk {
    /// Panics as the crate would in the middle of a change.
    pub(super) fn panic_inside(&self, exclusive: bool) {
        let fail = || -> io::Result<()> { panic!("a mistake in the crate") };
        let _ = if exclusive {
            self.exclusive(|_| fail())
        } else {
            self.shared(|_| fail())
        };
    }
}
