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
mod tests;
