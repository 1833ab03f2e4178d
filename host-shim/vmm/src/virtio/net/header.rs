//! The header before each frame, and which requests of the guest in it are granted.
//! Source: VIRTIO 1.2, 5.1.6 (device operation).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::virtio::feature;

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER_SIZE: usize = 12;
/// Offset of `num_buffers`.
pub const NUM_BUFFERS: usize = 10;
/// Bytes of an Ethernet header: the shortest frame.
pub const FRAME_MIN: usize = 14;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// A header, as it stands in memory: little-endian, as every host of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER_SIZE]);

impl Header {
    fn flags(&self) -> u8 {
        self.0[0]
    }

    fn gso_type(&self) -> u8 {
        self.0[1]
    }

    /// Of a frame that came from elsewhere: sets how many buffers it takes.
    pub fn set_buffers(&mut self, count: u16) {
        self.0[NUM_BUFFERS..].copy_from_slice(&count.to_le_bytes());
    }

    /// Of a frame of the guest: without what a device ignores, or `None` if it asks for what was not negotiated.
    pub fn granted(mut self, features: u64) -> Option<Self> {
        let has = |bit| features & feature(bit) != 0;
        self.0[0] &= NEEDS_CSUM;
        self.set_buffers(0);
        if self.flags() & NEEDS_CSUM != 0 && !has(VIRTIO_NET_F_CSUM) {
            return None;
        }
        let kind = u32::from(self.gso_type() & !ECN);
        let granted = match kind {
            VIRTIO_NET_HDR_GSO_NONE => return (self.gso_type() == 0).then_some(self),
            VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
            VIRTIO_NET_HDR_GSO_UDP_L4 => has(VIRTIO_NET_F_HOST_USO),
            _ => false,
        };
        let ecn = self.gso_type() & ECN == 0
            || has(VIRTIO_NET_F_HOST_ECN) && kind != VIRTIO_NET_HDR_GSO_UDP_L4;
        // What is cut into frames needs a checksum in each.
        (granted && ecn && self.flags() & NEEDS_CSUM != 0).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso_type: u8) -> Header {
        let mut header = Header::default();
        header.0[..2].copy_from_slice(&[flags, gso_type]);
        header
    }

    const ALL: u64 = feature(VIRTIO_NET_F_CSUM)
        | feature(VIRTIO_NET_F_HOST_TSO4)
        | feature(VIRTIO_NET_F_HOST_TSO6)
        | feature(VIRTIO_NET_F_HOST_ECN)
        | feature(VIRTIO_NET_F_HOST_USO);

    #[test]
    fn only_negotiated_offloads_are_granted() {
        for (bit, flags, kind) in [
            (VIRTIO_NET_F_CSUM, 1, 0),
            (VIRTIO_NET_F_HOST_TSO4, 1, 1),
            (VIRTIO_NET_F_HOST_TSO6, 1, 4),
            (VIRTIO_NET_F_HOST_USO, 1, 5),
            (VIRTIO_NET_F_HOST_ECN, 1, 0x81),
        ] {
            let header = header(flags, kind);
            assert_eq!(header.granted(ALL), Some(header), "{kind:#x}");
            assert_eq!(header.granted(ALL & !feature(bit)), None, "{kind:#x}");
        }
        assert_eq!(header(0, 0).granted(0), Some(header(0, 0)));
    }

    #[test]
    fn impossible_requests_are_refused() {
        // UFO, unknown kinds, ECN without TCP, segments without a checksum.
        for (flags, kind) in [
            (1, 3),
            (1, 2),
            (1, 6),
            (1, 0x80),
            (1, 0x85),
            (0, 1),
            (1, 0x7f),
        ] {
            assert_eq!(header(flags, kind).granted(ALL), None, "{flags} {kind:#x}");
        }
    }

    #[test]
    fn what_a_device_ignores_is_cleared() {
        let mut given = header(0xfe, 0);
        given.set_buffers(7);
        assert_eq!(given.granted(0), Some(Header::default()));
    }
}
