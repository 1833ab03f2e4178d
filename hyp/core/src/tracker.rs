//! The page tracker: who owns each 4 KiB page of RAM, one `u32` a page, and how many pages each owner has.
//! Which change of owner is legal is decided in `memory`; nothing here touches a table or a page.
//! Invariant ([`Tracker::check`]): the counts equal a recount of the entries.

use arrayvec::ArrayVec;
use porthole_abi::{Error, PageOwner, VMS_MAX, WINDOWS_MAX};

use crate::addr::{PhysAddr, PhysPages};
use crate::hw::Vmid;

/// Most ranges of RAM that a machine may have.
pub const RAM_RANGES_MAX: usize = 8;
/// Number of owner kinds, [`PageOwner::None`] included.
const OWNERS: usize = PageOwner::ALL.len();

/// Index of a VM, below [`VMS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmSlot(u8);

impl VmSlot {
    /// The slot with this index, if there is one.
    pub const fn new(index: usize) -> Option<Self> {
        if index < VMS_MAX {
            Some(Self(index as u8))
        } else {
            None
        }
    }

    /// Its index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The VMID that its translations are cached under.
    pub const fn vmid(self) -> Vmid {
        Vmid(self.0 as u16 + 1)
    }
}

/// Index of a window in its VM, below [`WINDOWS_MAX`]. It is the window id of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowSlot(u8);

impl WindowSlot {
    /// The slot with this index, if there is one.
    pub const fn new(index: usize) -> Option<Self> {
        if index < WINDOWS_MAX {
            Some(Self(index as u8))
        } else {
            None
        }
    }

    /// Its index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a page of RAM is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The hypervisor's own, for ever.
    Hyp,
    /// The host's own, shared with nobody.
    Host,
    /// Private memory of a VM.
    VmMemory(VmSlot),
    /// Tables and vCPUs of a VM: EL2 alone reaches it.
    VmMetadata(VmSlot),
    /// The host's, shared with one VM through one of its windows.
    Window(VmSlot, WindowSlot),
    /// The host's, in use by this many (1 or more) hardware tables; neither donated nor shared.
    Pinned(u16),
    /// Taken from the host for a table that hardware believes: EL2 and that hardware alone reach it.
    HwTable,
    /// The host's, all that a confined device reaches; neither donated nor shared.
    Confined,
}

impl PageState {
    /// The owner as the ABI tells it.
    pub const fn owner(self) -> PageOwner {
        match self {
            Self::Hyp => PageOwner::Hyp,
            Self::Host => PageOwner::Host,
            Self::VmMemory(_) => PageOwner::VmMemory,
            Self::VmMetadata(_) => PageOwner::VmMetadata,
            Self::Window(..) => PageOwner::Window,
            Self::Pinned(_) | Self::Confined => PageOwner::Pinned,
            Self::HwTable => PageOwner::HwTable,
        }
    }

    /// The VM that has a share in the page.
    pub const fn vm(self) -> Option<VmSlot> {
        match self {
            Self::VmMemory(vm) | Self::VmMetadata(vm) | Self::Window(vm, _) => Some(vm),
            Self::Hyp | Self::Host | Self::Pinned(_) | Self::HwTable | Self::Confined => None,
        }
    }

    /// Whether the host's stage 2 maps the page.
    pub const fn host_reaches(self) -> bool {
        matches!(
            self,
            Self::Host | Self::Window(..) | Self::Pinned(_) | Self::Confined
        )
    }

    /// Why a page in this state cannot be taken from the host; `Ok` for the host's own.
    ///
    /// # Errors
    /// `NotHostOwned`, `PageIsWindow`, `PagePinned`.
    pub const fn host_owned(self) -> Result<(), Error> {
        match self {
            Self::Host => Ok(()),
            Self::Window(..) => Err(Error::PageIsWindow),
            Self::Pinned(_) | Self::Confined => Err(Error::PagePinned),
            Self::Hyp | Self::VmMemory(_) | Self::VmMetadata(_) | Self::HwTable => {
                Err(Error::NotHostOwned)
            }
        }
    }

