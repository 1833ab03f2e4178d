//! The only unsafe code of this crate: copies between private memory and the window, MMIO
//! apertures, and the `Hal` glue that turns virtio-drivers' pointers into slices.
//! No policy: what is mapped where is decided by the pool, before anything here runs.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use crate::addr::{BusAddr, PAGE_SIZE};
use crate::error::{Error, SetupError};

/// The unit of copying. One 16-byte volatile access is a load or store pair on arm64; nothing
/// relies on its being atomic.
type Word = u128;
const WORD: usize = size_of::<Word>();

/// A window: memory that guest and host both reach, at a bus address inside the device's BAR.
///
/// The host may change every byte at any time, so no reference into the window is ever made: all
/// access is by volatile copies through raw pointers, and each byte is read at most once per copy.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    bus: BusAddr,
    len: usize,
}

// SAFETY: the window is plain memory with no owner thread; `Window::new`'s caller promised that it
// stays mapped, and volatile copies tolerate concurrent change by definition.
unsafe impl Send for Window {}
// SAFETY: as for Send; `&Window` offers only such copies.
unsafe impl Sync for Window {}

impl Window {
    /// Takes over the window of `len` bytes that the guest has mapped at `base` and the device
    /// knows as `bus`.
    ///
    /// # Errors
    /// `Empty`, `Unaligned` (all three must be multiples of 4 KiB), `BadAddress`.
    ///
    /// # Safety
    /// For the life of the window, `base..base + len` must be mapped, readable and writable as
    /// ordinary (Normal, write-back) memory, outside every Rust allocation, and accessed by this
    /// guest through this window only.
    pub unsafe fn new(base: NonNull<u8>, bus: BusAddr, len: usize) -> Result<Self, SetupError> {
        if len == 0 {
            return Err(SetupError::Empty);
        }
        let base_address = base.as_ptr().addr();
        if !base_address.is_multiple_of(PAGE_SIZE)
            || !bus.get().is_multiple_of(PAGE_SIZE as u64)
            || !len.is_multiple_of(PAGE_SIZE)
        {
            return Err(SetupError::Unaligned);
        }
        if bus.get() == 0
            || bus.checked_add(len).is_none()
            || base_address.checked_add(len).is_none()
            || isize::try_from(len).is_err()
        {
            return Err(SetupError::BadAddress);
        }
        Ok(Self { base, bus, len })
    }

    /// Bus address of the first byte; page-aligned, never zero.
    pub fn bus(&self) -> BusAddr {
        self.bus
    }

    /// Bytes in the window; a multiple of 4 KiB.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Bytes from the start of the window to `addr`.
    ///
    /// # Errors
    /// `OutsideWindow`.
    pub fn offset_of(&self, addr: BusAddr) -> Result<usize, Error> {
        addr.offset_from(self.bus)
            .filter(|&offset| offset < self.len)
            .ok_or(Error::OutsideWindow)
    }

    /// Where the guest has `len` bytes from `offset` mapped.
    ///
    /// # Errors
    /// `OutsideWindow`.
    pub(crate) fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, Error> {
        let end = offset.checked_add(len).ok_or(Error::OutsideWindow)?;
        if end > self.len {
            return Err(Error::OutsideWindow);
        }
        // SAFETY: offset <= self.len, and `new`'s caller promised that many mapped bytes.
        Ok(unsafe { self.base.add(offset) })
    }

    /// Copies `source` into the window at `offset`.
    ///
    /// # Errors
    /// `OutsideWindow`, with nothing written.
    pub(crate) fn write(&self, offset: usize, source: &[u8]) -> Result<(), Error> {
        let to = self.at(offset, source.len())?.as_ptr();
        let (head, body, tail) = split(offset, source.len());
        for i in (0..head).chain(source.len() - tail..source.len()) {
            // SAFETY: `at` checked that all of `source.len()` bytes lie in the window.
            unsafe { to.add(i).write_volatile(source[i]) };
        }
        let middle = &source[head..head + body];
        // SAFETY: the body starts `head` bytes into the checked range.
        let to = unsafe { to.add(head) }.cast::<Word>();
        // SAFETY: every bit pattern is a valid integer, so bytes may be viewed as integers.
        if let ([], aligned, []) = unsafe { middle.align_to::<u64>() } {
            for (i, halves) in aligned.as_chunks().0.iter().enumerate() {
                // SAFETY: word i of the body is in the checked range; `split` aligned the body.
                unsafe { to.add(i).write_volatile(join(*halves)) };
            }
        } else {
            for (i, chunk) in middle.as_chunks::<WORD>().0.iter().enumerate() {
                // SAFETY: as above.
                unsafe { to.add(i).write_volatile(Word::from_ne_bytes(*chunk)) };
            }
        }
        Ok(())
    }

