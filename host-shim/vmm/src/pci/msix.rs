//! MSI-X of one function: table, pending bits, and the sending of messages as SPIs of the GICv2m frame.
//! The capability's bytes are in `config`; who raises a vector is the device's affair.
//! Source: PCI Local Bus Specification 3.0, 6.8.2.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::lock;
use crate::layout::MSI_DOORBELL;

/// Bytes of a table entry.
pub const ENTRY_SIZE: usize = 16;
/// Vector control: masked.
const MASKED: u32 = 1;
/// Message control: function masked.
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Message control: MSI-X enabled.
const CONTROL_ENABLE: u16 = 1 << 15;

/// The eventfds behind the SPIs that MSIs may be.
pub struct MsiLines {
    base: u32,
    lines: Vec<EventFd>,
}

impl MsiLines {
    /// Lines for the INTIDs from `base` on; each eventfd is bound to its SPI by the driver.
    pub fn new(base: u32, lines: Vec<EventFd>) -> Self {
        Self { base, lines }
    }

    fn find(&self, intid: u32) -> Option<&EventFd> {
        let index = usize::try_from(intid.checked_sub(self.base)?).ok()?;
        self.lines.get(index)
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

struct State {
    entries: Vec<Entry>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
    /// Messages that go nowhere, so as to log each once.
    strays: BTreeSet<(u64, u32)>,
}

/// MSI-X of one function.
pub struct Msix {
    name: String,
    lines: Arc<MsiLines>,
    state: Mutex<State>,
}

/// Different stray messages that are logged.
const STRAYS_MAX: usize = 16;

impl Msix {
    /// MSI-X with `vectors` table entries, all masked; `name` is the function's in log lines.
    pub fn new(name: &str, vectors: usize, lines: Arc<MsiLines>) -> Self {
        let masked = Entry {
            control: MASKED,
            ..Entry::default()
        };
        Self {
            name: name.to_owned(),
            lines,
            state: Mutex::new(State {
                entries: vec![masked; vectors],
                pending: vec![false; vectors],
                enabled: false,
                masked: false,
                strays: BTreeSet::new(),
            }),
        }
    }

    /// Table entries.
    pub fn vectors(&self) -> usize {
        lock(&self.state).entries.len()
    }

    /// Whether the guest enabled MSI-X.
    pub fn enabled(&self) -> bool {
        lock(&self.state).enabled
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let mut state = lock(&self.state);
        state.enabled = control & CONTROL_ENABLE != 0;
        state.masked = control & CONTROL_MASK_ALL != 0;
        for vector in 0..state.entries.len() {
            self.deliver_pending(&mut state, vector);
        }
    }

    /// Raises a vector: sends its message, or notes it as pending while it is masked.
    pub fn raise(&self, vector: u16) {
        let mut state = lock(&self.state);
        let vector = usize::from(vector);
        if !state.enabled || vector >= state.entries.len() {
            return;
        }
        state.pending[vector] = true;
        self.deliver_pending(&mut state, vector);
    }

    fn deliver_pending(&self, state: &mut State, vector: usize) {
        let entry = state.entries[vector];
        if !state.pending[vector] || !state.enabled || state.masked || entry.control & MASKED != 0 {
            return;
        }
        state.pending[vector] = false;
        let line = (entry.address == MSI_DOORBELL)
            .then(|| self.lines.find(entry.data))
            .flatten();
        match line {
            Some(line) => {
                if let Err(e) = line.write(1) {
                    tracing::warn!("{}: cannot raise SPI {}: {e}", self.name, entry.data);
                }
            }
            None => {
                let stray = (entry.address, entry.data);
                if state.strays.len() < STRAYS_MAX && state.strays.insert(stray) {
                    tracing::warn!(
                        "{}: MSI-X vector {vector} has address {:#x} and data {:#x}, which is no MSI of this machine",
                        self.name,
                        entry.address,
                        entry.data
                    );
                }
            }
        }
    }

    /// Reads from the table; beyond it reads as zero.
    pub fn table_read(&self, offset: usize, data: &mut [u8]) {
        let state = lock(&self.state);
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i);
            *byte = state
                .entries
                .get(at / ENTRY_SIZE)
                .map_or(0, |e| e.bytes()[at % ENTRY_SIZE]);
        }
    }

