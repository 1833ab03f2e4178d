//! One virtio-blk request: what the driver asks for, whether it may, and the status it gets.
//! The header and the ranges are copied out of the window once; what is checked is the copy.
//! Source: VIRTIO 1.2, 5.2.6 (device operation).

use std::io;
use std::sync::{Arc, Mutex};

use arrayvec::ArrayVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::SECTOR;
use super::disk::Disk;
use crate::bus::lock;
use crate::virtio::chain::{Chain, ChainError, Slice};
use crate::virtio::queue::{DeviceQueue, Fault};
use crate::virtio::shared::Shared;
use crate::virtio::window::WindowMemory;

/// Bytes of `struct virtio_blk_req` before the data: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of an answer to GET_ID.
pub const ID_LEN: usize = 20;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;
/// Ranges in one request.
pub const RANGES_MAX: usize = 32;
/// Sectors in one range: 2 GiB.
pub const RANGE_SECTORS_MAX: u32 = 4 << 20;
/// A range's flags: its room may be given back.
const FLAG_UNMAP: u32 = 1;
/// Buffers after which the backend gets those that there are.
const SLICES: usize = 256;
/// Bytes of buffers after which no more are: whoever waits for the thread to end waits for so many at most, and one
/// buffer.
const PIECE: u64 = 4 << 20;
/// Bytes of a range that are given back or zeroed at once, for the same reason.
const RANGE_PIECE: u64 = 64 << 20;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// What the driver may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// No writes.
    pub readonly: bool,
    /// Writes last when they are reported done.
    pub write_through: bool,
    /// Discard was negotiated.
    pub discard: bool,
    /// Write zeroes was negotiated.
    pub write_zeroes: bool,
    /// Answer to GET_ID.
    pub id: [u8; ID_LEN],
}

/// A request without a place for its status, or a buffer that is not there: the device needs a reset.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// No writable byte.
    NoStatus,
    /// The chain.
    Chain(ChainError),
}

impl Broken {
    /// As a fault of the queue.
    pub fn on(self, queue: &DeviceQueue) -> Fault {
        match self {
            Self::NoStatus => Fault::Setup("a block request has no writable byte for its status"),
            Self::Chain(error) => queue.broken(error),
        }
    }
}

