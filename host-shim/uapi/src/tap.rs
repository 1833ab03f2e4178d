//! TAP interfaces of the host's kernel: opening one with as many queues as wanted, its offloads, switching queues.
//! Frames are read and written by the user, each with a `virtio_net_hdr` before it.
//! Source: Linux, Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use zerocopy::{FromBytes, IntoBytes};

use crate::ioctl;
use crate::number::Call;

/// The device that makes TAP interfaces.
pub const TUN_DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name, the terminating zero included.
pub const NAME_MAX: usize = libc::IFNAMSIZ;

/// `struct ifreq` with flags in its union.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes)]
pub struct InterfaceRequest {
    name: [u8; NAME_MAX],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: Call<InterfaceRequest> = Call::other("TUNSETIFF", 0x4004_54ca);
const TUNSETVNETHDRSZ: Call<i32> = Call::other("TUNSETVNETHDRSZ", 0x4004_54d8);
const TUNSETQUEUE: Call<InterfaceRequest> = Call::other("TUNSETQUEUE", 0x4004_54d9);
const GET_FLAGS: Call<InterfaceRequest> = Call::other("SIOCGIFFLAGS", libc::SIOCGIFFLAGS as u32);
const SET_FLAGS: Call<InterfaceRequest> = Call::other("SIOCSIFFLAGS", libc::SIOCSIFFLAGS as u32);

const ATTACH_QUEUE: u16 = 0x0200;
const DETACH_QUEUE: u16 = 0x0400;

/// What a reader of a TAP interface can do: TUN_F_*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Frames whose checksum is still to be computed.
    pub checksum: bool,
    /// TCP over IPv4 longer than a frame.
    pub tso4: bool,
    /// TCP over IPv6 longer than a frame.
    pub tso6: bool,
    /// Long TCP frames with ECN.
    pub ecn: bool,
    /// UDP over IPv4 and IPv6 longer than a frame (since Linux 6.2).
    pub uso: bool,
}

impl Offload {
    fn bits(self) -> u32 {
        [
            (self.checksum, libc::TUN_F_CSUM),
            (self.tso4, libc::TUN_F_TSO4),
            (self.tso6, libc::TUN_F_TSO6),
            (self.ecn, libc::TUN_F_TSO_ECN),
            (self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ]
        .into_iter()
        .filter_map(|(on, bit)| on.then_some(bit))
        .sum()
    }
}

/// Which step of opening an interface failed, and why.
#[derive(Debug)]
pub struct OpenError {
    /// The step: a path or the name of an ioctl.
    pub step: &'static str,
    /// errno.
    pub source: io::Error,
}

/// One queue of a TAP interface. The last one closed takes a transient interface with it.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Opens one more queue of the interface `name`, which comes into being if there is none and the caller may.
    /// Reads and writes do not block. `header`: bytes of the `virtio_net_hdr` before each frame, 10 or 12.
    ///
    /// # Errors
    /// The step that failed. A name of [`NAME_MAX`] bytes or more is `EINVAL`.
    pub fn open(name: &str, several: bool, header: u8) -> Result<Self, OpenError> {
        let at = |step| move |source| OpenError { step, source };
        let mut request = request(name).map_err(at(TUNSETIFF.name))?;
        request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        if several {
            request.flags |= libc::IFF_MULTI_QUEUE as u16;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN_DEVICE)
            .map_err(at(TUN_DEVICE))?;
        ioctl::plain(&file, &TUNSETIFF, &mut request).map_err(at(TUNSETIFF.name))?;
        let mut bytes = header.into();
        ioctl::plain(&file, &TUNSETVNETHDRSZ, &mut bytes).map_err(at(TUNSETVNETHDRSZ.name))?;
        Ok(Self { file })
    }

    /// Says what may come in the frames that are read from now on; it is the whole interface's.
    ///
    /// # Errors
    /// `EINVAL` for what the kernel does not know.
    pub fn set_offload(&self, offload: Offload) -> io::Result<()> {
        ioctl::tun_set_offload(&self.file, offload.bits())
    }

    /// Takes this queue into or out of the traffic. Only for an interface with several queues.
    ///
    /// # Errors
    /// `EINVAL` if it is so already.
    pub fn attach(&self, attach: bool) -> io::Result<()> {
        let mut request = request("")?;
        request.flags = if attach { ATTACH_QUEUE } else { DETACH_QUEUE };
        ioctl::plain(&self.file, &TUNSETQUEUE, &mut request)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Switches the interface on if it is off.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN; `ENODEV` if there is none.
pub fn bring_up(name: &str) -> io::Result<()> {
    // Requests about interfaces may be made of any socket.
    let socket = File::from(OwnedFd::from(UnixDatagram::unbound()?));
    let mut request = request(name)?;
    ioctl::plain(&socket, &GET_FLAGS, &mut request)?;
    if request.flags & libc::IFF_UP as u16 != 0 {
        return Ok(());
    }
    request.flags |= libc::IFF_UP as u16;
    ioctl::plain(&socket, &SET_FLAGS, &mut request)
}

fn request(name: &str) -> io::Result<InterfaceRequest> {
    let mut bytes = [0; NAME_MAX];
    match bytes.get_mut(..name.len()) {
        Some(room) if name.len() < NAME_MAX => room.copy_from_slice(name.as_bytes()),
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    Ok(InterfaceRequest {
        name: bytes,
        flags: 0,
        rest: [0; 22],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_are_refused_before_anything_is_opened() {
        let long = "x".repeat(NAME_MAX);
        let error = Tap::open(&long, false, 12).unwrap_err();
        assert_eq!(error.step, "TUNSETIFF");
        assert_eq!(error.source.raw_os_error(), Some(libc::EINVAL));
        let error = bring_up(&long).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn an_interface_that_does_not_exist_cannot_be_brought_up() {
        let error = bring_up("porthole-none").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn offloads_become_the_kernels_bits() {
        assert_eq!(Offload::default().bits(), 0);
        let all = Offload {
            checksum: true,
            tso4: true,
            tso6: true,
            ecn: true,
            uso: true,
        };
        assert_eq!(all.bits(), 0x6f);
    }
}
