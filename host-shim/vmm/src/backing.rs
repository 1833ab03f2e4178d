//! Memory that all devices of a VM share, made of windows of the host bridge: the pool that a guest finds in its
//! device tree, or all RAM of an unprotected VM. Windows of one device are in `devices`.

use std::io;
use std::sync::Arc;

use porthole_abi::{
    FunctionId, OPEN_WINDOW_PAGES_MAX, PAGE_SIZE, WINDOW_PAGES_MAX, WINDOWS_MAX, WindowFlags,
};
use porthole_uapi::{Error, Vm, WINDOW_UNMAPPED, WindowCreate};
use vm_memory::Bytes;
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

use crate::boot::plan::Loader;
use crate::layout::{POOL_BASE, RAM_BASE, Range};

/// What the memory is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A restricted DMA pool.
    Pool,
    /// RAM of an unprotected VM.
    Ram,
}

/// Memory that devices share.
#[derive(Clone)]
pub struct Backing {
    /// What it is.
    pub kind: Kind,
    /// Where the guest has it.
    pub range: Range,
    /// Its pages, in one piece.
    pub pages: Arc<MmapRegion>,
    windows: Vec<(u32, u64)>,
}

/// Bytes of each window of so much memory, in order.
fn pieces(kind: Kind, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let most = PAGE_SIZE
        * match kind {
            Kind::Pool => WINDOW_PAGES_MAX,
            Kind::Ram => OPEN_WINDOW_PAGES_MAX,
        };
    (0..size.div_ceil(most)).map(move |i| (i * most, most.min(size - i * most)))
}

impl Backing {
    /// Makes the windows, which the guest sees after [`Self::place`]. They are the first of the VM: their numbers
    /// follow each other, which is what maps them in one piece.
    pub fn new(vm: &Vm, kind: Kind, size: u64) -> Result<Self, Error> {
        let base = match kind {
            Kind::Pool => POOL_BASE,
            Kind::Ram => RAM_BASE,
        };
        let mut windows = Vec::with_capacity(WINDOWS_MAX);
        for (offset, length) in pieces(kind, size) {
            let id = vm.window_create(WindowCreate {
                ipa: WINDOW_UNMAPPED,
                length,
                bar_size: size.next_power_of_two(),
                bar_offset: offset,
                function: FunctionId::new(0, 0, 0, 0).0,
                bar: 0,
                flags: WindowFlags::BAR_64.bits(),
                ..WindowCreate::default()
            })?;
            windows.push((id, base + offset));
        }
        let first = windows.first().map_or(0, |(id, _)| *id);
        Ok(Self {
            kind,
            range: Range::new(base, size),
            pages: Arc::new(vm.window_map(first, size as usize)?),
            windows,
        })
    }

    /// Shows the memory to the guest, with what was written to it before.
    pub fn place(&self, vm: &Vm) -> Result<(), Error> {
        let mut windows = self.windows.iter();
        windows.try_for_each(|(id, ipa)| vm.window_move(*id, Some(*ipa)))
    }
}

impl Loader for Backing {
    fn load(&self, ipa: u64, data: &[u8]) -> io::Result<()> {
        let outside = || io::Error::other(format!("{ipa:#x} is outside RAM"));
        let offset = ipa.checked_sub(self.range.base).ok_or_else(outside)?;
        let to = self.pages.as_volatile_slice();
        to.write_slice(data, offset as usize)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_memory_once() {
        for (kind, size, count) in [
            (Kind::Pool, 2 << 20, 1),
            (Kind::Pool, 34 << 20, 3),
            (Kind::Ram, 64 << 20, 1),
            (Kind::Ram, 2 << 30, 32),
        ] {
            let all: Vec<_> = pieces(kind, size).collect();
            assert_eq!(all.len(), count);
            let mut end = 0;
            for (offset, length) in all {
                assert_eq!(offset, end);
                end += length;
            }
            assert_eq!(end, size);
        }
    }

    #[test]
    fn what_is_loaded_stands_at_its_address() {
        let backing = Backing {
            kind: Kind::Ram,
            range: Range::new(RAM_BASE, 8192),
            pages: Arc::new(MmapRegion::new(8192).unwrap()),
            windows: Vec::new(),
        };
        backing.load(RAM_BASE + 4096, b"kernel").unwrap();
        let mut read = [0; 6];
        let slice = backing.pages.as_volatile_slice();
        slice.read_slice(&mut read, 4096).unwrap();
        assert_eq!(&read, b"kernel");
        assert!(backing.load(RAM_BASE + 8190, b"kernel").is_err());
        assert!(backing.load(RAM_BASE - 4096, b"kernel").is_err());
    }
}
