//! Dispatch of trapped guest accesses to device models by address.
//! What nothing claims reads as zero, swallows writes and is logged once for each address.
//! Device models and the run loop live elsewhere.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::layout::Range;

/// A device that answers in a range of guest addresses.
pub trait MmioDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the range. `data` is zero before.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data.len()` bytes (1, 2, 4 or 8) at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Locks a mutex whose holder cannot leave broken state behind: device models do not panic between two steps.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two devices want the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("devices at {0:#x} and {1:#x} overlap")]
pub struct Overlap(pub u64, pub u64);

/// Addresses that are remembered so as to log them once.
const UNCLAIMED_MAX: usize = 256;

/// The guest's address space outside RAM and windows.
#[derive(Default)]
pub struct MmioBus {
    devices: Vec<(Range, Arc<dyn MmioDevice>)>,
    unclaimed: Mutex<BTreeSet<u64>>,
}

impl MmioBus {
    /// Puts a device at a range.
    pub fn add(&mut self, range: Range, device: Arc<dyn MmioDevice>) -> Result<(), Overlap> {
        for (other, _) in &self.devices {
            if range.base < other.end() && other.base < range.end() {
                return Err(Overlap(range.base, other.base));
            }
        }
        self.devices.push((range, device));
        Ok(())
    }

    /// Value of a guest load of `width` bytes, zero-extended.
    pub fn read(&self, ipa: u64, width: usize) -> u64 {
        let mut value = [0; 8];
        let width = width.min(8);
        match self.find(ipa, width) {
            Some((range, device)) => device.read(ipa - range.base, &mut value[..width]),
            None => self.report(ipa, width, None),
        }
        u64::from_le_bytes(value)
    }

    /// A guest store of `width` bytes.
    pub fn write(&self, ipa: u64, width: usize, value: u64) {
        let width = width.min(8);
        match self.find(ipa, width) {
            Some((range, device)) => {
                device.write(ipa - range.base, &value.to_le_bytes()[..width]);
            }
            None => self.report(ipa, width, Some(value)),
        }
    }

    /// Number of distinct addresses that the guest touched and nothing claimed.
    pub fn unclaimed(&self) -> usize {
        lock(&self.unclaimed).len()
    }

    fn find(&self, ipa: u64, width: usize) -> Option<&(Range, Arc<dyn MmioDevice>)> {
        self.devices
            .iter()
            .find(|(range, _)| range.covers(ipa, width as u64))
    }

    fn report(&self, ipa: u64, width: usize, written: Option<u64>) {
        let mut seen = lock(&self.unclaimed);
        if seen.len() >= UNCLAIMED_MAX || !seen.insert(ipa) {
            return;
        }
        match written {
            Some(value) => {
                tracing::warn!(
                    "guest wrote {value:#x} ({width} bytes) to {ipa:#x}: no device there"
                );
            }
            None => tracing::warn!("guest read {width} bytes at {ipa:#x}: no device there, zero"),
        }
        if seen.len() == UNCLAIMED_MAX {
            tracing::warn!(
                "{UNCLAIMED_MAX} unclaimed addresses so far; further ones are not logged"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Register(Mutex<[u8; 16]>);

    impl MmioDevice for Register {
        fn read(&self, offset: u64, data: &mut [u8]) {
            let at = offset as usize;
            data.copy_from_slice(&lock(&self.0)[at..at + data.len()]);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            let at = offset as usize;
            lock(&self.0)[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn bus() -> MmioBus {
        let mut bus = MmioBus::default();
        bus.add(Range::new(0x1000, 16), Arc::new(Register::default()))
            .unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset_and_width() {
        let bus = bus();
        bus.write(0x1004, 4, 0xffff_ffff_1234_5678);
        assert_eq!(bus.read(0x1004, 8), 0x1234_5678);
        assert_eq!(bus.read(0x1005, 1), 0x56);
        assert_eq!(bus.unclaimed(), 0);
    }

    #[test]
    fn what_nothing_claims_reads_as_zero_and_is_remembered_once() {
        let bus = bus();
        for _ in 0..3 {
            assert_eq!(bus.read(0x2000, 8), 0);
            bus.write(0x2000, 4, 1);
        }
        assert_eq!(bus.unclaimed(), 1);
    }

    #[test]
    fn an_access_across_the_end_of_a_device_is_not_the_devices() {
        let bus = bus();
        assert_eq!(bus.read(0x100c, 8), 0);
        assert_eq!(bus.read(u64::MAX, 8), 0);
        assert_eq!(bus.unclaimed(), 2);
    }

    #[test]
    fn remembered_addresses_are_bounded() {
        let bus = bus();
        for i in 0..10 * UNCLAIMED_MAX as u64 {
            bus.read(0x1_0000 + i, 1);
        }
        assert_eq!(bus.unclaimed(), UNCLAIMED_MAX);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = bus();
        let again = bus.add(Range::new(0x1008, 16), Arc::new(Register::default()));
        assert_eq!(again, Err(Overlap(0x1008, 0x1000)));
    }
}
