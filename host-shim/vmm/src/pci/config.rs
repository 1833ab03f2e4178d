//! One function's configuration space: identity, command register, BARs with the sizing protocol, capability list.
//! It is bytes with a mask of what the guest may write; what a write means to the device is its owner's to ask.
//! Source: PCI Local Bus Specification 3.0, chapter 6 (header, BARs, capabilities); PCIe base 5.0, 7.5.

/// Bytes of a function's configuration space (PCIe).
pub const CONFIG_SIZE: usize = 4096;
/// BAR registers of a type 0 header.
pub const BARS: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// End of what capabilities may use (the extended ones begin there).
const CAPABILITIES_END: usize = 0x100;

/// COMMAND: the function answers in its memory BARs.
const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND: the function may send messages (MSIs).
const COMMAND_MASTER: u16 = 1 << 2;
/// COMMAND: no legacy interrupt.
const COMMAND_INTX_OFF: u16 = 1 << 10;
/// STATUS: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// BAR flags: 64 bits wide.
const BAR_64: u32 = 1 << 2;
/// BAR flags: prefetchable.
const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor and device.
    pub subsystem: [u16; 2],
}

/// A mistake of the device model, found when it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// BAR number, size or place.
    #[error("BAR {0} cannot have {1:#x} bytes at {2:#x}")]
    Bar(usize, u64, u64),
    /// No room for another capability.
    #[error("no room for another PCI capability")]
    Full,
}

