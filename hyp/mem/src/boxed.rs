//! A value in a page that EL2 owns. The page's life is the tracker's business: dropping the box ends the value,
//! not the page.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use porthole_abi::PAGE_SIZE;
use porthole_core::addr::PhysAddr;

/// Owner of a `T` in a page of its own.
pub struct PageBox<T> {
    value: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: the box is the only way to its value, as a `Box<T>` would be.
unsafe impl<T: Send> Send for PageBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for PageBox<T> {}

impl<T> PageBox<T> {
    /// Moves `value` into `page`.
    ///
    /// # Safety
    /// `page` is RAM that EL2 owns and maps, nothing else uses it while the box lives.
    pub(crate) unsafe fn new(page: PhysAddr, value: T) -> Self {
        const { assert!(size_of::<T>() <= PAGE_SIZE as usize && align_of::<T>() <= PAGE_SIZE as usize) };
        let at = NonNull::new(page.raw() as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: the caller's promise; a page holds and aligns any `T`, as asserted.
        unsafe { at.write(value) };
        Self {
            value: at,
            owns: PhantomData,
        }
    }
}

impl<T> Deref for PageBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: written by `new`, reached through this box only.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for PageBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for PageBox<T> {
    fn drop(&mut self) {
        // SAFETY: the value is whole and is not used again.
        unsafe { self.value.drop_in_place() };
    }
}
