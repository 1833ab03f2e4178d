//! A device's window: host pages that the guest sees in a BAR, and the only memory the device can reach.
//! Where the BAR is decides where the window is; config space lives in `transport`. Functions of one device may
//! share a window: it is in the BAR of one of them.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::queue::Fault;
use super::shared::Shared;

/// Guest memory of one device: its window at the bus address of its BAR, and nothing else.
pub type WindowMemory = GuestMemoryMmap<()>;

/// What moves a window in the guest's address space.
pub trait WindowPort: Send {
    /// The guest sees the window at `ipa` from now on, or nowhere. On an error it is nowhere.
    fn place(&self, ipa: Option<u64>) -> io::Result<()>;
}

/// How a function comes to its window.
#[derive(Clone)]
pub struct WindowUse {
    /// The window.
    pub window: Arc<Mutex<Window>>,
    /// It is in the BAR of this function of the same device; `None`: in a BAR of its own.
    pub in_function: Option<u8>,
}

impl WindowUse {
    /// A window that one function has for itself.
    pub fn own(window: Window) -> Self {
        Self {
            window: Arc::new(Mutex::new(window)),
            in_function: None,
        }
    }
}

/// What is moved by no BAR.
struct Fixed;

impl WindowPort for Fixed {
    fn place(&self, _: Option<u64>) -> io::Result<()> {
        Err(io::Error::other("this memory is in no BAR"))
    }
}

/// A window and where it is.
pub struct Window {
    name: String,
    pages: Arc<MmapRegion>,
    port: Box<dyn WindowPort>,
    place: Option<u64>,
    /// Where the BAR was last, whether or not the hypervisor took it.
    wanted: Option<u64>,
    /// The functions that use it.
    users: Vec<Arc<Shared>>,
}

