//! The flow control of one connection: how much either side may still send. Counters only, no data.
//! Source: VIRTIO 1.2, 5.10.6.3 (buffer space management).

use super::packet::Header;

/// Bytes of a connection's buffer at the host, as the guest is told.
pub const BUFFER_SIZE: u32 = 256 << 10;
/// The guest is told of room for more once this much has gone on.
const UPDATE_AFTER: u32 = BUFFER_SIZE / 4;

/// Counters of both directions; all of them wrap.
#[derive(Clone, Debug, Default)]
pub struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's buffer, as it said last.
    guest_buffer: u32,
    /// Bytes that left the guest's buffer, as it said last.
    guest_forwarded: u32,
    /// Bytes received from the guest.
    received: u32,
    /// Bytes that went on to the host's socket.
    forwarded: u32,
    /// `forwarded` as the guest was told last.
    told: u32,
}

impl Credit {
    /// Takes over what the guest says of its buffer. True if that allows other amounts than before.
    pub fn hear(&mut self, header: &Header) -> bool {
        let before = self.allowance();
        self.guest_buffer = header.buf_alloc.get();
        self.guest_forwarded = header.fwd_cnt.get();
        self.allowance() != before
    }

    /// Puts our side into a header that goes to the guest.
    pub fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER_SIZE.into();
        header.fwd_cnt = self.forwarded.into();
        self.told = self.forwarded;
    }

    /// Bytes that the guest has room for. None if it says that more left its buffer than was sent.
    pub fn allowance(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// `bytes` were sent, at most the allowance.
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes came in. False if they are more than the guest was granted; nothing is counted then.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = held
            .checked_add(bytes)
            .is_some_and(|sum| sum <= BUFFER_SIZE);
        if fits {
            self.received = self.received.wrapping_add(bytes);
        }
        fits
    }

    /// Bytes received went on, or were thrown away.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should hear of room that it does not know of.
    pub fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(buffer: u32, forwarded: u32) -> Header {
        Header {
            buf_alloc: buffer.into(),
            fwd_cnt: forwarded.into(),
            ..Header::default()
        }
    }

    #[test]
    fn a_guest_that_takes_nothing_gets_its_buffer_and_no_more() {
        let mut credit = Credit::default();
        assert!(credit.hear(&said(1000, 0)));
        credit.send(1000);
        assert_eq!(credit.allowance(), 0);
        assert!(!credit.hear(&said(1000, 0)));
        assert!(credit.hear(&said(1000, 600)));
        assert_eq!(credit.allowance(), 600);
        credit.hear(&said(100, 600));
        assert_eq!(
            credit.allowance(),
            0,
            "its buffer shrank below what is on the way"
        );
    }

    #[test]
    fn a_guest_that_claims_to_have_taken_more_than_was_sent_gets_nothing() {
        let mut credit = Credit::default();
        credit.hear(&said(1000, 1));
        assert_eq!(credit.allowance(), 0);
    }

    #[test]
    fn updates_are_due_in_pieces_and_told_once() {
        let mut credit = Credit::default();
        assert!(credit.receive(UPDATE_AFTER));
        credit.forward(UPDATE_AFTER - 1);
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!(header, said(BUFFER_SIZE, UPDATE_AFTER));
        assert!(!credit.update_due());
    }

    proptest! {
        /// Whatever the guest says and sends, and across the wrap of all counters: never more than its buffer is
        /// on the way to it, and never more than ours is held.
        #[test]
        fn neither_buffer_is_ever_exceeded(
            start in any::<u32>(),
            steps in prop::collection::vec((0u8..4, any::<u32>(), any::<u32>()), 1..200),
        ) {
            let mut credit = Credit {
                sent: start, guest_forwarded: start, received: start, forwarded: start, told: start,
                guest_buffer: 0,
            };
            let (mut held, mut said_buffer, mut said_forwarded) = (0u64, 0u64, start);
            for (what, a, b) in steps {
                match what {
                    0 => {
                        (said_buffer, said_forwarded) = (u64::from(a), b);
                        credit.hear(&said(a, b));
                    }
                    1 => credit.send(a.min(credit.allowance())),
                    2 => {
                        let bytes = a % (2 * BUFFER_SIZE);
                        let granted = u64::from(bytes) + held <= u64::from(BUFFER_SIZE);
                        prop_assert_eq!(credit.receive(bytes), granted);
                        held += if granted { bytes.into() } else { 0 };
                    }
                    _ => {
                        let bytes = u64::from(a).min(held);
                        held -= bytes;
                        credit.forward(bytes as u32);
                    }
                }
                let on_the_way = u64::from(credit.sent.wrapping_sub(said_forwarded));
                prop_assert!(credit.allowance() == 0
                    || on_the_way + u64::from(credit.allowance()) <= said_buffer);
                prop_assert!(held <= u64::from(BUFFER_SIZE));
            }
        }
    }
}