/// Why a request fails: what the driver did, which it gets told, or the host, which the log says too.
enum Refusal {
    /// Not something that this device does.
    Unsupported,
    /// A request that cannot be.
    Invalid(&'static str),
    /// The backend.
    Backend(&'static str, io::Error),
    /// The chain.
    Chain(ChainError),
    /// The device is being reset: nobody wants an answer any more.
    Halting,
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// Serves requests.
pub struct Server {
    disk: Arc<dyn Disk>,
    size: u64,
    logical: u64,
    limits: Limits,
    /// A flush failed. The host says that once to one of those who ask, and has dropped what it could not write: no
    /// later flush, of whichever queue, may be called done. Held during a flush, so that none overtakes the one that fails.
    lost: Arc<Mutex<bool>>,
    shared: Arc<Shared>,
}

impl Server {
    /// For a device with these limits; `lost` is the same for all of its queues, for as long as it has its disk.
    pub fn new(
        disk: Arc<dyn Disk>,
        limits: Limits,
        lost: Arc<Mutex<bool>>,
        shared: Arc<Shared>,
    ) -> Self {
        let shape = disk.shape();
        Self {
            disk,
            size: shape.size,
            logical: shape.logical.into(),
            limits,
            lost,
            shared,
        }
    }

    /// Serves one request and writes its status. Returns the bytes written to the chain, the status among them.
    pub fn serve(&self, memory: &WindowMemory, chain: &Chain) -> Result<u32, Broken> {
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or(Broken::NoStatus)?;
        let (status, written) = match self.carry_out(memory, chain, room) {
            Ok(written) => (OK, written),
            Err(Refusal::Unsupported) => (UNSUPP, 0),
            Err(Refusal::Invalid(why)) => {
                self.shared.warn(&format_args!("refused a request: {why}"));
                (IOERR, 0)
            }
            Err(Refusal::Backend(what, error)) => {
                self.shared.warn(&format_args!("{what} failed: {error}"));
                (IOERR, 0)
            }
            Err(Refusal::Halting) => (IOERR, 0),
            Err(Refusal::Chain(error)) => return Err(Broken::Chain(error)),
        };
        // The status is the last byte whatever the data came to: all before it counts as written.
        chain
            .write(memory, room, &[status])
            .map_err(Broken::Chain)?;
        Ok(if written == room { room + 1 } else { written })
    }

    fn carry_out(&self, memory: &WindowMemory, chain: &Chain, room: u32) -> Result<u32, Refusal> {
        let mut header = [0; HEADER];
        if chain.read(memory, 0, &mut header)? < HEADER {
            return Err(Refusal::Invalid("its header is too short"));
        }
        let [kind, _, low, high] = words(&header);
        let sector = u64::from(high) << 32 | u64::from(low);
        let data = chain.readable_len() - HEADER as u32;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, room.into())?;
                let mut at = offset;
                let slices = chain.writable_slices(memory, 0, room as usize);
                each(slices, self.logical, |slices| {
                    self.go_on()?;
                    let done = self.disk.read(slices, at);
                    at += total(slices);
                    done.map_err(|e| Refusal::Backend("a read", e))
                })?;
                Ok(room)
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                let offset = self.range(sector, data.into())?;
                let mut at = offset;
                let slices = chain.readable_slices(memory, HEADER as u32, data as usize);
                each(slices, self.logical, |slices| {
                    self.go_on()?;
                    let done = self.disk.write(slices, at);
                    at += total(slices);
                    done.map_err(|e| Refusal::Backend("a write", e))
                })?;
                self.written()?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let length = ID_LEN.min(room as usize);
                chain.write(memory, 0, &self.limits.id[..length])?;
                Ok(length as u32)
            }
            VIRTIO_BLK_T_DISCARD if self.limits.discard => self.ranges(memory, chain, false),
            VIRTIO_BLK_T_WRITE_ZEROES if self.limits.write_zeroes => {
                self.ranges(memory, chain, true)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.limits.readonly {
            return Err(Refusal::Invalid("the disk is read-only"));
        }
        Ok(())
    }

    /// Before each piece of a long request and each flush: the request is given up if the thread is to end.
    fn go_on(&self) -> Result<(), Refusal> {
        if self.shared.halting() {
            return Err(Refusal::Halting);
        }
        Ok(())
    }

    /// After a change.
    fn written(&self) -> Result<(), Refusal> {
        if self.limits.write_through {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Refusal> {
        self.go_on()?;
        let mut lost = lock(&self.lost);
        if *lost {
            let why = "an earlier one failed, and what it was to write may be lost until the VM starts anew";
            return Err(Refusal::Backend("a flush", io::Error::other(why)));
        }
        self.disk.flush().map_err(|e| {
            *lost = true;
            Refusal::Backend("a flush", e)
        })
    }

    /// Offset of `length` bytes at a sector; they lie in the disk and are whole blocks.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|o| o.checked_add(length));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(Refusal::Invalid("its sectors do not exist"));
        };
        if end > self.size {
            return Err(Refusal::Invalid("it reaches beyond the end of the disk"));
        }
        if length == 0 || !(offset | length).is_multiple_of(self.logical) {
            return Err(Refusal::Invalid("it is not made of whole blocks"));
        }
        Ok(offset)
    }

    /// DISCARD and WRITE_ZEROES: every range is checked before the first is touched.
    fn ranges(&self, memory: &WindowMemory, chain: &Chain, zero: bool) -> Result<u32, Refusal> {
        self.writable()?;
        let mut bytes = [0; RANGES_MAX * RANGE];
        let length = (chain.readable_len() as usize).saturating_sub(HEADER);
        let Some(bytes) = bytes.get_mut(..length) else {
            return Err(Refusal::Invalid("it has too many ranges"));
        };
        if length == 0 || !length.is_multiple_of(RANGE) {
            return Err(Refusal::Invalid("its ranges are incomplete"));
        }
        chain.read(memory, HEADER as u32, bytes)?;
        let mut all = ArrayVec::<_, RANGES_MAX>::new();
        for range in bytes.as_chunks::<RANGE>().0 {
            let [low, high, sectors, flags] = words(range);
            if flags & !FLAG_UNMAP != 0 || (!zero && flags != 0) {
                return Err(Refusal::Unsupported);
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(Refusal::Invalid("a range is too long"));
            }
            let length = u64::from(sectors) * SECTOR;
            let offset = self.range(u64::from(high) << 32 | u64::from(low), length)?;
            all.push((offset, length, flags & FLAG_UNMAP != 0));
        }
        for (offset, length, unmap) in all {
            for at in (offset..offset + length).step_by(RANGE_PIECE as usize) {
                self.go_on()?;
                let length = RANGE_PIECE.min(offset + length - at);
                let (what, done) = if zero {
                    let done = self.disk.write_zeroes(at, length, unmap);
                    ("writing zeroes", done)
                } else {
                    ("a discard", self.disk.discard(at, length))
                };
                done.map_err(|e| Refusal::Backend(what, e))?;
            }
        }
        self.written()?;
        Ok(0)
    }
}

/// Four little-endian words.
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|i| words.get(i).map_or(0, |w| u32::from_le_bytes(*w)))
}