impl Window {
    /// A window of these pages that is at `place` already.
    pub fn new(
        name: &str,
        pages: MmapRegion,
        port: Box<dyn WindowPort>,
        place: Option<u64>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            pages: Arc::new(pages),
            port,
            place,
            wanted: place,
            users: Vec::new(),
        }
    }

    /// Memory that a device reaches without a window of its own: it is in no BAR and stays where it is.
    pub fn fixed(name: &str, pages: Arc<MmapRegion>, place: u64) -> Self {
        Self {
            name: name.to_owned(),
            pages,
            port: Box::new(Fixed),
            place: Some(place),
            wanted: Some(place),
            users: Vec::new(),
        }
    }

    /// One more function uses it.
    pub fn join(&mut self, user: Arc<Shared>) {
        self.users.push(user);
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.pages.size() as u64
    }

    /// Where the guest sees it.
    pub fn place(&self) -> Option<u64> {
        self.place
    }

    /// Follows the BAR to `ipa`. True if the window is not where it was before: each function whose driver was using
    /// it then needs a reset.
    pub fn follow(&mut self, ipa: Option<u64>) -> bool {
        if self.wanted == ipa {
            return false;
        }
        self.wanted = ipa;
        let before = self.place;
        match self.port.place(ipa) {
            Ok(()) => self.place = ipa,
            Err(e) => {
                self.place = None;
                let to = ipa.map_or("nowhere".to_owned(), |a| format!("{a:#x}"));
                tracing::info!("{}: the window cannot move to {to} yet: {e}", self.name);
            }
        }
        if let (Some(from), Some(to)) = (before, self.place) {
            tracing::debug!("{}: window moved from {from:#x} to {to:#x}", self.name);
        }
        let moved = self.place != before;
        if moved {
            for user in &self.users {
                user.fault_if_running(&Fault::Setup(
                    "its window was moved while the driver used it",
                ));
            }
        }
        moved
    }

    /// Another window has moved: where this one found no room before, it may now.
    ///
    /// A guest that places all BARs anew does so one by one, and one may come where the next still is.
    pub fn retry(&mut self) {
        let (None, Some(ipa)) = (self.place, self.wanted) else {
            return;
        };
        if self.port.place(Some(ipa)).is_ok() {
            self.place = Some(ipa);
            tracing::info!("{}: the window is at {ipa:#x} now", self.name);
        }
    }

    /// The device's memory, if the window is anywhere.
    pub fn memory(&self) -> Option<Arc<WindowMemory>> {
        let region = GuestRegionMmap::with_arc(self.pages.clone(), GuestAddress(self.place?))?;
        WindowMemory::from_regions(vec![region]).ok().map(Arc::new)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use vm_memory::Bytes;

    use super::*;
    use crate::bus::lock;

    /// Where the tests' windows are.
    pub(crate) const BASE: u64 = 0x1000_0000;
    /// Their bytes.
    pub(crate) const SIZE: u64 = 1 << 20;

    /// A window's memory.
    pub(crate) fn memory() -> WindowMemory {
        WindowMemory::from_ranges(&[(GuestAddress(BASE), SIZE as usize)]).unwrap()
    }

    /// A port that records moves, and refuses addresses from 3 GiB on.
    #[derive(Clone, Default)]
    pub(crate) struct FakePort(pub(crate) Arc<Mutex<Vec<Option<u64>>>>);

    impl WindowPort for FakePort {
        fn place(&self, ipa: Option<u64>) -> io::Result<()> {
            lock(&self.0).push(ipa);
            match ipa {
                Some(3221225472..) => Err(io::Error::other("outside the region")),
                _ => Ok(()),
            }
        }
    }

    /// A window at [`BASE`], and its port.
    pub(crate) fn window() -> (Window, FakePort) {
        let port = FakePort::default();
        let pages = MmapRegion::new(SIZE as usize).unwrap();
        let window = Window::new("test", pages, Box::new(port.clone()), Some(BASE));
        (window, port)
    }

    #[test]
    fn pages_keep_their_content_over_a_move() {
        let (mut w, port) = window();
        let at = |a| GuestAddress(a);
        w.memory().unwrap().write_obj(42u64, at(BASE)).unwrap();
        assert!(w.follow(Some(BASE + SIZE)));
        assert!(!w.follow(Some(BASE + SIZE)), "nothing to do");
        let memory = w.memory().unwrap();
        assert_eq!(memory.read_obj::<u64>(at(BASE + SIZE)).unwrap(), 42);
        assert!(memory.read_obj::<u64>(at(BASE)).is_err());
        assert_eq!(*lock(&port.0), [Some(BASE + SIZE)]);
    }

    /// A port that refuses all until it is told to take them.
    struct FullPort(Arc<Mutex<bool>>);

    impl WindowPort for FullPort {
        fn place(&self, ipa: Option<u64>) -> io::Result<()> {
            match ipa {
                Some(_) if *lock(&self.0) => Err(io::Error::other("another window is there")),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn a_window_that_found_no_room_is_tried_again() {
        let full = Arc::new(Mutex::new(true));
        let pages = MmapRegion::new(SIZE as usize).unwrap();
        let port = Box::new(FullPort(full.clone()));
        let mut w = Window::new("test", pages, port, Some(BASE));
        assert!(w.follow(Some(BASE + SIZE)));
        w.retry();
        assert!(w.memory().is_none(), "still no room");
        *lock(&full) = false;
        w.retry();
        assert_eq!(w.place(), Some(BASE + SIZE));
        assert!(w.memory().is_some());
        assert!(w.follow(None));
        w.retry();
        assert!(w.memory().is_none(), "switched off, not refused");
    }

    #[test]
    fn a_refused_or_switched_off_window_has_no_memory() {
        let (mut w, port) = window();
        assert!(w.follow(Some(3 << 30)));
        assert!(w.memory().is_none());
        assert!(!w.follow(Some(3 << 30)), "not tried again");
        assert!(w.follow(Some(BASE)));
        assert!(w.follow(None));
        assert!(w.memory().is_none());
        assert_eq!(*lock(&port.0), [Some(3 << 30), Some(BASE), None]);
    }
}
