//! What a disk is to the device: bytes at offsets, and what can be done with ranges of them.
//! Requests were checked before they come here: ranges lie inside the disk, in whole sectors.

use std::io;
use std::path::PathBuf;

use super::super::chain::Slice;
use crate::seccomp::Right;

/// Size and preferences of a disk. Bytes; powers of two but for the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// All of it: a multiple of `logical`.
    pub size: u64,
    /// Least unit of an access, from 512 on.
    pub logical: u32,
    /// Unit that the image stores without reading first, from `logical` on.
    pub physical: u32,
    /// Unit that accesses preferably have; 0: no preference.
    pub optimal: u32,
    /// Discarded ranges give room back.
    pub discard: bool,
}

/// A disk's content. Each call is whole or an error; after an error of a write the range may hold anything.
pub trait Disk: Send + Sync {
    /// Size and preferences, which do not change.
    fn shape(&self) -> Shape;
    /// Fills `to` from `offset` on.
    fn read(&self, to: &[Slice<'_>], offset: u64) -> io::Result<()>;
    /// Writes `from` at `offset`.
    fn write(&self, from: &[Slice<'_>], offset: u64) -> io::Result<()>;
    /// Everything written before lasts, whatever happens to the machine.
    fn flush(&self) -> io::Result<()>;
    /// The content of the range matters no more.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// The range reads as zeros; with `unmap` its room may be given back.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
    /// System calls that this takes.
    fn rights(&self) -> &'static [Right];
}

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened or looked at.
    #[error("cannot open disk image {}: {source}; check the path and its permissions", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "disk image {} is in use by another process; give each guest an image of its own, or all of them `ro`",
        path.display()
    )]
    InUse {
        /// As given.
        path: PathBuf,
    },
    /// A raw image with the content of a qcow2 one.
    #[error(
        "disk image {} is a qcow2 image; add format=qcow2 (or format=raw if a guest wrote it there), or convert it \
         with `qemu-img convert -O raw`",
        path.display()
    )]
    IsQcow2 {
        /// As given.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("disk image {} has {size} bytes, less than the {least} of a block; make it larger with `truncate -s`",
            path.display())]
    TooSmall {
        /// As given.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes of a block.
        least: u32,
    },
    /// O_DIRECT works in larger units.
    #[error(
        "disk image {} has {size} bytes, which is no multiple of the {unit} that direct access needs; leave out `direct`",
        path.display()
    )]
    Direct {
        /// As given.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes of a block.
        unit: u32,
    },
    /// Not a qcow2 image that can be used.
    #[error("disk image {} cannot be used as qcow2: {source}", path.display())]
    Qcow2 {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}
