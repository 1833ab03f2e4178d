//! The socket device: sends a stream to an echo on the host and compares it, then is the echo for one from there.

use alloc::vec;

use porthole_bounce::BounceHal;
use porthole_payload::args::Args;
use porthole_payload::transport::WindowTransport;
use porthole_payload::{fail, interrupt};
use porthole_runtime::{println, reg, timer};
use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    SocketError, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent,
    VsockEventType,
};

use crate::VsockPool;

/// Bytes of a receive buffer of the driver.
const BUFFER: usize = 4096;
/// Bytes that a connection keeps for us.
const CAPACITY: u32 = 64 << 10;
/// Bytes sent at once.
const PIECE: usize = 16 << 10;
/// Our port as a server.
const ECHO_PORT: u32 = 5000;
/// Our port as a client, and the echo's on the host.
const CLIENT_PORT: u32 = 1024;
const HOST_PORT: u32 = 6000;
/// Seconds until an event is given up.
const PATIENCE: u64 = 300;

type Manager = VsockConnectionManager<BounceHal<VsockPool>, WindowTransport, BUFFER>;

struct Sockets {
    manager: Manager,
    messages: bool,
}

/// Byte `i` of the stream.
fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(7) + i / 251) as u8
}

/// Both directions, `bytes=N` (1 MiB) in the first one.
pub fn run(transport: WindowTransport, args: &Args) {
    let messages = transport.sends_messages();
    let driver = VirtIOSocket::<_, _, BUFFER>::new(transport)
        .unwrap_or_else(|e| fail!("vsock: cannot be driven: {e}"));
    println!("vsock: context id {}", driver.guest_cid());
    let manager = VsockConnectionManager::new_with_capacity(driver, CAPACITY);
    let mut sockets = Sockets { manager, messages };
    let bytes = args.number("bytes", 1 << 20) as usize;
    sockets.refused();
    sockets.client(bytes);
    sockets.server();
}

impl Sockets {
    /// The next event. Sleeps until there is one.
    fn event(&mut self) -> VsockEvent {
        let deadline = reg::counter() + PATIENCE * timer::frequency();
        let mut event = None;
        let manager = &mut self.manager;
        interrupt::sleep_until(self.messages, Some(deadline), || {
            match manager.poll() {
                Ok(next) => event = next,
                Err(e) => fail!("vsock: {e}"),
            }
            event.is_some()
        });
        match event {
            Some(event) => event,
            None => fail!("vsock: nothing happens for {PATIENCE} s"),
        }
    }

    /// A port of the host where nobody listens: the connection is refused, and nothing hangs.
    fn refused(&mut self) {
        let nobody = VsockAddr {
            cid: VMADDR_CID_HOST,
            port: HOST_PORT + 1,
        };
        self.check("connect", |m| m.connect(nobody, CLIENT_PORT));
        match self.event().event_type {
            VsockEventType::Disconnected { .. } => {
                println!("vsock: a port without a server refuses")
            }
            other => fail!("vsock: a port without a server: {other:?}"),
        }
    }

    fn check(&mut self, what: &str, call: impl FnOnce(&mut Manager) -> Result<(), Error>) {
        if let Err(e) = call(&mut self.manager) {
            fail!("vsock: cannot {what}: {e}");
        }
    }

    /// Sends as much of `data` as the host has room for: how much that was.
    fn send(&mut self, to: VsockAddr, port: u32, data: &[u8]) -> usize {
        match self.manager.send(to, port, data) {
            Ok(()) => data.len(),
            // The driver asked for credit: an event will bring it.
            Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => 0,
            Err(e) => fail!("vsock: cannot send {} bytes: {e}", data.len()),
        }
    }

    /// Takes what came, and tells the host that there is room again.
    fn take(&mut self, from: VsockAddr, port: u32, room: &mut [u8]) -> usize {
        let got = self.manager.recv(from, port, room);
        let got = got.unwrap_or_else(|e| fail!("vsock: cannot receive: {e}"));
        if got > 0 {
            self.check("give credit", |m| m.update_credit(from, port));
        }
        got
    }

    /// Sends a stream to the host's echo and compares what comes back.
    fn client(&mut self, bytes: usize) {
        let host = VsockAddr {
            cid: VMADDR_CID_HOST,
            port: HOST_PORT,
        };
        self.check("connect", |m| m.connect(host, CLIENT_PORT));
        match self.event().event_type {
            VsockEventType::Connected => {}
            other => fail!("vsock: the host's port {HOST_PORT}: {other:?}"),
        }
        let mut room = vec![0; CAPACITY as usize];
        let (mut sent, mut back) = (0, 0);
        while back < bytes {
            while sent < bytes {
                let end = bytes.min(sent + PIECE);
                let piece: vec::Vec<u8> = (sent..end).map(pattern).collect();
                let done = self.send(host, CLIENT_PORT, &piece);
                sent += done;
                if done == 0 {
                    break;
                }
            }
            if let VsockEventType::Disconnected { reason } = self.event().event_type {
                fail!("vsock: the host ends the connection after {back} bytes: {reason:?}");
            }
            let got = self.take(host, CLIENT_PORT, &mut room);
            if let Some(at) = (0..got).find(|i| room[*i] != pattern(back + i)) {
                fail!("vsock: byte {} came back changed", back + at);
            }
            back += got;
        }
        self.check("end", |m| m.shutdown(host, CLIENT_PORT));
        loop {
            if let VsockEventType::Disconnected { .. } = self.event().event_type {
                break;
            }
        }
        println!("vsock: {bytes} bytes to the host came back as they went");
    }

    /// Echoes one connection of the host.
    fn server(&mut self) {
        self.manager.listen(ECHO_PORT);
        println!("sockets: ready");
        let mut room = vec![0; PIECE];
        let mut echoed = 0;
        // What came and was not sent back yet.
        let mut held = vec![];
        loop {
            let event = self.event();
            let peer = event.source;
            match event.event_type {
                VsockEventType::Disconnected { .. } => break,
                VsockEventType::ConnectionRequest => continue,
                _ => {}
            }
            loop {
                if held.is_empty() {
                    let got = self.take(peer, ECHO_PORT, &mut room);
                    held.extend_from_slice(&room[..got]);
                }
                if held.is_empty() || self.send(peer, ECHO_PORT, &held) == 0 {
                    break;
                }
                echoed += held.len();
                held.clear();
            }
        }
        println!("vsock: {echoed} bytes of the host went back");
    }
}