    /// The state with one pin more.
    ///
    /// # Errors
    /// As [`Self::host_owned`] where the page is not the host's alone; `PagePinned` if it has 65,535 pins.
    pub const fn pinned(self) -> Result<Self, Error> {
        match self {
            Self::Pinned(pins) if pins < u16::MAX => Ok(Self::Pinned(pins + 1)),
            state => match state.host_owned() {
                Ok(()) => Ok(Self::Pinned(1)),
                Err(error) => Err(error),
            },
        }
    }

    /// The state with one pin less.
    ///
    /// # Errors
    /// `NotHostOwned` without a pin.
    pub const fn unpinned(self) -> Result<Self, Error> {
        match self {
            Self::Pinned(0 | 1) => Ok(Self::Host),
            Self::Pinned(pins) => Ok(Self::Pinned(pins - 1)),
            _ => Err(Error::NotHostOwned),
        }
    }
}

/// A [`PageState`] in 32 bits: kind in 7:0, VM slot in 15:8, window slot in 23:16; pins in 23:8. All zeros, as memory
/// comes, is [`PageState::Hyp`]: a page that was never entered is given to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PageEntry(u32);

impl PageEntry {
    const HYP: u32 = 0;
    const HOST: u32 = 1;
    const VM_MEMORY: u32 = 2;
    const VM_METADATA: u32 = 3;
    const WINDOW: u32 = 4;
    const PINNED: u32 = 5;
    const HW_TABLE: u32 = 6;
    const CONFINED: u32 = 7;

    /// Packs a state.
    pub const fn pack(state: PageState) -> Self {
        Self(match state {
            PageState::Hyp => Self::HYP,
            PageState::Host => Self::HOST,
            PageState::VmMemory(vm) => Self::VM_MEMORY | (vm.0 as u32) << 8,
            PageState::VmMetadata(vm) => Self::VM_METADATA | (vm.0 as u32) << 8,
            PageState::Window(vm, window) => {
                Self::WINDOW | (vm.0 as u32) << 8 | (window.0 as u32) << 16
            }
            PageState::Pinned(pins) => Self::PINNED | (pins as u32) << 8,
            PageState::HwTable => Self::HW_TABLE,
            PageState::Confined => Self::CONFINED,
        })
    }

    /// The state packed in it. Bits that [`PageEntry::pack`] never writes read as `Hyp`.
    pub const fn state(self) -> PageState {
        let vm = VmSlot::new((self.0 >> 8 & 0xff) as usize);
        let window = WindowSlot::new((self.0 >> 16 & 0xff) as usize);
        match (self.0 & 0xff, vm, window) {
            (Self::HOST, ..) => PageState::Host,
            (Self::VM_MEMORY, Some(vm), _) => PageState::VmMemory(vm),
            (Self::VM_METADATA, Some(vm), _) => PageState::VmMetadata(vm),
            (Self::WINDOW, Some(vm), Some(window)) => PageState::Window(vm, window),
            (Self::PINNED, ..) => PageState::Pinned((self.0 >> 8) as u16),
            (Self::HW_TABLE, ..) => PageState::HwTable,
            (Self::CONFINED, ..) => PageState::Confined,
            _ => PageState::Hyp,
        }
    }
}

/// Where a range of RAM stands in the entries.
#[derive(Clone, Copy, Debug)]
struct RamRange {
    pages: PhysPages,
    first: usize,
}

/// The state of every page of RAM. Lives under the memory lock.
#[derive(Debug)]
pub struct Tracker<'t> {
    entries: &'t mut [PageEntry],
    ranges: ArrayVec<RamRange, RAM_RANGES_MAX>,
    counts: [u64; OWNERS],
    epoch: u64,
}

impl<'t> Tracker<'t> {
    /// Tracks these ranges of RAM; every page starts as the hypervisor's.
    ///
    /// # Errors
    /// `InvalidParameter` if ranges are not in ascending order without overlap; `TooLarge` if there are more
    /// than [`RAM_RANGES_MAX`] or `entries` is too short; `Empty` without a range.
    pub fn new(ram: &[PhysPages], entries: &'t mut [PageEntry]) -> Result<Self, Error> {
        let mut ranges: ArrayVec<RamRange, RAM_RANGES_MAX> = ArrayVec::new();
        let mut first = 0usize;
        for pages in ram {
            if ranges.last().is_some_and(|l| l.pages.end() > pages.start()) {
                return Err(Error::InvalidParameter);
            }
            ranges
                .try_push(RamRange {
                    pages: *pages,
                    first,
                })
                .map_err(|_| Error::TooLarge)?;
            first = usize::try_from(pages.count())
                .ok()
                .and_then(|count| first.checked_add(count))
                .ok_or(Error::TooLarge)?;
        }
        if first == 0 {
            return Err(Error::Empty);
        }
        let entries = entries.get_mut(..first).ok_or(Error::TooLarge)?;
        entries.fill(PageEntry::pack(PageState::Hyp));
        let mut counts = [0; OWNERS];
        counts[PageOwner::Hyp as usize] = first as u64;
        Ok(Self {
            entries,
            ranges,
            counts,
            epoch: 0,
        })
    }

