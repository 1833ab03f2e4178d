//! A raw image: a file or block device of the host, whose bytes are the disk's.
//! Reads and writes go straight between it and the window; with O_DIRECT past the host's page cache, through a
//! private buffer where the guest's buffers are not aligned for that.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use porthole_uapi::{read_vectored_at, write_vectored_at};
use rustix::fs::{StatxFlags, ioctl_blkpbszget, ioctl_blksszget, statx};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::SECTOR;
use super::disk::{Disk, ImageError, Shape};
use crate::seccomp::Right;
use crate::virtio::chain::Slice;

/// How a qcow2 image begins.
pub const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes copied at once where the guest's buffers are not aligned.
const BOUNCE: usize = 256 << 10;
/// Alignment of that buffer; no disk wants more.
const BOUNCE_ALIGN: usize = 4096;
/// Bytes written to the page cache at once. Before each page that it copies, Linux 6.12 looks whether it can read all
/// that is left of the call (`generic_perform_write`, where a file may have large folios): a MiB in one call takes
/// twice the instructions of the same in pieces.
pub(super) const WRITE_AT_ONCE: usize = 128 << 10;
/// Buffers that one call takes (UIO_MAXIOV of Linux).
const BUFFERS_AT_ONCE: usize = 1024;
/// Bytes of zeros written at once where the file system cannot zero a range itself.
const ZEROS: usize = 64 << 10;

const RIGHTS: &[Right] = &[
    Right::call(libc::SYS_preadv),
    Right::call(libc::SYS_pwritev),
    Right::call(libc::SYS_fdatasync),
    Right::call(libc::SYS_fallocate),
];

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Not for writing.
    pub readonly: bool,
    /// Past the page cache.
    pub direct: bool,
    /// Even if it looks like qcow2.
    pub any_content: bool,
}

/// A raw image.
pub struct RawDisk {
    file: File,
    shape: Shape,
    /// With O_DIRECT: alignment of buffers in memory.
    memory_align: Option<usize>,
}

/// Opens an image and takes it for this process: shared if it is not for writing.
pub(super) fn open_locked(path: &Path, readonly: bool, flags: i32) -> Result<File, ImageError> {
    let fail = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    // O_NONBLOCK: a FIFO does not keep us waiting to be refused.
    options
        .read(true)
        .write(!readonly)
        .custom_flags(flags | libc::O_NONBLOCK);
    let file = options.open(path).map_err(fail)?;
    let kind = file.metadata().map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(fail(io::Error::other("neither a file nor a block device")));
    }
    let locked = if readonly {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ImageError::InUse {
            path: path.to_owned(),
        }),
        // A file system without locks.
        Err(TryLockError::Error(e)) => {
            tracing::debug!("cannot lock {}: {e}", path.display());
            Ok(file)
        }
    }
}

impl RawDisk {
    /// Opens an image.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, ImageError> {
        let fail = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        if !options.any_content && looks_like_qcow2(path).map_err(fail)? {
            return Err(ImageError::IsQcow2 {
                path: path.to_owned(),
            });
        }
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        let mut file = open_locked(path, options.readonly, flags)?;
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let is_device = file.metadata().map_err(fail)?.file_type().is_block_device();
        let (mut logical, mut physical) = (SECTOR as u32, 4096);
        if is_device {
            logical = ioctl_blksszget(&file).map_err(|e| fail(e.into()))?;
            physical = ioctl_blkpbszget(&file).map_err(|e| fail(e.into()))?;
        }
        let mut memory_align = None;
        if options.direct {
            let (memory, unit) = direct_alignment(&file, logical);
            logical = logical.max(unit);
            memory_align = Some(memory);
            if !size.is_multiple_of(logical.into()) {
                return Err(ImageError::Direct {
                    path: path.to_owned(),
                    size,
                    unit: logical,
                });
            }
        }
        let whole = size - size % u64::from(logical);
        if whole == 0 {
            return Err(ImageError::TooSmall {
                path: path.to_owned(),
                size,
                least: logical,
            });
        }
        if whole != size {
            tracing::warn!(
                "disk image {}: the last {} bytes are no whole block; the guest does not see them",
                path.display(),
                size - whole
            );
        }
        // Nothing is beyond the end, so this changes nothing.
        let discard = !options.readonly
            && (is_device || fallocate(&file, FallocateMode::PunchHole, true, size, 4096).is_ok());
        Ok(Self {
            file,
            shape: Shape {
                size: whole,
                logical,
                physical: physical.max(logical),
                optimal: 0,
                discard,
            },
            memory_align,
        })
    }

    fn aligned(&self, slices: &[Slice<'_>]) -> bool {
        self.memory_align
            .is_none_or(|align| fit_for_direct(slices, align, self.shape.logical as usize))
    }
}

