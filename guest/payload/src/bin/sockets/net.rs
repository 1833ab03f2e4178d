//! The network device: answers ARP, ping and UDP echo (`net=echo`), or plays the client of such a guest (`net=ping`).

use alloc::vec;
use alloc::vec::Vec;

use porthole_bounce::BounceHal;
use porthole_payload::args::Args;
use porthole_payload::transport::WindowTransport;
use porthole_payload::{fail, interrupt};
use porthole_runtime::{println, reg, timer};
use virtio_drivers::device::net::{TxBuffer, VirtIONet};

use crate::NetPool;
use crate::packet::{self, Frame, Ip, Mac};

/// Receive buffers.
const BUFFERS: usize = 16;
/// Bytes of each.
const BUFFER: usize = 2048;
/// The echo service.
const ECHO_PORT: u16 = 7;
/// Our port as a client.
const OUR_PORT: u16 = 40000;
/// Largest datagram that goes into a frame of 1514 bytes.
const DATA_MAX: usize = 1472;
/// Seconds until an answer is asked for again.
const PATIENCE: u64 = 20;
/// How often.
const TRIES: usize = 30;

struct Net {
    driver: VirtIONet<BounceHal<NetPool>, WindowTransport, BUFFERS>,
    messages: bool,
    ours: (Mac, Ip),
}

/// Does what the parameters say.
pub fn run(transport: WindowTransport, args: &Args) {
    let messages = transport.sends_messages();
    let driver =
        VirtIONet::new(transport, BUFFER).unwrap_or_else(|e| fail!("net: cannot be driven: {e}"));
    let address = packet::ip(args.get("ip").unwrap_or("10.0.0.2"));
    let ours = (driver.mac_address(), address);
    println!("net: address {:02x?}, {address:?}", ours.0);
    let mut net = Net {
        driver,
        messages,
        ours,
    };
    match args.get("net") {
        None | Some("echo") => net.echo(),
        Some("ping") => {
            let peer = packet::ip(args.get("peer").unwrap_or("10.0.0.1"));
            net.ping(peer, args.number("count", 100));
        }
        Some(other) => fail!("parameter net={other}: echo or ping"),
    }
}

impl Net {
    fn send(&mut self, frame: &[u8]) {
        if let Err(e) = self.driver.send(TxBuffer::from(frame)) {
            fail!("net: cannot send {} bytes: {e}", frame.len());
        }
    }

    /// The next frame; none if `deadline` (a counter value) came first.
    fn receive(&mut self, deadline: Option<u64>) -> Option<Vec<u8>> {
        let came = interrupt::sleep_until(self.messages, deadline, || self.driver.can_recv());
        if !came {
            return None;
        }
        let buffer = self.driver.receive();
        let buffer = buffer.unwrap_or_else(|e| fail!("net: cannot receive: {e}"));
        let frame = buffer.packet().to_vec();
        if let Err(e) = self.driver.recycle_rx_buffer(buffer) {
            fail!("net: cannot give a buffer back: {e}");
        }
        Some(frame)
    }

    /// Answers whoever asks until a datagram says `quit`.
    fn echo(&mut self) {
        println!("sockets: ready");
        let (mut pings, mut datagrams, mut bytes) = (0, 0, 0);
        loop {
            let Some(frame) = self.receive(None) else {
                continue;
            };
            let answer = match packet::read(&frame, self.ours.1) {
                Frame::ArpRequest { mac, ip } => packet::arp(self.ours, Some(mac), ip),
                Frame::Ping { from, message } => {
                    pings += 1;
                    packet::pong(self.ours, from, message)
                }
                Frame::Udp { from, ports, data } if ports.1 == ECHO_PORT => {
                    datagrams += 1;
                    bytes += data.len();
                    let answer = packet::udp(self.ours, from, (ports.1, ports.0), data);
                    if data.trim_ascii_end() == b"quit" {
                        self.send(&answer);
                        println!("net: {pings} pings, {datagrams} datagrams, {bytes} bytes");
                        return;
                    }
                    answer
                }
                _ => continue,
            };
            self.send(&answer);
        }
    }

    /// Asks until an answer comes that `accept` takes.
    fn ask<T>(
        &mut self,
        what: &str,
        question: &[u8],
        accept: impl Fn(Frame<'_>) -> Option<T>,
    ) -> T {
        for _ in 0..TRIES {
            self.send(question);
            let deadline = reg::counter() + PATIENCE * timer::frequency();
            while let Some(frame) = self.receive(Some(deadline)) {
                if let Some(answer) = accept(packet::read(&frame, self.ours.1)) {
                    return answer;
                }
            }
        }
        fail!("net: no answer to {what}, asked {TRIES} times");
    }

    /// Sends `count` datagrams of all sizes to an echo and compares what comes back.
    fn ping(&mut self, peer: Ip, count: u64) {
        let question = packet::arp(self.ours, None, peer);
        let mac = self.ask("ARP", &question, |frame| match frame {
            Frame::ArpReply { mac, ip } if ip == peer => Some(mac),
            _ => None,
        });
        println!("net: {peer:?} is at {mac:02x?}");
        let mut sent = 0;
        for n in 0..count {
            // Its number comes first, so that a late answer is not taken for this one's.
            let length = 8 + (n as usize * 97) % (DATA_MAX - 7);
            let mut data = vec![0; length];
            data[..8].copy_from_slice(&n.to_be_bytes());
            for (i, byte) in data.iter_mut().enumerate().skip(8) {
                *byte = (i as u64 * 7 + n * 13) as u8;
            }
            let ports = (OUR_PORT, ECHO_PORT);
            let question = packet::udp(self.ours, (mac, peer), ports, &data);
            self.ask("a datagram", &question, |frame| match frame {
                Frame::Udp {
                    ports, data: back, ..
                } if ports == (ECHO_PORT, OUR_PORT) && back.starts_with(&data[..8]) => {
                    if back != data {
                        fail!("net: datagram {n} of {length} bytes came back changed");
                    }
                    Some(())
                }
                _ => None,
            });
            sent += length;
        }
        let quit = packet::udp(self.ours, (mac, peer), (OUR_PORT, ECHO_PORT), b"quit");
        self.ask("quit", &quit, |frame| match frame {
            Frame::Udp { data: b"quit", .. } => Some(()),
            _ => None,
        });
        println!("net: {count} datagrams, {sent} bytes, came back as they went");
    }
}
