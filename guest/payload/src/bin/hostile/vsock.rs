//! Packets to the socket device that cannot be: wrong ids, types, operations and lengths, data without a connection,
//! lies about credit, and more connections than there may be. Source: VIRTIO 1.2, 5.10.6.

use porthole_payload::fail;
use porthole_runtime::println;

use crate::Bench;
use crate::health::{NOBODY, REQUEST, RESET, await_message, cid, heard, packet};
use crate::victim::{DATA, NEXT, SEND, Victim, WRITE, descriptor};

const TRANSMIT: u16 = 1;
const RESPONSE: u16 = 2;
const SHUTDOWN: u16 = 4;
const DATA_PACKET: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// A port of the host whose server takes all, and says something without end.
const TALKER: u32 = 6000;
/// Connections that are asked for.
const CONNECTIONS: u32 = 10_000;
/// Most that the device has at once.
const MOST: u32 = 256;

// Places in a packet.
const SOURCE: usize = 0;
const DESTINATION: usize = 8;
const KIND: usize = 28;
const FLAGS: usize = 32;
const BUFFER: usize = 36;
const FORWARDED: usize = 40;

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    headers(bench, n);
    lengths(bench, n);
    credit(bench, n);
    many(bench, n);
}

fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Headers that name what is not there.
fn headers(bench: &mut Bench, n: usize) {
    let cid = cid(&bench.victims[n]);
    for other in [
        0,
        1,
        2,
        cid + 1,
        u64::from(u32::MAX),
        cid | 1 << 32,
        u64::MAX,
    ] {
        for at in [SOURCE, DESTINATION] {
            if (at, other) == (DESTINATION, 2) {
                continue;
            }
            let mut packet = packet(cid, (7, TALKER), REQUEST, 0);
            put(&mut packet, at, &other.to_le_bytes());
            bench.victims[n].send(TRANSMIT, &packet, "to an id of nobody");
            bench.harmless(n, "an id of nobody");
        }
    }
    for kind in [0u16, 2, 3, u16::MAX] {
        let mut packet = packet(cid, (8, TALKER), REQUEST, 0);
        put(&mut packet, KIND, &kind.to_le_bytes());
        refused(bench, n, &packet, "a socket of another type");
    }
    for op in [0, 2, 4, 5, 6, 7, 8, 0x7fff, u16::MAX] {
        let packet = packet(cid, (9, TALKER), op, 0);
        refused(bench, n, &packet, "an operation without a connection");
    }
    for port in [0, u32::MAX] {
        refused(
            bench,
            n,
            &packet(cid, (10, port), REQUEST, 0),
            "a port of nobody",
        );
        refused(
            bench,
            n,
            &packet(cid, (port, NOBODY), REQUEST, 0),
            "from a port of nobody",
        );
    }
    let reset = packet(cid, (11, TALKER), RESET, 0);
    bench.victims[n].send(TRANSMIT, &reset, "to a reset of nothing");
    bench.harmless(n, "a reset of nothing");
}

/// A packet that is answered with a RESET.
fn refused(bench: &mut Bench, n: usize, packet: &[u8; 44], what: &str) {
    let victim = &mut bench.victims[n];
    let port = u32::from_le_bytes([packet[16], packet[17], packet[18], packet[19]]);
    victim.send(TRANSMIT, packet, what);
    await_message(victim, what, |answer| heard(answer) == (port, RESET));
    bench.harmless(n, what);
}

/// Packets whose length is another than they say, and buffers that hold no header.
fn lengths(bench: &mut Bench, n: usize) {
    let cid = cid(&bench.victims[n]);
    for length in [1, 100, 1 << 20, u32::MAX] {
        refused(
            bench,
            n,
            &packet(cid, (12, TALKER), REQUEST, length),
            "less data than it says",
        );
    }
    let victim = &bench.victims[n];
    let (send, data) = (victim.bus(SEND), victim.bus(DATA));
    for chain in [
        [descriptor(send, 0, 0, 0); 2],
        [descriptor(send, 43, 0, 0); 2],
        [descriptor(send, 64, WRITE, 0); 2],
        [descriptor(send, 40, NEXT, 1), descriptor(data, 3, 0, 0)],
    ] {
        bench.victims[n].submit(TRANSMIT, 0, &chain);
        bench.needs_reset(n, "a packet shorter than its header");
    }
    for (length, flags) in [(0, WRITE), (43, WRITE), (4096, 0)] {
        let victim = &mut bench.victims[n];
        let features = victim.features();
        victim.start_with(features, false);
        victim.submit(0, 0, &[descriptor(data, length, flags, 0)]);
        let request = packet(cid, (13, NOBODY), REQUEST, 0);
        victim.send(TRANSMIT, &request, "to a request");
        bench.needs_reset(n, "a receive buffer shorter than a header");
    }
}

