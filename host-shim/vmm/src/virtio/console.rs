//! virtio-console (VIRTIO 1.2, 5.3): one port, a receive and a transmit queue.
//! Where bytes come from and go to is a `Backend`; this module only moves them between it and the window.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::queue::{DeviceQueue, Fault};
use super::shared::Shared;
use super::{BufferNeed, Handler, Source, VirtioDevice, read_bytes};
use crate::bus::lock;
use crate::seccomp::Right;

const ID: u16 = 3;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Bytes copied at once.
const PIECE: usize = 4096;
/// Buffers and pieces of buffers before whoever wants the thread to end gets its turn.
const TURN: u16 = 256;
/// Bytes of input that wait for the guest.
const INPUT_MAX: usize = 64 << 10;

/// Bytes on their way to the guest: filled by whoever has input, emptied by the device.
pub struct Input {
    bytes: Mutex<VecDeque<u8>>,
    /// Signalled when bytes went out.
    drained: Condvar,
    /// There is input.
    filled: EventFd,
}

impl Input {
    /// Nothing in it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            bytes: Mutex::new(VecDeque::new()),
            drained: Condvar::new(),
            filled: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Takes as many of the bytes as there is room for, and says how many.
    pub fn push(&self, data: &[u8]) -> usize {
        let taken = fill(&mut lock(&self.bytes), data);
        self.wake(taken);
        taken
    }

