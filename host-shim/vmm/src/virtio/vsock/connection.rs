//! One connection between a port of the guest and a Unix socket of the host: its state, its data in both directions.
//! Which connections there are, and where they begin, is in `hub`; how much may be sent in `credit`.
//! Source: VIRTIO 1.2, 5.10.6 (device operation).

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use bitflags::bitflags;
use porthole_uapi::{read_vectored, write_vectored};
use vm_memory::VolatileSlice;

use super::credit::Credit;
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Buffers of a packet that are written where they are; what is in more of them is copied.
const IN_PLACE: usize = 64;
/// Bytes already written of a backlog before the rest moves to its front.
const COMPACT_AFTER: usize = 64 << 10;

bitflags! {
    /// Packets that the guest is yet to get.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 1 << 1;
        const CREDIT_UPDATE = 1 << 2;
        const CREDIT_REQUEST = 1 << 3;
        const SHUTDOWN = 1 << 4;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest was or will be asked.
    Requested,
    /// Data flows.
    Open,
    /// A RESET is all that is left to say.
    Ending,
}

/// What a side still does.
#[derive(Clone, Copy, Debug)]
struct Side {
    sends: bool,
    receives: bool,
}

const BOTH: Side = Side {
    sends: true,
    receives: true,
};

/// What a connection has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing now.
    Nothing,
    /// A packet with so many bytes of data.
    Packet(Op, u32),
    /// A RESET, with which the connection ends.
    Reset,
}

/// The connection is over; nothing is to be said.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    phase: Phase,
    owed: Owed,
    guest: Side,
    host: Side,
    credit: Credit,
    /// The guest was asked for its credit, and has not granted any since.
    asked: bool,
    /// The socket may have bytes, or its end.
    readable: bool,
    /// Both directions of the socket were closed by its peer.
    hung_up: bool,
    backlog: Backlog,
    /// It stands in the hub's line of those that have something for the guest.
    pub queued: bool,
}

impl Connection {
    fn new(stream: UnixStream, phase: Phase, owed: Owed) -> Self {
        Self {
            stream,
            phase,
            owed,
            guest: BOTH,
            host: BOTH,
            credit: Credit::default(),
            asked: false,
            // Not known yet: the first look tells.
            readable: true,
            hung_up: false,
            backlog: Backlog::default(),
            queued: false,
        }
    }