/// Whether O_DIRECT takes these buffers as they are: each begins at a multiple of `align` and is whole blocks. It is not
/// enough that all together are (`bdev_iter_is_aligned` of Linux 6.12).
pub(super) fn fit_for_direct(slices: &[Slice<'_>], align: usize, logical: usize) -> bool {
    slices.iter().all(|s| {
        (s.ptr_guard().as_ptr() as usize).is_multiple_of(align) && s.len().is_multiple_of(logical)
    })
}

/// Whether the file begins as a qcow2 image does.
fn looks_like_qcow2(path: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.take(4).read_to_end(&mut head)?;
    Ok(head == QCOW2_MAGIC)
}

/// What O_DIRECT wants of buffers in memory and of offsets. Kernels before 6.1 do not say, nor do all file systems.
fn direct_alignment(file: &File, logical: u32) -> (usize, u32) {
    let asked = statx(
        file,
        "",
        rustix::fs::AtFlags::EMPTY_PATH,
        StatxFlags::DIOALIGN,
    );
    match asked {
        Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && s.stx_dio_offset_align != 0 => {
            let memory = s.stx_dio_mem_align.max(1) as usize;
            (memory, s.stx_dio_offset_align.max(SECTOR as u32))
        }
        _ => (logical as usize, logical),
    }
}

/// Reads or writes all of `slices`: `step` does as much as it can from a byte of the file on, and gets no more buffers
/// than a call takes.
fn all(
    slices: &[Slice<'_>],
    mut offset: u64,
    mut step: impl FnMut(&[Slice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut rest = slices;
    // What is left of the first of `rest`, if part of it is done.
    let mut part: Option<Slice<'_>> = None;
    loop {
        let now = part.as_ref().map_or(rest, std::slice::from_ref);
        if now.is_empty() {
            return Ok(());
        }
        let now = now.get(..BUFFERS_AT_ONCE).unwrap_or(now);
        let mut done = match step(now, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => done,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        offset += done as u64;
        loop {
            let Some(first) = part.as_ref().or(rest.first()) else {
                return Ok(());
            };
            if done < first.len() {
                part = (done > 0 || part.is_some())
                    .then(|| first.offset(done))
                    .transpose()
                    .map_err(io::Error::other)?;
                break;
            }
            done -= first.len();
            part = None;
            rest = rest.get(1..).unwrap_or(&[]);
        }
    }
}

/// The first of `slices`, up to `limit` bytes and at least one slice, or the beginning of the first if it is longer:
/// `f` gets them.
pub(super) fn first<'m, T>(
    slices: &[Slice<'m>],
    limit: usize,
    f: impl FnOnce(&[Slice<'m>]) -> io::Result<T>,
) -> io::Result<T> {
    let mut room = limit;
    let fits = |s: &&Slice<'_>| {
        let left = room.checked_sub(s.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let whole = slices.iter().take_while(fits).count();
    match slices.first() {
        Some(long) if whole == 0 => f(&[long.subslice(0, limit).map_err(io::Error::other)?]),
        _ => f(slices.get(..whole).unwrap_or(slices)),
    }
}

impl Disk for RawDisk {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, to: &[Slice<'_>], offset: u64) -> io::Result<()> {
        if self.aligned(to) {
            return all(to, offset, |s, at| read_vectored_at(&self.file, s, at));
        }
        with_bounce(to, |bounce, done| {
            let buffer = [Slice::from(&mut *bounce)];
            all(&buffer, offset + done, |s, at| {
                read_vectored_at(&self.file, s, at)
            })?;
            copy(to, done, bounce, false);
            Ok(())
        })
    }

    fn write(&self, from: &[Slice<'_>], offset: u64) -> io::Result<()> {
        if self.memory_align.is_none() {
            return all(from, offset, |s, at| {
                first(s, WRITE_AT_ONCE, |s| write_vectored_at(&self.file, s, at))
            });
        }
        if self.aligned(from) {
            return all(from, offset, |s, at| write_vectored_at(&self.file, s, at));
        }
        with_bounce(from, |bounce, done| {
            copy(from, done, bounce, true);
            let buffer = [Slice::from(&mut *bounce)];
            all(&buffer, offset + done, |s, at| {
                write_vectored_at(&self.file, s, at)
            })
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateMode::PunchHole, true, offset, length) {
            // It is but a hint: a device that gives no room back keeps the content.
            Err(e) if e.errno() == libc::EOPNOTSUPP => Ok(()),
            done => done.map_err(io::Error::from),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let zero = |mode| fallocate(&self.file, mode, true, offset, length);
        if unmap && zero(FallocateMode::PunchHole).is_ok() {
            return Ok(());
        }
        match zero(FallocateMode::ZeroRange) {
            Err(e) if e.errno() == libc::EOPNOTSUPP => write_zeros(self, offset, length),
            done => done.map_err(io::Error::from),
        }
    }

    fn rights(&self) -> &'static [Right] {
        RIGHTS
    }
}

/// Writes zeros where the file system has no call for it.
pub(super) fn write_zeros(disk: &dyn Disk, offset: u64, length: u64) -> io::Result<()> {
    let mut zeros = vec![0; ZEROS];
    let mut done = 0;
    while done < length {
        let now = (length - done).min(ZEROS as u64);
        let slice = [Slice::from(&mut zeros[..now as usize])];
        disk.write(&slice, offset + done)?;
        done += now;
    }
    Ok(())
}

/// Goes through as many bytes as `slices` have, in pieces that fit an aligned private buffer: `f` gets the buffer,
/// as long as the piece, and how many bytes came before. Pieces but the last are whole blocks.
pub(super) fn with_bounce(
    slices: &[Slice<'_>],
    mut f: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let length: usize = slices.iter().map(Slice::len).sum();
    let mut memory = vec![0; length.min(BOUNCE) + BOUNCE_ALIGN];
    let skip = memory.as_ptr().align_offset(BOUNCE_ALIGN).min(BOUNCE_ALIGN);
    let mut done = 0;
    while done < length {
        let now = (length - done).min(BOUNCE);
        f(&mut memory[skip..skip + now], done as u64)?;
        done += now;
    }
    Ok(())
}

/// Copies between the buffer and the bytes of `slices` from `skip` on, in either direction.
pub(super) fn copy(slices: &[Slice<'_>], skip: u64, mut buffer: &mut [u8], from_slices: bool) {
    let mut skip = skip as usize;
    for slice in slices {
        let part = slice.len().saturating_sub(skip).min(buffer.len());
        if let (1.., Ok(part)) = (part, slice.subslice(skip, part)) {
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(part.len());
            if from_slices {
                part.copy_to(now);
            } else {
                part.copy_from(now);
            }
            buffer = rest;
        }
        skip = skip.saturating_sub(slice.len());
    }
}
