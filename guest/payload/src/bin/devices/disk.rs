//! A disk: what is written is read back, wherever it lies and however long it is, and what must fail does.

use alloc::vec;
use core::str;

use porthole_bounce::{BounceHal, PoolProvider};
use porthole_payload::transport::WindowTransport;
use porthole_payload::{fail, interrupt};
use porthole_runtime::{println, reg, timer};
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};

/// Seconds until an answer is given up.
const PATIENCE: u64 = 300;
/// Bytes that are copied on the disk by `check`, from its start to right behind.
const COPY: usize = 1 << 20;
/// Bytes of a request while copying.
const PIECE: usize = 64 << 10;

/// A disk with its driver.
pub struct Disk<P: PoolProvider> {
    driver: VirtIOBlk<BounceHal<P>, WindowTransport>,
    messages: bool,
}

impl<P: PoolProvider> Disk<P> {
    /// Sets it up and says what it is.
    pub fn new(transport: WindowTransport, messages: bool) -> Self {
        let driver = VirtIOBlk::new(transport);
        let mut driver = driver.unwrap_or_else(|e| fail!("disk: cannot be driven: {e}"));
        let mut id = [0; 20];
        let length = driver.device_id(&mut id);
        let length = length.unwrap_or_else(|e| fail!("disk: no id: {e}"));
        println!(
            "disk: {} sectors, {}, id {}",
            driver.capacity(),
            if driver.readonly() {
                "read-only"
            } else {
                "writable"
            },
            str::from_utf8(&id[..length]).unwrap_or("?")
        );
        Self { driver, messages }
    }

    /// Sectors.
    pub fn capacity(&self) -> usize {
        self.driver.capacity() as usize
    }

    /// Reads, sleeping until the device is done.
    pub fn read(&mut self, sector: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: the three live until the request is completed below, and nothing touches them before.
        let token = unsafe {
            self.driver
                .read_blocks_nb(sector, &mut request, buffer, &mut response)
        }?;
        let deadline = reg::counter() + PATIENCE * timer::frequency();
        let done = interrupt::sleep_until(self.messages, Some(deadline), || {
            self.driver.peek_used().is_some()
        });
        if !done {
            fail!("disk: no answer to a read at sector {sector} in {PATIENCE} s");
        }
        // SAFETY: the same three as above.
        unsafe {
            self.driver
                .complete_read_blocks(token, &request, buffer, &mut response)
        }
    }

    fn read_whole(&mut self, sector: usize, buffer: &mut [u8]) {
        if let Err(e) = self.read(sector, buffer) {
            fail!("disk: {} bytes at sector {sector}: {e}", buffer.len());
        }
    }

    fn write_whole(&mut self, sector: usize, buffer: &[u8]) {
        if let Err(e) = self.driver.write_blocks(sector, buffer) {
            fail!(
                "disk: writing {} bytes at sector {sector}: {e}",
                buffer.len()
            );
        }
    }

    fn flush(&mut self) {
        if let Err(e) = self.driver.flush() {
            fail!("disk: flush: {e}");
        }
    }

    /// Writes and compares; a read-only disk is only read.
    pub fn check(&mut self) {
        let end = self.capacity();
        if end < 2 * COPY / SECTOR_SIZE + 1024 {
            fail!("disk: {end} sectors are too few for this check: 3 MiB do");
        }
        let mut one = [0; SECTOR_SIZE];
        if self.read(end, &mut one).is_ok() {
            fail!("disk: a sector behind the last can be read");
        }
        self.read_whole(end - 1, &mut one);
        if self.driver.readonly() {
            if self.driver.write_blocks(0, &one).is_ok() {
                fail!("disk: it is read-only, and a write succeeds");
            }
            return;
        }
        self.copy();
        for (n, size) in [512, 1024, 4096, 64 << 10, 128 << 10]
            .into_iter()
            .enumerate()
        {
            let sectors = size / SECTOR_SIZE;
            for sector in [2 * COPY / SECTOR_SIZE + 1, end / 2 + 7, end - sectors] {
                self.round(n, sector, size);
            }
        }
        self.flush();
    }

    /// Copies the disk's start to right behind: whoever looks at the image sees whether it was done well.
    fn copy(&mut self) {
        let mut piece = vec![0; PIECE];
        for at in (0..COPY).step_by(PIECE) {
            self.read_whole(at / SECTOR_SIZE, &mut piece);
            self.write_whole((COPY + at) / SECTOR_SIZE, &piece);
        }
        self.flush();
        println!("disk: {COPY} bytes copied");
    }

    /// Writes a pattern, reads it back, and finds what is before it as it was.
    fn round(&mut self, n: usize, sector: usize, size: usize) {
        let (mut before, mut after) = ([0; SECTOR_SIZE], [0; SECTOR_SIZE]);
        self.read_whole(sector - 1, &mut before);
        let pattern = |i: usize| (i.wrapping_mul(7) + i / 509 + n * 31 + sector) as u8;
        let mut data = vec![0; size];
        data.iter_mut()
            .enumerate()
            .for_each(|(i, b)| *b = pattern(i));
        self.write_whole(sector, &data);
        data.fill(0);
        self.read_whole(sector, &mut data);
        if let Some(at) = (0..size).find(|i| data[*i] != pattern(*i)) {
            let (expected, found) = (pattern(at), data[at]);
            fail!(
                "disk: byte {at} of {size} at sector {sector} is {found:#04x}, not {expected:#04x}"
            );
        }
        self.read_whole(sector - 1, &mut after);
        if before != after {
            fail!("disk: writing {size} bytes at sector {sector} changed the sector before");
        }
    }

    /// Writes from the start until a write fails, and goes on reading and flushing after that.
    pub fn fill(&mut self) {
        let piece = vec![0x5a; PIECE];
        let sectors = PIECE / SECTOR_SIZE;
        let full = (0..self.capacity() - sectors)
            .step_by(sectors)
            .find_map(|at| self.driver.write_blocks(at, &piece).err().map(|e| (at, e)));
        let Some((at, error)) = full else {
            fail!("disk: every write succeeds");
        };
        println!("disk: writes fail from sector {at} on: {error}");
        let mut back = vec![0; PIECE];
        self.read_whole(0, &mut back);
        if back != piece {
            fail!("disk: what was written first is not there");
        }
        println!("disk: it still reads");
    }
}
