//! A pair of queues at work: frames between the guest's buffers and a backend, in the worker thread.
//! Receive buffers are held back until there is a frame for them, so that its length decides how many it takes.
//! Source: VIRTIO 1.2, 5.1.6.2 (transmission), 5.1.6.4 (receiving).

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::backend::{Backend, Received, Sent};
use super::control::Control;
use super::header::{FRAME_MIN, HEADER_SIZE, Header, NUM_BUFFERS};
use crate::virtio::chain::{Chain, Slice};
use crate::virtio::queue::{DeviceQueue, Fault};
use crate::virtio::shared::Shared;
use crate::virtio::window::WindowMemory;
use crate::virtio::{Handler, Source, feature};

/// Frames in one direction before the other one, and whoever wants the thread to end, get their turn.
const TURN: usize = 256;
/// Parts of buffers for which there is room at once without asking for more.
const PARTS: usize = 64;

/// A pair of queues.
pub struct Pair {
    /// Receive, transmit, and the control queue with the first pair: those that the driver enabled.
    queues: Vec<DeviceQueue>,
    receive: u16,
    backend: Box<dyn Backend>,
    control: Option<Control>,
    features: u64,
    shared: Arc<Shared>,
    /// Receive buffers that wait for a frame, and in how many parts they are.
    held: VecDeque<(Chain, usize)>,
    /// The backend had no room for a frame.
    blocked: bool,
    /// The worker was not told yet that it works.
    fresh: bool,
}

impl Pair {
    /// Pair `index` over its queues.
    pub fn new(
        queues: Vec<DeviceQueue>,
        index: u16,
        backend: Box<dyn Backend>,
        control: Option<Control>,
        features: u64,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            queues,
            receive: 2 * index,
            backend,
            control,
            features,
            shared: shared.clone(),
            held: VecDeque::new(),
            blocked: false,
            fresh: true,
        }
    }

    fn position(&self, index: u16) -> Option<usize> {
        self.queues.iter().position(|q| q.index() == index)
    }

    /// Frames of the backend to the guest, while there are frames and buffers.
    fn receive(&mut self) -> Result<(), Fault> {
        let Some(position) = self.position(self.receive) else {
            return Ok(());
        };
        let memory = self.queues[position].window();
        let mut parts: Vec<Slice<'_>> = Vec::with_capacity(PARTS);
        for (chain, _) in &self.held {
            add_parts(chain, &memory, &mut parts, &self.queues[position])?;
        }
        let mut room: usize = parts.iter().map(|part| part.len()).sum();
        let mergeable = self.features & feature(VIRTIO_NET_F_MRG_RXBUF) != 0;
        let mut used = false;
        let mut turn = 0..TURN;
        while let Some(wanted) = self.backend.expect()? {
            if turn.next().is_none() {
                self.queues[position].again();
                break;
            }
            let queue = &mut self.queues[position];
            // A driver that has nothing more to give gets the frame in what it gave, or not at all.
            let most = usize::from(queue.size());
            let enough = |room, held| held > 0 && (!mergeable || room >= wanted || held >= most);
            let mut starved = false;
            while !enough(room, self.held.len()) {
                match queue.pop()? {
                    Some(chain) => {
                        let count = add_parts(&chain, &memory, &mut parts, queue)?;
                        room += chain.writable_len() as usize;
                        self.held.push_back((chain, count));
                    }
                    // With this its doorbell will be rung, and no buffer comes unseen before.
                    None if queue.enable_notification()? => {}
                    None => {
                        starved = true;
                        break;
                    }
                }
            }
            if starved {
                break;
            }
            let count = match self.held.front() {
                Some((_, count)) if !mergeable => *count,
                _ => parts.len(),
            };
            match self.backend.receive(&parts[..count])? {
                Received::Frame(length) => {
                    let (gone, bytes) = self.deliver(position, length, &memory)?;
                    parts.drain(..gone);
                    room -= bytes;
                    used = true;
                }
                Received::Dropped => self.shared.stats().lost(),
                Received::Nothing => {}
            }
        }
        if used {
            self.queues[position].notify()?;
        }
        Ok(())
    }

    /// Gives back the buffers that `length` bytes are in: how many parts and bytes of buffers that were.
    fn deliver(
        &mut self,
        position: usize,
        length: usize,
        memory: &WindowMemory,
    ) -> Result<(usize, usize), Fault> {
        let queue = &mut self.queues[position];
        let (mut covered, mut chains, mut gone) = (0, 0u16, 0);
        for (chain, parts) in &self.held {
            covered += chain.writable_len() as usize;
            chains += 1;
            gone += parts;
            if covered >= length {
                break;
            }
        }
        if let Some((first, _)) = self.held.front() {
            first
                .write(memory, NUM_BUFFERS as u32, &chains.to_le_bytes())
                .map_err(|error| queue.broken(error))?;
        }
        let mut left = length;
        queue.complete_together(self.held.drain(..usize::from(chains)).map(|(chain, _)| {
            let written = left.min(chain.writable_len() as usize);
            left -= written;
            (chain, written as u32)
        }))?;
        Ok((gone, covered))
    }

    /// Frames of the guest to the backend, while there are any and it takes them.
    fn transmit(&mut self) -> Result<(), Fault> {
        let Some(position) = self.position(self.receive + 1) else {
            return Ok(());
        };
        let queue = &mut self.queues[position];
        let memory = queue.window();
        let mut parts: Vec<Slice<'_>> = Vec::with_capacity(PARTS);
        let mut used = false;
        let mut turn = 0..TURN;
        self.blocked = false;
        'work: loop {
            queue.disable_notification()?;
            while let Some(chain) = queue.pop()? {
                if turn.next().is_none() {
                    queue.undo_pop(chain);
                    queue.again();
                    break 'work;
                }
                parts.clear();
                let header = read_header(&chain, &memory, queue)?;
                let length = chain.readable_len() as usize - HEADER_SIZE;
                for part in chain.readable_slices(&memory, HEADER_SIZE as u32, length) {
                    parts.push(part.map_err(|error| queue.broken(error))?);
                }
                let sent = match header.granted(self.features) {
                    Some(header) if length >= FRAME_MIN => self.backend.send(&header, &parts)?,
                    _ => Sent::Dropped,
                };
                if sent == Sent::Full {
                    queue.undo_pop(chain);
                    self.blocked = true;
                    break 'work;
                }
                if sent == Sent::Dropped {
                    self.shared.stats().lost();
                }
                queue.complete(chain, 0)?;
                used = true;
            }
            if !queue.enable_notification()? {
                break;
            }
        }
        self.backend.flush()?;
        if used { queue.notify() } else { Ok(()) }
    }
}

