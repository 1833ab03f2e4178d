//! Tests of the crate, on the build machine: one file per subject, over a fake window whose other
//! side ("the host") the tests play. The code under test is the production code.

mod hostile;
mod model;
mod pool;
mod slots;
#[cfg(feature = "virtio-drivers")]
mod virtio;
mod window;

use std::vec;

use crate::raw::fake::HostView;
use crate::{BouncePool, SlotGroup};

/// Where the tests' windows are on the bus: a multiple of 4 KiB, not of 8 KiB, so that alignment
/// within the window and on the bus differ.
const BUS: u64 = 0x10_0000_1000;

/// A pool over a fresh window of `pages` pages full of 0xa5, and the host's side of it.
fn pool(pages: usize) -> (HostView, BouncePool<'static>) {
    let (host, window) = HostView::new(BUS, pages);
    let groups = vec![SlotGroup::NEW; SlotGroup::needed_for(window.size())].leak();
    (host, BouncePool::new(window, groups).unwrap())
}