    /// Takes all of the bytes, waiting for room where there is none.
    pub fn push_all(&self, mut data: &[u8]) {
        while !data.is_empty() {
            let mut bytes = lock(&self.bytes);
            while bytes.len() >= INPUT_MAX {
                bytes = self
                    .drained
                    .wait(bytes)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let taken = fill(&mut bytes, data);
            drop(bytes);
            self.wake(taken);
            data = &data[taken..];
        }
    }

    fn wake(&self, taken: usize) {
        if taken > 0 {
            // A counter that is full is a signal too.
            let _ = self.filled.write(1);
        }
    }

    fn is_empty(&self) -> bool {
        lock(&self.bytes).is_empty()
    }

    fn peek(&self, data: &mut [u8]) -> usize {
        let bytes = lock(&self.bytes);
        let count = data.len().min(bytes.len());
        for (to, from) in data.iter_mut().zip(bytes.iter()) {
            *to = *from;
        }
        count
    }

    fn consume(&self, count: usize) {
        lock(&self.bytes).drain(..count);
        self.drained.notify_all();
    }
}

fn fill(bytes: &mut VecDeque<u8>, data: &[u8]) -> usize {
    let taken = data.len().min(INPUT_MAX - bytes.len());
    bytes.extend(&data[..taken]);
    taken
}

/// Where the guest's bytes go.
pub enum Output {
    /// Back to the guest.
    Echo(Arc<Input>),
    /// To a file or stream. On an error the bytes are dropped.
    Stream(Box<dyn Write + Send>),
}

impl Output {
    /// Takes as many bytes as it can now.
    fn write(&mut self, data: &[u8]) -> usize {
        match self {
            Self::Echo(input) => input.push(data),
            Self::Stream(stream) => {
                if let Err(e) = stream.write_all(data).and_then(|()| stream.flush()) {
                    tracing::debug!("console output lost: {e}");
                }
                data.len()
            }
        }
    }
}

/// The device.
pub struct Console {
    config: [u8; 12],
    input: Arc<Input>,
    output: Arc<Mutex<Output>>,
}

impl Console {
    /// A console between `input` and `output`.
    pub fn new(input: Arc<Input>, output: Output) -> Self {
        let mut config = [0; 12];
        // max_nr_ports, which counts only with MULTIPORT: one.
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        Self {
            config,
            input,
            output: Arc::new(Mutex::new(output)),
        }
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        // Simple communication controller, other.
        [0x07, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_len(&self) -> usize {
        self.config.len()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn buffers(&self) -> BufferNeed {
        // A page for each way; usually one for each entry, as Linux posts them.
        let pages = |n: u64| n * porthole_abi::PAGE_SIZE;
        BufferNeed {
            least: pages(2),
            usual: QUEUE_SIZES.iter().map(|s| pages(u64::from(*s))).sum(),
        }
    }

    fn rights(&self) -> &'static [Right] {
        &[]
    }

    fn start(
        &mut self,
        _: u64,
        queues: Vec<DeviceQueue>,
        _: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        Ok(vec![Box::new(Port {
            queues,
            input: self.input.clone(),
            output: self.output.clone(),
            sending: None,
        })])
    }
}

/// The port at work.
struct Port {
    queues: Vec<DeviceQueue>,
    input: Arc<Input>,
    output: Arc<Mutex<Output>>,
    /// A chain that the output did not take whole, and how much it took.
    sending: Option<(Chain, u32)>,
}

impl Port {
    fn queue(&mut self, index: u16) -> Option<&mut DeviceQueue> {
        self.queues.iter_mut().find(|q| q.index() == index)
    }

    /// Input to receive buffers, while there are both.
    fn receive(&mut self) -> Result<(), Fault> {
        let input = self.input.clone();
        let Some(queue) = self.queue(RECEIVE) else {
            return Ok(());
        };
        let mut used = false;
        let mut turn = 0..TURN;
        'work: loop {
            queue.disable_notification()?;
            while !input.is_empty() {
                if turn.next().is_none() {
                    queue.again();
                    break 'work;
                }
                let Some(chain) = queue.pop()? else { break };
                let mut written = 0;
                let mut piece = [0; PIECE];
                while written < chain.writable_len() {
                    let count = input.peek(&mut piece);
                    let done = chain
                        .write(queue.memory(), written, &piece[..count])
                        .map_err(|error| queue.broken(error))?;
                    input.consume(done);
                    written += done as u32;
                    if done == 0 {
                        break;
                    }
                }
                queue.complete(chain, written)?;
                used = true;
            }
            if !queue.enable_notification()? || input.is_empty() {
                break;
            }
        }
        if used { queue.notify() } else { Ok(()) }
    }

    /// Transmit buffers to the output, while there are any and it takes them.
    fn transmit(&mut self) -> Result<(), Fault> {
        let (output, mut sending) = (self.output.clone(), self.sending.take());
        let Some(queue) = self.queue(TRANSMIT) else {
            return Ok(());
        };
        let mut output = lock(&output);
        let mut used = false;
        let mut turn = 0..TURN;
        'work: loop {
            queue.disable_notification()?;
            loop {
                let next = match sending.take() {
                    Some(unfinished) => Some(unfinished),
                    None => queue.pop()?.map(|chain| (chain, 0)),
                };
                let Some((chain, mut done)) = next else { break };
                loop {
                    if turn.next().is_none() {
                        sending = Some((chain, done));
                        queue.again();
                        break 'work;
                    }
                    if done >= chain.readable_len() {
                        break;
                    }
                    let mut piece = [0; PIECE];
                    let count = chain
                        .read(queue.memory(), done, &mut piece)
                        .map_err(|error| queue.broken(error))?;
                    let taken = output.write(&piece[..count]);
                    done += taken as u32;
                    if taken < count {
                        sending = Some((chain, done));
                        break 'work;
                    }
                }
                queue.complete(chain, 0)?;
                used = true;
            }
            if !queue.enable_notification()? {
                break;
            }
        }
        if used {
            queue.notify()?;
        }
        self.sending = sending;
        Ok(())
    }
}

impl Handler for Port {
    fn sources(&self) -> Vec<Source> {
        vec![Source::readable(self.input.filled.as_raw_fd())]
    }

    fn doorbell(&mut self, queue: u16) -> Result<(), Fault> {
        match queue {
            RECEIVE => {
                self.receive()?;
                // An echo that was held up has room now.
                if self.sending.is_some() {
                    self.transmit()?;
                }
                Ok(())
            }
            _ => self.transmit(),
        }
    }

    fn event(&mut self, _: usize) -> Result<(), Fault> {
        let _ = self.input.filled.read();
        self.doorbell(RECEIVE)
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

#[cfg(test)]
mod tests;
