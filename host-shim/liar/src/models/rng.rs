//! An entropy device (VIRTIO 1.2, 5.4) whose bytes are a count: whoever reads anything else reads something else.

use super::{Answer, Model};
use crate::lie::Lie;

/// The device.
#[derive(Default)]
pub struct Rng(u8);

/// Nothing that it writes is a letter of the alphabet's first half, of which canaries are made.
const FIRST: u8 = 0x80;

impl Model for Rng {
    fn id(&self) -> u16 {
        4
    }

    fn class(&self) -> [u8; 3] {
        [0x10, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _: &Lie) -> Vec<u8> {
        Vec::new()
    }

    fn keeps(&self, _: u16) -> bool {
        false
    }

    fn lies_on(&self, _: u16) -> bool {
        true
    }

    fn serve(&mut self, _: &Lie, _: u16, _: &[u8], room: u32) -> Answer {
        let bytes = (0..room.min(4096)).map(|_| {
            self.0 = self.0.wrapping_add(1);
            FIRST | self.0
        });
        Answer::bytes(bytes.collect())
    }
}
