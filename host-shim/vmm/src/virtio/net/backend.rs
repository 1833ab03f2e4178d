//! What a queue pair asks of whatever carries its frames: a TAP queue or a stream of frames.

use std::io;

use super::header::Header;
use crate::virtio::Source;
use crate::virtio::chain::Slice;

/// What became of a frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// It was not taken and is lost.
    Dropped,
    /// There is no room for it now; an event will say when there is.
    Full,
}

/// What became of a look for a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A header and a frame, so many bytes together.
    Frame(usize),
    /// A frame that did not fit, and is lost.
    Dropped,
    /// None; an event will say when there is one.
    Nothing,
}

/// Carries the frames of one queue pair. None of it blocks.
pub trait Backend: Send {
    /// What the worker waits for.
    fn sources(&self) -> Vec<Source>;
    /// The worker waits for them from now on.
    fn watched(&mut self) -> io::Result<()>;
    /// One of them is ready.
    fn event(&mut self, source: usize) -> io::Result<()>;
    /// One frame of the guest, with what it asks for in `header`.
    fn send(&mut self, header: &Header, frame: &[Slice<'_>]) -> io::Result<Sent>;
    /// No more frames for the moment: what was gathered goes out.
    fn flush(&mut self) -> io::Result<()>;
    /// Bytes that the next frame may have together with its header, if there may be one.
    fn expect(&mut self) -> io::Result<Option<usize>>;
    /// Takes the next frame into `room`, its header before it.
    fn receive(&mut self, room: &[Slice<'_>]) -> io::Result<Received>;
}
