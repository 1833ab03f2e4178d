//! What the transport's registers and a device's worker thread share: interrupts, the status byte, faults.
//! Lock-free but for MSI-X's own table and for messages; registers themselves live in `transport`.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::queue::Fault;
use super::stats::DeviceStats;
use crate::bus::lock;
use crate::pci::msix::Msix;

/// "No vector" (VIRTIO 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// Messages about one device in each [`LOG_PERIOD`].
const LOG_LINES: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// How much may still be said: a guest makes mistakes as fast as it likes, and the host's disk keeps the log.
struct Messages {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Messages {
    /// Takes a line: how many were left out before it. None if this one is left out.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= LOG_PERIOD {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == LOG_LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Shared state of one device.
pub struct Shared {
    name: String,
    msix: Arc<Msix>,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    needs_reset: AtomicBool,
    /// The driver set DRIVER_OK, and the device was not stopped since.
    running: AtomicBool,
    /// Its threads are to end.
    halting: AtomicBool,
    generation: AtomicU8,
    stats: DeviceStats,
    messages: Mutex<Messages>,
}

impl Shared {
    /// State of a device with `queues` queues after reset.
    pub fn new(name: &str, queues: usize, msix: Arc<Msix>) -> Self {
        Self {
            name: name.to_owned(),
            msix,
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
            running: AtomicBool::new(false),
            halting: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            stats: DeviceStats::default(),
            messages: Mutex::new(Messages {
                since: Instant::now(),
                lines: 0,
                left_out: 0,
            }),
        }
    }

    /// Warns of what the guest or the host did wrong, unless too much was said of this device lately.
    pub fn warn(&self, what: &dyn Display) {
        let name = &self.name;
        match lock(&self.messages).take(Instant::now()) {
            None => {}
            Some(0) => tracing::warn!("{name}: {what}"),
            Some(more) => {
                tracing::warn!("{name}: {what} ({more} messages before this were left out)")
            }
        }
    }

    /// The device's name in log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A queue was used: interrupts the driver.
    pub fn interrupt_queue(&self, queue: u16) {
        let vector = self.queue_vectors.get(usize::from(queue));
        self.interrupt(ISR_QUEUE, vector.map_or(NO_VECTOR, load));
    }

    /// The configuration or the status changed: interrupts the driver.
    fn interrupt_config(&self) {
        self.interrupt(ISR_CONFIG, load(&self.config_vector));
    }

    /// The device configuration changed: a driver that is reading it reads again, and all hear of it.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.interrupt_config();
    }

    /// config_generation (VIRTIO 1.2, 4.1.4.3).
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    fn interrupt(&self, isr: u8, vector: u16) {
        self.stats.interrupted();
        if self.msix.enabled() {
            if vector != NO_VECTOR {
                self.msix.raise(vector);
            }
        } else {
            self.isr.fetch_or(isr, Ordering::SeqCst);
        }
    }

    /// The guest broke the rules: the device needs a reset, which is counted, logged and told to the driver.
    pub fn fault(&self, fault: &Fault) {
        self.stats.faulted();
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.warn(&format_args!("device needs reset: {fault}"));
            self.interrupt_config();
        }
    }

    /// The same, if a driver runs the device.
    pub fn fault_if_running(&self, fault: &Fault) {
        if self.running() {
            self.fault(fault);
        }
    }

    /// Counters.
    pub fn stats(&self) -> &DeviceStats {
        &self.stats
    }

    /// Whether a driver runs the device.
    pub fn running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Says that the transport starts or stops the device.
    pub fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::SeqCst);
    }

    /// Whether somebody waits for the device's threads to end: what takes long is then given up.
    pub fn halting(&self) -> bool {
        self.halting.load(Ordering::SeqCst)
    }

    /// Says that somebody does, or that new threads begin.
    pub fn set_halting(&self, halting: bool) {
        self.halting.store(halting, Ordering::SeqCst);
    }

    /// Whether the device waits for its driver to reset it.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The bit that the device adds to the status byte.
    pub fn status(&self) -> u8 {
        if self.needs_reset() {
            VIRTIO_CONFIG_S_NEEDS_RESET as u8
        } else {
            0
        }
    }

    /// Reads the ISR status, which clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// Vector of the configuration interrupt.
    pub fn config_vector(&self) -> u16 {
        load(&self.config_vector)
    }

    /// Sets it; a vector that does not exist becomes "none".
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.usable(vector), Ordering::SeqCst);
    }

    /// Vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, load)
    }

    /// Sets it; a vector that does not exist becomes "none".
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.usable(vector), Ordering::SeqCst);
        }
    }

    fn usable(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// After the driver's reset.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }
}

fn load(vector: &AtomicU16) -> u16 {
    vector.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_makes_mistakes_without_end_does_not_fill_the_log() {
        let start = Instant::now();
        let mut messages = Messages {
            since: start,
            lines: 0,
            left_out: 0,
        };
        let soon = start + LOG_PERIOD / 2;
        let said = (0..1000).filter_map(|_| messages.take(soon)).count();
        assert_eq!(said, LOG_LINES as usize);
        assert_eq!(messages.take(start + LOG_PERIOD), Some(1000 - 10));
        assert_eq!(messages.take(start + LOG_PERIOD), Some(0));
    }
}
