//! Counters of one device, kept by its queues while they work and read by whoever shows them.
//! Lock-free and only ever growing, but for what is in flight; nothing is decided by them.
//! What a slot is: Linux's swiotlb hands out its pool in slots of 2 KiB.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Bytes of a slot.
pub const SLOT: u32 = 2048;

/// Counters of one device since the VM started.
#[derive(Debug, Default)]
pub struct DeviceStats {
    buffers: AtomicU64,
    bytes_to_device: AtomicU64,
    bytes_from_device: AtomicU64,
    slots: AtomicU64,
    slots_high: AtomicU64,
    notifications: AtomicU64,
    interrupts: AtomicU64,
    lost: AtomicU64,
    faults: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsSnapshot {
    /// Descriptor chains that the device took.
    pub buffers: u64,
    /// Bytes in the readable buffers of chains given back.
    pub bytes_to_device: u64,
    /// Bytes written to chains given back.
    pub bytes_from_device: u64,
    /// Slots of 2 KiB in the buffers that the device holds now.
    pub slots_in_flight: u64,
    /// The most there were at once.
    pub slots_high_water: u64,
    /// Doorbells that woke a worker.
    pub notifications: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Frames or packets that went nowhere: malformed, too long, or nobody took them.
    pub lost: u64,
    /// Mistakes of the guest, and failures of the host, that made the device need a reset.
    pub faults: u64,
}

impl DeviceStats {
    /// The device took a chain of so many slots.
    pub(super) fn took(&self, slots: u64) {
        self.buffers.fetch_add(1, Ordering::Relaxed);
        let now = self.slots.fetch_add(slots, Ordering::Relaxed) + slots;
        self.slots_high.fetch_max(now, Ordering::Relaxed);
    }

    /// It put one back unused.
    pub(super) fn untook(&self, slots: u64) {
        self.buffers.fetch_sub(1, Ordering::Relaxed);
        self.dropped(slots);
    }

    /// It gave one back, having read and written so many bytes.
    pub(super) fn gave(&self, slots: u64, read: u32, written: u32) {
        self.dropped(slots);
        self.bytes_to_device
            .fetch_add(read.into(), Ordering::Relaxed);
        self.bytes_from_device
            .fetch_add(written.into(), Ordering::Relaxed);
    }

    /// A chain went away with its queue.
    pub(super) fn dropped(&self, slots: u64) {
        self.slots.fetch_sub(slots, Ordering::Relaxed);
    }

    pub(super) fn notified(&self) {
        self.notifications.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn interrupted(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// A frame or packet went nowhere.
    pub(super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn faulted(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them.
    pub fn snapshot(&self) -> StatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StatsSnapshot {
            buffers: load(&self.buffers),
            bytes_to_device: load(&self.bytes_to_device),
            bytes_from_device: load(&self.bytes_from_device),
            slots_in_flight: load(&self.slots),
            slots_high_water: load(&self.slots_high),
            notifications: load(&self.notifications),
            interrupts: load(&self.interrupts),
            lost: load(&self.lost),
            faults: load(&self.faults),
        }
    }
}