    /// The guest asked for it, and the host's socket took it.
    pub fn from_guest(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Open, Owed::RESPONSE);
        connection.credit.hear(request);
        connection
    }

    /// A process of the host asked for it.
    pub fn from_host(stream: UnixStream) -> Self {
        Self::new(stream, Phase::Requested, Owed::REQUEST)
    }

    /// Whether [`Connection::next`] may have something.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Ending || !self.owed.is_empty() || self.may_read()
    }

    fn may_read(&self) -> bool {
        let open = self.phase == Phase::Open && self.host.sends && self.guest.receives;
        // Without credit, a look at the socket ends in a request for some, once.
        open && self.readable && (self.credit.allowance() > 0 || !self.asked)
    }

    /// A packet came from the guest. `port` is the host's, `data` the `len` bytes of the packet.
    pub fn handle(
        &mut self,
        header: &Header,
        port: u32,
        data: &[VolatileSlice<'_>],
    ) -> Result<(), Gone> {
        let op = Op::new(header.op.get());
        if op == Some(Op::Reset) {
            return Err(Gone);
        }
        if self.phase == Phase::Ending {
            return Ok(());
        }
        if self.credit.hear(header) {
            self.asked = false;
        }
        match (op, self.phase) {
            (Some(Op::Response), Phase::Requested) if !self.owed.contains(Owed::REQUEST) => {
                self.phase = Phase::Open;
                let line = format!("OK {port}\n");
                // The socket is empty yet: it takes a line whole, or its peer is gone.
                if self.stream.write(line.as_bytes()).ok() != Some(line.len()) {
                    self.phase = Phase::Ending;
                }
            }
            (Some(Op::Shutdown), _) => {
                self.guest.sends &= header.flags.get() & SHUTDOWN_SEND == 0;
                self.guest.receives &= header.flags.get() & SHUTDOWN_RECEIVE == 0;
                self.settle();
            }
            (Some(Op::Data), Phase::Open) if self.guest.sends => {
                self.take(header.len.get(), data);
            }
            (Some(Op::CreditUpdate), Phase::Open) => {}
            (Some(Op::CreditRequest), Phase::Open) => self.owed |= Owed::CREDIT_UPDATE,
            _ => self.phase = Phase::Ending,
        }
        Ok(())
    }

    /// Data of the guest: to the socket as far as it goes, the rest into the backlog.
    fn take(&mut self, length: u32, data: &[VolatileSlice<'_>]) {
        if !self.credit.receive(length) {
            self.phase = Phase::Ending;
            return;
        }
        let mut taken = 0;
        if self.host.receives && self.backlog.is_empty() && length > 0 {
            let in_place = &data[..data.len().min(IN_PLACE)];
            match write_vectored(&self.stream, &[], in_place) {
                Ok(written) => taken = written,
                Err(e) if again(&e) => {}
                Err(_) => self.host_stops_receiving(),
            }
        }
        if self.host.receives {
            self.credit.forward(taken as u32);
            self.backlog.push(data, taken);
        } else {
            // Nobody reads it any more.
            self.credit.forward(length);
        }
        self.note_credit();
    }

    fn note_credit(&mut self) {
        if self.credit.update_due() {
            self.owed |= Owed::CREDIT_UPDATE;
        }
    }

    fn host_stops_receiving(&mut self) {
        self.credit.forward(self.backlog.clear() as u32);
        if self.host.receives {
            self.host.receives = false;
            self.owed |= Owed::SHUTDOWN;
        }
    }

    /// The socket is readable, writable or closed by its peer.
    pub fn wake(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable | hung_up;
        self.hung_up |= hung_up;
        if hung_up && self.phase == Phase::Requested {
            // Whoever asked did not wait.
            self.phase = Phase::Ending;
        }
        if hung_up && !self.host.sends {
            // Otherwise what it left to be read goes first, and its end says this.
            self.host_stops_receiving();
        }
        if writable {
            self.flush();
        }
    }

    fn flush(&mut self) {
        match self.backlog.write(&self.stream) {
            Ok(written) => self.credit.forward(written as u32),
            Err(_) => self.host_stops_receiving(),
        }
        self.note_credit();
        self.settle();
    }

    /// Passes on what the guest shut down, once its data is through.
    fn settle(&mut self) {
        // A socket whose peer is gone cannot be shut down, and need not.
        if !self.guest.receives {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest.sends || !self.backlog.is_empty() {
            return;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        if !self.guest.receives {
            self.phase = Phase::Ending;
        }
    }

    /// The next packet for the guest, its data in `room`, its credit in `header`.
    pub fn next(&mut self, header: &mut Header, room: &[VolatileSlice<'_>]) -> Next {
        let next = self.choose(room);
        if let Next::Packet(op, length) = next {
            header.op = (op as u16).into();
            header.len = length.into();
            if op == Op::Shutdown {
                let receive = if self.host.receives {
                    0
                } else {
                    SHUTDOWN_RECEIVE
                };
                let send = if self.host.sends { 0 } else { SHUTDOWN_SEND };
                header.flags = (receive | send).into();
            }
            self.credit.tell(header);
            // Any packet tells it.
            self.owed -= Owed::CREDIT_UPDATE;
        }
        next
    }

    fn choose(&mut self, room: &[VolatileSlice<'_>]) -> Next {
        if self.phase == Phase::Ending {
            return Next::Reset;
        }
        for (owed, op) in [(Owed::REQUEST, Op::Request), (Owed::RESPONSE, Op::Response)] {
            if self.owed.contains(owed) {
                self.owed -= owed;
                return Next::Packet(op, 0);
            }
        }
        if self.may_read() {
            let count = self.read(room);
            if count > 0 {
                return Next::Packet(Op::Data, count);
            }
        }
        for (owed, op) in [
            (Owed::CREDIT_UPDATE, Op::CreditUpdate),
            (Owed::CREDIT_REQUEST, Op::CreditRequest),
            (Owed::SHUTDOWN, Op::Shutdown),
        ] {
            if self.owed.contains(owed) {
                self.owed -= owed;
                return Next::Packet(op, 0);
            }
        }
        Next::Nothing
    }

    /// Data of the host's socket into `room`, as much as the guest granted.
    fn read(&mut self, room: &[VolatileSlice<'_>]) -> u32 {
        let allowance = self.credit.allowance();
        if allowance == 0 {
            self.asked = true;
            self.owed |= Owed::CREDIT_REQUEST;
            return 0;
        }
        match read_vectored(&self.stream, &mut [], &limited(room, allowance as usize)) {
            Ok(0) => self.host_stops_sending(self.hung_up),
            Ok(count) => {
                self.credit.send(count as u32);
                return count as u32;
            }
            Err(e) if again(&e) => self.readable = false,
            Err(_) => self.host_stops_sending(true),
        }
        0
    }

    fn host_stops_sending(&mut self, receiving_too: bool) {
        self.host.sends = false;
        self.owed |= Owed::SHUTDOWN;
        if receiving_too {
            self.host_stops_receiving();
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The first `most` bytes of `room`.
fn limited<'a>(room: &[VolatileSlice<'a>], most: usize) -> Vec<VolatileSlice<'a>> {
    let mut left = most;
    let parts = room.iter().filter_map(|part| {
        let length = part.len().min(left);
        left -= length;
        part.subslice(0, length)
            .ok()
            .filter(|part| !part.is_empty())
    });
    parts.collect()
}

/// Data that the host's socket did not take yet. Its bound is the credit that the guest was granted.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    written: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Adds `data` without its first `skip` bytes.
    fn push(&mut self, data: &[VolatileSlice<'_>], mut skip: usize) {
        for part in data {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let Ok(part) = part.offset(skipped) else {
                continue;
            };
            let end = self.bytes.len();
            self.bytes.resize(end + part.len(), 0);
            part.copy_to(&mut self.bytes[end..]);
        }
    }

    /// Writes what the socket takes: how much that was.
    fn write(&mut self, mut stream: &UnixStream) -> io::Result<usize> {
        let mut done = 0;
        while !self.is_empty() {
            match stream.write(&self.bytes[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    done += count;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if self.is_empty() {
            self.clear();
        } else if self.written >= COMPACT_AFTER {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        Ok(done)
    }

    /// Throws away what is left, and gives its memory back: how much it was.
    fn clear(&mut self) -> usize {
        let left = self.bytes.len() - self.written;
        *self = Self::default();
        left
    }
}

#[cfg(test)]
impl Connection {
    /// Whether the host's socket took all there was.
    pub fn backlog_is_empty(&self) -> bool {
        self.backlog.is_empty()
    }
}
