//! The pool as virtio-drivers' `Hal`: one Hal type per pool, since the trait has no device handle.
//! Safe half: which pool, which apertures, what to do on failure. The `unsafe impl` that turns
//! pointers into slices is in `raw`.
#![forbid(unsafe_code)]

use core::marker::PhantomData;
use core::ptr::NonNull;

use spin::Once;
use virtio_drivers::BufferDirection;

use crate::addr::{BusAddr, Direction, PAGE_SIZE};
use crate::error::{Error, SetupError};
use crate::pool::BouncePool;
use crate::raw::MmioAperture;

/// What [`BounceHal`] hands to the device in place of an address when a buffer could not be mapped:
/// no window reaches it, so the device refuses the request (DEVICE_NEEDS_RESET) without an access.
pub const UNMAPPED: BusAddr = BusAddr::new(u64::MAX);

/// Which call of the Hal failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A ring could not be allocated; the driver returns `DmaError`.
    Alloc,
    /// A ring could not be freed; the driver panics in its drop.
    Free,
    /// A buffer could not be mapped; the device sees [`UNMAPPED`].
    Share,
    /// A buffer could not be unmapped; it is left as it was.
    Unshare,
}

/// Says which pool and which registers a [`BounceHal`] serves. Each device has a type of its own
/// (see [`bounce_pool!`](crate::bounce_pool)); functions of one multi-function device that share a
/// window may share the pool.
pub trait PoolProvider: 'static {
    /// The pool and the apertures; `None` until the device was found. Must not change once set.
    fn binding() -> Option<&'static Binding>;

    /// Told of every failure, which the trait of virtio-drivers cannot report. `error` is `None` if
    /// there is no pool yet. The default logs it, so that a full pool gets its name in the log.
    fn failed(operation: Operation, error: Option<Error>, bytes: usize) {
        match error {
            Some(error) => log::error!("bounce: {operation:?} of {bytes} bytes: {error}"),
            None => log::error!("bounce: {operation:?} of {bytes} bytes: no pool installed"),
        }
    }
}

/// A pool, and the apertures in which the registers of its device may lie.
#[derive(Debug)]
pub struct Binding {
    /// The pool of the device.
    pub pool: BouncePool<'static>,
    /// Where BARs may be; anything else is refused.
    pub apertures: &'static [MmioAperture],
}

/// A binding set once at run time; what [`bounce_pool!`](crate::bounce_pool) puts behind each type.
#[derive(Debug)]
pub struct BindingCell(Once<Binding>);

impl BindingCell {
    /// A cell with no pool.
    pub const fn new() -> Self {
        Self(Once::new())
    }

    /// Sets the binding.
    ///
    /// # Errors
    /// `AlreadyInstalled`; the first one stays.
    pub fn install(&self, binding: Binding) -> Result<&Binding, SetupError> {
        let mut binding = Some(binding);
        self.0
            .try_call_once(|| binding.take().ok_or(SetupError::AlreadyInstalled))
            .and_then(|installed| match binding {
                None => Ok(installed),
                Some(_) => Err(SetupError::AlreadyInstalled),
            })
    }

    /// The binding, if set.
    pub fn get(&self) -> Option<&Binding> {
        self.0.get()
    }
}

impl Default for BindingCell {
    fn default() -> Self {
        Self::new()
    }
}

/// virtio-drivers' `Hal` over the pool of `P`: rings are coherent allocations, buffers are mapped
/// and copied, so the device sees nothing but the window.
///
/// `share` cannot fail in that trait: a buffer that finds no room is reported to
/// [`PoolProvider::failed`], counted, and appears to the device as [`UNMAPPED`].
#[derive(Debug)]
pub struct BounceHal<P>(PhantomData<P>);

impl<P: PoolProvider> BounceHal<P> {
    pub(crate) fn alloc(pages: usize) -> (u64, NonNull<u8>) {
        let bytes = pages.saturating_mul(PAGE_SIZE);
        with_pool::<P, _>(Operation::Alloc, bytes, |pool| pool.alloc_coherent(pages))
            .map_or((0, NonNull::dangling()), |run| (run.bus.get(), run.ptr))
    }

