//! A VM's windows as records, and the checks that a copied `WindowConfig` must pass before any page is looked at.
//! The pages behind a window stand in the guest's stage 2 and in the tracker: see `memory::sharing`.

use porthole_abi::{
    Error, Extent, FunctionId, OPEN_WINDOW_PAGES_MAX, PAGE_SIZE, RegionKind, WINDOW_PAGES_MAX,
    WINDOWS_MAX, WindowConfig, WindowFlags, version_ok,
};

use crate::addr::{Ipa, IpaPages, PhysAddr, PhysPages};
use crate::guest::Run;
use crate::regions::Regions;
use crate::stage2::MemoryType;
use crate::tracker::WindowSlot;

/// Last BAR of a function (PCI 3.0, 6.2.5).
const LAST_BAR: u32 = 5;
/// Largest 32-bit memory BAR.
const BAR_32_MAX: u64 = 1 << 31;

/// Where in a device's BAR a window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarRange {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// A 64-bit BAR: it takes the next slot too.
    pub wide: bool,
    /// Bytes of the BAR, a power of two, at least a page.
    pub size: u64,
    /// Bytes from the start of the BAR to the window, page-aligned.
    pub offset: u64,
}

/// One registered window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where the guest sees it.
    pub pages: IpaPages,
    /// [`FunctionId::device`] of the device that it belongs to.
    device: u32,
    /// PCI functions 0 to 7 of that device which share it, one bit each; never zero.
    functions: u8,
    /// Its place in the BAR; the same for all its functions.
    pub bar: BarRange,
}

impl Window {
    /// The lowest function that shares it.
    pub fn function(&self) -> FunctionId {
        FunctionId(self.device << 3 | (self.functions.trailing_zeros() & 7))
    }

    /// Functions 0 to 7 that share it, one bit each.
    pub fn functions(&self) -> u8 {
        self.functions
    }
}

/// A parameter block that passed every check that needs no page's state.
#[derive(Debug)]
pub(crate) struct WindowRequest<'a> {
    /// The window as it will be if it is new.
    pub window: Window,
    /// What it is to the guest: RAM to execute from in an unprotected VM's open RAM, else a window.
    pub kind: MemoryType,
    extents: &'a [Extent],
}

impl<'a> WindowRequest<'a> {
    /// Checks a copy of the host's parameter block.
    ///
    /// # Errors
    /// `BadVersion`; `ReservedNonZero`; `BadBar`; `InvalidParameter` for a BAR size that no BAR has or
    /// extents that do not add up to the length; `Empty`, `Unaligned`, `Overflow`, `TooLarge` for a range or
    /// list; `OutsideBar`; `OutsideRegion`; `DuplicatePage`.
    pub fn check(config: &'a WindowConfig, regions: &Regions) -> Result<Self, Error> {
        if !version_ok(config.version) {
            return Err(Error::BadVersion);
        }
        let flags = WindowFlags::from_bits(config.flags).ok_or(Error::ReservedNonZero)?;
        let bar = Self::check_bar(config, flags)?;
        let (pages, kind) = Self::check_range(config, &bar, regions)?;
        let extents = Self::check_extents(config)?;
        let function = FunctionId(config.function);
        Ok(Self {
            window: Window {
                pages,
                device: function.device(),
                functions: 1 << function.function(),
                bar,
            },
            kind,
            extents,
        })
    }

    fn check_bar(config: &WindowConfig, flags: WindowFlags) -> Result<BarRange, Error> {
        let wide = flags.contains(WindowFlags::BAR_64);
        if config.bar > LAST_BAR || (wide && config.bar == LAST_BAR) {
            return Err(Error::BadBar);
        }
        let size_max = if wide { u64::MAX } else { BAR_32_MAX };
        if !config.bar_size.is_power_of_two()
            || config.bar_size < PAGE_SIZE
            || config.bar_size > size_max
        {
            return Err(Error::InvalidParameter);
        }
        Ok(BarRange {
            bar: config.bar as u8,
            wide,
            size: config.bar_size,
            offset: config.bar_offset,
        })
    }

    fn check_range(
        config: &WindowConfig,
        bar: &BarRange,
        regions: &Regions,
    ) -> Result<(IpaPages, MemoryType), Error> {
        if !config.length.is_multiple_of(PAGE_SIZE) || !bar.offset.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        let pages = IpaPages::new(Ipa::new(config.ipa), config.length / PAGE_SIZE)?;
        let end = bar.offset.checked_add(config.length);
        if end.ok_or(Error::Overflow)? > bar.size {
            return Err(Error::OutsideBar);
        }
        let (region, kind, most) = match regions.inside(RegionKind::OpenRam, &pages) {
            Ok(()) => (RegionKind::OpenRam, MemoryType::Ram, OPEN_WINDOW_PAGES_MAX),
            Err(_) => (RegionKind::Window, MemoryType::Window, WINDOW_PAGES_MAX),
        };
        if pages.count() > most {
            return Err(Error::TooLarge);
        }
        regions.inside(region, &pages)?;
        Ok((pages, kind))
    }

