//! A console with ports (VIRTIO 1.2, 5.3), of which it has one: what the guest writes there comes back.

use super::{Answer, Model, number};
use crate::lie::Lie;

const F_MULTIPORT: u64 = 1 << 1;

const QUEUE_SIZE: u16 = 16;
const OUTPUT: u16 = 1;
const INPUT: u16 = 0;
const TO_DRIVER: u16 = 2;
const TO_DEVICE: u16 = 3;

const DEVICE_READY: u64 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u64 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The device.
pub struct Console;

/// A message about a port: number, what it is, value.
fn message(port: u32, event: u16, value: u16) -> (u16, Vec<u8>) {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    (TO_DRIVER, bytes)
}

/// Its name, with so many bytes of the message missing at the end.
fn name(cut: usize) -> (u16, Vec<u8>) {
    let (queue, mut bytes) = message(0, PORT_NAME, 1);
    bytes.extend(b"liar");
    bytes.truncate(bytes.len() - cut);
    (queue, bytes)
}

impl Model for Console {
    fn id(&self) -> u16 {
        3
    }

    fn class(&self) -> [u8; 3] {
        [0x07, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 4]
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn config(&self, _: &Lie) -> Vec<u8> {
        // Columns, rows, ports, and a place for urgent output.
        [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0].to_vec()
    }

    fn keeps(&self, queue: u16) -> bool {
        queue == INPUT || queue == TO_DRIVER
    }

    fn lies_on(&self, queue: u16) -> bool {
        queue == INPUT
    }

    fn serve(&mut self, lie: &Lie, queue: u16, request: &[u8], _: u32) -> Answer {
        let event = number::<2>(request, 4);
        let says = match (queue, event) {
            (OUTPUT, _) => vec![(INPUT, request.to_vec())],
            (TO_DEVICE, DEVICE_READY) if lie.is("port-far") => {
                vec![message(u32::MAX, PORT_ADD, 1), message(0, PORT_ADD, 1)]
            }
            (TO_DEVICE, DEVICE_READY) => vec![message(0, PORT_ADD, 1)],
            (TO_DEVICE, PORT_READY) => {
                let mut says = Vec::new();
                if lie.is("name-none") {
                    // Once every buffer has held the name of a port that there is not, half a header says which port
                    // is meant, and what is said of it stands in the buffer from before.
                    says.extend((0..QUEUE_SIZE).map(|_| message(5, PORT_NAME, 1)));
                    says.push((TO_DRIVER, vec![0; 4]));
                } else if lie.is("name-cut") {
                    says.push(name(5));
                } else {
                    says.push(name(0));
                }
                says.push(message(0, PORT_OPEN, 1));
                says
            }
            _ => Vec::new(),
        };
        Answer {
            says,
            ..Answer::default()
        }
    }
}