    /// Number of pages tracked.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never: a tracker without RAM is not built.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn index(&self, pa: PhysAddr) -> Option<usize> {
        let range = self.ranges.iter().find(|r| r.pages.contains(pa))?;
        let offset = pa.frame() - range.pages.start().frame();
        Some(range.first + offset as usize)
    }

    /// Address of the page with this index in the entries and the pages from it to the end of its range, for
    /// walks over all RAM in order.
    pub fn run_at(&self, index: usize) -> Option<(PhysAddr, usize)> {
        let range = self.ranges.iter().rev().find(|r| r.first <= index)?;
        let offset = index - range.first;
        let left = (range.pages.count() as usize).checked_sub(offset)?;
        let bytes = offset as u64 * porthole_abi::PAGE_SIZE;
        let pa = range.pages.start().checked_add(bytes)?;
        (left > 0).then_some((pa, left))
    }

    /// State of the page with this index; `Hyp` behind the last.
    pub fn state_at(&self, index: usize) -> PageState {
        self.entries
            .get(index)
            .map_or(PageState::Hyp, |e| e.state())
    }

    /// State of the page that holds `pa`; `None` if it is not RAM.
    pub fn state(&self, pa: PhysAddr) -> Option<PageState> {
        self.index(pa).map(|i| self.entries[i].state())
    }

    /// Pages from a page that is not RAM to the next RAM; 0 if none comes.
    pub fn gap(&self, pa: PhysAddr) -> u64 {
        let starts = self.ranges.iter().map(|r| r.pages.start().frame());
        let next = starts.filter(|start| *start > pa.frame()).min();
        next.map_or(0, |start| start - pa.frame())
    }

    /// State of a page, and how many pages from it on, `most` at most, have the same owner and VM.
    pub fn run(&self, pa: PhysAddr, most: u64) -> Option<(PageState, u64)> {
        let index = self.index(pa)?;
        let (_, left) = self.run_at(index)?;
        let first = self.state_at(index);
        let same = |i: &usize| {
            let state = self.state_at(*i);
            (state.owner(), state.vm()) == (first.owner(), first.vm())
        };
        let limit = left.min(usize::try_from(most).unwrap_or(usize::MAX));
        let count = (index..index + limit).take_while(same).count();
        Some((first, count as u64))
    }

    /// State of a page.
    ///
    /// # Errors
    /// `NotRam`.
    pub fn ram(&self, pa: PhysAddr) -> Result<PageState, Error> {
        self.state(pa).ok_or(Error::NotRam)
    }

    /// Asks `check` about the state of every page of a range, in order.
    ///
    /// # Errors
    /// `NotRam` if a page is not RAM, else what `check` refused first.
    pub fn check_range(
        &self,
        pages: &PhysPages,
        mut check: impl FnMut(PageState) -> Result<(), Error>,
    ) -> Result<(), Error> {
        pages.iter().try_for_each(|pa| check(self.ram(pa)?))
    }

    /// Gives every page of a range, which must be RAM, a new state. One step of the epoch.
    pub(crate) fn set_range(&mut self, pages: &PhysPages, state: PageState) {
        self.change_range(pages, |_| state);
    }

    /// The same with a state for each page that follows from its old one.
    pub(crate) fn change_range(
        &mut self,
        pages: &PhysPages,
        mut change: impl FnMut(PageState) -> PageState,
    ) {
        for pa in pages.iter() {
            let Some(index) = self.index(pa) else {
                debug_assert!(false, "only checked RAM changes hands");
                continue;
            };
            let old = self.entries[index].state();
            let new = change(old);
            self.entries[index] = PageEntry::pack(new);
            self.counts[old.owner() as usize] -= 1;
            self.counts[new.owner() as usize] += 1;
        }
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Pages of RAM of this owner.
    pub fn count(&self, owner: PageOwner) -> u64 {
        self.counts[owner as usize]
    }

    /// Grows with every change.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the counts are right: the invariant of this module, for tests.
    pub fn check(&self) -> bool {
        let mut counts = [0; OWNERS];
        for entry in self.entries.iter() {
            counts[entry.state().owner() as usize] += 1;
        }
        counts == self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, count: u64) -> PhysPages {
        PhysPages::new(PhysAddr::new(start), count).unwrap()
    }

    #[test]
    fn every_state_survives_packing() {
        let mut states = vec![
            PageState::Hyp,
            PageState::Host,
            PageState::HwTable,
            PageState::Confined,
        ];
        states.extend([1, 2, 255, 256, u16::MAX].map(PageState::Pinned));
        for vm in (0..VMS_MAX).filter_map(VmSlot::new) {
            states.extend([PageState::VmMemory(vm), PageState::VmMetadata(vm)]);
            let windows = (0..WINDOWS_MAX).filter_map(WindowSlot::new);
            states.extend(windows.map(|w| PageState::Window(vm, w)));
        }
        for state in states {
            assert_eq!(PageEntry::pack(state).state(), state);
        }
        assert_eq!(PageEntry::default().state(), PageState::Hyp);
    }

    #[test]
    fn damaged_entries_belong_to_nobody_but_the_hypervisor() {
        for raw in [8, 0xff, 0x4002, 0xff03, 0x20_0004, 0x4004] {
            assert_eq!(PageEntry(raw).state(), PageState::Hyp, "{raw:#x}");
        }
        assert_eq!(VmSlot::new(VMS_MAX), None);
        assert_eq!(WindowSlot::new(WINDOWS_MAX), None);
    }

    #[test]
    fn ranges_are_tracked_apart_and_counted() {
        let mut entries = [PageEntry::default(); 8];
        let ram = [pages(0x1000, 3), pages(0x1_0000, 4)];
        let mut tracker = Tracker::new(&ram, &mut entries).unwrap();
        assert_eq!(tracker.len(), 7);
        for hole in [0, 0xfff, 0x4000, 0xf000, 0x1_4000, u64::MAX] {
            assert_eq!(tracker.state(PhysAddr::new(hole)), None);
        }
        tracker.set_range(&pages(0x3000, 1), PageState::Host);
        tracker.set_range(&pages(0x1_0000, 2), PageState::Pinned(1));
        assert_eq!(tracker.epoch(), 2);
        assert_eq!(tracker.count(PageOwner::Host), 1);
        assert_eq!(tracker.count(PageOwner::Hyp), 4);
        assert_eq!(
            tracker.ram(PhysAddr::new(0x1_1fff)),
            Ok(PageState::Pinned(1))
        );
        assert_eq!(tracker.state_at(3), PageState::Pinned(1));
        assert_eq!(tracker.run_at(2), Some((PhysAddr::new(0x3000), 1)));
        assert_eq!(tracker.run_at(4), Some((PhysAddr::new(0x1_1000), 3)));
        assert_eq!(tracker.run_at(7), None);
        let mut seen = 0;
        let partly = tracker.check_range(&pages(0x2000, 3), |_| {
            seen += 1;
            Ok(())
        });
        assert_eq!((partly, seen), (Err(Error::NotRam), 2));
        assert!(tracker.check());
    }

    #[test]
    fn maps_of_ram_that_make_no_sense_are_refused() {
        let mut entries = [PageEntry::default(); 4];
        let mut new = |ram: &[PhysPages]| Tracker::new(ram, &mut entries).err();
        assert_eq!(new(&[]), Some(Error::Empty));
        assert_eq!(new(&[pages(0, 5)]), Some(Error::TooLarge));
        let backwards = [pages(0x2000, 1), pages(0, 1)];
        assert_eq!(new(&backwards), Some(Error::InvalidParameter));
        let overlap = [pages(0, 2), pages(0x1000, 1)];
        assert_eq!(new(&overlap), Some(Error::InvalidParameter));
        let many: Vec<_> = (0..9).map(|i| pages(i * 0x2000, 1)).collect();
        assert_eq!(new(&many), Some(Error::TooLarge));
    }
}