    /// Copies from the window at `offset` into `target`, reading each byte once.
    ///
    /// # Errors
    /// `OutsideWindow`, with nothing changed.
    pub(crate) fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), Error> {
        let len = target.len();
        let from = self.at(offset, len)?.as_ptr();
        let (head, body, tail) = split(offset, len);
        for i in (0..head).chain(len - tail..len) {
            // SAFETY: `at` checked that all of `len` bytes lie in the window.
            target[i] = unsafe { from.add(i).read_volatile() };
        }
        let middle = &mut target[head..head + body];
        // SAFETY: the body starts `head` bytes into the checked range.
        let from = unsafe { from.add(head) }.cast::<Word>();
        // SAFETY: every bit pattern is a valid integer, so bytes may be viewed as integers.
        if let ([], aligned, []) = unsafe { middle.align_to_mut::<u64>() } {
            for (i, halves) in aligned.as_chunks_mut().0.iter_mut().enumerate() {
                // SAFETY: word i of the body is in the checked range; `split` aligned the body.
                *halves = halve(unsafe { from.add(i).read_volatile() });
            }
        } else {
            for (i, chunk) in middle.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
                // SAFETY: as above.
                *chunk = unsafe { from.add(i).read_volatile() }.to_ne_bytes();
            }
        }
        Ok(())
    }

    /// Writes zeroes over `len` bytes at `offset`.
    ///
    /// # Errors
    /// `OutsideWindow`, with nothing written.
    pub(crate) fn zero(&self, offset: usize, len: usize) -> Result<(), Error> {
        let to = self.at(offset, len)?.as_ptr();
        let (head, body, tail) = split(offset, len);
        for i in (0..head).chain(len - tail..len) {
            // SAFETY: `at` checked that all of `len` bytes lie in the window.
            unsafe { to.add(i).write_volatile(0) };
        }
        for i in (head..head + body).step_by(WORD) {
            // SAFETY: as above; `split` aligned the body and made it whole words.
            unsafe { to.add(i).cast::<Word>().write_volatile(0) };
        }
        Ok(())
    }
}

/// Splits `len` bytes at `offset` into bytes before, in and after whole aligned words of the window
/// (whose base is page-aligned, so that an offset's alignment is its pointer's).
fn split(offset: usize, len: usize) -> (usize, usize, usize) {
    let head = (offset.wrapping_neg() % WORD).min(len);
    let tail = (len - head) % WORD;
    (head, len - head - tail, tail)
}

/// The word whose bytes in memory are those of the two halves: private buffers are often aligned to
/// 8 bytes only, and arm64 without MMU knows no unaligned access.
fn join(halves: [u64; 2]) -> Word {
    let mut bytes = [0; WORD];
    bytes[..WORD / 2].copy_from_slice(&halves[0].to_ne_bytes());
    bytes[WORD / 2..].copy_from_slice(&halves[1].to_ne_bytes());
    Word::from_ne_bytes(bytes)
}

/// The inverse of [`join`].
fn halve(word: Word) -> [u64; 2] {
    word.to_ne_bytes()
        .as_chunks()
        .0
        .first_chunk()
        .map_or([0; 2], |halves: &[[u8; 8]; 2]| {
            halves.map(u64::from_ne_bytes)
        })
}

/// A range of bus addresses in which device registers may lie, and where the guest maps it.
///
/// The addresses in BARs come from config space, which the host writes: a register "BAR" at the
/// address of private RAM would turn register writes into writes to that RAM. So the Hal translates
/// nothing outside the apertures that the guest knows from a source it trusts.
#[derive(Clone, Copy, Debug)]
pub struct MmioAperture {
    phys: u64,
    virt: NonNull<u8>,
    len: u64,
}

// SAFETY: an aperture is two addresses and a length; using them is the driver's business.
unsafe impl Send for MmioAperture {}
// SAFETY: as for Send.
unsafe impl Sync for MmioAperture {}

impl MmioAperture {
    /// An aperture of `len` bytes at bus address `phys`, mapped at `virt`.
    ///
    /// # Safety
    /// All of it must be mapped at `virt` for the life of the program, hold device registers (or
    /// nothing) only, no RAM, and be used by nothing but drivers that go through the Hal.
    pub const unsafe fn new(phys: u64, virt: NonNull<u8>, len: u64) -> Self {
        Self { phys, virt, len }
    }

    /// The address at which `size` bytes at `phys` are mapped, or `None` if they are not all inside.
    pub fn translate(&self, phys: u64, size: usize) -> Option<NonNull<u8>> {
        let offset = phys.checked_sub(self.phys)?;
        let end = offset.checked_add(u64::try_from(size).ok()?)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= self.len, and `new`'s caller promised that it is mapped that far.
        Some(unsafe { self.virt.add(usize::try_from(offset).ok()?) })
    }
}

