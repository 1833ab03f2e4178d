//! All connections of one device: the Unix sockets where they begin, which of them has something for the guest, and
//! what becomes of packets that belong to none. Queues are `device`'s, each connection's state is `connection`'s.
//! Convention of the sockets: as Firecracker's and crosvm's, see README.md.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Next};
use super::packet::{HOST_CID, Header, Op, STREAM};

/// Most connections at once.
pub const CONNECTIONS_MAX: usize = 256;
/// Most processes of the host that have not said yet which port they want; one more, and the first has to go.
const CALLERS_MAX: usize = 32;
/// Most packets to nobody whose answer waits for a buffer.
const RESETS_MAX: usize = 128;
/// First port of the host's side of connections that the host begins.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Longest line of a caller: `CONNECT 4294967295\r\n`.
const LINE_MAX: usize = 20;
/// No port (VMADDR_PORT_ANY).
const PORT_ANY: u32 = u32::MAX;
/// Events taken from the kernel at once.
const EVENTS: usize = 32;

/// Both ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    host: u32,
    guest: u32,
}

/// What an event of the hub's epoll is about. As a number: the host's port above the guest's; those who have no port
/// yet stand at [`PORT_ANY`].
impl Key {
    const LISTENER: Self = Self {
        host: PORT_ANY,
        guest: PORT_ANY,
    };

    fn caller(number: u32) -> Self {
        Self {
            host: PORT_ANY,
            guest: number,
        }
    }

    fn number(self) -> u64 {
        u64::from(self.host) << 32 | u64::from(self.guest)
    }

    fn of(number: u64) -> Self {
        Self {
            host: (number >> 32) as u32,
            guest: number as u32,
        }
    }
}

/// What happened since the VM started.
#[derive(Debug, Default)]
pub struct HubStats {
    /// Connections there are.
    pub open: AtomicU64,
    /// Connections there were.
    pub opened: AtomicU64,
    /// Packets of the guest that no connection could take, answered with a RESET or dropped.
    pub refused: AtomicU64,
}

impl HubStats {
    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// All connections.
pub struct Hub {
    guest_cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
    epoll: Epoll,
    /// With a number each, in the order in which they came.
    callers: VecDeque<(u32, UnixStream)>,
    next_caller: u32,
    connections: HashMap<Key, Connection>,
    /// Connections that may have something for the guest, each once.
    line: VecDeque<Key>,
    resets: VecDeque<Header>,
    next_port: u32,
    stats: Arc<HubStats>,
}

impl Hub {
    /// No connections. `listener` is bound to `path` and does not block.
    pub fn new(
        guest_cid: u64,
        path: PathBuf,
        listener: Arc<UnixListener>,
        stats: Arc<HubStats>,
    ) -> io::Result<Self> {
        let hub = Self {
            guest_cid,
            path,
            listener,
            epoll: Epoll::new()?,
            callers: VecDeque::new(),
            next_caller: 0,
            connections: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
            stats,
        };
        // Each caller is an edge; the line at the listener is taken whole.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        hub.watch(hub.listener.as_raw_fd(), events, Key::LISTENER)?;
        Ok(hub)
    }

    /// Readable when [`Hub::poll`] has something to do.
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn watch(&self, fd: RawFd, events: EventSet, key: Key) -> io::Result<()> {
        let event = EpollEvent::new(events, key.number());
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    fn watch_connection(&self, stream: &UnixStream, key: Key, again: bool) -> io::Result<()> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let operation = if again {
            ControlOperation::Modify
        } else {
            ControlOperation::Add
        };
        let event = EpollEvent::new(events, key.number());
        self.epoll.ctl(operation, stream.as_raw_fd(), event)
    }

    /// Takes in what the sockets have become ready for.
    pub fn poll(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            for event in &events[..count] {
                self.wake(Key::of(event.data()), event.event_set());
            }
            if count < EVENTS {
                return Ok(());
            }
        }
    }