    /// Writes to the table: aligned accesses of 4 or 8 bytes; others have no defined effect and none here.
    pub fn table_write(&self, offset: usize, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return;
        }
        let mut state = lock(&self.state);
        let vector = offset / ENTRY_SIZE;
        let Some(entry) = state.entries.get_mut(vector) else {
            return;
        };
        let mut bytes = entry.bytes();
        let at = offset % ENTRY_SIZE;
        bytes[at..at + data.len()].copy_from_slice(data);
        *entry = Entry::from_bytes(&bytes);
        self.deliver_pending(&mut state, vector);
    }

    /// Reads from the pending bit array.
    pub fn pending_read(&self, offset: usize, data: &mut [u8]) {
        let state = lock(&self.state);
        for (i, byte) in data.iter_mut().enumerate() {
            let first = offset.saturating_add(i).saturating_mul(8);
            *byte = (0..8)
                .filter(|bit| state.pending.get(first.saturating_add(*bit)) == Some(&true))
                .fold(0, |b, bit| b | 1 << bit);
        }
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_SIZE]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            address: u64::from(word(4)) << 32 | u64::from(word(0)),
            data: word(8),
            control: word(12) & MASKED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 64;

    fn msix() -> (Msix, Arc<MsiLines>) {
        let lines = (0..4)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap())
            .collect();
        let lines = Arc::new(MsiLines::new(BASE, lines));
        (Msix::new("test", 3, lines.clone()), lines)
    }

    fn program(m: &Msix, vector: usize, address: u64, data: u32, control: u32) {
        let at = vector * ENTRY_SIZE;
        m.table_write(at, &address.to_le_bytes());
        m.table_write(at + 8, &data.to_le_bytes());
        m.table_write(at + 12, &control.to_le_bytes());
    }

    fn raised(lines: &MsiLines, intid: u32) -> bool {
        lines.find(intid).unwrap().read().is_ok()
    }

    #[test]
    fn a_vector_becomes_the_spi_in_its_data() {
        let (m, lines) = msix();
        program(&m, 1, MSI_DOORBELL, BASE + 2, 0);
        m.raise(1);
        assert!(!raised(&lines, BASE + 2), "MSI-X is off");
        m.set_control(CONTROL_ENABLE);
        m.raise(1);
        assert!(raised(&lines, BASE + 2));
        m.raise(0);
        m.raise(99);
        assert!((0..4).all(|i| !raised(&lines, BASE + i)));
    }

    #[test]
    fn masked_vectors_are_pending_until_unmasked() {
        let (m, lines) = msix();
        m.set_control(CONTROL_ENABLE);
        program(&m, 2, MSI_DOORBELL, BASE, MASKED);
        m.raise(2);
        let mut pba = [0; 8];
        m.pending_read(0, &mut pba);
        assert_eq!(pba[0], 1 << 2);
        assert!(!raised(&lines, BASE));
        m.table_write(2 * ENTRY_SIZE + 12, &[0; 4]);
        assert!(raised(&lines, BASE));
        m.pending_read(0, &mut pba);
        assert_eq!(pba, [0; 8]);
    }

    #[test]
    fn the_function_mask_holds_back_every_vector() {
        let (m, lines) = msix();
        program(&m, 0, MSI_DOORBELL, BASE + 1, 0);
        m.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        m.raise(0);
        assert!(!raised(&lines, BASE + 1));
        m.set_control(CONTROL_ENABLE);
        assert!(raised(&lines, BASE + 1));
    }

    #[test]
    fn messages_to_other_addresses_or_interrupts_go_nowhere() {
        let (m, lines) = msix();
        m.set_control(CONTROL_ENABLE);
        for (address, data) in [
            (MSI_DOORBELL + 4, BASE),
            (0x8000_0000, BASE),
            (MSI_DOORBELL, 27),
            (MSI_DOORBELL, 32),
            (MSI_DOORBELL, BASE + 4),
            (MSI_DOORBELL, u32::MAX),
        ] {
            program(&m, 0, address, data, 0);
            m.raise(0);
        }
        assert!((0..4).all(|i| !raised(&lines, BASE + i)));
    }

    #[test]
    fn accesses_beyond_the_table_or_of_odd_size_change_nothing() {
        let (m, _) = msix();
        m.table_write(3 * ENTRY_SIZE, &[0xff; 8]);
        m.table_write(2, &[0xff; 4]);
        m.table_write(0, &[0xff; 2]);
        m.table_write(usize::MAX - 3, &[0xff; 4]);
        let mut data = [0xaa; 8];
        m.table_read(3 * ENTRY_SIZE, &mut data);
        assert_eq!(data, [0; 8]);
        m.table_read(0, &mut data);
        assert_eq!(data, [0; 8]);
        m.pending_read(usize::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
