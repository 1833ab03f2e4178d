//! Frames and commands to the network device that cannot be: short ones, headers that lie, chains of any length,
//! commands of no class. What the host's kernel is asked for it refuses itself. Source: VIRTIO 1.2, 5.1.6.

use porthole_payload::fail;

use crate::Bench;
use crate::health::{FRAME_HEADER, arp};
use crate::victim::{
    DATA, Descriptor, F_INDIRECT, INDIRECT, NEXT, SEND, STATUS, TABLE, WRITE, descriptor,
};

const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;
/// Flags, kind of segments, header's bytes, segment's bytes, where a checksum starts and goes.
type Header = (u8, u8, u16, u16, u16, u16);

/// Entries of a long chain.
const MANY: u64 = 1024;

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    short(bench, n);
    for length in [14, 60, 1514, 0x2000] {
        for kind in [0, 1, 2, 3, 4, 5, 6, 0x7f, 0x80, 0x81, 0xff] {
            for (size, start) in [
                (0, 0),
                (1, 14),
                (536, 34),
                (u16::MAX, u16::MAX),
                (1, u16::MAX),
            ] {
                frame(bench, n, length, (1, kind, start, size, start, 16));
            }
        }
        for header in [
            (0, 1, 54, 536, 0, 0),
            (1, 0, 0, 0, u16::MAX, u16::MAX),
            (1, 0, 0, 0, length as u16 - 1, 0),
            (0xff, 0xff, u16::MAX, u16::MAX, u16::MAX, u16::MAX),
        ] {
            frame(bench, n, length, header);
        }
    }
    bench.harmless(n, "headers that lie");
    long(bench, n);
    commands(bench, n);
}

/// Frames and buffers without room for what every one begins with.
fn short(bench: &mut Bench, n: usize) {
    let victim = &bench.victims[n];
    let (send, data) = (victim.bus(SEND), victim.bus(DATA));
    for chain in [
        [descriptor(send, 0, 0, 0); 2],
        [descriptor(send, FRAME_HEADER as u32 - 1, 0, 0); 2],
        [descriptor(send, 4, NEXT, 1), descriptor(data, 4, 0, 0)],
        [descriptor(send, 64, WRITE, 0); 2],
        [descriptor(send, 4, NEXT, 1), descriptor(data, 64, WRITE, 0)],
    ] {
        bench.victims[n].submit(TRANSMIT, 0, &chain);
        bench.needs_reset(n, "a frame shorter than its header");
    }
    for length in 0..=13u32 {
        let d = descriptor(send, FRAME_HEADER as u32 + length, 0, 0);
        let victim = &mut bench.victims[n];
        victim.submit(TRANSMIT, 0, &[d]);
        victim.wait_used(TRANSMIT, "to a frame without addresses");
    }
    bench.harmless(n, "frames shorter than their addresses");
    for (length, flags) in [(0, WRITE), (FRAME_HEADER as u32 - 1, WRITE), (2048, 0)] {
        let victim = &mut bench.victims[n];
        let features = victim.features();
        victim.start_with(features, false);
        victim.submit(0, 0, &[descriptor(data, length, flags, 0)]);
        let request = arp(1);
        victim.window().copy_in(SEND, &request);
        let d = descriptor(send, request.len() as u32, 0, 0);
        victim.submit(TRANSMIT, 0, &[d]);
        bench.needs_reset(n, "a receive buffer shorter than a header");
    }
}

/// A frame of `length` bytes with this header: taken or lost, but given back.
fn frame(bench: &mut Bench, n: usize, length: u32, header: Header) {
    let victim = &mut bench.victims[n];
    let window = victim.window();
    window.copy_in(DATA, &arp(1)[..FRAME_HEADER + 14]);
    let (flags, kind, bytes, size, start, to) = header;
    window.write(DATA, flags);
    window.write(DATA + 1, kind);
    for (at, value) in (DATA + 2..)
        .step_by(2)
        .zip([bytes, size, start, to, u16::MAX])
    {
        window.write(at, value);
    }
    let length = FRAME_HEADER as u32 + length;
    victim.submit(TRANSMIT, 0, &[descriptor(victim.bus(DATA), length, 0, 0)]);
    victim.wait_used(TRANSMIT, "to a frame whose header lies");
    victim.attacks += 1;
}

/// Chains of many buffers: of a byte, of a page, of as much as there is.
fn long(bench: &mut Bench, n: usize) {
    let window = bench.victims[n].window();
    for length in [0, 1, 4096, (window.size() / 2) as u32] {
        let victim = &mut bench.victims[n];
        window.fill(DATA, 0x1000, 0);
        for entry in 0..MANY {
            let more = if entry + 1 < MANY { NEXT } else { 0 };
            let first = if entry == 0 { 64 } else { length };
            let d = descriptor(victim.bus(DATA), first, more, entry as u16 + 1);
            victim.describe_at(TABLE + 16 * entry, d);
        }
        let outer = descriptor(victim.bus(TABLE), 16 * MANY as u32, INDIRECT, 0);
        victim.submit(TRANSMIT, 0, &[outer]);
        victim.wait_used(TRANSMIT, "to a chain of many buffers");
        bench.harmless(n, "a chain of many buffers");
    }
    // The same without indirect tables: as long as the queue.
    let victim = &mut bench.victims[n];
    let features = victim.features() & !F_INDIRECT;
    victim.start_with(features, true);
    for entry in 0..16 {
        let more = if entry < 15 { NEXT } else { 0 };
        let d = descriptor(victim.bus(DATA), 0x8000, more, entry + 1);
        victim.describe(TRANSMIT, entry, d);
    }
    victim.submit(TRANSMIT, 0, &[]);
    victim.wait_used(TRANSMIT, "to a chain as long as its queue");
    bench.harmless(n, "a chain as long as its queue");
    bench.restart(n, "long chains");
}

/// Commands that are none: each is answered with an error, where there is room for an answer.
fn commands(bench: &mut Bench, n: usize) {
    for class in [0, 1, 2, 3, 4, 5, 0x7f, 0xff] {
        for length in [0, 1, 2, 3, 4, 10, 4096] {
            let victim = &mut bench.victims[n];
            victim.window().fill(DATA, 64, u64::MAX);
            victim.window().write(DATA, class);
            victim.window().write(DATA + 1, 0u8);
            victim.window().write(STATUS, 0x55u8);
            let chain = [
                descriptor(victim.bus(DATA), length, NEXT, 1),
                descriptor(victim.bus(STATUS), 1, WRITE, 0),
            ];
            answer(bench, n, &chain, 1);
        }
    }
    let victim = &bench.victims[n];
    victim.window().write(STATUS, 0x55u8);
    answer(
        bench,
        n,
        &[descriptor(victim.bus(STATUS), 0, WRITE, 0)],
        0x55,
    );
    let victim = &bench.victims[n];
    answer(bench, n, &[descriptor(victim.bus(DATA), 64, 0, 0)], 0x55);
    bench.harmless(n, "commands that are none");
}

fn answer(bench: &mut Bench, n: usize, chain: &[Descriptor], expected: u8) {
    let victim = &mut bench.victims[n];
    victim.submit(CONTROL, 0, chain);
    victim.wait_used(CONTROL, "to a command");
    victim.attacks += 1;
    let answer: u8 = victim.window().read(STATUS);
    if answer != expected {
        fail!(
            "{}: a command that is none is answered with {answer:#x}",
            victim.name
        );
    }
}
