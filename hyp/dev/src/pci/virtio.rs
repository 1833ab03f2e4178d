//! The one question that EL2 asks of a virtio PCI function (virtio 1.2, 4.1.4): does it offer VIRTIO_F_ACCESS_PLATFORM?
//! One that does not writes to memory by physical address, and so does a balloon whatever it offers. It is asked through its configuration window
//! (VIRTIO_PCI_CAP_PCI_CFG), which needs no BAR; nothing else of the device is touched.

use super::{Config, Function, Reason};

/// Vendor and devices, transitional ones included (4.1.2).
const VENDOR: u32 = 0x1af4;
const DEVICES: core::ops::RangeInclusive<u32> = 0x1000..=0x107f;
/// Memory balloons, transitional and not: the pages that a driver gives up are physical page numbers, which no IOMMU
/// translates (5.5.6; QEMU discards whatever RAM they name).
const BALLOONS: [u32; 2] = [0x1002, 0x1045];

/// Status (upper half): bit 4 tells of a capability list, whose first entry is in [`FIRST`].
const STATUS: u16 = 0x04;
const HAS_LIST: u32 = 1 << 20;
const FIRST: u16 = 0x34;
/// Capabilities start behind the header, and more do not fit.
const CAPABILITIES: u16 = 0x40;
const CAPABILITIES_MAX: usize = 48;
/// First byte behind what capabilities can use; and the extended ones, which start there.
const EXTENDED: u16 = 0x100;
const EXTENDED_MAX: usize = 480;

const VENDOR_SPECIFIC: u8 = 0x09;
const SRIOV: u32 = 0x0010;
/// cfg_type of the common configuration, and of the window (4.1.4).
const COMMON_CFG: u8 = 1;
const PCI_CFG: u8 = 5;

/// Fields of a capability: BAR, offset, length, and the window's data.
const BAR: u16 = 4;
const OFFSET: u16 = 8;
const LENGTH: u16 = 12;
const DATA: u16 = 16;
/// Highest BAR.
const BAR_MAX: u8 = 5;

/// Fields of the common configuration (4.1.4.3).
const DEVICE_FEATURE_SELECT: u32 = 0;
const DEVICE_FEATURE: u32 = 4;
/// VIRTIO_F_VERSION_1 (32) and VIRTIO_F_ACCESS_PLATFORM (33) in features 32 to 63.
const VERSION_1: u32 = 1 << 0;
const ACCESS_PLATFORM: u32 = 1 << 1;

/// Whether a function's DMA goes through the SMMU, as far as it is virtio's business.
pub(super) fn check<C: Config>(config: &C, at: Function, ids: u32) -> Result<(), Reason> {
    if ids & 0xffff != VENDOR || !DEVICES.contains(&(ids >> 16)) {
        return Ok(());
    }
    if BALLOONS.contains(&(ids >> 16)) {
        return Err(Reason::Balloon);
    }
    if has_sriov(config, at)? {
        return Err(Reason::MoreFunctions);
    }
    let (common, window) = interfaces(config, at)?;
    let features = Window::open(config, at, common, window).features()?;
    if features & VERSION_1 == 0 || features == u32::MAX {
        return Err(Reason::Unreadable);
    }
    (features & ACCESS_PLATFORM != 0)
        .then_some(())
        .ok_or(Reason::Bypass)
}

/// Where the common configuration is.
#[derive(Clone, Copy)]
struct Common {
    bar: u8,
    offset: u32,
}

