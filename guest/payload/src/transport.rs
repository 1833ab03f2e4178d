//! virtio over PCI (VIRTIO 1.2, 4.1) for devices with a window: virtio-drivers' own transport knows capabilities
//! 1 to 4 and lets drivers accept only the features they name; this one knows the SWIOTLB capability, accepts its
//! feature whatever the driver says, sends interrupts by MSI-X, and lets no queue lie outside the pool.

use arrayvec::ArrayVec;
use porthole_bounce::{BouncePool, BusAddr};
use porthole_runtime::mmio::Registers;
use porthole_runtime::reg;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::interrupt::Message;
use crate::machine::PciHost;
use crate::pci::{Bars, Function, PciError, Structure, msix};

/// Vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// Device id of a modern device, less its virtio device number.
const DEVICE_BASE: u16 = 0x1040;
/// Vendor-specific capability (PCI).
const CAPABILITY_VENDOR: u8 = 9;
/// In the first reserved byte of the SWIOTLB capability, with the number of another function of the device: the window
/// is in that one's BAR. Porthole's own (host-shim/vmm/README.md), since the proposal says nothing of sharing.
const OTHER_FUNCTION: u8 = 0x80;
/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// No MSI-X vector.
const NO_VECTOR: u16 = 0xffff;
/// Queues whose doorbell is remembered.
const QUEUES: usize = 8;
/// Looks at a register until a device is given up.
const PATIENCE: u32 = 1 << 20;

// Common configuration (VIRTIO 1.2, 4.1.4.3).
pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
pub(crate) const DEVICE_FEATURE: u64 = 4;
pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
pub(crate) const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
pub(crate) const QUEUE_COUNT: u64 = 18;
pub(crate) const STATUS: u64 = 20;
const GENERATION: u64 = 21;
pub(crate) const QUEUE_SELECT: u64 = 22;
pub(crate) const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
pub(crate) const QUEUE_ENABLE: u64 = 28;
pub(crate) const QUEUE_NOTIFY_OFF: u64 = 30;
pub(crate) const QUEUE_DESC: u64 = 32;
pub(crate) const QUEUE_DRIVER: u64 = 40;
pub(crate) const QUEUE_DEVICE: u64 = 48;
const COMMON_SIZE: u32 = 56;

/// Why a device cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// A wrong BAR or capability.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A structure that every device has is missing or too short.
    #[error("no usable {0} structure")]
    Missing(&'static str),
    /// Not a virtio 1.x device.
    #[error("the device does not offer VIRTIO_F_VERSION_1")]
    Legacy,
    /// No way to keep the device out of private memory.
    #[error("the device has neither a SWIOTLB capability nor the feature")]
    NoWindow,
    /// A feature without what it stands for.
    #[error("the device offers VIRTIO_F_SWIOTLB without a SWIOTLB capability")]
    FeatureOnly,
    /// The device wants other features.
    #[error("the device refuses the features {0:#x}")]
    Refused(u64),
    /// It does not come out of reset.
    #[error("the device does not reset")]
    Stuck,
}

/// The numbers of the SWIOTLB proposal, which is not ratified.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Feature bit of VIRTIO_F_SWIOTLB.
    pub feature_bit: u32,
    /// cfg_type of VIRTIO_PCI_CAP_SWIOTLB.
    pub cfg_type: u8,
}

/// A virtio function's capabilities.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub(crate) common: Structure,
    pub(crate) notify: Structure,
    pub(crate) notify_multiplier: u32,
    pub(crate) config: Option<Structure>,
    /// The bounce buffer.
    pub swiotlb: Option<Structure>,
    /// The function of the same device whose BAR that is in, if another's (see `OTHER_FUNCTION`).
    pub swiotlb_function: Option<u8>,
}

impl Layout {
    /// Walks the capabilities of `function`; the first of each kind counts.
    ///
    /// # Errors
    /// `Pci`, `Missing`.
    pub fn read(
        function: &Function,
        numbers: Numbers,
    ) -> core::result::Result<Self, TransportError> {
        let (mut common, mut notify, mut config, mut swiotlb) = (None, None, None, None);
        let (mut notify_multiplier, mut swiotlb_function) = (0, None);
        let space = function.config();
        for (id, at) in function.capabilities()? {
            let (length, kind) = (space.read8(at + 2), space.read8(at + 3));
            if id != CAPABILITY_VENDOR || length < 16 {
                continue;
            }
            let here = Structure {
                bar: space.read8(at + 4),
                offset: space.read32(at + 8),
                length: space.read32(at + 12),
            };
            match kind {
                1 => _ = common.get_or_insert(here),
                2 if length >= 20 && notify.is_none() => {
                    notify = Some(here);
                    notify_multiplier = space.read32(at + 16);
                }
                4 => _ = config.get_or_insert(here),
                kind if kind == numbers.cfg_type && swiotlb.is_none() => {
                    swiotlb = Some(here);
                    let owner = space.read8(at + 6);
                    swiotlb_function = (owner & OTHER_FUNCTION != 0).then_some(owner & 7);
                }
                _ => {}
            }
        }
        Ok(Self {
            common: common
                .filter(|c| c.length >= COMMON_SIZE)
                .ok_or(TransportError::Missing("common configuration"))?,
            notify: notify.ok_or(TransportError::Missing("notification"))?,
            notify_multiplier,
            config,
            swiotlb,
            swiotlb_function,
        })
    }
}