impl Victim {
    /// Asks for a connection and waits for it.
    fn connect(&mut self, port: u32) {
        let request = packet(cid(self), (port, TALKER), REQUEST, 0);
        self.send(TRANSMIT, &request, "to a request");
        let answer = await_message(self, "to a request", |p| heard(p).0 == port);
        if heard(&answer).1 != RESPONSE {
            fail!("{}: nobody listens at port {TALKER} of the host", self.name);
        }
    }
}

/// Lies about the guest's buffer, and operations that a connection does not expect.
fn credit(bench: &mut Bench, n: usize) {
    let cid = cid(&bench.victims[n]);
    let lies: [(u32, u32); 6] = [
        (0, 0),
        (0, u32::MAX),
        (1, 0x8000_0000),
        (u32::MAX, 0),
        (u32::MAX, u32::MAX),
        (4096, 0x7fff_ffff),
    ];
    for (port, (buffer, forwarded)) in (100..).zip(lies) {
        let victim = &mut bench.victims[n];
        victim.connect(port);
        let lie = |op, length| {
            let mut packet = packet(cid, (port, TALKER), op, length);
            put(&mut packet, BUFFER, &buffer.to_le_bytes());
            put(&mut packet, FORWARDED, &forwarded.to_le_bytes());
            packet
        };
        for op in [CREDIT_UPDATE, CREDIT_REQUEST, CREDIT_UPDATE] {
            victim.send(TRANSMIT, &lie(op, 0), "to a lie about credit");
        }
        bench.harmless(n, "a lie about credit");
        let victim = &mut bench.victims[n];
        // More than was granted, in one buffer that covers the header and much of the window.
        let all = (victim.window().size() - SEND - 0x2000) as u32;
        victim.window().copy_in(SEND, &lie(DATA_PACKET, all - 44));
        victim.submit(TRANSMIT, 0, &[descriptor(victim.bus(SEND), all, 0, 0)]);
        victim.wait_used(TRANSMIT, "to more data than was granted");
        bench.harmless(n, "more data than was granted");
        let victim = &mut bench.victims[n];
        let mut half = lie(SHUTDOWN, 0);
        put(&mut half, FLAGS, &u32::MAX.to_le_bytes());
        for packet in [
            lie(REQUEST, 0),
            lie(RESPONSE, 0),
            half,
            lie(DATA_PACKET, 0),
            lie(99, 0),
        ] {
            victim.send(TRANSMIT, &packet, "to an operation out of order");
        }
        bench.harmless(n, "operations out of order");
    }
    bench.restart(n, "connections that lied");
}

/// More connections than there may be: those are refused, and all go with a reset.
fn many(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    let cid = cid(victim);
    let (mut granted, mut refused, mut answered) = (0, 0, 0);
    let mut count = |answer: &[u8]| match heard(answer) {
        (port, RESPONSE) if port >= 1000 => granted += 1,
        (port, RESET) if port >= 1000 => refused += 1,
        _ => {}
    };
    for port in 0..CONNECTIONS {
        let request = packet(cid, (1000 + port, TALKER), REQUEST, 0);
        victim.send(TRANSMIT, &request, "to one of many requests");
        while let Some(answer) = victim.receive(0) {
            count(&answer);
            answered += 1;
        }
    }
    victim.attacks += CONNECTIONS;
    bench.harmless(n, "ten thousand connections");
    println!(
        "hostile: vsock: of {CONNECTIONS} connections {granted} were granted and {refused} refused, in {answered} packets"
    );
    if granted == 0 || granted > MOST || refused == 0 {
        fail!("vsock: {granted} connections granted, {refused} refused, and {MOST} may be");
    }
    bench.restart(n, "ten thousand connections");
}
