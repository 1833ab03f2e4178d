//! A socket device (VIRTIO 1.2, 5.10): every port of the host takes connections and says back what it hears.

use super::{Answer, Model, number};
use crate::lie::Lie;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const HEADER: usize = 44;
const OP_REQUEST: u64 = 1;
const OP_RESPONSE: u16 = 2;
const OP_RST: u16 = 3;
const OP_SHUTDOWN: u16 = 4;
const OP_RW: u16 = 5;
/// A SHUTDOWN of both directions.
const BOTH: u64 = 3;
const OP_CREDIT_UPDATE: u16 = 6;
const OP_CREDIT_REQUEST: u64 = 7;
/// Bytes that the host has room for.
const ROOM: u32 = 256 << 10;
/// Most of a packet: the driver's buffers are 4 KiB and less.
const PIECE: usize = 2048;

/// The device, with the bytes that it has taken.
#[derive(Default)]
pub struct Vsock(u32);

impl Vsock {
    /// A packet that answers the one with this header.
    fn packet(&self, lie: &Lie, to: &[u8], op: u16, data: &[u8]) -> (u16, Vec<u8>) {
        let (mut length, mut room, mut taken) = (data.len() as u32, ROOM, self.0);
        let mut port = to[16..20].to_vec();
        if lie.is("packet-long") {
            length = length.wrapping_add(70_000);
        } else if lie.is("packet-max") {
            length = u32::MAX;
        } else if lie.is("credit-max") {
            room = u32::MAX;
        } else if lie.is("credit-back") {
            taken = taken.wrapping_sub(1 << 30);
        } else if lie.is("port-unknown") {
            port = vec![0x77; 4];
        }
        // The ends change places.
        let mut bytes = [&to[8..16], &to[..8], &to[20..24], &port].concat();
        bytes.extend(length.to_le_bytes());
        bytes.extend(&to[28..30]);
        bytes.extend(op.to_le_bytes());
        let both = if op == OP_SHUTDOWN { BOTH as u32 } else { 0 };
        bytes.extend(both.to_le_bytes());
        bytes.extend(room.to_le_bytes());
        bytes.extend(taken.to_le_bytes());
        bytes.extend(data);
        (RECEIVE, bytes)
    }
}

impl Model for Vsock {
    fn id(&self) -> u16 {
        19
    }

    fn class(&self) -> [u8; 3] {
        [0x07, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64, 16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _: &Lie) -> Vec<u8> {
        5_u64.to_le_bytes().to_vec()
    }

    fn keeps(&self, queue: u16) -> bool {
        queue != TRANSMIT
    }

    fn lies_on(&self, queue: u16) -> bool {
        queue == RECEIVE
    }

    fn restart(&mut self) {
        self.0 = 0;
    }

    fn serve(&mut self, lie: &Lie, _: u16, request: &[u8], _: u32) -> Answer {
        let Some((head, data)) = request.split_at_checked(HEADER) else {
            return Answer::default();
        };
        const SHUTDOWN: u64 = OP_SHUTDOWN as u64;
        const RW: u64 = OP_RW as u64;
        let op = number::<2>(head, 30);
        let says = match op {
            OP_REQUEST => {
                self.0 = 0;
                vec![self.packet(lie, head, OP_RESPONSE, &[])]
            }
            SHUTDOWN if number::<4>(head, 32) == BOTH => vec![self.packet(lie, head, OP_RST, &[])],
            // All that was to come back went before.
            SHUTDOWN => vec![self.packet(lie, head, OP_SHUTDOWN, &[])],
            OP_CREDIT_REQUEST => vec![self.packet(lie, head, OP_CREDIT_UPDATE, &[])],
            RW => {
                self.0 = self.0.wrapping_add(data.len() as u32);
                let pieces = data.chunks(PIECE);
                pieces
                    .map(|piece| self.packet(lie, head, OP_RW, piece))
                    .collect()
            }
            _ => Vec::new(),
        };
        Answer {
            says,
            ..Answer::default()
        }
    }
}