/// What a virtio function is, from its PCI ids.
pub fn device_type(function: &Function) -> Option<DeviceType> {
    let number = function.device().checked_sub(DEVICE_BASE)?;
    (function.vendor() == VENDOR).then(|| DeviceType::try_from(number).ok())?
}

/// Whether the device must confine itself to its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// The feature is negotiated.
    Negotiated,
    /// Only the capability is there; its window is used all the same.
    Hinted,
    /// Neither, and this run does without (development on a machine without Porthole).
    None,
}

/// The transport of one device.
pub struct WindowTransport {
    kind: DeviceType,
    common: Registers,
    notify: Registers,
    notify_multiplier: u32,
    config: Option<Registers>,
    /// Offset of each queue's doorbell.
    doorbells: ArrayVec<u64, QUEUES>,
    vector: u16,
    /// Features accepted beside the driver's own.
    extra: u64,
    confinement: Confinement,
    pool: &'static BouncePool<'static>,
}

impl WindowTransport {
    /// Takes over a function whose windows were checked, and finds out whether it agrees to the features.
    ///
    /// `message`: where its interrupts go; none if it should not send any. `need_window`: refuse a device without.
    ///
    /// # Errors
    /// What is wrong with the device. It is then as it was after a reset.
    pub fn new(
        function: &Function,
        layout: &Layout,
        (bars, host): (&Bars, &PciHost),
        numbers: Numbers,
        message: Option<Message>,
        (pool, need_window): (&'static BouncePool<'static>, bool),
    ) -> core::result::Result<Self, TransportError> {
        let vector = match message {
            Some(message) if msix::enable(function, bars, host, message)? => 0,
            _ => NO_VECTOR,
        };
        let config = layout.config.map(|c| c.registers(bars, host)).transpose()?;
        let mut transport = Self {
            kind: device_type(function).ok_or(TransportError::Missing("device id"))?,
            common: layout.common.registers(bars, host)?,
            notify: layout.notify.registers(bars, host)?,
            notify_multiplier: layout.notify_multiplier,
            config,
            doorbells: ArrayVec::from([0; QUEUES]),
            vector,
            extra: 0,
            confinement: Confinement::None,
            pool,
        };
        transport.negotiate(
            1 << numbers.feature_bit,
            layout.swiotlb.is_some(),
            need_window,
        )?;
        Ok(transport)
    }

    /// Whether the feature was accepted.
    pub fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// Whether the device sends interrupts.
    pub fn sends_messages(&self) -> bool {
        self.vector != NO_VECTOR
    }

    /// A first negotiation, with nothing but what this transport needs: virtio-drivers' own does not look whether
    /// the device agreed. Leaves the device reset.
    fn negotiate(
        &mut self,
        swiotlb: u64,
        has_window: bool,
        need_window: bool,
    ) -> core::result::Result<(), TransportError> {
        self.reset()?;
        self.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let offered = self.read_device_features();
        self.confinement = match (offered & swiotlb != 0, has_window) {
            (true, true) => Confinement::Negotiated,
            (true, false) => return Err(TransportError::FeatureOnly),
            (false, true) => Confinement::Hinted,
            (false, false) if need_window => return Err(TransportError::NoWindow),
            (false, false) => Confinement::None,
        };
        if offered & VERSION_1 == 0 {
            return Err(TransportError::Legacy);
        }
        self.extra = VERSION_1 | offered & swiotlb;
        self.write_driver_features(0);
        let agreed = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        self.write_status(agreed);
        let status = self.get_status();
        self.reset()?;
        if status.contains(DeviceStatus::FEATURES_OK) {
            Ok(())
        } else {
            Err(TransportError::Refused(self.extra))
        }
    }

    fn reset(&mut self) -> core::result::Result<(), TransportError> {
        self.write_status(DeviceStatus::empty());
        for _ in 0..PATIENCE {
            if self.get_status().is_empty() {
                return Ok(());
            }
            reg::relax();
        }
        Err(TransportError::Stuck)
    }

    fn write_status(&mut self, status: DeviceStatus) {
        self.common.write8(STATUS, status.bits() as u8);
    }

    /// 64-bit fields are written as two halves (VIRTIO 1.2, 4.1.3.1).
    fn write_address(&mut self, field: u64, address: PhysAddr) {
        self.common.write32(field, address as u32);
        self.common.write32(field + 4, (address >> 32) as u32);
    }