/// A configuration space.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    bar_sizes: [u64; BARS],
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function with this identity, no BARs and no capabilities. Memory decode is on: the VMM places the BARs,
    /// so that a guest without PCI code of its own finds them working.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            bar_sizes: [0; BARS],
            last_capability: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        let [class, subclass, interface] = identity.class;
        space.put(0x09, &[interface, subclass, class]);
        space.put(SUBSYSTEM, &identity.subsystem[0].to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem[1].to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF;
        space.allow(COMMAND, &command.to_le_bytes());
        // Cache line size and interrupt line: scratch for the guest's software.
        space.allow(0x0c, &[0xff]);
        space.allow(0x3c, &[0xff]);
        space
    }

    /// The device has more than one function (header type, bit 7).
    pub fn set_multi_function(&mut self) {
        self.put(HEADER_TYPE, &[0x80]);
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }

    /// Adds a 32-bit memory BAR that is not prefetchable, at `address`.
    pub fn add_bar_32(&mut self, bar: usize, size: u64, address: u64) -> Result<(), ConfigError> {
        let wrong = ConfigError::Bar(bar, size, address);
        self.check_bar(bar, 1, size, address).ok_or(wrong)?;
        let (Ok(size32), Ok(address32)) = (u32::try_from(size), u32::try_from(address)) else {
            return Err(wrong);
        };
        self.put(BAR0 + 4 * bar, &address32.to_le_bytes());
        self.allow(BAR0 + 4 * bar, &(!(size32 - 1)).to_le_bytes());
        self.bar_sizes[bar] = size;
        Ok(())
    }

    /// Adds a 64-bit prefetchable memory BAR, at `address`; it takes the next register too.
    pub fn add_bar_64(&mut self, bar: usize, size: u64, address: u64) -> Result<(), ConfigError> {
        let wrong = ConfigError::Bar(bar, size, address);
        self.check_bar(bar, 2, size, address).ok_or(wrong)?;
        let flags = u64::from(BAR_64 | BAR_PREFETCHABLE);
        self.put(BAR0 + 4 * bar, &(address | flags).to_le_bytes());
        self.allow(BAR0 + 4 * bar, &(!(size - 1)).to_le_bytes());
        self.bar_sizes[bar] = size;
        Ok(())
    }

    fn check_bar(&self, bar: usize, registers: usize, size: u64, address: u64) -> Option<()> {
        let fits = bar + registers <= BARS
            && self.bar_sizes[bar..bar + registers].iter().all(|s| *s == 0)
            && size.is_power_of_two()
            && size >= 16
            && address.is_multiple_of(size);
        fits.then_some(())
    }

    /// Where a BAR is now; `None` if there is none, memory decode is off, or the guest is measuring its size
    /// (its low address bits are all ones).
    pub fn bar_address(&self, bar: usize) -> Option<u64> {
        let size = *self.bar_sizes.get(bar).filter(|s| **s != 0)?;
        if u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]) & COMMAND_MEMORY == 0
        {
            return None;
        }
        let low = self.word(BAR0 + 4 * bar);
        let low_bits = (!(size - 1)) as u32;
        if low_bits != 0 && low & low_bits == low_bits {
            return None;
        }
        let high = if low & BAR_64 != 0 {
            self.word(BAR0 + 4 * (bar + 1))
        } else {
            0
        };
        Some((u64::from(high) << 32 | u64::from(low)) & !(size - 1))
    }

    /// Bytes of a BAR, 0 if there is none.
    pub fn bar_size(&self, bar: usize) -> u64 {
        self.bar_sizes.get(bar).copied().unwrap_or(0)
    }

    /// Adds a capability: `body` is what follows the id and the link, `writable` its mask (missing bytes: read-only).
    /// Returns the capability's offset.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, ConfigError> {
        let at = self.free;
        let end = at + 2 + body.len();
        if end > CAPABILITIES_END || writable.len() > body.len() {
            return Err(ConfigError::Full);
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        let link = if self.last_capability == CAPABILITIES {
            CAPABILITIES
        } else {
            self.last_capability + 1
        };
        self.put(link, &[at as u8]);
        self.last_capability = at;
        self.free = end.next_multiple_of(4);
        Ok(at)
    }

    /// The bytes at `at`; what lies beyond the space reads as ones, as on a bus where nobody answers.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(at + i).copied().unwrap_or(0xff);
        }
    }

    /// A guest's write: bits that are not writable keep their value.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            if let (Some(byte), Some(mask)) =
                (self.bytes.get_mut(at + i), self.writable.get(at + i))
            {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// A field of the space that the device model keeps: it is set whatever its mask says.
    pub fn set(&mut self, at: usize, data: &[u8]) {
        if at + data.len() <= CONFIG_SIZE {
            self.put(at, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 0x10_0000;

    fn space() -> ConfigSpace {
        let mut s = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1043,
            revision: 1,
            class: [0x07, 0x80, 0x01],
            subsystem: [0x1af4, 0x40],
        });
        s.add_bar_32(0, 0x8000, 0x2f00_0000).unwrap();
        s.add_bar_64(4, WINDOW, 0x1000_0000).unwrap();
        s
    }

    fn read32(s: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        s.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(s: &mut ConfigSpace, at: usize, value: u32) {
        s.write(at, &value.to_le_bytes());
    }

    #[test]
    fn identity_is_where_the_header_has_it_and_cannot_be_written() {
        let mut s = space();
        write32(&mut s, 0, 0);
        assert_eq!(read32(&s, 0), 0x1043_1af4);
        write32(&mut s, 8, 0);
        assert_eq!(read32(&s, 8), 0x0780_0101);
        assert_eq!(read32(&s, 0x2c), 0x0040_1af4);
    }

    #[test]
    fn writing_ones_to_a_bar_tells_its_size_and_kind() {
        let mut s = space();
        write32(&mut s, 0x10, u32::MAX);
        assert_eq!(read32(&s, 0x10), 0xffff_8000);
        for at in [0x20, 0x24] {
            write32(&mut s, at, u32::MAX);
        }
        assert_eq!(read32(&s, 0x20), 0xfff0_000c);
        assert_eq!(read32(&s, 0x24), u32::MAX);
        for at in [0x14, 0x18, 0x1c, 0x30] {
            write32(&mut s, at, u32::MAX);
            assert_eq!(read32(&s, at), 0, "no BAR at {at:#x}");
        }
    }

    #[test]
    fn a_bar_is_nowhere_while_it_is_measured_or_decode_is_off() {
        let mut s = space();
        assert_eq!(s.bar_address(0), Some(0x2f00_0000));
        assert_eq!(s.bar_address(4), Some(0x1000_0000));
        write32(&mut s, 0x10, u32::MAX);
        assert_eq!(s.bar_address(0), None);
        write32(&mut s, 0x20, u32::MAX);
        assert_eq!(s.bar_address(4), None, "low half of ones");
        write32(&mut s, 0x24, u32::MAX);
        assert_eq!(s.bar_address(4), None);
        write32(&mut s, 0x24, 0);
        write32(&mut s, 0x20, 0x1234_5678);
        assert_eq!(s.bar_address(4), Some(0x1230_0000));
        s.write(COMMAND, &[0, 0]);
        assert_eq!(s.bar_address(4), None);
        assert_eq!(s.bar_address(1), None);
    }

    #[test]
    fn a_64_bit_bar_moves_above_4_gib() {
        let mut s = space();
        write32(&mut s, 0x24, 0x12);
        assert_eq!(s.bar_address(4), Some(0x12_1000_0000));
    }

    #[test]
    fn bars_that_cannot_exist_are_refused() {
        let mut s = space();
        assert!(s.add_bar_64(5, 0x1000, 0).is_err(), "no register above it");
        assert!(s.add_bar_64(3, 0x1000, 0).is_err(), "the next is taken");
        assert!(s.add_bar_32(4, 0x1000, 0).is_err(), "taken");
        assert!(s.add_bar_32(1, 0x1001, 0).is_err(), "no power of two");
        assert!(s.add_bar_32(1, 0x1000, 0x800).is_err(), "not aligned");
        assert!(s.add_bar_32(1, 0x1000, 1 << 32).is_err(), "beyond 32 bits");
        assert!(s.add_bar_32(6, 0x1000, 0).is_err(), "no such register");
    }

    #[test]
    fn the_capability_list_is_a_chain_that_ends() {
        let mut s = space();
        let first = s.add_capability(9, &[16, 1, 4, 0], &[]).unwrap();
        let second = s.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
        let mut at = read32(&s, CAPABILITIES) as usize & 0xff;
        let mut seen = Vec::new();
        while at != 0 {
            let word = read32(&s, at);
            seen.push((at, word as u8));
            at = (word >> 8) as usize & 0xff;
        }
        assert_eq!(seen, [(first, 9), (second, 0x11)]);
        s.write(second + 2, &[0xff, 0xff]);
        assert_eq!(read32(&s, second) >> 16, 0xc000);
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused() {
        let mut s = space();
        while s.add_capability(9, &[0; 18], &[]).is_ok() {}
        assert_eq!(s.add_capability(9, &[0; 18], &[]), Err(ConfigError::Full));
        assert!(s.free <= CAPABILITIES_END);
    }

    #[test]
    fn accesses_at_the_end_of_the_space_stay_inside() {
        let mut s = space();
        let mut data = [0; 8];
        s.read(CONFIG_SIZE - 4, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        s.write(CONFIG_SIZE - 4, &[1; 8]);
    }
}
