//! The locks of the hypervisor: spin's, in the order of arrival, with a way of waiting that the binary chooses.
//! No lock is here; each stands beside what it protects, with its place in the order.

use spin::{Once, RelaxStrategy};

/// A mutex, first come, first served.
pub type Mutex<T> = spin::mutex::Mutex<T, Wait>;
/// A lock for many readers or one writer.
pub type RwLock<T> = spin::rwlock::RwLock<T, Wait>;

static HINT: Once<fn()> = Once::new();

/// Sets what a CPU does between two looks at a lock that is taken; the first one stays. It may be called at any time
/// and must return soon.
///
/// A host CPU may be a thread that shares one real CPU with the lock's holder (QEMU counting instructions is): the
/// compiler's own hint, an ISB on arm64, does not tell it to let the other one run.
pub fn set_hint(hint: fn()) {
    HINT.call_once(|| hint);
}

/// Waits as [`set_hint`] said.
pub struct Wait;

impl RelaxStrategy for Wait {
    fn relax() {
        match HINT.get() {
            Some(hint) => hint(),
            None => core::hint::spin_loop(),
        }
    }
}
