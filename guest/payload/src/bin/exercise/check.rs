//! Counting checks; a failed one ends the guest.

use core::sync::atomic::{AtomicU64, Ordering};

static HELD: AtomicU64 = AtomicU64::new(0);

/// One more check that held.
pub fn held() {
    HELD.fetch_add(1, Ordering::Relaxed);
}

/// Checks that held so far.
pub fn count() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// Counts a condition that holds; ends the guest with the message if it does not.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($arg:tt)*) => {
        if $condition {
            $crate::check::held();
        } else {
            porthole_payload::fail!($($arg)*);
        }
    };
}
