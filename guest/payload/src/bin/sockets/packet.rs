//! As much of Ethernet, ARP, IPv4, ICMP and UDP as an echo takes: reading what is for us, and writing what answers it.
//! Addresses are bytes in the order of the wire. Sources: RFC 826, 791, 792, 768.

use alloc::vec::Vec;

use porthole_payload::fail;

/// An Ethernet address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ip = [u8; 4];

const BROADCAST: Mac = [0xff; 6];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ETHERNET: usize = 14;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// An address written with dots.
pub fn ip(text: &str) -> Ip {
    let mut address = [0; 4];
    let mut words = text.split('.');
    for byte in &mut address {
        match words.next().map(str::parse) {
            Some(Ok(number)) => *byte = number,
            _ => fail!("'{text}' is no IPv4 address"),
        }
    }
    address
}

/// What a frame is, as far as it concerns us.
pub enum Frame<'a> {
    /// Somebody asks for our address.
    ArpRequest {
        /// Who.
        mac: Mac,
        /// Its address.
        ip: Ip,
    },
    /// Somebody says its address.
    ArpReply {
        /// Who.
        mac: Mac,
        /// Its address.
        ip: Ip,
    },
    /// ICMP echo request: all of the message.
    Ping {
        /// Who asks.
        from: (Mac, Ip),
        /// The message.
        message: &'a [u8],
    },
    /// A datagram.
    Udp {
        /// Who sends.
        from: (Mac, Ip),
        /// Ports: its and ours.
        ports: (u16, u16),
        /// What.
        data: &'a [u8],
    },
    /// Nothing of ours.
    Other,
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a frame for `ours`. A wrong checksum makes it nothing of ours.
pub fn read(frame: &[u8], ours: Ip) -> Frame<'_> {
    parse(frame, ours).unwrap_or(Frame::Other)
}

fn parse(frame: &[u8], ours: Ip) -> Option<Frame<'_>> {
    let mac = *frame.get(6..)?.first_chunk()?;
    let body = frame.get(ETHERNET..)?;
    match half(frame, 12)? {
        ARP => {
            let (ip, target): (Ip, Ip) = (
                *body.get(14..)?.first_chunk()?,
                *body.get(24..)?.first_chunk()?,
            );
            match half(body, 6)? {
                1 if target == ours => Some(Frame::ArpRequest { mac, ip }),
                2 if target == ours => Some(Frame::ArpReply { mac, ip }),
                _ => None,
            }
        }
        IPV4 => {
            let header = usize::from(*body.first()? & 0xf) * 4;
            let total = usize::from(half(body, 2)?);
            let (source, target): (Ip, Ip) = (
                *body.get(12..)?.first_chunk()?,
                *body.get(16..)?.first_chunk()?,
            );
            let message = body.get(header..total)?;
            if target != ours || sum(body.get(..header)?, 0) != 0xffff {
                return None;
            }
            let from = (mac, source);
            match *body.get(9)? {
                ICMP if message.first() == Some(&8) && sum(message, 0) == 0xffff => {
                    Some(Frame::Ping { from, message })
                }
                UDP => {
                    let length = usize::from(half(message, 4)?);
                    let pseudo = pseudo_header(source, target, length as u16);
                    let wrong =
                        half(message, 6)? != 0 && sum(message.get(..length)?, pseudo) != 0xffff;
                    (!wrong).then_some(Frame::Udp {
                        from,
                        ports: (half(message, 0)?, half(message, 2)?),
                        data: message.get(UDP_HEADER..length)?,
                    })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The internet checksum before it is inverted (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(source: Ip, target: Ip, length: u16) -> u32 {
    u32::from(sum(&source, 0)) + u32::from(sum(&target, 0)) + u32::from(UDP) + u32::from(length)
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(1514);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// Asks for the address of `target`, or tells ours to `to`.
pub fn arp(ours: (Mac, Ip), to: Option<Mac>, target: Ip) -> Vec<u8> {
    let mut frame = ethernet(to.unwrap_or(BROADCAST), ours.0, ARP);
    let operation = if to.is_some() { 2 } else { 1 };
    // Ethernet and IPv4, addresses of 6 and 4 bytes.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(ours.0);
    frame.extend(ours.1);
    frame.extend(to.unwrap_or_default());
    frame.extend(target);
    frame
}

fn ipv4(ours: (Mac, Ip), to: (Mac, Ip), protocol: u8, length: usize) -> Vec<u8> {
    let mut frame = ethernet(to.0, ours.0, IPV4);
    let total = (IP_HEADER + length) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(ours.1);
    frame.extend(to.1);
    let check = !sum(&frame[ETHERNET..], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&check.to_be_bytes());
    frame
}

/// Answers a ping.
pub fn pong(ours: (Mac, Ip), to: (Mac, Ip), message: &[u8]) -> Vec<u8> {
    let mut frame = ipv4(ours, to, ICMP, message.len());
    let start = frame.len();
    frame.extend(message);
    frame[start] = 0;
    frame[start + 2..start + 4].fill(0);
    let check = !sum(&frame[start..], 0);
    frame[start + 2..start + 4].copy_from_slice(&check.to_be_bytes());
    frame
}

/// A datagram.
pub fn udp(ours: (Mac, Ip), to: (Mac, Ip), ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let length = UDP_HEADER + data.len();
    let mut frame = ipv4(ours, to, UDP, length);
    let start = frame.len();
    for half in [ports.0, ports.1, length as u16, 0] {
        frame.extend(half.to_be_bytes());
    }
    frame.extend(data);
    let check = match !sum(&frame[start..], pseudo_header(ours.1, to.1, length as u16)) {
        // Zero would mean that there is none.
        0 => 0xffff,
        check => check,
    };
    frame[start + 6..start + 8].copy_from_slice(&check.to_be_bytes());
    frame
}
