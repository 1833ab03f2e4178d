//! Between the guest and the machine's bus: takes the names of lies, and lies about capabilities.
//! Everything else goes on to the machine as it is. Source: PCI 3.0, 6.7 (capabilities); VIRTIO 1.2, 4.1.4.

use std::sync::Arc;

use porthole_vmm::bus::{MmioBus, MmioDevice, Overlap};
use porthole_vmm::layout::{PCI_ECAM, RTC, Range, UART};
use porthole_vmm::pci::bus::PCI_APERTURE;

use crate::lie::{Lie, NAME};

/// Where in configuration space the number of lies told is: four bytes, little endian.
const TOLD: usize = 0xec;
/// Where the name of the lie is written and read.
const CHOSEN: usize = 0xf0;

const CAP_VENDOR: u8 = 9;
const CFG_DEVICE: u8 = 4;
const CFG_SWIOTLB: u8 = 10;
/// Capabilities that a function may have before the list is taken for a loop.
const CAPS_MAX: usize = 48;

/// A lie about a capability: its name, the structure, and bytes of the capability that read differently.
type CapabilityLie = (&'static str, u8, usize, &'static [u8]);

/// All of them. Byte 4 is the BAR, 6 the function, 8 the offset, 12 the length.
const CAPABILITIES: &[CapabilityLie] = &[
    ("bar-none", CFG_SWIOTLB, 4, &[6]),
    ("bar-empty", CFG_SWIOTLB, 4, &[2]),
    ("bar-other", CFG_SWIOTLB, 4, &[0]),
    // Where the registers of the function are.
    (
        "bar-registers",
        CFG_SWIOTLB,
        4,
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0],
    ),
    ("offset-beyond", CFG_SWIOTLB, 8, &[0, 0xf0, 0xff, 0]),
    ("offset-max", CFG_SWIOTLB, 8, &[0xff; 4]),
    ("offset-odd", CFG_SWIOTLB, 8, &[0, 8, 0, 0, 0, 0x10, 0, 0]),
    ("length-zero", CFG_SWIOTLB, 12, &[0; 4]),
    ("length-max", CFG_SWIOTLB, 12, &[0xff; 4]),
    ("length-odd", CFG_SWIOTLB, 12, &[1, 0x10, 0, 0]),
    (
        "sum-wraps",
        CFG_SWIOTLB,
        8,
        &[0, 0xf0, 0xff, 0xff, 0, 0x20, 0, 0],
    ),
    ("function-none", CFG_SWIOTLB, 6, &[0x87]),
    ("config-short", CFG_DEVICE, 12, &[4, 0, 0, 0]),
    ("config-none", CFG_DEVICE, 3, &[0x7f]),
];

/// Passes a range on.
struct Through(Arc<MmioBus>, Range);

impl MmioDevice for Through {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = self.0.read(self.1.base + offset, data.len());
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        self.0.write(self.1.base + offset, data.len(), value);
    }
}

/// Configuration space.
struct Config {
    honest: Through,
    /// Of the functions 0 of the slots from the first on.
    first: u8,
    lies: Vec<Arc<Lie>>,
}

impl Config {
    fn lie(&self, offset: u64) -> Option<&Lie> {
        let slot = (offset >> 15) as usize & 31;
        let index = slot.checked_sub(self.first.into())?;
        let behind = self.lies.get(index).filter(|_| offset >> 12 & 7 == 0);
        behind.map(|lie| &**lie)
    }

    fn byte(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.honest.read(offset, &mut data);
        data[0]
    }

    /// Where the capability of this structure is in the function whose space begins at `base`.
    fn capability(&self, base: u64, structure: u8) -> Option<u64> {
        let mut at = self.byte(base + 0x34);
        for _ in 0..CAPS_MAX {
            if at == 0 {
                return None;
            }
            let here = base + u64::from(at);
            if self.byte(here) == CAP_VENDOR && self.byte(here + 3) == structure {
                return Some(here);
            }
            at = self.byte(here + 1);
        }
        None
    }

    /// What the byte at `offset` reads as, if a lie is about it.
    fn lied(&self, lie: &Lie, offset: u64) -> Option<u8> {
        let base = offset & !0xfff;
        let at = (offset & 0xfff) as usize;
        if (TOLD..TOLD + 4).contains(&at) {
            return Some(lie.told().to_le_bytes()[at - TOLD]);
        }
        if (CHOSEN..CHOSEN + NAME).contains(&at) {
            return Some(lie.read(at - CHOSEN));
        }
        let chosen = (0..NAME).map(|i| lie.read(i)).filter(|b| *b != 0);
        let chosen: Vec<u8> = chosen.collect();
        let (name, structure, field, bytes) = CAPABILITIES
            .iter()
            .find(|(name, ..)| name.as_bytes() == chosen)?;
        let place = self.capability(base, *structure)? + *field as u64;
        let byte = bytes.get(usize::try_from(offset.checked_sub(place)?).ok()?)?;
        lie.is(name).then_some(*byte)
    }
}