#[cfg(feature = "virtio-drivers")]
mod glue {
    //! `Hal` for [`BounceHal`]: pointers become slices, decisions are in `crate::hal`.

    use super::NonNull;
    use crate::addr::{BusAddr, Direction};
    use crate::hal::{BounceHal, PoolProvider};
    use virtio_drivers::{BufferDirection, Hal, PhysAddr};

    // SAFETY: coherent runs come from a window that `Window::new`'s caller gave to the pool alone,
    // page-aligned, zeroed, and taken until freed. MMIO pointers are checked to lie in apertures
    // whose creator promised device registers only.
    unsafe impl<P: PoolProvider> Hal for BounceHal<P> {
        fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
            Self::alloc(pages)
        }

        unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
            Self::free(BusAddr::new(paddr), pages)
        }

        unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
            Self::mmio(paddr, size)
        }

        unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
            // SAFETY: the caller promises a valid buffer that no other thread accesses during this
            // call; it is initialised, as virtio-drivers makes it from a slice.
            let buffer = unsafe { buffer.as_ref() };
            Self::map(buffer, direction.into())
        }

        unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
            let (addr, direction) = (BusAddr::new(paddr), Direction::from(direction));
            if direction.copies_back() {
                // SAFETY: as in `share`; virtio-drivers makes these from mutable slices.
                Self::unmap(addr, unsafe { buffer.as_mut() }, direction);
            } else {
                // The buffer may come from a shared slice: only its length is looked at.
                Self::release(addr, buffer.len(), direction);
            }
        }
    }
}

/// A window for tests: memory of its own, and the host's side of it.
#[cfg(test)]
pub(crate) mod fake {
    use super::{BusAddr, MmioAperture, NonNull, PAGE_SIZE, SetupError, Window};
    use std::alloc::{Layout, alloc, handle_alloc_error};
    use std::vec::Vec;

    /// `Window::new` with addresses that are never accessed, to see what it refuses.
    pub(crate) fn window_at(base: NonNull<u8>, bus: u64, len: usize) -> Result<Window, SetupError> {
        // SAFETY: none of the bytes is accessed: the tests drop the window at once.
        unsafe { Window::new(base, BusAddr::new(bus), len) }
    }

    /// An aperture of addresses that are never accessed, to see what it translates.
    pub(crate) fn aperture_at(phys: u64, virt: NonNull<u8>, len: u64) -> MmioAperture {
        // SAFETY: the tests look at translated addresses, not at what is there.
        unsafe { MmioAperture::new(phys, virt, len) }
    }

    /// The host's view of a window: it reads and writes what it likes, when it likes.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct HostView {
        base: NonNull<u8>,
        pub(crate) bus: u64,
        pub(crate) len: usize,
    }

    // SAFETY: the memory is leaked and only ever accessed by volatile operations.
    unsafe impl Send for HostView {}
    // SAFETY: as for Send.
    unsafe impl Sync for HostView {}

    impl HostView {
        /// A window of `pages` pages at `bus`, filled with `0xa5` by the host.
        pub(crate) fn new(bus: u64, pages: usize) -> (Self, Window) {
            let len = pages * PAGE_SIZE;
            let layout = Layout::from_size_align(len, PAGE_SIZE).unwrap();
            // SAFETY: the layout is not empty: no test asks for zero pages.
            let base = NonNull::new(unsafe { alloc(layout) })
                .unwrap_or_else(|| handle_alloc_error(layout));
            let view = Self { base, bus, len };
            view.write(bus, &std::vec![0xa5; len]);
            // SAFETY: the memory is leaked, so it stays mapped, and only views and this window use it.
            let window = unsafe { Window::new(base, BusAddr::new(bus), len) }.unwrap();
            (view, window)
        }

        /// Whether all of the range lies in the window; what a correct device checks first.
        pub(crate) fn contains(&self, addr: u64, len: usize) -> bool {
            addr.checked_sub(self.bus)
                .and_then(|offset| offset.checked_add(len as u64))
                .is_some_and(|end| end <= self.len as u64)
        }

        pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
            assert!(self.contains(addr, bytes.len()));
            for (i, byte) in bytes.iter().enumerate() {
                // SAFETY: checked to be inside the leaked memory.
                unsafe {
                    self.base
                        .add((addr - self.bus) as usize + i)
                        .write_volatile(*byte)
                };
            }
        }

        pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
            assert!(self.contains(addr, len));
            (0..len)
                // SAFETY: checked to be inside the leaked memory.
                .map(|i| unsafe {
                    self.base
                        .add((addr - self.bus) as usize + i)
                        .read_volatile()
                })
                .collect()
        }
    }
}
