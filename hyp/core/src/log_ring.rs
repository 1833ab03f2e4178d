//! The hypervisor's log as a ring of bytes: what `LOG_READ` gives to the host.
//! Lock-free, so that the panic path can write it too. Formatting and the UART are the binary's business;
//! nothing of a guest's is ever written here.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes that the ring keeps.
pub const LOG_RING_BYTES: usize = 32 * 1024;

/// A ring of the last [`LOG_RING_BYTES`] bytes of log. Positions count all bytes ever written.
///
/// A writer reserves its bytes, stores them, then publishes them. A reader sees bytes only while no writer
/// is between the two, so it never returns a hole.
pub struct LogRing {
    bytes: [AtomicU8; LOG_RING_BYTES],
    reserved: AtomicU64,
    published: AtomicU64,
}

impl LogRing {
    /// An empty ring, for a static.
    pub const fn new() -> Self {
        Self {
            bytes: [const { AtomicU8::new(0) }; LOG_RING_BYTES],
            reserved: AtomicU64::new(0),
            published: AtomicU64::new(0),
        }
    }

    /// Appends `text`; of a text longer than the ring, its end.
    pub fn write(&self, text: &[u8]) {
        let text = match text.len().checked_sub(LOG_RING_BYTES) {
            Some(surplus) => text.get(surplus..).unwrap_or(text),
            None => text,
        };
        let length = text.len() as u64;
        let start = self.reserved.fetch_add(length, Ordering::SeqCst);
        for (position, byte) in (start..).zip(text) {
            self.slot(position).store(*byte, Ordering::Relaxed);
        }
        self.published.fetch_add(length, Ordering::SeqCst);
    }

    /// Copies bytes from `position` on; returns the position of the first byte copied and their number.
    ///
    /// A position that the ring has lost moves on to the oldest byte it has; one in the future gives nothing.
    pub fn read(&self, position: u64, to: &mut [u8]) -> (u64, usize) {
        let published = self.published.load(Ordering::SeqCst);
        let end = self.reserved.load(Ordering::SeqCst);
        if published != end {
            return (position, 0);
        }
        let start = position.max(end.saturating_sub(LOG_RING_BYTES as u64));
        if start >= end {
            return (position.min(end), 0);
        }
        let mut copied = 0usize;
        for (at, byte) in (start..end).zip(to.iter_mut()) {
            *byte = self.slot(at).load(Ordering::Relaxed);
            copied = copied.saturating_add(1);
        }
        // A writer may have come round meanwhile: what it overwrote is lost, and the caller asks again.
        let oldest = self
            .reserved
            .load(Ordering::SeqCst)
            .saturating_sub(LOG_RING_BYTES as u64);
        if start < oldest {
            return (oldest, 0);
        }
        (start, copied)
    }

    fn slot(&self, position: u64) -> &AtomicU8 {
        &self.bytes[(position % LOG_RING_BYTES as u64) as usize]
    }
}

impl Default for LogRing {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for &LogRing {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn reads_what_was_written_and_nothing_else() {
        let ring = LogRing::new();
        write!(&ring, "porthole {}", 1).unwrap();
        let mut buffer = [0xffu8; 32];
        assert_eq!(ring.read(0, &mut buffer), (0, 10));
        assert_eq!(&buffer[..10], b"porthole 1");
        assert_eq!(buffer[10], 0xff);
        assert_eq!(ring.read(9, &mut buffer), (9, 1));
        assert_eq!(ring.read(10, &mut buffer), (10, 0));
        assert_eq!(ring.read(u64::MAX, &mut buffer), (10, 0));
    }

    #[test]
    fn a_lost_position_moves_to_the_oldest_byte() {
        let ring = LogRing::new();
        ring.write(&[1; LOG_RING_BYTES]);
        ring.write(&[2; 5]);
        let mut buffer = [0u8; 4];
        assert_eq!(ring.read(0, &mut buffer), (5, 4));
        assert_eq!(buffer, [1; 4]);
        let end = LOG_RING_BYTES as u64 + 5;
        assert_eq!(ring.read(end - 2, &mut buffer), (end - 2, 2));
        assert_eq!(&buffer[..2], &[2, 2]);
    }

    #[test]
    fn a_text_longer_than_the_ring_keeps_its_end() {
        let ring = LogRing::new();
        let mut text = vec![b'a'; LOG_RING_BYTES];
        text.push(b'z');
        ring.write(&text);
        let mut last = [0u8; 1];
        let end = LOG_RING_BYTES as u64;
        assert_eq!(ring.read(end - 1, &mut last), (end - 1, 1));
        assert_eq!(last, [b'z']);
    }
}
