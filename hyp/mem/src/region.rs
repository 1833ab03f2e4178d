//! Memory at boot: what stands behind the image, cut into pieces, and the bytes of boot modules and the device tree.

use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{PhysAddr, PhysPages};

/// Cuts a run of RAM into pieces, front to back.
#[derive(Debug)]
pub struct Carver {
    next: u64,
}

impl Carver {
    /// Starts behind the image.
    pub fn new(start: PhysAddr) -> Self {
        Self {
            next: start.raw().next_multiple_of(PAGE_SIZE),
        }
    }

    /// The next `bytes`, rounded up to pages, at a multiple of `align`, a power of two of at least a page. `None`
    /// where addresses end.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<PhysPages> {
        let start = self.next.checked_next_multiple_of(align)?;
        let count = bytes.checked_next_multiple_of(PAGE_SIZE)? / PAGE_SIZE;
        let pages = PhysPages::new(PhysAddr::new(start), count).ok()?;
        self.next = pages.end().raw();
        Some(pages)
    }

    /// First address not taken.
    pub fn end(&self) -> PhysAddr {
        PhysAddr::new(self.next)
    }
}

/// Access to RAM as bytes while the boot CPU runs alone.
#[derive(Clone, Copy, Debug)]
pub struct BootMemory(());

impl BootMemory {
    /// # Safety
    /// While the value is used, the boot CPU runs alone, and the ranges that its methods are given are mapped at
    /// EL2: for reading by `bytes`, for writing too by `bytes_mut` and `zeroed`.
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// `bytes` bytes from `start` on.
    ///
    /// # Safety
    /// They are not written while the result is used.
    pub unsafe fn bytes<'a>(self, start: PhysAddr, bytes: usize) -> &'a [u8] {
        // SAFETY: mapped by `new`'s contract, unchanged by this one's.
        unsafe { core::slice::from_raw_parts(start.raw() as *const u8, bytes) }
    }

    /// `bytes` bytes from `start` on, to be written.
    ///
    /// # Safety
    /// Nothing else uses them while the result is used.
    pub unsafe fn bytes_mut<'a>(self, start: PhysAddr, bytes: usize) -> &'a mut [u8] {
        // SAFETY: mapped by `new`'s contract, exclusive by this one's.
        unsafe { core::slice::from_raw_parts_mut(start.raw() as *mut u8, bytes) }
    }

    /// `count` values of `T` at the start of `pages`, all bytes zero first.
    ///
    /// # Safety
    /// Nothing else ever uses `pages`, and all-zero bytes are a `T`.
    pub unsafe fn zeroed<T>(self, pages: PhysPages, count: usize) -> &'static mut [T] {
        assert!(
            (count as u64)
                .checked_mul(size_of::<T>() as u64)
                .is_some_and(|n| n <= pages.bytes())
                && align_of::<T>() as u64 <= PAGE_SIZE
        );
        // SAFETY: mapped, exclusive, large enough and aligned; zero is a value by the caller's promise.
        unsafe {
            let at = pages.start().raw() as *mut u8;
            at.write_bytes(0, pages.bytes() as usize);
            core::slice::from_raw_parts_mut(at.cast::<T>(), count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_keep_their_alignment() {
        let mut carver = Carver::new(PhysAddr::new(0x1001));
        assert_eq!(carver.take(1, PAGE_SIZE).unwrap().start().raw(), 0x2000);
        let root = carver.take(8192, 8192).unwrap();
        assert_eq!((root.start().raw(), root.count()), (0x4000, 2));
        assert_eq!(carver.end().raw(), 0x6000);
        assert!(carver.take(u64::MAX, PAGE_SIZE).is_none());
    }
}
