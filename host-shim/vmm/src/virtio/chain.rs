//! Walking a descriptor chain that the guest wrote into its window, and copying through it.
//! Each descriptor is read once and checked before use; every address lies in the window or the walk is a fault.
//! Rings and notifications live in `queue`. Source: VIRTIO 1.2, 2.7.5 (descriptor table, indirect descriptors).

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::stats::SLOT;
use super::window::WindowMemory;

/// Bytes of a window.
pub type Slice<'m> = VolatileSlice<'m>;

const DESCRIPTOR_SIZE: u64 = 16;
/// Most descriptors that one indirect table may hold (more than any driver uses).
pub const INDIRECT_MAX: u32 = 1024;

/// What a guest did wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An address or length outside the window.
    #[error("{what} at {address:#x}, {length:#x} bytes, is outside the window")]
    OutsideWindow {
        /// "buffer", "indirect table", ...
        what: &'static str,
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// An index beyond the table.
    #[error("descriptor index {index} in a table of {size}")]
    Index {
        /// As the guest wrote it.
        index: u16,
        /// Entries.
        size: u32,
    },
    /// More links than the table has entries.
    #[error("descriptor chain from {head} loops")]
    Loop {
        /// First descriptor.
        head: u16,
    },
    /// A writable buffer before a readable one.
    #[error("descriptor chain from {head} has a readable buffer after a writable one")]
    Order {
        /// First descriptor.
        head: u16,
    },
    /// An indirect descriptor where none may be.
    #[error("indirect descriptor in chain {head}: {why}")]
    Indirect {
        /// First descriptor.
        head: u16,
        /// The rule broken.
        why: &'static str,
    },
    /// All buffers together are too long.
    #[error("descriptor chain from {head} has more than 4 GiB of buffers")]
    TooLong {
        /// First descriptor.
        head: u16,
    },
}

/// Fails unless `length` bytes at `address` lie in the window; an empty range has to begin in it.
pub fn check(
    memory: &WindowMemory,
    what: &'static str,
    address: u64,
    length: u64,
) -> Result<(), ChainError> {
    let inside = address.checked_add(length).is_some()
        && usize::try_from(length.max(1))
            .is_ok_and(|n| GuestMemoryBackend::check_range(memory, GuestAddress(address), n));
    inside.then_some(()).ok_or(ChainError::OutsideWindow {
        what,
        address,
        length,
    })
}

/// One buffer, inside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffer {
    address: GuestAddress,
    length: u32,
}

/// A chain whose buffers were all checked. Its vectors are used again for the next one (see [`Chain::refill`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    readable_len: u32,
    writable_len: u32,
    slots: u64,
}

/// The table a walk is in.
struct Table {
    address: u64,
    size: u32,
    indirect: bool,
}

impl Chain {
    /// Walks the chain that starts at `head` of the descriptor table at `table` with `size` entries, and becomes it.
    /// After an error it is of no use but to be filled again.
    pub fn refill(
        &mut self,
        memory: &WindowMemory,
        (table, size): (u64, u16),
        head: u16,
        indirect_allowed: bool,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.slots = 0;
        let mut table = Table {
            address: table,
            size: size.into(),
            indirect: false,
        };
        let (mut readable, mut total) = (0u32, 0u32);
        let mut left = table.size;
        let mut index = head;
        loop {
            let descriptor = table.read(memory, index)?;
            left = left.checked_sub(1).ok_or(ChainError::Loop { head })?;
            if descriptor.refers_to_indirect_table() {
                table = table.enter(memory, head, &descriptor, indirect_allowed)?;
                left = table.size;
                index = 0;
                continue;
            }
            let (address, length) = (descriptor.addr(), descriptor.len());
            check(memory, "buffer", address.raw_value(), length.into())?;
            total = total
                .checked_add(length)
                .ok_or(ChainError::TooLong { head })?;
            self.slots += u64::from(length.div_ceil(SLOT));
            let buffer = Buffer { address, length };
            if descriptor.is_write_only() {
                push(&mut self.writable, buffer);
            } else if self.writable.is_empty() {
                push(&mut self.readable, buffer);
                readable = total;
            } else {
                return Err(ChainError::Order { head });
            }
            if !descriptor.has_next() {
                self.readable_len = readable;
                self.writable_len = total - readable;
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    /// Index of the first descriptor: what the used ring wants.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Slots of 2 KiB that its buffers take, each buffer for itself.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The parts of the readable buffers that hold `length` bytes from `offset` on, to be read where they are. The
    /// guest may change them meanwhile: what has to be checked is copied first.
    pub fn readable_slices<'m>(
        &self,
        memory: &'m WindowMemory,
        offset: u32,
        length: usize,
    ) -> impl Iterator<Item = Result<Slice<'m>, ChainError>> {
        slices(memory, pieces(&self.readable, offset, length))
    }

    /// The same of the writable buffers, to be written where they are.
    pub fn writable_slices<'m>(
        &self,
        memory: &'m WindowMemory,
        offset: u32,
        length: usize,
    ) -> impl Iterator<Item = Result<Slice<'m>, ChainError>> {
        slices(memory, pieces(&self.writable, offset, length))
    }

    /// Copies from the readable buffers, from byte `offset` of them on. Returns bytes copied.
    pub fn read(
        &self,
        memory: &WindowMemory,
        offset: u32,
        data: &mut [u8],
    ) -> Result<usize, ChainError> {
        let mut done = 0;
        for (address, length) in pieces(&self.readable, offset, data.len()) {
            let piece = &mut data[done..done + length];
            memory
                .read_slice(piece, address)
                .map_err(|_| outside(address, length))?;
            done += length;
        }
        Ok(done)
    }

    /// Copies to the writable buffers, from byte `offset` of them on. Returns bytes copied.
    pub fn write(
        &self,
        memory: &WindowMemory,
        offset: u32,
        data: &[u8],
    ) -> Result<usize, ChainError> {
        let mut done = 0;
        for (address, length) in pieces(&self.writable, offset, data.len()) {
            let piece = &data[done..done + length];
            memory
                .write_slice(piece, address)
                .map_err(|_| outside(address, length))?;
            done += length;
        }
        Ok(done)
    }
}

