//! A network device (VIRTIO 1.2, 5.1) behind which every address answers pings, and which has statistics.

use super::{Answer, Model, number};
use crate::lie::Lie;

const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
const F_DEVICE_STATS: u64 = 1 << 50;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;

const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

const CLASS_STATS: u64 = 8;
const STATS_QUERY: u64 = 0;
/// Basic statistics of what is received.
const STATS_RX_BASIC: u64 = 1;
const REPLY_RX_BASIC: u8 = 0;
const REPLY_LEN: u16 = 56;

/// The device.
pub struct Net;

/// The frame as the other side answers it: an ARP request, a ping; others come back as they are.
fn answered(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let swap = |frame: &mut Vec<u8>, one: usize, other: usize, length: usize| {
        for i in 0..length {
            frame.swap(one + i, other + i);
        }
    };
    let kind = number::<2>(&frame, 12);
    if kind == 0x0608 && frame.len() >= 42 && frame[21] == 1 {
        // Who has the target's address: this one.
        swap(&mut frame, 22, 32, 10);
        frame[21] = 2;
        frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        swap(&mut frame, 0, 6, 6);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    } else if kind == 0x0008 && frame.len() >= 38 && frame[23] == 1 && frame[34] == 8 {
        swap(&mut frame, 0, 6, 6);
        swap(&mut frame, 26, 30, 4);
        frame[34] = 0;
        let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
    }
    frame
}

/// The header of a frame that is received.
fn header(lie: &Lie) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut buffers: u16 = 1;
    if lie.is("buffers-none") {
        buffers = 0;
    } else if lie.is("buffers-max") {
        buffers = u16::MAX;
    } else if lie.is("gso-unknown") {
        header[1] = 0x55;
        header[4] = 1;
    } else if lie.is("gso-huge") {
        header[0] = NEEDS_CSUM;
        header[1] = GSO_TCPV4;
        header[2..6].copy_from_slice(&[0xff, 0xff, 1, 0]);
        header[6..10].copy_from_slice(&[34, 0, 16, 0]);
    } else if lie.is("csum-far") {
        header[0] = NEEDS_CSUM;
        header[6..10].copy_from_slice(&[0xf0, 0xff, 0xf0, 0xff]);
    }
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// A reply about the statistics of the queue that receives.
fn statistics(lie: &Lie) -> Vec<u8> {
    let (mut length, mut queue, mut end) = (REPLY_LEN, 0_u16, usize::from(REPLY_LEN));
    if lie.is("stats-short") {
        end = 8;
    } else if lie.is("stats-zero") {
        length = 0;
    } else if lie.is("stats-cut") {
        length = 9;
    } else if lie.is("stats-queue") {
        queue = 32766;
    }
    let mut reply = vec![REPLY_RX_BASIC, 0];
    reply.extend(queue.to_le_bytes());
    reply.extend([0; 2]);
    reply.extend(length.to_le_bytes());
    reply.resize(REPLY_LEN.into(), 0x11);
    reply.truncate(end);
    reply
}

impl Model for Net {
    fn id(&self) -> u16 {
        1
    }

    fn class(&self) -> [u8; 3] {
        [0x02, 0x00, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64, 16]
    }

    fn features(&self) -> u64 {
        F_GUEST_CSUM | F_MAC | F_GUEST_TSO4 | F_MRG_RXBUF | F_CTRL_VQ | F_DEVICE_STATS
    }

    fn config(&self, _: &Lie) -> Vec<u8> {
        [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0, 0].to_vec()
    }

    fn keeps(&self, queue: u16) -> bool {
        queue == RECEIVE
    }

    // A driver waits for its command with the network's lock, so that one is always answered.
    fn lies_on(&self, queue: u16) -> bool {
        queue != CONTROL
    }

    fn serve(&mut self, lie: &Lie, queue: u16, request: &[u8], room: u32) -> Answer {
        match queue {
            TRANSMIT => {
                let mut frame = header(lie).to_vec();
                frame.extend(answered(request.get(HEADER..).unwrap_or(&[])));
                Answer {
                    says: vec![(RECEIVE, frame)],
                    ..Answer::default()
                }
            }
            CONTROL => {
                let mut written = match (number::<1>(request, 0), number::<1>(request, 1)) {
                    (CLASS_STATS, STATS_QUERY) => STATS_RX_BASIC.to_le_bytes().to_vec(),
                    (CLASS_STATS, _) => statistics(lie),
                    _ => Vec::new(),
                };
                written.truncate(room.saturating_sub(1) as usize);
                // The status is the last byte that there is room for.
                Answer {
                    written: written.len() as u32 + 1,
                    writes: vec![(0, written), (room.saturating_sub(1), vec![0])],
                    ..Answer::default()
                }
            }
            _ => Answer::default(),
        }
    }
}