/// The parts of a receive buffer: how many.
fn add_parts<'m>(
    chain: &Chain,
    memory: &'m WindowMemory,
    parts: &mut Vec<Slice<'m>>,
    queue: &DeviceQueue,
) -> Result<usize, Fault> {
    if (chain.writable_len() as usize) < HEADER_SIZE {
        return Err(Fault::Setup(
            "a receive buffer is shorter than a frame's header",
        ));
    }
    let before = parts.len();
    for part in chain.writable_slices(memory, 0, usize::MAX) {
        parts.push(part.map_err(|error| queue.broken(error))?);
    }
    Ok(parts.len() - before)
}

/// Copied once: what is checked is what is used.
fn read_header(chain: &Chain, memory: &WindowMemory, queue: &DeviceQueue) -> Result<Header, Fault> {
    let mut header = Header::default();
    let read = chain
        .read(memory, 0, &mut header.0)
        .map_err(|error| queue.broken(error))?;
    if read == HEADER_SIZE {
        Ok(header)
    } else {
        Err(Fault::Setup("a frame is shorter than its header"))
    }
}

impl Handler for Pair {
    fn sources(&self) -> Vec<Source> {
        self.backend.sources()
    }

    fn doorbell(&mut self, index: u16) -> Result<(), Fault> {
        if std::mem::take(&mut self.fresh) {
            self.backend.watched()?;
        }
        if index == self.receive {
            return self.receive();
        }
        if index == self.receive + 1 {
            return self.transmit();
        }
        match (
            &mut self.control,
            self.queues.iter_mut().find(|q| q.index() == index),
        ) {
            (Some(control), Some(queue)) => control.serve(queue),
            _ => Ok(()),
        }
    }

    fn event(&mut self, source: usize) -> Result<(), Fault> {
        self.backend.event(source)?;
        if self.blocked {
            self.transmit()?;
        }
        self.receive()
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

#[cfg(test)]
mod tests;
