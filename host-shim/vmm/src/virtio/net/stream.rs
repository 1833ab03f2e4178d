//! A Unix stream socket as the carrier of frames: each behind its length in four bytes, high byte first, as passt and
//! QEMU's `-netdev stream` write them. Where the socket comes from is here; no offloads, nothing but frames goes over it.
//! Frames are copied: many go through one system call, and one that the socket takes in part is kept.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backend::{Backend, Received, Sent};
use super::header::{FRAME_MIN, HEADER_SIZE, Header};
use super::passt::MTU;
use crate::bus::lock;
use crate::virtio::Source;
use crate::virtio::chain::Slice;

/// Bytes of a length.
const LENGTH_SIZE: usize = 4;
/// Longest frame that either side may send: the longest packet that a guest is ever told of, behind Ethernet's header with
/// a VLAN tag.
pub const FRAME_MAX: usize = MTU as usize + 18;
/// Bytes read at once at most.
const INBOX: usize = 256 << 10;
/// Bytes that wait to be written at most, before the guest has to wait.
const OUTBOX: usize = 256 << 10;
/// Events of a set of two.
const EVENTS: usize = 4;

/// Why there is no socket to carry frames.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nobody is at the other end.
    #[error(
        "cannot connect the network to {path}: {source}; start the other side first, or let this one wait with socket={path},listen"
    )]
    Connect {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path cannot be listened at.
    #[error("cannot wait for the network's other side at {path}: {source}; {hint}")]
    Listen {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// The carrier: it outlives the runs of a driver, so that a frame cut by a reset does not upset its successors.
pub struct Stream {
    stream: Option<UnixStream>,
    listener: Option<(UnixListener, PathBuf, Epoll)>,
    inbox: Vec<u8>,
    /// What of the inbox is to be looked at.
    unread: std::ops::Range<usize>,
    outbox: Vec<u8>,
    written: usize,
    readable: bool,
    writable: bool,
}

impl Stream {
    fn new(stream: Option<UnixStream>) -> io::Result<Self> {
        if let Some(stream) = &stream {
            stream.set_nonblocking(true)?;
        }
        Ok(Self {
            stream,
            listener: None,
            inbox: vec![0; INBOX],
            unread: 0..0,
            outbox: Vec::with_capacity(OUTBOX),
            written: 0,
            readable: true,
            writable: true,
        })
    }

    /// Over a socket that is connected.
    pub fn connected(stream: UnixStream) -> io::Result<Self> {
        Self::new(Some(stream))
    }

    /// Over the socket that somebody listens at.
    pub fn connect(path: &Path) -> Result<Self, StreamError> {
        UnixStream::connect(path)
            .and_then(Self::connected)
            .map_err(|source| StreamError::Connect {
                path: path.to_owned(),
                source,
            })
    }

    /// Over a socket that comes when the other side connects, one at a time. A socket that nobody listens at is
    /// replaced.
    pub fn listen(path: &Path) -> Result<Self, StreamError> {
        let failed = |source: io::Error| {
            let hint = match source.kind() {
                ErrorKind::AddrInUse => {
                    "another process uses it, or it is no socket: choose another path"
                }
                _ => "check its folder and permissions",
            };
            StreamError::Listen {
                path: path.to_owned(),
                source,
                hint,
            }
        };
        let listener = crate::unix::listen(path).map_err(failed)?;
        let with_listener = || {
            let epoll = Epoll::new()?;
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
            let mut stream = Self::new(None)?;
            stream.listener = Some((listener, path.to_owned(), epoll));
            Ok(stream)
        };
        with_listener().map_err(failed)
    }

    /// Whether there is another side.
    pub fn up(&self) -> bool {
        self.stream.is_some()
    }

    /// The other side is gone.
    fn hang_up(&mut self, why: &str) {
        let gone = "net: the other side of the network's socket is gone";
        match self.listener {
            Some(_) => tracing::info!("{gone}: {why}; another may come"),
            None => {
                tracing::warn!("{gone}: {why}; the guest's link is down until it is started anew")
            }
        }
        self.stream = None;
        self.unread = 0..0;
        self.outbox.clear();
        self.written = 0;
    }

    /// Something happened at the socket, or at the listener's.
    fn look(&mut self) -> io::Result<()> {
        (self.readable, self.writable) = (true, true);
        let Some((listener, _, epoll)) = &self.listener else {
            return Ok(());
        };
        // The set's readiness ends with this; which of its members is ready is tried out.
        let mut events = [EpollEvent::default(); EVENTS];
        epoll.wait(0, &mut events)?;
        match listener.accept() {
            Ok((new, _)) if self.stream.is_none() => {
                new.set_nonblocking(true)?;
                let all = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
                epoll.ctl(
                    ControlOperation::Add,
                    new.as_raw_fd(),
                    EpollEvent::new(all, 1),
                )?;
                self.stream = Some(new);
            }
            Ok(_) => {
                tracing::warn!("net: a second other side of the network's socket is hung up on")
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => tracing::warn!("net: cannot take the network's other side: {e}"),
        }
        Ok(())
    }

    /// Bytes of the first whole frame in the inbox, and where it begins.
    fn frame(&mut self) -> Option<(usize, usize)> {
        let start = self.unread.start;
        let length = self.inbox.get(start..start + LENGTH_SIZE)?;
        if self.unread.len() < LENGTH_SIZE {
            return None;
        }
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        // What is too short is no frame either: to pass over those would take the thread without end.
        if !(FRAME_MIN..=FRAME_MAX).contains(&length) {
            self.hang_up(&format!(
                "it announced a frame of {length} bytes, and they have {FRAME_MIN} to {FRAME_MAX}"
            ));
            return None;
        }
        (self.unread.len() >= LENGTH_SIZE + length).then_some((length, start + LENGTH_SIZE))
    }

    fn consume(&mut self, length: usize) {
        self.unread.start += LENGTH_SIZE + length;
    }

    /// Reads once, behind what is there.
    fn fill(&mut self) -> io::Result<()> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.inbox.len() - self.unread.end < LENGTH_SIZE + FRAME_MAX {
            self.inbox.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let Some(mut stream) = self.stream.as_ref() else {
            self.readable = false;
            return Ok(());
        };
        match stream.read(&mut self.inbox[self.unread.end..]) {
            Ok(0) => self.hang_up("it hung up"),
            Ok(count) => self.unread.end += count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => self.hang_up(&e.to_string()),
        }
        Ok(())
    }

    pub(super) fn expect(&mut self) -> io::Result<Option<usize>> {
        loop {
            match self.frame() {
                Some((length, _)) => return Ok(Some(HEADER_SIZE + length)),
                None if self.readable && self.stream.is_some() => self.fill()?,
                None => return Ok(None),
            }
        }
    }

    pub(super) fn receive(&mut self, room: &[Slice<'_>]) -> io::Result<Received> {
        let Some((length, start)) = self.frame() else {
            return Ok(Received::Nothing);
        };
        self.consume(length);
        let bytes: usize = room.iter().map(|part| part.len()).sum();
        if bytes < HEADER_SIZE + length {
            return Ok(Received::Dropped);
        }
        let mut header = &Header::default().0[..];
        let mut frame = &self.inbox[start..start + length];
        for part in room {
            let mut part = *part;
            for source in [&mut header, &mut frame] {
                let count = part.len().min(source.len());
                part.copy_from(&source[..count]);
                *source = &source[count..];
                part = part.offset(count).map_err(io::Error::other)?;
            }
        }
        Ok(Received::Frame(HEADER_SIZE + length))
    }

    fn send(&mut self, frame: &[Slice<'_>]) -> io::Result<Sent> {
        let length: usize = frame.iter().map(|part| part.len()).sum();
        if self.stream.is_none() || !(FRAME_MIN..=FRAME_MAX).contains(&length) {
            return Ok(Sent::Dropped);
        }
        if self.outbox.len() + LENGTH_SIZE + length > OUTBOX {
            self.flush()?;
            if self.outbox.len() + LENGTH_SIZE + length > OUTBOX {
                return Ok(Sent::Full);
            }
        }
        self.outbox.extend((length as u32).to_be_bytes());
        for part in frame {
            let end = self.outbox.len();
            self.outbox.resize(end + part.len(), 0);
            part.copy_to(&mut self.outbox[end..]);
        }
        Ok(Sent::Done)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.writable && self.written < self.outbox.len() {
            let Some(mut stream) = self.stream.as_ref() else {
                break;
            };
            match stream.write(&self.outbox[self.written..]) {
                Ok(count) => self.written += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.hang_up(&e.to_string()),
            }
        }
        self.outbox.drain(..self.written);
        self.written = 0;
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some((_, path, _)) = &self.listener {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The carrier at work.
pub struct StreamBackend {
    stream: Arc<Mutex<Stream>>,
    /// Told whenever the other side comes or goes.
    on_link: Box<dyn Fn(bool) + Send>,
}

impl StreamBackend {
    /// `on_link` hears whether there is another side, each time it is looked at.
    pub fn new(stream: Arc<Mutex<Stream>>, on_link: Box<dyn Fn(bool) + Send>) -> Self {
        Self { stream, on_link }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Stream) -> io::Result<T>) -> io::Result<T> {
        let mut stream: MutexGuard<'_, Stream> = lock(&self.stream);
        let before = stream.up();
        let result = f(&mut stream);
        if stream.up() != before {
            (self.on_link)(!before);
        }
        result
    }
}

impl Backend for StreamBackend {
    fn sources(&self) -> Vec<Source> {
        let stream = lock(&self.stream);
        let both = EventSet::IN | EventSet::OUT;
        match (&stream.listener, &stream.stream) {
            (Some((_, _, epoll)), _) => vec![Source::readable(epoll.as_raw_fd())],
            (None, Some(stream)) => vec![Source::edges(stream.as_raw_fd(), both)],
            (None, None) => Vec::new(),
        }
    }

    fn watched(&mut self) -> io::Result<()> {
        // What an earlier run left unread or unwritten has made its event already.
        self.event(0)
    }

    fn event(&mut self, _: usize) -> io::Result<()> {
        self.with(Stream::look)?;
        self.flush()
    }

    fn send(&mut self, _: &Header, frame: &[Slice<'_>]) -> io::Result<Sent> {
        self.with(|s| s.send(frame))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(Stream::flush)
    }

    fn expect(&mut self) -> io::Result<Option<usize>> {
        self.with(Stream::expect)
    }

    fn receive(&mut self, room: &[Slice<'_>]) -> io::Result<Received> {
        self.with(|s| s.receive(room))
    }
}

#[cfg(test)]
mod tests;
