//! A disk in memory (VIRTIO 1.2, 5.2). Each eight bytes of it say where they are.

use super::{Answer, Model, number};
use crate::lie::Lie;

const SECTOR: usize = 512;
const SECTORS: usize = 2048;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;

const T_IN: u64 = 0;
const T_OUT: u64 = 1;
const T_FLUSH: u64 = 4;
const T_GET_ID: u64 = 8;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const HEADER: usize = 16;
const ID_LEN: usize = 20;

/// The disk.
pub struct Disk {
    data: Vec<u8>,
}

impl Disk {
    /// A disk of 1 MiB.
    pub fn new() -> Self {
        let words = (0..SECTORS * SECTOR / 8).map(|n| (8 * n as u64).to_le_bytes());
        Self {
            data: words.flatten().collect(),
        }
    }

    /// What is read, and the status.
    fn transfer(&mut self, request: &[u8], length: usize) -> (Vec<u8>, u8) {
        let from = (number::<8>(request, 8) as usize).saturating_mul(SECTOR);
        match number::<4>(request, 0) {
            T_IN => match from
                .checked_add(length)
                .and_then(|to| self.data.get(from..to))
            {
                Some(bytes) => (bytes.to_vec(), S_OK),
                None => (Vec::new(), S_IOERR),
            },
            T_OUT => {
                let bytes = request.get(HEADER..).unwrap_or(&[]);
                let end = from.checked_add(bytes.len());
                match end.and_then(|to| self.data.get_mut(from..to)) {
                    Some(place) => {
                        place.copy_from_slice(bytes);
                        (Vec::new(), S_OK)
                    }
                    None => (Vec::new(), S_IOERR),
                }
            }
            T_FLUSH => (Vec::new(), S_OK),
            T_GET_ID => (vec![b'L'; length.min(ID_LEN)], S_OK),
            _ => (Vec::new(), S_UNSUPP),
        }
    }
}

impl Model for Disk {
    fn id(&self) -> u16 {
        2
    }

    fn class(&self) -> [u8; 3] {
        [0x01, 0x00, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH
    }

    fn config(&self, lie: &Lie) -> Vec<u8> {
        let (mut sectors, mut size_max, mut seg_max, mut block) =
            (SECTORS as u64, 1 << 20, 16, SECTOR as u32);
        if lie.is("capacity-max") {
            sectors = u64::MAX;
        } else if lie.is("capacity-none") {
            sectors = 0;
        } else if lie.is("segment-tiny") {
            size_max = 1;
        } else if lie.is("segments-none") {
            seg_max = 0;
        } else if lie.is("blocks-huge") {
            block = 1 << 31;
        } else if lie.is("blocks-odd") {
            block = 513;
        }
        let mut config = vec![0; 60];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[8..12].copy_from_slice(&u32::to_le_bytes(size_max));
        config[12..16].copy_from_slice(&u32::to_le_bytes(seg_max));
        config[20..24].copy_from_slice(&block.to_le_bytes());
        config
    }

    fn keeps(&self, _: u16) -> bool {
        false
    }

    fn lies_on(&self, _: u16) -> bool {
        true
    }

    fn serve(&mut self, lie: &Lie, _: u16, request: &[u8], room: u32) -> Answer {
        let Some(length) = room.checked_sub(1) else {
            return Answer::default();
        };
        let (data, status) = self.transfer(request, length as usize);
        let mut answer = Answer {
            written: data.len() as u32 + 1,
            writes: vec![(0, data), (length, vec![status])],
            // Its driver reads the capacity again.
            config_changed: lie.is("capacity-max") || lie.is("capacity-none"),
            ..Answer::default()
        };
        if lie.is("status-none") {
            answer.writes.pop();
        } else if lie.is("data-none") {
            answer.writes.remove(0);
        }
        answer
    }
}
