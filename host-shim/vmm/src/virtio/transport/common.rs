//! The common configuration registers of virtio-pci: feature negotiation, status, queue set-up.
//! It decides what the driver may do and says what has to happen; doing it is the transport's.
//! Source: VIRTIO 1.2, 4.1.4.3 (layout), 3.1.1 (order of initialization), 2.1 (status).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::cli::SwiotlbMode;
use crate::virtio::queue::Fault;
use crate::virtio::shared::Shared;
use crate::virtio::{COMMON_FEATURES, feature};

/// Bytes of the registers, up to queue_reset.
pub const SIZE: usize = 0x3c;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What a write to the registers asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the register.
    None,
    /// Status 0: stop everything.
    Reset,
    /// A queue was enabled.
    QueueEnabled(u16),
    /// DRIVER_OK: serve the queues.
    Start,
}

/// How SWIOTLB is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swiotlb {
    /// Offered, demanded, or only the capability.
    pub mode: SwiotlbMode,
    /// Feature bit.
    pub bit: u32,
    /// cfg_type of the capability.
    pub cfg_type: u8,
    /// A device that is `Off` reaches the pool of the device tree; else it reaches RAM.
    pub pool: bool,
}

/// A queue as the driver sets it up.
#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// The registers.
pub struct Common {
    offered: u64,
    /// Offered bits without which the driver is refused.
    required: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl Common {
    /// Registers after reset of a device with these features and queues.
    pub fn new(features: u64, queue_sizes: &[u16], swiotlb: Swiotlb) -> Self {
        let (bit, platform) = (feature(swiotlb.bit), feature(VIRTIO_F_ACCESS_PLATFORM));
        let (offer, demand) = match swiotlb.mode {
            SwiotlbMode::Require => (bit, bit),
            SwiotlbMode::Offer => (bit, 0),
            SwiotlbMode::Hint => (0, 0),
            // A driver that goes past the platform's DMA would not find the pool of the device tree.
            SwiotlbMode::Off if swiotlb.pool => (platform, platform),
            SwiotlbMode::Off => (0, 0),
        };
        let queues = queue_sizes.iter().map(|size| QueueSetup {
            max_size: *size,
            size: *size,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        });
        Self {
            offered: COMMON_FEATURES | features | offer,
            required: feature(VIRTIO_F_VERSION_1) | demand,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            status: 0,
            queue_select: 0,
            queues: queues.collect(),
        }
    }

    /// After a reset by the driver.
    pub fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.status = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup {
                size: queue.max_size,
                enabled: false,
                descriptors: 0,
                driver: 0,
                device: 0,
                ..*queue
            };
        }
    }

    /// What both sides agreed on, once FEATURES_OK is set.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether indirect descriptors were negotiated.
    pub fn indirect(&self) -> bool {
        self.accepted & feature(VIRTIO_RING_F_INDIRECT_DESC) != 0
    }

    /// Numbers of the enabled queues.
    pub fn enabled(&self) -> Vec<u16> {
        (0u16..)
            .zip(&self.queues)
            .filter_map(|(index, queue)| queue.enabled.then_some(index))
            .collect()
    }

    /// An enabled queue for its device.
    pub fn queue(&self, index: u16) -> Result<Queue, Fault> {
        let Some(setup) = self.queues.get(usize::from(index)) else {
            return Err(Fault::Setup("a queue that does not exist"));
        };
        let ring = |error| Fault::Ring {
            queue: index,
            error,
        };
        let mut queue = Queue::new(setup.max_size).map_err(ring)?;
        queue.try_set_size(setup.size).map_err(ring)?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.descriptors))
            .map_err(ring)?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.driver))
            .map_err(ring)?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.device))
            .map_err(ring)?;
        queue.set_event_idx(self.accepted & feature(VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        Ok(queue)
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Reads registers; what lies beyond them is zero.
    pub fn read(&self, shared: &Shared, offset: usize, data: &mut [u8]) {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut image = [0u8; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_select).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &half(self.accepted, self.driver_select).to_le_bytes());
        put(0x10, &shared.config_vector().to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status | shared.status()]);
        put(0x15, &[shared.generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        let vector = shared.queue_vector(self.queue_select);
        put(0x1a, &vector.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.selected() {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = image.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    /// Writes a register: with its own width, or half of a 64-bit one. Anything else has no effect.
    pub fn write(&mut self, shared: &Shared, offset: usize, data: &[u8]) -> Action {
        let mut bytes = [0; 8];
        let Some(head) = bytes.get_mut(..data.len()) else {
            return Action::None;
        };
        head.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) => self.accept(value as u32),
            (0x10, 2) => shared.set_config_vector(value as u16),
            (0x14, 1) => return self.set_status(shared, value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x1a, 2) => shared.set_queue_vector(self.queue_select, value as u16),
            (0x18 | 0x1c, 2) => return self.set_queue(offset, value as u16),
            (0x20..0x38, 4 | 8) if offset.is_multiple_of(data.len()) => {
                self.set_ring(offset, data.len(), value);
            }
            _ => {}
        }
        Action::None
    }

    fn accept(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, shared: &Shared, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let mut new = value & !NEEDS_RESET & !self.status;
        if new & FEATURES_OK != 0 {
            let missing = self.required & !self.accepted;
            let unknown = self.accepted & !self.offered;
            if missing | unknown != 0 {
                shared.warn(&format_args!(
                    "driver refused: features missing {missing:#x}, not offered {unknown:#x}"
                ));
                new &= !FEATURES_OK;
            }
        }
        if new & DRIVER_OK != 0 && (self.status | new) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK != 0 {
            Action::Start
        } else {
            Action::None
        }
    }

    fn set_queue(&mut self, offset: usize, value: u16) -> Action {
        let negotiated = self.status & FEATURES_OK != 0;
        let index = self.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Action::None;
        };
        if queue.enabled {
            return Action::None;
        }
        if offset == 0x18 {
            if value.is_power_of_two() && value <= queue.max_size {
                queue.size = value;
            }
            return Action::None;
        }
        if value != 1 || !negotiated {
            return Action::None;
        }
        queue.enabled = true;
        Action::QueueEnabled(index)
    }

    fn set_ring(&mut self, offset: usize, width: usize, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.enabled {
            return;
        }
        let field = match offset & !7 {
            0x20 => &mut queue.descriptors,
            0x28 => &mut queue.driver,
            _ => &mut queue.device,
        };
        *field = match (width, offset & 4) {
            (8, _) => value,
            (_, 0) => *field & !0xffff_ffff | value,
            _ => *field & 0xffff_ffff | value << 32,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::tests::shared;

    const BIT: u32 = 27;
    const VERSION_1: u64 = 1 << 32;

    fn common(mode: SwiotlbMode) -> Common {
        let swiotlb = Swiotlb {
            mode,
            bit: BIT,
            cfg_type: 10,
            pool: false,
        };
        Common::new(0, &[64, 32], swiotlb)
    }

    fn offered(c: &mut Common) -> u64 {
        let s = shared();
        let mut halves = [0u64; 2];
        for (select, half) in (0u32..).zip(&mut halves) {
            c.write(&s, 0, &select.to_le_bytes());
            let mut data = [0; 4];
            c.read(&s, 4, &mut data);
            *half = u32::from_le_bytes(data).into();
        }
        halves[1] << 32 | halves[0]
    }

    fn negotiate(c: &mut Common, features: u64) -> bool {
        let s = shared();
        c.write(&s, 0x14, &[1]);
        c.write(&s, 0x14, &[3]);
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            c.write(&s, 8, &select.to_le_bytes());
            c.write(&s, 0xc, &half.to_le_bytes());
        }
        c.write(&s, 0x14, &[3 | FEATURES_OK]);
        let mut status = [0];
        c.read(&s, 0x14, &mut status);
        status[0] & FEATURES_OK != 0
    }

    #[test]
    fn require_refuses_a_driver_without_the_feature() {
        let mut c = common(SwiotlbMode::Require);
        assert_ne!(offered(&mut c) & 1 << BIT, 0);
        assert!(!negotiate(&mut c, VERSION_1));
        assert!(negotiate(&mut c, VERSION_1 | 1 << BIT));
    }

    #[test]
    fn offer_lets_the_driver_choose() {
        let mut c = common(SwiotlbMode::Offer);
        assert_ne!(offered(&mut c) & 1 << BIT, 0);
        assert!(negotiate(&mut c, VERSION_1));
        c.reset();
        assert!(negotiate(&mut c, VERSION_1 | 1 << BIT));
    }

    #[test]
    fn hint_offers_no_feature_and_takes_none() {
        let mut c = common(SwiotlbMode::Hint);
        assert_eq!(offered(&mut c) & 1 << BIT, 0);
        assert!(!negotiate(&mut c, VERSION_1 | 1 << BIT));
        c.reset();
        assert!(negotiate(&mut c, VERSION_1));
    }

    #[test]
    fn a_device_of_the_pool_demands_the_platforms_dma() {
        let mut swiotlb = Swiotlb {
            mode: SwiotlbMode::Off,
            bit: BIT,
            cfg_type: 10,
            pool: true,
        };
        let mut c = Common::new(0, &[64], swiotlb);
        assert!(!negotiate(&mut c, VERSION_1), "it would go past the pool");
        c.reset();
        assert!(negotiate(&mut c, VERSION_1 | 1 << 33));
        swiotlb.pool = false;
        let mut c = Common::new(0, &[64], swiotlb);
        assert_eq!(offered(&mut c) & (1 << BIT | 1 << 33), 0);
        assert!(negotiate(&mut c, VERSION_1));
    }

    #[test]
    fn legacy_drivers_and_unknown_bits_are_refused() {
        let mut c = common(SwiotlbMode::Require);
        assert!(!negotiate(&mut c, 1 << BIT));
        assert!(!negotiate(&mut c, VERSION_1 | 1 << BIT | 1 << 60));
    }

    #[test]
    fn features_are_fixed_once_agreed() {
        let mut c = common(SwiotlbMode::Offer);
        assert!(negotiate(&mut c, VERSION_1));
        c.write(&shared(), 8, &0u32.to_le_bytes());
        c.write(&shared(), 0xc, &u32::MAX.to_le_bytes());
        assert_eq!(c.features(), VERSION_1);
    }

    #[test]
    fn the_driver_starts_the_device_only_after_agreement() {
        let mut c = common(SwiotlbMode::Offer);
        let s = shared();
        assert_eq!(c.write(&s, 0x14, &[3 | DRIVER_OK]), Action::None);
        assert!(negotiate(&mut c, VERSION_1));
        let ok = [3 | FEATURES_OK | DRIVER_OK];
        assert_eq!(c.write(&s, 0x14, &ok), Action::Start);
        assert_eq!(c.write(&s, 0x14, &ok), Action::None, "once");
        assert_eq!(c.write(&s, 0x14, &[0]), Action::Reset);
    }

    #[test]
    fn the_driver_can_neither_set_nor_clear_needs_reset() {
        let mut c = common(SwiotlbMode::Offer);
        let s = shared();
        let mut status = [0];
        c.write(&s, 0x14, &[1 | NEEDS_RESET]);
        c.read(&s, 0x14, &mut status);
        assert_eq!(status, [1]);
        s.fault(&Fault::Setup("test"));
        c.write(&s, 0x14, &[3]);
        c.read(&s, 0x14, &mut status);
        assert_eq!(status, [3 | NEEDS_RESET]);
    }

    #[test]
    fn queues_are_set_up_while_disabled_and_fixed_afterwards() {
        let mut c = common(SwiotlbMode::Offer);
        let s = shared();
        c.write(&s, 0x16, &1u16.to_le_bytes());
        assert_eq!(c.write(&s, 0x1c, &[1, 0]), Action::None, "too early");
        assert!(negotiate(&mut c, VERSION_1));
        for size in [33u16, 0, 64, u16::MAX] {
            c.write(&s, 0x18, &size.to_le_bytes());
        }
        c.write(&s, 0x18, &16u16.to_le_bytes());
        c.write(&s, 0x20, &0x1000_0000_u64.to_le_bytes());
        c.write(&s, 0x28, &0x1000_1000_u32.to_le_bytes());
        c.write(&s, 0x2c, &1u32.to_le_bytes());
        c.write(&s, 0x30, &0x1000_2000_u64.to_le_bytes());
        assert_eq!(c.write(&s, 0x1c, &[1, 0]), Action::QueueEnabled(1));
        c.write(&s, 0x18, &8u16.to_le_bytes());
        c.write(&s, 0x20, &[0xff; 8]);
        let q = c.queue(1).unwrap();
        assert_eq!((q.size(), q.desc_table()), (16, 0x1000_0000));
        assert_eq!(q.avail_ring(), 0x1_1000_1000);
        assert_eq!(c.enabled(), [1]);
        c.reset();
        assert!(c.enabled().is_empty());
    }

    #[test]
    fn misaligned_rings_are_faults() {
        let mut c = common(SwiotlbMode::Offer);
        c.write(&shared(), 0x20, &0x1000_0008_u64.to_le_bytes());
        assert!(matches!(c.queue(0), Err(Fault::Ring { queue: 0, .. })));
        assert!(c.queue(7).is_err());
    }

    #[test]
    fn queues_that_do_not_exist_have_no_size() {
        let mut c = common(SwiotlbMode::Offer);
        let s = shared();
        c.write(&s, 0x16, &2u16.to_le_bytes());
        assert!(negotiate(&mut c, VERSION_1));
        for (at, len) in [(0x18, 2), (0x1c, 2), (0x20, 8), (0x1a, 2)] {
            assert_eq!(c.write(&s, at, &[1; 8][..len]), Action::None);
        }
        let mut data = [1; 2];
        c.read(&s, 0x18, &mut data);
        assert_eq!(data, [0; 2]);
    }

    #[test]
    fn accesses_of_wrong_width_or_place_change_nothing() {
        let mut c = common(SwiotlbMode::Offer);
        let s = shared();
        for (at, len) in [(0x14, 2), (0x00, 8), (0x22, 4), (0x3c, 4), (usize::MAX, 4)] {
            assert_eq!(c.write(&s, at, &[0xff; 8][..len]), Action::None);
        }
        let mut data = [0xff; 8];
        c.read(&s, SIZE - 4, &mut data);
        c.read(&s, usize::MAX, &mut data);
        assert_eq!(data, [0; 8]);
        c.read(&s, 0x14, &mut data[..1]);
        assert_eq!(data[0], 0);
    }
}
