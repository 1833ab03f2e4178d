//! Bus 0: which function answers to a configuration access or to an address in the PCI aperture.
//! Functions decide themselves where their BARs are; no BAR state lives here.
//! Source: PCIe base 5.0, 7.2.2 (ECAM: bus, device, function in address bits 27:20, 19:15, 14:12).

use std::sync::Arc;

use crate::bus::MmioDevice;
use crate::layout::{PCI_ECAM, PCI_WINDOWS, Range};

/// All of the PCI memory aperture: windows and registers.
pub const PCI_APERTURE: Range = Range::new(
    PCI_WINDOWS.base,
    crate::layout::PCI_REGISTERS.end() - PCI_WINDOWS.base,
);

/// A function on the bus.
pub trait PciFunction: Send + Sync {
    /// Reads configuration bytes at `at`.
    fn config_read(&self, at: usize, data: &mut [u8]);
    /// Writes them.
    fn config_write(&self, at: usize, data: &[u8]);
    /// The configuration of another function was written: what found no room in the address space before may now.
    fn retry(&self) {}
    /// Reads from a register BAR if `address` and the whole access lie in one; false if not.
    fn memory_read(&self, address: u64, data: &mut [u8]) -> bool;
    /// Writes to it; false if the address is not the function's.
    fn memory_write(&self, address: u64, data: &[u8]) -> bool;
}

/// The functions, by device and function number.
#[derive(Default)]
pub struct PciBus {
    functions: Vec<(u8, u8, Arc<dyn PciFunction>)>,
}

impl PciBus {
    /// Puts a function at a device (0 to 31) and function number (0 to 7). False if the place is taken.
    pub fn add(&mut self, device: u8, function: u8, behind: Arc<dyn PciFunction>) -> bool {
        if device > 31 || function > 7 || self.find(device, function).is_some() {
            return false;
        }
        self.functions.push((device, function, behind));
        true
    }

    fn find(&self, device: u8, function: u8) -> Option<&Arc<dyn PciFunction>> {
        let mut all = self.functions.iter();
        all.find(|(d, f, _)| (*d, *f) == (device, function))
            .map(|(_, _, behind)| behind)
    }

    fn decode(&self, offset: u64) -> (Option<&Arc<dyn PciFunction>>, usize) {
        let device = (offset >> 15) as u8 & 31;
        let function = (offset >> 12) as u8 & 7;
        let here = offset < PCI_ECAM.size;
        let found = here.then(|| self.find(device, function)).flatten();
        (found, offset as usize & 0xfff)
    }
}

/// The bus as ECAM.
pub struct Ecam(pub Arc<PciBus>);

impl MmioDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.decode(offset) {
            (Some(function), at) => function.config_read(at, data),
            // Nobody there: the host bridge completes the read with ones (PCIe base 5.0, 2.3.2).
            (None, _) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Some(function), at) = self.0.decode(offset) else {
            return;
        };
        function.config_write(at, data);
        let all = self.0.functions.iter().map(|(_, _, behind)| behind);
        all.filter(|other| !Arc::ptr_eq(other, function))
            .for_each(|other| other.retry());
    }
}

/// The bus as memory, from [`PCI_APERTURE`]'s start.
pub struct Aperture(pub Arc<PciBus>);

impl MmioDevice for Aperture {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = PCI_APERTURE.base + offset;
        for (_, _, function) in &self.0.functions {
            if function.memory_read(address, data) {
                return;
            }
        }
        data.fill(0xff);
        tracing::debug!("guest read {address:#x} in PCI space: no BAR there");
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = PCI_APERTURE.base + offset;
        for (_, _, function) in &self.0.functions {
            if function.memory_write(address, data) {
                return;
            }
        }
        tracing::debug!("guest wrote {address:#x} in PCI space: no BAR there");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::bus::lock;

    #[derive(Default)]
    struct Fake(Mutex<Vec<(usize, usize)>>);

    impl PciFunction for Fake {
        fn config_read(&self, at: usize, data: &mut [u8]) {
            lock(&self.0).push((at, data.len()));
            data.fill(0x5a);
        }
        fn config_write(&self, at: usize, data: &[u8]) {
            lock(&self.0).push((at, data.len()));
        }
        fn retry(&self) {
            lock(&self.0).push((0, 0));
        }
        fn memory_read(&self, address: u64, data: &mut [u8]) -> bool {
            data.fill(1);
            address == PCI_APERTURE.base + 8
        }
        fn memory_write(&self, address: u64, _: &[u8]) -> bool {
            address == PCI_APERTURE.base + 8
        }
    }

    fn bus() -> (Arc<PciBus>, Arc<Fake>) {
        let (mut bus, fake) = (PciBus::default(), Arc::new(Fake::default()));
        assert!(bus.add(3, 1, fake.clone()));
        (Arc::new(bus), fake)
    }

    #[test]
    fn ecam_addresses_name_device_function_and_register() {
        let (bus, fake) = bus();
        let ecam = Ecam(bus);
        let mut data = [0; 4];
        ecam.read(3 << 15 | 1 << 12 | 0x40, &mut data);
        assert_eq!(data, [0x5a; 4]);
        ecam.write(3 << 15 | 1 << 12 | 0xffe, &[0; 2]);
        assert_eq!(*lock(&fake.0), [(0x40, 4), (0xffe, 2)]);
    }

    #[test]
    fn a_configuration_write_lets_the_other_functions_try_again() {
        let (mut bus, one) = (PciBus::default(), Arc::new(Fake::default()));
        let two = Arc::new(Fake::default());
        assert!(bus.add(1, 0, one.clone()) && bus.add(2, 0, two.clone()));
        Ecam(Arc::new(bus)).write(1 << 15 | 0x20, &[0; 4]);
        assert_eq!(*lock(&one.0), [(0x20, 4)]);
        assert_eq!(*lock(&two.0), [(0, 0)], "retried, not written");
    }

    #[test]
    fn absent_functions_and_buses_read_as_ones() {
        let (bus, fake) = bus();
        let ecam = Ecam(bus);
        for offset in [0, 3 << 15, 1 << 20 | 3 << 15 | 1 << 12] {
            let mut data = [0; 4];
            ecam.read(offset, &mut data);
            assert_eq!(data, [0xff; 4]);
            ecam.write(offset, &data);
        }
        assert!(lock(&fake.0).is_empty());
    }

    #[test]
    fn memory_that_no_bar_claims_reads_as_ones() {
        let aperture = Aperture(bus().0);
        let mut data = [0; 4];
        aperture.read(8, &mut data);
        assert_eq!(data, [1; 4]);
        aperture.read(0x1000, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_place_on_the_bus_is_taken_once() {
        let (mut bus, fake) = (PciBus::default(), Arc::new(Fake::default()));
        assert!(bus.add(0, 0, fake.clone()));
        assert!(!bus.add(0, 0, fake.clone()));
        assert!(!bus.add(32, 0, fake.clone()));
        assert!(!bus.add(0, 8, fake));
    }
}