    pub(crate) fn free(addr: BusAddr, pages: usize) -> i32 {
        let bytes = pages.saturating_mul(PAGE_SIZE);
        match with_pool::<P, _>(Operation::Free, bytes, |pool| {
            pool.free_coherent(addr, pages)
        }) {
            Some(()) => 0,
            None => -1,
        }
    }

    pub(crate) fn map(buffer: &[u8], direction: Direction) -> u64 {
        with_pool::<P, _>(Operation::Share, buffer.len(), |pool| {
            pool.map(buffer, direction)
        })
        .unwrap_or(UNMAPPED)
        .get()
    }

    pub(crate) fn unmap(addr: BusAddr, buffer: &mut [u8], direction: Direction) {
        if addr != UNMAPPED {
            with_pool::<P, _>(Operation::Unshare, buffer.len(), |pool| {
                pool.unmap(addr, buffer, direction)
            });
        }
    }

    pub(crate) fn release(addr: BusAddr, len: usize, direction: Direction) {
        if addr != UNMAPPED {
            with_pool::<P, _>(Operation::Unshare, len, |pool| {
                pool.release(addr, len, direction)
            });
        }
    }

    /// # Panics
    /// If the registers are in no aperture, or overlap the window: config space lied, and virtio-
    /// drivers offers no other way to refuse it than to stop the guest.
    pub(crate) fn mmio(phys: u64, size: usize) -> NonNull<u8> {
        let registers = P::binding().and_then(|binding| {
            if binding.pool.overlaps(BusAddr::new(phys), size) {
                return None;
            }
            binding
                .apertures
                .iter()
                .find_map(|aperture| aperture.translate(phys, size))
        });
        match registers {
            Some(registers) => registers,
            None => panic!("device registers at {phys:#x} are outside every aperture"),
        }
    }
}

/// Runs `f` on the pool of `P`; reports a failure.
fn with_pool<P: PoolProvider, T>(
    operation: Operation,
    bytes: usize,
    f: impl FnOnce(&BouncePool<'static>) -> Result<T, Error>,
) -> Option<T> {
    let Some(binding) = P::binding() else {
        P::failed(operation, None, bytes);
        return None;
    };
    f(&binding.pool)
        .inspect_err(|&error| P::failed(operation, Some(error), bytes))
        .ok()
}

impl From<BufferDirection> for Direction {
    fn from(direction: BufferDirection) -> Self {
        match direction {
            BufferDirection::DriverToDevice => Self::ToDevice,
            BufferDirection::DeviceToDriver => Self::FromDevice,
            BufferDirection::Both => Self::Bidirectional,
        }
    }
}

/// Declares the pool of one device: a [`PoolProvider`] whose binding is installed at run time.
///
/// ```
/// use porthole_bounce::{BounceHal, PoolProvider, bounce_pool};
///
/// bounce_pool! {
///     /// The window of the console.
///     pub ConsolePool
/// }
/// type ConsoleHal = BounceHal<ConsolePool>;
///
/// // Once the device was found and its window checked:
/// //   ConsolePool::install(Binding { pool, apertures })?;
/// //   let console = VirtIOConsole::<ConsoleHal, _>::new(transport)?;
/// assert!(ConsolePool::binding().is_none());
/// ```
#[macro_export]
macro_rules! bounce_pool {
    ($(#[$meta:meta])* $vis:vis $name:ident) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis enum $name {}

        impl $name {
            fn cell() -> &'static $crate::BindingCell {
                static CELL: $crate::BindingCell = $crate::BindingCell::new();
                &CELL
            }

            /// Installs the pool.
            ///
            /// # Errors
            /// `AlreadyInstalled`; the first one stays.
            $vis fn install(
                binding: $crate::Binding,
            ) -> ::core::result::Result<&'static $crate::Binding, $crate::SetupError> {
                Self::cell().install(binding)
            }
        }

        impl $crate::PoolProvider for $name {
            fn binding() -> ::core::option::Option<&'static $crate::Binding> {
                Self::cell().get()
            }
        }
    };
}