    fn check_extents(config: &WindowConfig) -> Result<&[Extent], Error> {
        let count = usize::try_from(config.extent_count).map_err(|_| Error::TooLarge)?;
        let (used, unused) = config
            .extents
            .split_at_checked(count)
            .ok_or(Error::TooLarge)?;
        if config.reserved != 0 || unused.iter().any(|e| *e != Extent::default()) {
            return Err(Error::ReservedNonZero);
        }
        if used.is_empty() {
            return Err(Error::Empty);
        }
        let mut sum = 0u64;
        for (i, extent) in used.iter().enumerate() {
            let pages = Self::pages(extent)?;
            sum = sum.checked_add(pages.bytes()).ok_or(Error::Overflow)?;
            let twice = |other: &Extent| Self::pages(other).is_ok_and(|o| o.overlaps(&pages));
            if used[..i].iter().any(twice) {
                return Err(Error::DuplicatePage);
            }
        }
        if sum != config.length {
            return Err(Error::InvalidParameter);
        }
        Ok(used)
    }

    fn pages(extent: &Extent) -> Result<PhysPages, Error> {
        PhysPages::new(PhysAddr::new(extent.pa), extent.pages)
    }

    /// The host's pages in order.
    pub fn extents(&self) -> impl Iterator<Item = PhysPages> {
        self.extents.iter().flat_map(Self::pages)
    }

    /// The same with the address of each in the guest.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut at = self.window.pages.start();
        self.extents().map(move |pages| {
            let ipa = at;
            // The sum of all is the window's length, so this stays inside it.
            at = Ipa::new(at.raw() + pages.bytes());
            Run { ipa, pages }
        })
    }
}

/// Where a request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the window of this slot, if the pages are the same.
    Shared(WindowSlot),
    /// In a slot of its own, if one is free.
    New(Option<WindowSlot>),
}

/// The windows of one VM, by slot. Invariant: no two overlap.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone))]
pub struct WindowTable([Option<Window>; WINDOWS_MAX]);

impl Default for WindowTable {
    fn default() -> Self {
        Self([None; WINDOWS_MAX])
    }
}

impl WindowTable {
    /// The window in this slot.
    pub fn get(&self, slot: WindowSlot) -> Option<&Window> {
        self.0[slot.index()].as_ref()
    }

    /// Windows from `start` on, in order of their slots.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = (WindowSlot, &Window)> {
        self.0
            .iter()
            .enumerate()
            .skip(start)
            .filter_map(|(i, w)| Some((WindowSlot::new(i)?, w.as_ref()?)))
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.iter_from(0).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the place of a request among the windows there are.
    ///
    /// # Errors
    /// `WindowForeign` if another device's window lies at the same address; `WindowOverlap` if one overlaps
    /// otherwise, has another place in the BAR or was registered for this function already.
    pub(crate) fn place(&self, request: &WindowRequest<'_>) -> Result<Place, Error> {
        let new = &request.window;
        let overlap = self
            .iter_from(0)
            .find(|(_, w)| w.pages.overlaps(&new.pages));
        let Some((slot, old)) = overlap else {
            let free = self.0.iter().position(Option::is_none);
            return Ok(Place::New(free.and_then(WindowSlot::new)));
        };
        if old.pages != new.pages {
            return Err(Error::WindowOverlap);
        }
        if old.device != new.device {
            return Err(Error::WindowForeign);
        }
        if old.bar != new.bar || old.functions & new.functions != 0 {
            return Err(Error::WindowOverlap);
        }
        Ok(Place::Shared(slot))
    }

    /// Whether the window in `slot` belongs to another device than `window`.
    pub(crate) fn is_foreign(&self, slot: WindowSlot, window: &Window) -> bool {
        self.get(slot).is_some_and(|w| w.device != window.device)
    }

    /// Adds the request's function to a window.
    pub(crate) fn share(&mut self, slot: WindowSlot, request: &WindowRequest<'_>) {
        if let Some(window) = &mut self.0[slot.index()] {
            window.functions |= request.window.functions;
        }
    }

    /// Puts a window into a free slot.
    pub(crate) fn insert(&mut self, slot: WindowSlot, window: &Window) {
        self.0[slot.index()] = Some(*window);
    }

    /// Empties a slot.
    pub(crate) fn remove(&mut self, slot: WindowSlot) {
        self.0[slot.index()] = None;
    }

    /// Takes a function out of a window unless it is the last. Returns whether it is the last.
    ///
    /// # Errors
    /// `NoWindow`; `BadFunction` if the function does not use the window.
    pub(crate) fn leave(&mut self, slot: WindowSlot, function: u64) -> Result<bool, Error> {
        let window = self.0[slot.index()].as_mut().ok_or(Error::NoWindow)?;
        let bit = u32::try_from(function)
            .ok()
            .and_then(|f| 1u8.checked_shl(f))
            .unwrap_or(0);
        if window.functions & bit == 0 {
            return Err(Error::BadFunction);
        }
        if window.functions == bit {
            return Ok(true);
        }
        window.functions &= !bit;
        Ok(false)
    }
}