impl MmioDevice for Config {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.honest.read(offset, data);
        let Some(lie) = self.lie(offset) else { return };
        for (place, byte) in (offset..).zip(data) {
            *byte = self.lied(lie, place).unwrap_or(*byte);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = (offset & 0xfff) as usize;
        match self.lie(offset) {
            Some(lie) if (CHOSEN..CHOSEN + NAME).contains(&at) => {
                for (place, byte) in (at - CHOSEN..).zip(data) {
                    lie.write(place, *byte);
                }
            }
            _ => self.honest.write(offset, data),
        }
    }
}

/// The machine's bus behind one that lies about the functions 0 of the slots from `first` on.
pub fn lying(machine: Arc<MmioBus>, first: u8, lies: Vec<Arc<Lie>>) -> Result<MmioBus, Overlap> {
    let mut bus = MmioBus::default();
    for range in [UART, RTC, PCI_APERTURE] {
        bus.add(range, Arc::new(Through(machine.clone(), range)))?;
    }
    let honest = Through(machine, PCI_ECAM);
    let config = Config {
        honest,
        first,
        lies,
    };
    bus.add(PCI_ECAM, Arc::new(config))?;
    Ok(bus)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Configuration space of slot 2 with two capabilities.
    struct Space(Mutex<Vec<u8>>);

    impl MmioDevice for Space {
        fn read(&self, offset: u64, data: &mut [u8]) {
            let bytes = self.0.lock().unwrap();
            for (at, byte) in (offset..).zip(data) {
                let inside = at.checked_sub(2 << 15);
                *byte = inside.map_or(0xff, |at| bytes[at as usize]);
            }
        }
        fn write(&self, offset: u64, data: &[u8]) {
            let at = (offset - (2 << 15)) as usize;
            self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn bus() -> (MmioBus, Arc<Lie>) {
        let mut bytes = vec![0; 4096];
        bytes[0x34] = 0x40;
        bytes[0x40..0x50].copy_from_slice(&[9, 0x50, 16, 4, 0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0]);
        bytes[0x50..0x60].copy_from_slice(&[9, 0, 16, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0]);
        let mut machine = MmioBus::default();
        let space = Arc::new(Space(Mutex::new(bytes)));
        machine.add(PCI_ECAM, space).unwrap();
        let lie = Arc::new(Lie::default());
        (lying(Arc::new(machine), 2, vec![lie.clone()]).unwrap(), lie)
    }

    const SLOT: u64 = PCI_ECAM.base + (2 << 15);

    fn choose(bus: &MmioBus, name: &str) {
        for (at, word) in format!("{name:NAME$}").as_bytes().chunks(4).enumerate() {
            let value = u32::from_le_bytes(word.try_into().unwrap());
            bus.write(SLOT + (CHOSEN + 4 * at) as u64, 4, value.into());
        }
    }

    #[test]
    fn a_capability_reads_as_the_lie_says_and_as_it_is_afterwards() {
        let (bus, lie) = bus();
        let (offset, length) = (SLOT + 0x58, SLOT + 0x5c);
        assert_eq!(bus.read(length, 4), 0x10_0000);
        choose(&bus, "length-max");
        assert_eq!(bus.read(length, 4), 0xffff_ffff);
        assert_eq!(bus.read(offset, 4), 0, "the offset is no part of it");
        assert_eq!(lie.told(), 4);
        assert_eq!(bus.read(SLOT + TOLD as u64, 4), 4);
        choose(&bus, "config-short");
        assert_eq!(bus.read(SLOT + 0x4c, 4), 4);
        assert_eq!(bus.read(length, 4), 0x10_0000);
        choose(&bus, "");
        assert_eq!(bus.read(SLOT + 0x4c, 4), 60);
    }

    #[test]
    fn what_is_no_name_goes_through() {
        let (bus, _) = bus();
        bus.write(SLOT + 4, 2, 0x107);
        assert_eq!(bus.read(SLOT + 4, 2), 0x107);
        assert_eq!(bus.read(PCI_ECAM.base, 4), 0xffff_ffff, "another slot");
    }
}