    /// Registers of the device configuration with room for a `T` at `offset`.
    fn config_for<T>(&self, offset: usize) -> Result<&Registers> {
        let config = self.config.as_ref().ok_or(Error::ConfigSpaceMissing)?;
        let end = offset.checked_add(size_of::<T>());
        match end {
            Some(end) if end as u64 <= config.size() => Ok(config),
            _ => Err(Error::ConfigSpaceTooSmall),
        }
    }
}

impl Transport for WindowTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |n| {
            self.common.write32(DEVICE_FEATURE_SELECT, n);
            u64::from(self.common.read32(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        let features = features | self.extra;
        for (n, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write32(DRIVER_FEATURE_SELECT, n);
            self.common.write32(DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.common.write16(QUEUE_SELECT, queue);
        u32::from(self.common.read16(QUEUE_SIZE))
    }

    /// # Panics
    /// When the device moved its doorbells out of their structure.
    fn notify(&mut self, queue: u16) {
        let doorbell = self.doorbells.get(usize::from(queue)).copied();
        self.notify.write16(doorbell.unwrap_or(u64::MAX), queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(u32::from(self.common.read8(STATUS)))
    }

    /// # Panics
    /// When the device refuses features that it agreed to before: the drivers above do not look.
    fn set_status(&mut self, status: DeviceStatus) {
        self.write_status(status);
        if status.contains(DeviceStatus::FEATURES_OK) {
            let now = self.get_status();
            assert!(
                now.contains(DeviceStatus::FEATURES_OK),
                "the device refuses features that it accepted before (status {now:?})"
            );
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    /// # Panics
    /// When a ring is outside the pool, or the device refuses the interrupt vector.
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        // Split queue: 16 bytes a descriptor; available and used ring with header and event field (VIRTIO 1.2, 2.7).
        let entries = size as usize;
        for (area, bytes) in [
            (descriptors, 16 * entries),
            (driver_area, 6 + 2 * entries),
            (device_area, 6 + 8 * entries),
        ] {
            let inside = self.pool.contains(BusAddr::new(area), bytes);
            assert!(
                inside,
                "queue {queue} has a ring outside the pool at {area:#x}"
            );
        }
        let vector = if queue == 0 { self.vector } else { NO_VECTOR };
        self.common.write16(CONFIG_VECTOR, NO_VECTOR);
        self.common.write16(QUEUE_SELECT, queue);
        self.common.write16(QUEUE_VECTOR, vector);
        let taken = self.common.read16(QUEUE_VECTOR);
        assert_eq!(taken, vector, "the device refuses its interrupt vector");
        let offset = u64::from(self.common.read16(QUEUE_NOTIFY_OFF));
        if let Some(doorbell) = self.doorbells.get_mut(usize::from(queue)) {
            *doorbell = offset * u64::from(self.notify_multiplier);
        }
        self.common.write16(QUEUE_SIZE, size as u16);
        self.write_address(QUEUE_DESC, descriptors);
        self.write_address(QUEUE_DRIVER, driver_area);
        self.write_address(QUEUE_DEVICE, device_area);
        self.common.write16(QUEUE_ENABLE, 1);
    }

    /// PCI has no way to take one queue back; they go with the device's reset.
    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.common.write16(QUEUE_SELECT, queue);
        self.common.read16(QUEUE_ENABLE) == 1
    }

    /// With MSI-X there is no interrupt status to read: any interrupt may be the queue's.
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        u32::from(self.common.read8(GENERATION))
    }

    /// Reads fields of 1, 2 and 4 bytes as such, longer ones in words of 4.
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let config = self.config_for::<T>(offset)?;
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let step = bytes.len().clamp(1, 4);
        for (i, part) in bytes.chunks_mut(step).enumerate() {
            let at = (offset + i * step) as u64;
            match part.len() {
                4 => part.copy_from_slice(&config.read32(at).to_le_bytes()),
                2 => part.copy_from_slice(&config.read16(at).to_le_bytes()),
                _ => (at..)
                    .zip(part)
                    .for_each(|(at, byte)| *byte = config.read8(at)),
            }
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        let config = self.config_for::<T>(offset)?;
        let bytes = value.as_bytes();
        let step = bytes.len().clamp(1, 4);
        for (i, part) in bytes.chunks(step).enumerate() {
            let at = (offset + i * step) as u64;
            match *part {
                [a, b, c, d] => config.write32(at, u32::from_le_bytes([a, b, c, d])),
                [a, b] => config.write16(at, u16::from_le_bytes([a, b])),
                _ => (at..)
                    .zip(part)
                    .for_each(|(at, byte)| config.write8(at, *byte)),
            }
        }
        Ok(())
    }
}

impl Drop for WindowTransport {
    /// The device forgets its queues before the pool takes their memory back.
    fn drop(&mut self) {
        let _ = self.reset();
    }
}
