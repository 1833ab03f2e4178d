//! The header of a virtio-vsock packet, and what its numbers mean. Nothing is decided here.
//! Source: VIRTIO 1.2, 5.10.6 (device operation).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER_SIZE: usize = size_of::<Header>();
/// The host's context id (VMADDR_CID_HOST).
pub const HOST_CID: u64 = 2;
/// The only type of socket that the device has.
pub const STREAM: u16 = 1;
/// SHUTDOWN: the sender will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants one.
    Response = 2,
    /// There is no such connection, or no longer.
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Tells the state of the sender's buffer.
    CreditUpdate = 6,
    /// Asks for that of the receiver's.
    CreditRequest = 7,
}

impl Op {
    /// The operation of a number, if it is one.
    pub fn new(number: u16) -> Option<Self> {
        use Op::*;
        [
            Request,
            Response,
            Reset,
            Shutdown,
            Data,
            CreditUpdate,
            CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Who sent it.
    pub src_cid: U64,
    /// Whom it is for.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of data behind the header.
    pub len: U32,
    /// Kind of socket.
    pub kind: U16,
    /// Number of an [`Op`].
    pub op: U16,
    /// Depend on the operation.
    pub flags: U32,
    /// Bytes of the sender's receive buffer.
    pub buf_alloc: U32,
    /// Bytes that have left this buffer since the connection began, modulo 2^32.
    pub fwd_cnt: U32,
}

impl Header {
    /// What answers a packet that belongs to no connection.
    pub fn reset_for(packet: &Self) -> Self {
        Self {
            src_cid: packet.dst_cid,
            dst_cid: packet.src_cid,
            src_port: packet.dst_port,
            dst_port: packet.src_port,
            kind: packet.kind,
            op: (Op::Reset as u16).into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_specifications() {
        assert_eq!(HEADER_SIZE, 44);
        let mut bytes = [0; HEADER_SIZE];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let header = Header::read_from_bytes(&bytes).unwrap();
        assert_eq!(header.dst_cid.get(), 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.dst_port.get(), 0x1716_1514);
        assert_eq!((header.kind.get(), header.op.get()), (0x1d1c, 0x1f1e));
        assert_eq!(header.fwd_cnt.get(), 0x2b2a_2928);
    }

    #[test]
    fn only_the_seven_operations_exist() {
        let known = (0..=u16::MAX).filter(|n| Op::new(*n).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    }
}