fn total(slices: &[Slice<'_>]) -> u64 {
    slices.iter().map(|s| s.len() as u64).sum()
}

/// Hands slices to `f`, as many at a time as one call of the system takes well. Each time they are whole blocks of
/// `logical` bytes, if all of them are: what is more waits for the next time, the rest of a slice that is cut with it.
fn each<'m>(
    slices: impl Iterator<Item = Result<Slice<'m>, ChainError>>,
    logical: u64,
    mut f: impl FnMut(&[Slice<'m>]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let most = slices.size_hint().1.unwrap_or(0);
    let mut some = Vec::<Slice<'m>>::with_capacity(most.min(SLICES));
    let mut bytes = 0;
    for slice in slices {
        let slice = slice?;
        bytes += slice.len() as u64;
        some.push(slice);
        if (some.len() >= SLICES || bytes >= PIECE) && bytes >= logical {
            let more = bytes % logical;
            let rest = cut(&mut some, more)?;
            f(&some)?;
            some = rest;
            bytes = more;
        }
    }
    if some.is_empty() { Ok(()) } else { f(&some) }
}

/// Takes the last `bytes` off `slices`, which have as many.
fn cut<'m>(slices: &mut Vec<Slice<'m>>, bytes: u64) -> Result<Vec<Slice<'m>>, Refusal> {
    let mut rest = Vec::new();
    let mut left = bytes as usize;
    while left > 0 {
        let Some(last) = slices.pop() else { break };
        let kept = last.len().saturating_sub(left);
        left -= last.len() - kept;
        let (before, after) = last
            .split_at(kept)
            .map_err(|e| Refusal::Backend("cutting a buffer", io::Error::other(e)))?;
        if kept > 0 {
            slices.push(before);
        }
        rest.push(after);
    }
    rest.reverse();
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    /// Has `memory` handed on in slices of these lengths; returns what came, a vector for each piece.
    fn pieces(memory: &mut [u8], lengths: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
        let mut rest = memory;
        let mut slices = Vec::new();
        for length in lengths {
            let (now, later) = rest.split_at_mut(length);
            slices.push(Ok(Slice::from(now)));
            rest = later;
        }
        let mut pieces = Vec::new();
        let done = each(slices.into_iter(), BLOCK as u64, |slices| {
            let mut piece = Vec::new();
            for slice in slices {
                let mut bytes = vec![0; slice.len()];
                slice.copy_to(&mut bytes);
                piece.extend(bytes);
            }
            pieces.push(piece);
            Ok(())
        });
        assert!(done.is_ok());
        pieces
    }

    #[test]
    fn a_request_of_whole_blocks_comes_in_pieces_of_whole_blocks() {
        for (length, count) in [
            (1000, 1024),
            (1, 2 * BLOCK),
            (12, 1024),
            (BLOCK, 600),
            (PIECE as usize - 512, 8),
            (PIECE as usize + 512, 8),
        ] {
            let mut memory: Vec<u8> = (0..length * count).map(|i| (i / 7) as u8).collect();
            let whole = memory.clone();
            let pieces = pieces(&mut memory, std::iter::repeat_n(length, count));
            for piece in &pieces {
                assert_eq!(piece.len() % BLOCK, 0, "slices of {length}");
                let most = PIECE as usize + length + BLOCK;
                assert!((1..=most).contains(&piece.len()), "slices of {length}");
            }
            assert!(pieces.concat() == whole, "slices of {length}");
        }
    }
}
