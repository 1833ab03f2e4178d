//! Which lie a device tells: chosen by the guest under test, which writes its name into configuration space.
//! What a lie does is for `device`, the models, and `bus`; a name that none of them knows is taken for a mistake.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longest name of a lie: what the guest writes is padded with spaces to so many bytes.
pub const NAME: usize = 16;

/// Every name there is.
const NAMES: &[&str] = &[
    // Any device: of the used ring, and of what it was given.
    "len-zero",
    "len-short",
    "len-less",
    "len-over",
    "len-max",
    "id-range",
    "id-free",
    "id-twice",
    "idx-jump",
    "ring-rewrite",
    // Any device: of its capabilities.
    "bar-none",
    "bar-empty",
    "bar-other",
    "bar-registers",
    "offset-beyond",
    "offset-max",
    "offset-odd",
    "length-zero",
    "length-max",
    "length-odd",
    "sum-wraps",
    "function-none",
    "config-short",
    "config-none",
    // Disks.
    "status-none",
    "data-none",
    "blocks-huge",
    "blocks-odd",
    "segment-tiny",
    "segments-none",
    "capacity-max",
    "capacity-none",
    // Consoles with ports.
    "name-none",
    "name-cut",
    "port-far",
    // Networks.
    "buffers-none",
    "buffers-max",
    "gso-unknown",
    "gso-huge",
    "csum-far",
    "stats-short",
    "stats-zero",
    "stats-cut",
    "stats-queue",
    // Sockets.
    "packet-long",
    "packet-max",
    "credit-max",
    "credit-back",
    "port-unknown",
];

/// The lie of one device.
#[derive(Default)]
pub struct Lie {
    written: Mutex<[u8; NAME]>,
    chosen: Mutex<Option<&'static str>>,
    told: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lie {
    /// The guest wrote a byte of a name; with the last one it counts. Spaces alone: the truth.
    pub fn write(&self, at: usize, byte: u8) {
        let mut written = lock(&self.written);
        let Some(place) = written.get_mut(at) else {
            return;
        };
        *place = byte;
        if at + 1 == NAME {
            let name = String::from_utf8_lossy(&written[..]);
            *lock(&self.chosen) = NAMES.iter().copied().find(|n| *n == name.trim_end());
            self.told.store(0, Ordering::SeqCst);
        }
    }

    /// A byte of the name of the lie that is told: zeroes if none is.
    pub fn read(&self, at: usize) -> u8 {
        let chosen = lock(&self.chosen).unwrap_or("");
        chosen.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// How often it was told since its name was written.
    pub fn told(&self) -> u32 {
        self.told.load(Ordering::SeqCst)
    }

    /// Whether this is the lie. The caller tells it then.
    pub fn is(&self, name: &str) -> bool {
        debug_assert!(NAMES.contains(&name));
        let is = *lock(&self.chosen) == Some(name);
        if is {
            self.told.fetch_add(1, Ordering::SeqCst);
        }
        is
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(lie: &Lie, name: &str) {
        for (at, byte) in format!("{name:NAME$}").bytes().enumerate() {
            lie.write(at, byte);
        }
    }

    #[test]
    fn a_lie_counts_from_its_last_byte_until_the_next_name() {
        let lie = Lie::default();
        assert!(!lie.is("len-zero"));
        write(&lie, "len-zero");
        assert!(lie.is("len-zero") && !lie.is("len-max"));
        assert_eq!(lie.told(), 1);
        assert_eq!([lie.read(0), lie.read(7), lie.read(8)], [b'l', b'o', 0]);
        lie.write(0, b'x');
        assert!(lie.is("len-zero"), "not whole yet");
        write(&lie, "");
        assert!(!lie.is("len-zero"));
        assert_eq!(lie.told(), 0);
    }

    #[test]
    fn a_name_that_nobody_knows_is_no_lie() {
        let lie = Lie::default();
        write(&lie, "len-zera");
        assert_eq!(lie.read(0), 0);
        assert!(NAMES.iter().all(|n| n.len() <= NAME && !lie.is(n)));
    }
}
