//! The PL031 real-time clock: vm-superio's model on the guest's bus. It has no interrupt.
//! Source: Arm DDI 0224.

use std::sync::Mutex;

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use crate::bus::{MmioDevice, lock};

/// The clock, from the host's time of day.
pub struct Clock(Mutex<Rtc<NoEvents>>);

impl Default for Clock {
    fn default() -> Self {
        Self(Mutex::new(Rtc::new()))
    }
}

impl MmioDevice for Clock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // 32-bit registers; a wider or narrower load sees the word's low bytes.
        let (Ok(register), true) = (u16::try_from(offset), offset.is_multiple_of(4)) else {
            return;
        };
        let mut word = [0; 4];
        lock(&self.0).read(register, &mut word);
        for (to, from) in data.iter_mut().zip(word) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), Ok(word)) = (u16::try_from(offset), data.try_into()) {
            lock(&self.0).write(register, word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_shows_the_time_of_day_and_its_identity() {
        let clock = Clock::default();
        let mut data = [0; 4];
        clock.read(0, &mut data);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(now.abs_diff(u32::from_le_bytes(data).into()) < 5);
        clock.read(0xfe0, &mut data);
        assert_eq!(data, [0x31, 0, 0, 0], "PeriphID0 of a PL031");
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let clock = Clock::default();
        let mut data = [0; 8];
        clock.read(2, &mut data[..2]);
        clock.write(3, &[1, 2]);
        clock.write(0xffc, &[1, 2, 3, 4]);
        assert_eq!(data, [0; 8]);
    }
}