/// Adds a buffer; one that continues the last is the same as a longer one. The sum of all fits 32 bits.
fn push(buffers: &mut Vec<Buffer>, next: Buffer) {
    match buffers.last_mut() {
        Some(last) if last.address.checked_add(last.length.into()) == Some(next.address) => {
            last.length += next.length;
        }
        _ => buffers.push(next),
    }
}

fn slices<'m>(
    memory: &'m WindowMemory,
    pieces: impl Iterator<Item = (GuestAddress, usize)>,
) -> impl Iterator<Item = Result<Slice<'m>, ChainError>> {
    pieces.map(|(address, length)| {
        GuestMemoryBackend::get_slice(memory, address, length).map_err(|_| outside(address, length))
    })
}

fn outside(address: GuestAddress, length: usize) -> ChainError {
    ChainError::OutsideWindow {
        what: "buffer",
        address: address.raw_value(),
        length: length as u64,
    }
}

/// The parts of `buffers` that hold `length` bytes from `offset` on.
fn pieces(
    buffers: &[Buffer],
    offset: u32,
    length: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let (mut skip, mut left) = (offset, length);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.length);
        skip -= skipped;
        let length = left.min((buffer.length - skipped) as usize);
        left -= length;
        (length > 0).then(|| (buffer.address.unchecked_add(skipped.into()), length))
    })
}

impl Table {
    fn read(&self, memory: &WindowMemory, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.size {
            return Err(ChainError::Index {
                index,
                size: self.size,
            });
        }
        let what = if self.indirect {
            "indirect table"
        } else {
            "descriptor table"
        };
        let address = self
            .address
            .checked_add(u64::from(index) * DESCRIPTOR_SIZE)
            .map(GuestAddress);
        address
            .and_then(|a| memory.read_obj(a).ok())
            .ok_or(ChainError::OutsideWindow {
                what,
                address: self.address,
                length: u64::from(self.size) * DESCRIPTOR_SIZE,
            })
    }

    fn enter(
        &self,
        memory: &WindowMemory,
        head: u16,
        descriptor: &Descriptor,
        allowed: bool,
    ) -> Result<Self, ChainError> {
        let broken = |why| Err(ChainError::Indirect { head, why });
        let length = descriptor.len();
        if !allowed {
            return broken("the feature was not negotiated");
        }
        if self.indirect {
            return broken("it is inside an indirect table");
        }
        if descriptor.has_next() {
            return broken("it has a next descriptor");
        }
        if length == 0 || !length.is_multiple_of(DESCRIPTOR_SIZE as u32) {
            return broken("its length is no multiple of 16");
        }
        if length / DESCRIPTOR_SIZE as u32 > INDIRECT_MAX {
            return broken("its table is too long");
        }
        let address = descriptor.addr().raw_value();
        check(memory, "indirect table", address, length.into())?;
        Ok(Self {
            address,
            size: length / DESCRIPTOR_SIZE as u32,
            indirect: true,
        })
    }
}

#[cfg(test)]
mod tests;