    fn wake(&mut self, key: Key, events: EventSet) {
        if key == Key::LISTENER {
            return self.accept();
        }
        if key.host == PORT_ANY {
            let last = events.intersects(EventSet::READ_HANG_UP | EventSet::HANG_UP);
            return self.hear_caller(key.guest, last);
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.wake(
                events.intersects(EventSet::IN | EventSet::READ_HANG_UP),
                events.contains(EventSet::OUT),
                events.intersects(EventSet::HANG_UP | EventSet::ERROR),
            );
            self.line_up(key);
        }
    }

    fn line_up(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.ready()
            && !connection.queued
        {
            connection.queued = true;
            self.line.push_back(key);
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(e) = self.add_caller(stream) {
                        tracing::warn!("vsock: a caller at {}: {e}", self.path.display());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!("vsock: cannot accept at {}: {e}", self.path.display());
                    return;
                }
            }
        }
    }

    fn add_caller(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let number = self.next_caller;
        // Never the listener's, and free again long before it comes again.
        self.next_caller = (number + 1) % PORT_ANY;
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.watch(stream.as_raw_fd(), events, Key::caller(number))?;
        self.callers.push_back((number, stream));
        if self.callers.len() > CALLERS_MAX
            && let Some((oldest, _)) = self.callers.front()
        {
            // Whoever has said nothing for the longest time keeps nobody else out. What it did say may not have been
            // heard yet: many who come at once are taken in before the first of them has its turn.
            self.hear_caller(*oldest, true);
        }
        Ok(())
    }

    /// A caller said something, and nothing more counts if it was the `last`: once it is a line, it becomes a connection.
    fn hear_caller(&mut self, number: u32, last: bool) {
        let Some(at) = self.callers.iter().position(|(n, _)| *n == number) else {
            return;
        };
        let heard = read_line(&self.callers[at].1);
        if let Ok(None) = heard
            && !last
        {
            return;
        }
        let Some((_, stream)) = self.callers.remove(at) else {
            return;
        };
        match heard {
            Ok(None) => tracing::debug!(
                "vsock: a caller at {} never said CONNECT",
                self.path.display()
            ),
            Ok(Some(port)) => {
                if let Err(e) = self.connect_guest(stream, port) {
                    tracing::warn!("vsock: a caller for port {port}: {e}");
                }
            }
            Err(e) => tracing::debug!("vsock: a caller at {}: {e}", self.path.display()),
        }
    }

    fn connect_guest(&mut self, stream: UnixStream, guest: u32) -> io::Result<()> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return Err(io::Error::other("there are as many connections as may be"));
        }
        let taken = |host| self.connections.contains_key(&Key { host, guest });
        let mut host = self.next_port;
        while taken(host) {
            host = following(host);
        }
        self.next_port = following(host);
        let key = Key { host, guest };
        self.watch_connection(&stream, key, true)?;
        self.add(key, Connection::from_host(stream));
        Ok(())
    }

    fn add(&mut self, key: Key, connection: Connection) {
        self.connections.insert(key, connection);
        self.stats.opened.fetch_add(1, Ordering::Relaxed);
        self.count();
        self.line_up(key);
    }

    fn remove(&mut self, key: Key) {
        // With its socket it leaves the epoll set.
        self.connections.remove(&key);
        self.count();
    }

    fn count(&self) {
        let open = self.connections.len() as u64;
        self.stats.open.store(open, Ordering::Relaxed);
    }

    /// A packet of the guest, with what of its data was there: the header's `len`, unless the guest left some out.
    pub fn receive(&mut self, header: &Header, data: &[VolatileSlice<'_>]) {
        if header.src_cid.get() != self.guest_cid {
            // No answer would reach whoever it claims to come from.
            self.stats.refuse();
            return;
        }
        let key = Key {
            host: header.dst_port.get(),
            guest: header.src_port.get(),
        };
        let whole = data.iter().map(|part| part.len() as u64).sum::<u64>();
        let addressed = header.dst_cid.get() == HOST_CID
            && header.kind.get() == STREAM
            && key.host != PORT_ANY
            && whole == u64::from(header.len.get());
        let known = self.connections.get_mut(&key);
        match (addressed, known) {
            (true, Some(connection)) => match connection.handle(header, key.host, data) {
                Ok(()) => self.line_up(key),
                Err(_) => self.remove(key),
            },
            (true, None) if header.op.get() == Op::Request as u16 => self.call_host(key, header),
            (true, None) => self.refuse(header),
            (false, known) => {
                // What was left out cannot be made up for.
                let broken = known.is_some() && header.dst_cid.get() == HOST_CID;
                self.refuse(header);
                if broken && header.kind.get() == STREAM {
                    self.remove(key);
                }
            }
        }
    }

    fn refuse(&mut self, packet: &Header) {
        self.stats.refuse();
        let is_reset = packet.op.get() == Op::Reset as u16;
        if !is_reset && self.resets.len() < RESETS_MAX {
            self.resets.push_back(Header::reset_for(packet));
        }
    }

    /// The guest wants a port of the host: a socket beside ours.
    fn call_host(&mut self, key: Key, request: &Header) {
        let result = if self.connections.len() < CONNECTIONS_MAX {
            self.connect_host(key)
        } else {
            Err(io::Error::other("there are as many connections as may be"))
        };
        match result {
            Ok(stream) => self.add(key, Connection::from_guest(stream, request)),
            Err(e) => {
                tracing::debug!("vsock: the guest asks for port {}: {e}", key.host);
                self.refuse(request);
            }
        }
    }

    fn connect_host(&self, key: Key) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", key.host));
        let address = SocketAddrUnix::new(&*path)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Not blocking: a server whose line is full refuses.
        rustix::net::connect(&socket, &address)?;
        let stream = UnixStream::from(socket);
        self.watch_connection(&stream, key, false)?;
        Ok(stream)
    }

    /// Whether the guest may get a packet.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// The next packet for the guest: its header; its data is in `room` already.
    pub fn send(&mut self, room: &[VolatileSlice<'_>]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(key) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            let mut header = Header {
                src_cid: HOST_CID.into(),
                dst_cid: self.guest_cid.into(),
                src_port: key.host.into(),
                dst_port: key.guest.into(),
                kind: STREAM.into(),
                ..Header::default()
            };
            match connection.next(&mut header, room) {
                Next::Nothing => {}
                Next::Packet(..) => {
                    // To the end of the line: all get their turn.
                    self.line_up(key);
                    return Some(header);
                }
                Next::Reset => {
                    header.op = (Op::Reset as u16).into();
                    self.remove(key);
                    return Some(header);
                }
            }
        }
        None
    }
}

fn following(port: u32) -> u32 {
    if port == PORT_ANY - 1 {
        FIRST_HOST_PORT
    } else {
        port + 1
    }
}

/// The port after CONNECT, once the line is whole. Takes nothing beyond it.
fn read_line(mut stream: &UnixStream) -> io::Result<Option<u32>> {
    let mut line = [0; LINE_MAX];
    let count = match rustix::net::recv(stream, &mut line, RecvFlags::PEEK) {
        Ok((_, 0)) => return Err(io::Error::other("it hung up")),
        Ok((_, count)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let wrong = || io::Error::other("it did not say `CONNECT port`");
    let Some(end) = line[..count].iter().position(|b| *b == b'\n') else {
        return if count < LINE_MAX {
            Ok(None)
        } else {
            Err(wrong())
        };
    };
    let port = std::str::from_utf8(&line[..end])
        .ok()
        .and_then(|text| text.trim_end().strip_prefix("CONNECT "))
        .and_then(|text| text.parse().ok())
        .filter(|port| *port != PORT_ANY)
        .ok_or_else(wrong)?;
    stream.read_exact(&mut line[..=end])?;
    Ok(Some(port))
}

#[cfg(test)]
mod tests;