/// The common configuration, and where the window's capability is. A device with neither is a legacy one.
fn interfaces<C: Config>(config: &C, at: Function) -> Result<(Common, u16), Reason> {
    let (mut common, mut window) = (None, None);
    let mut next = 0;
    if config.read(at, STATUS) & HAS_LIST != 0 {
        next = config.read(at, FIRST) as u16 & 0xfc;
    }
    for _ in 0..CAPABILITIES_MAX {
        if next == 0 {
            break;
        }
        if next < CAPABILITIES {
            return Err(Reason::Unreadable);
        }
        let here = next;
        let [id, link, bytes, kind] = config.read(at, here).to_le_bytes();
        next = u16::from(link) & 0xfc;
        let needed = match (id, kind) {
            (VENDOR_SPECIFIC, COMMON_CFG) => DATA,
            (VENDOR_SPECIFIC, PCI_CFG) => DATA + 4,
            _ => continue,
        };
        if u16::from(bytes) < needed || here + needed > EXTENDED {
            return Err(Reason::Unreadable);
        }
        if kind == PCI_CFG {
            window.get_or_insert(here);
            continue;
        }
        let bar = config.read(at, here + BAR) as u8;
        let offset = config.read(at, here + OFFSET);
        let enough = config.read(at, here + LENGTH) >= DEVICE_FEATURE + 4;
        if bar > BAR_MAX || !enough || !offset.is_multiple_of(4) || offset > u32::MAX - 8 {
            return Err(Reason::Unreadable);
        }
        common.get_or_insert(Common { bar, offset });
    }
    match (next, common, window) {
        (0, Some(common), Some(window)) => Ok((common, window)),
        (0, None, None) => Err(Reason::Bypass),
        _ => Err(Reason::Unreadable),
    }
}

/// Whether the function has the SR-IOV capability (PCI Express Base Specification 5.0, 7.6.3 and 9.3.3).
fn has_sriov<C: Config>(config: &C, at: Function) -> Result<bool, Reason> {
    let mut next = EXTENDED;
    for _ in 0..EXTENDED_MAX {
        let header = config.read(at, next);
        if header == 0 || header == u32::MAX {
            return Ok(false);
        }
        if header & 0xffff == SRIOV {
            return Ok(true);
        }
        next = (header >> 20) as u16 & 0xffc;
        match next {
            0 => return Ok(false),
            1..EXTENDED => break,
            _ => {}
        }
    }
    Err(Reason::Unreadable)
}

/// The open window. Dropped, it is as it was.
struct Window<'a, C: Config> {
    config: &'a C,
    at: Function,
    capability: u16,
    common: u32,
    /// BAR, offset and length before.
    saved: [u32; 3],
}

impl<'a, C: Config> Window<'a, C> {
    fn open(config: &'a C, at: Function, common: Common, capability: u16) -> Self {
        let window = Self {
            config,
            at,
            capability,
            common: common.offset,
            saved: [BAR, OFFSET, LENGTH].map(|field| config.read(at, capability + field)),
        };
        window.set(BAR, window.saved[0] & !0xff | u32::from(common.bar));
        window.set(LENGTH, 4);
        window
    }

    fn set(&self, field: u16, value: u32) {
        self.config.write(self.at, self.capability + field, value);
    }

    /// Reads a field of the common configuration.
    fn read(&self, field: u32) -> u32 {
        self.set(OFFSET, self.common + field);
        self.config.read(self.at, self.capability + DATA)
    }

    /// Writes one.
    fn write(&self, field: u32, value: u32) {
        self.set(OFFSET, self.common + field);
        self.set(DATA, value);
    }

    /// Features 32 to 63.
    fn features(&self) -> Result<u32, Reason> {
        let select = self.read(DEVICE_FEATURE_SELECT);
        self.write(DEVICE_FEATURE_SELECT, 1);
        // A window that leads nowhere keeps what was written to it, or reads as all ones: VERSION_1 alone, or not 1.
        let selected = self.read(DEVICE_FEATURE_SELECT);
        let features = self.read(DEVICE_FEATURE);
        self.write(DEVICE_FEATURE_SELECT, select);
        (selected == 1)
            .then_some(features)
            .ok_or(Reason::Unreadable)
    }
}

impl<C: Config> Drop for Window<'_, C> {
    fn drop(&mut self) {
        // With length 0, data goes nowhere.
        self.set(LENGTH, 0);
        self.set(DATA, 0);
        for (field, value) in [BAR, OFFSET, LENGTH].into_iter().zip(self.saved) {
            self.set(field, value);
        }
    }
}
