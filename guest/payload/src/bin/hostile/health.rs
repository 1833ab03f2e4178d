//! What shows that a device works: one exchange of each kind, end to end, with an answer that must be right.
//! The console echoes, a sector comes back as it was written, the host answers ARP, a port without a server resets,
//! random bytes differ from the last ones.

use alloc::vec::Vec;

use porthole_payload::fail;
use porthole_payload::raw::Memory;
use virtio_drivers::transport::DeviceType;

use crate::victim::{DATA, NEXT, SEND, STATUS, Victim, WRITE, descriptor, patiently};

/// Sectors that are written, at the disk's start; all others must stay as they are.
const SCRATCH: u64 = 8;
pub const SECTOR: u32 = 512;
/// virtio-blk requests (VIRTIO 1.2, 5.2.6).
pub const READ: u32 = 0;
pub const WRITE_SECTORS: u32 = 1;
/// Bytes of the header before each frame.
pub const FRAME_HEADER: usize = 12;
/// The host's address on the TAP interface.
const HOST: [u8; 4] = [10, 0, 0, 1];
/// virtio-vsock operations (VIRTIO 1.2, 5.10.6).
pub const REQUEST: u16 = 1;
pub const RESET: u16 = 3;
/// A port of the host where nobody listens.
pub const NOBODY: u32 = 9;

/// Tries a device; `n` must differ from call to call.
pub fn check(victim: &mut Victim, n: u32, after: &str) {
    match victim.kind {
        DeviceType::Console => console(victim, n, after),
        DeviceType::Block => block(victim, n, after),
        DeviceType::Network => net(victim, n, after),
        DeviceType::Socket => vsock(victim, n, after),
        _ => rng(victim, after),
    }
}

/// Waits for a message that `fits`; others are passed over.
pub fn await_message(
    victim: &mut Victim,
    after: &str,
    mut fits: impl FnMut(&[u8]) -> bool,
) -> Vec<u8> {
    let mut found = None;
    if !patiently(|| {
        while let Some(message) = victim.receive(0) {
            if fits(&message) {
                found = Some(message);
                return true;
            }
        }
        false
    }) {
        let status = victim.raw.status();
        fail!(
            "{}: nothing arrives {after}, status {status:#x}",
            victim.name
        );
    }
    found.unwrap_or_default()
}

fn console(victim: &mut Victim, n: u32, after: &str) {
    let text = alloc::format!("<{n:010}>");
    victim.send(1, text.as_bytes(), after);
    let mut last = Vec::new();
    await_message(victim, after, |bytes| {
        last.extend_from_slice(bytes);
        let found = last.windows(text.len()).any(|w| w == text.as_bytes());
        last.drain(..last.len().saturating_sub(text.len()));
        found
    });
}

/// Puts a block request together: header at `SEND`, `length` bytes at `DATA`, status at `STATUS`. Its status.
pub fn request(victim: &mut Victim, kind: u32, sector: u64, length: u32, after: &str) -> u8 {
    header(victim.window(), kind, sector);
    let data = if kind == READ { WRITE } else { 0 };
    let chain = [
        descriptor(victim.bus(SEND), 16, NEXT, 1),
        descriptor(victim.bus(DATA), length, NEXT | data, 2),
        descriptor(victim.bus(STATUS), 1, WRITE, 0),
    ];
    victim.window().write(STATUS, 0xffu8);
    victim.submit(0, 0, &chain);
    victim.wait_used(0, after);
    victim.window().read(STATUS)
}

/// Writes a block request's header to `SEND`.
pub fn header(window: Memory, kind: u32, sector: u64) {
    window.write(SEND, kind);
    window.write(SEND + 4, 0u32);
    window.write(SEND + 8, sector);
}

fn block(victim: &mut Victim, n: u32, after: &str) {
    let (window, sector) = (victim.window(), u64::from(n) % SCRATCH);
    let word = u64::from(n) << 32 | 0x5ec7;
    window.fill(DATA, SECTOR.into(), word);
    let written = request(victim, WRITE_SECTORS, sector, SECTOR, after);
    window.fill(DATA, SECTOR.into(), 0);
    let read = request(victim, READ, sector, SECTOR, after);
    let other = window.find_other(DATA, SECTOR.into(), word);
    if (written, read) != (0, 0) || other.is_some() {
        fail!(
            "{}: {after}: status {written} and {read}, byte {other:?} differs",
            victim.name
        );
    }
}

/// An ARP request for the host, from an address made of `n`.
pub fn arp(n: u32) -> Vec<u8> {
    let sender = [10, 0, 0, 100 + (n % 100) as u8];
    let mac = [0x52, 0x54, 0, 0x68, 0x6f, 0x73];
    let mut frame = alloc::vec![0; FRAME_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(HOST);
    frame
}

fn net(victim: &mut Victim, n: u32, after: &str) {
    let request = arp(n);
    let sender = &request[FRAME_HEADER + 28..FRAME_HEADER + 32];
    victim.send(1, &request, after);
    await_message(victim, after, |frame| {
        let Some(frame) = frame.get(FRAME_HEADER..) else {
            return false;
        };
        // Ethertype ARP, an answer, to the sender.
        frame.get(12..14) == Some(&[8, 6])
            && frame.get(20..22) == Some(&[0, 2])
            && frame.get(38..42) == Some(sender)
    });
}

/// A packet of the guest with context id `cid` to the host.
pub fn packet(cid: u64, ports: (u32, u32), op: u16, length: u32) -> [u8; 44] {
    let mut packet = [0; 44];
    let mut put = |at: usize, bytes: &[u8]| packet[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &cid.to_le_bytes());
    put(8, &2u64.to_le_bytes());
    put(16, &ports.0.to_le_bytes());
    put(20, &ports.1.to_le_bytes());
    put(24, &length.to_le_bytes());
    put(28, &1u16.to_le_bytes());
    put(30, &op.to_le_bytes());
    put(36, &(64u32 << 10).to_le_bytes());
    packet
}

/// Destination port and operation of a packet that arrived.
pub fn heard(packet: &[u8]) -> (u32, u16) {
    let word = |at: usize| packet.get(at..).and_then(|p| p.first_chunk().copied());
    let op = packet.get(30..).and_then(|p| p.first_chunk().copied());
    (
        word(20).map_or(0, u32::from_le_bytes),
        op.map_or(0, u16::from_le_bytes),
    )
}

/// The device's context id, from its configuration.
pub fn cid(victim: &Victim) -> u64 {
    victim.raw.config.map_or(0, |c| c.read32(0).into())
}

fn vsock(victim: &mut Victim, n: u32, after: &str) {
    let port = 0x4000_0000 | n;
    let request = packet(cid(victim), (port, NOBODY), REQUEST, 0);
    victim.send(1, &request, after);
    await_message(victim, after, |packet| heard(packet) == (port, RESET));
}

fn rng(victim: &mut Victim, after: &str) {
    const BYTES: u32 = 32;
    let window = victim.window();
    let before: [u64; 4] = [0, 8, 16, 24].map(|at| window.read(SEND + at));
    let d = descriptor(victim.bus(SEND), BYTES, WRITE, 0);
    victim.submit(0, 0, &[d]);
    let (_, length) = victim.wait_used(0, after);
    let now = [0, 8, 16, 24].map(|at| window.read::<u64>(SEND + at));
    if length != BYTES || before.iter().zip(&now).any(|(a, b)| a == b) {
        fail!(
            "{}: {after}: {length} bytes, {now:x?} after {before:x?}",
            victim.name
        );
    }
}
