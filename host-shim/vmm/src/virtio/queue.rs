//! A split virtqueue as its device sees it: `virtio_queue::Queue` for the rings, `chain` for descriptors, the
//! window for memory. Every mistake of the guest comes out as a `Fault`.
//! Source: VIRTIO 1.2, 2.7 (split virtqueues).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError, check};
use super::shared::Shared;
use super::window::WindowMemory;

/// Why a device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A chain or ring broke the rules.
    #[error("queue {queue}: {error}")]
    Chain {
        /// Queue number.
        queue: u16,
        /// What is wrong.
        error: ChainError,
    },
    /// A ring's state cannot be.
    #[error("queue {queue}: {error}")]
    Ring {
        /// Queue number.
        queue: u16,
        /// What is wrong.
        error: virtio_queue::Error,
    },
    /// The driver's set-up cannot work.
    #[error("{0}")]
    Setup(&'static str),
    /// The host's side failed.
    #[error("the host's side failed: {0}")]
    Host(#[from] io::Error),
}

/// Fails unless a queue's three rings lie in the window.
pub fn check_rings(memory: &WindowMemory, index: u16, queue: &Queue) -> Result<(), Fault> {
    let entries = u64::from(queue.size());
    [
        ("descriptor table", queue.desc_table(), 16 * entries),
        ("available ring", queue.avail_ring(), 6 + 2 * entries),
        ("used ring", queue.used_ring(), 6 + 8 * entries),
    ]
    .into_iter()
    .try_for_each(|(what, address, length)| check(memory, what, address, length))
    .map_err(|error| Fault::Chain {
        queue: index,
        error,
    })
}

/// A queue in use.
pub struct DeviceQueue {
    queue: Queue,
    index: u16,
    memory: Arc<WindowMemory>,
    shared: Arc<Shared>,
    doorbell: EventFd,
    indirect: bool,
    /// Chains given back, to be filled again.
    spare: Vec<Chain>,
    /// Slots of the chains that are out.
    slots: u64,
    /// Chains given back since the driver was last considered for an interrupt.
    given: u16,
}

impl DeviceQueue {
    /// A queue whose rings were checked; `indirect`: the feature was negotiated.
    pub fn new(
        queue: Queue,
        index: u16,
        memory: Arc<WindowMemory>,
        shared: Arc<Shared>,
        doorbell: EventFd,
        indirect: bool,
    ) -> Self {
        Self {
            queue,
            index,
            memory,
            shared,
            doorbell,
            indirect,
            spare: Vec::new(),
            slots: 0,
            given: 0,
        }
    }

    /// Queue number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries of its rings.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where its descriptor table, available ring and used ring are. A device needs none of them; tests with devices that
    /// break the rules do.
    pub fn rings(&self) -> [u64; 3] {
        let queue = &self.queue;
        [queue.desc_table(), queue.avail_ring(), queue.used_ring()]
    }

    /// What the driver's notifications signal.
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// The device looks at the queue again, after whatever else the worker waits for: so no driver keeps its thread.
    pub fn again(&self) {
        // A counter that is full is a signal too.
        let _ = self.doorbell.write(1);
    }

    /// The device's memory.
    pub fn memory(&self) -> &WindowMemory {
        &self.memory
    }

    /// The device's memory, for whoever uses it across calls that change the queue.
    pub fn window(&self) -> Arc<WindowMemory> {
        self.memory.clone()
    }

    /// The next chain that the driver made available. Each is given back by [`DeviceQueue::complete`] or put back by
    /// [`DeviceQueue::undo_pop`].
    pub fn pop(&mut self) -> Result<Option<Chain>, Fault> {
        let index = self.index;
        let mut available = self
            .queue
            .iter(&*self.memory)
            .map_err(|error| Fault::Ring {
                queue: index,
                error,
            })?;
        let Some(head) = available.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        let mut chain = self.spare.pop().unwrap_or_default();
        let table = (self.queue.desc_table(), self.queue.size());
        chain
            .refill(&self.memory, table, head, self.indirect)
            .map_err(|error| self.broken(error))?;
        self.slots += chain.slots();
        self.shared.stats().took(chain.slots());
        Ok(Some(chain))
    }

    /// Puts the chain that was popped last back: it is the next to be popped.
    pub fn undo_pop(&mut self, chain: Chain) {
        self.queue.go_to_previous_position();
        self.slots = self.slots.saturating_sub(chain.slots());
        self.shared.stats().untook(chain.slots());
        self.spare.push(chain);
    }

    /// Gives a chain back with `written` bytes in its writable buffers.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), Fault> {
        self.queue
            .add_used(&*self.memory, chain.head(), written)
            .map_err(|e| self.ring(e))?;
        self.gave(chain, written);
        Ok(())
    }

    /// Gives chains back of which the driver sees all or none: a frame that takes several (VIRTIO 1.2, 5.1.6.4).
    pub fn complete_together(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), Fault> {
        let mut chains = chains.into_iter().peekable();
        while let Some((chain, written)) = chains.next() {
            if chains.peek().is_none() {
                return self.complete(chain, written);
            }
            // An entry beyond the index that the driver sees; the last one moves that over all of them.
            let next = self.queue.next_used();
            let place = self.queue.used_ring() + 4 + 8 * u64::from(next % self.queue.size());
            let entry = u64::from(written) << 32 | u64::from(chain.head());
            self.memory
                .write_obj(entry.to_le(), GuestAddress(place))
                .map_err(|e| self.ring(virtio_queue::Error::GuestMemory(e)))?;
            self.queue.set_next_used(next.wrapping_add(1));
            self.gave(chain, written);
        }
        Ok(())
    }

    fn gave(&mut self, chain: Chain, written: u32) {
        self.given = self.given.wrapping_add(1);
        self.slots = self.slots.saturating_sub(chain.slots());
        let stats = self.shared.stats();
        stats.gave(chain.slots(), chain.readable_len(), written);
        self.spare.push(chain);
    }

    /// Serves chains while there are any, at most `turn` of them before the worker's other duties get theirs, and
    /// interrupts once for all. `one` serves a chain and says how many bytes it wrote, or `None` if the chain has to wait
    /// for something else than the driver.
    pub fn serve(
        &mut self,
        turn: usize,
        mut one: impl FnMut(&Self, &Chain) -> Result<Option<u32>, Fault>,
    ) -> Result<(), Fault> {
        let mut turn = 0..turn;
        'work: loop {
            self.disable_notification()?;
            while let Some(chain) = self.pop()? {
                if turn.next().is_none() {
                    self.undo_pop(chain);
                    self.again();
                    break 'work;
                }
                match one(self, &chain)? {
                    Some(written) => self.complete(chain, written)?,
                    None => {
                        self.undo_pop(chain);
                        break 'work;
                    }
                }
            }
            if !self.enable_notification()? {
                break;
            }
        }
        self.notify()
    }

    /// A chain of this queue broke the rules.
    pub fn broken(&self, error: ChainError) -> Fault {
        Fault::Chain {
            queue: self.index,
            error,
        }
    }

    fn ring(&self, error: virtio_queue::Error) -> Fault {
        Fault::Ring {
            queue: self.index,
            error,
        }
    }

    /// Interrupts the driver, if it wants to hear of what was completed since the last time.
    pub fn notify(&mut self) -> Result<(), Fault> {
        // Our own count: the crate's does not know of chains given back together, and leaves the flag to its user.
        let given = std::mem::take(&mut self.given);
        let avail = self.queue.avail_ring();
        let event_index = self.queue.event_idx_enabled();
        let place = if event_index {
            avail + 4 + 2 * u64::from(self.queue.size())
        } else {
            avail
        };
        // What was given back is visible before we look whether the driver wants to hear of it.
        fence(Ordering::SeqCst);
        let word: u16 = self
            .memory
            .load(GuestAddress(place), Ordering::Relaxed)
            .map_err(|e| self.ring(virtio_queue::Error::GuestMemory(e)))?;
        let word = u16::from_le(word);
        let wanted = if event_index {
            // used_event is one of those given back (VIRTIO 1.2, 2.7.7.2).
            let behind = self.queue.next_used().wrapping_sub(word).wrapping_sub(1);
            behind < given
        } else {
            given > 0 && word & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        };
        if wanted {
            self.shared.interrupt_queue(self.index);
        }
        Ok(())
    }

    /// The driver need not ring while the device works.
    pub fn disable_notification(&mut self) -> Result<(), Fault> {
        self.queue
            .disable_notification(&*self.memory)
            .map_err(|e| self.ring(e))
    }

    /// The driver has to ring again; true if something came in the meantime.
    pub fn enable_notification(&mut self) -> Result<bool, Fault> {
        self.queue
            .enable_notification(&*self.memory)
            .map_err(|e| self.ring(e))
    }
}

impl Drop for DeviceQueue {
    fn drop(&mut self) {
        self.shared.stats().dropped(self.slots);
    }
}

#[cfg(test)]
pub(crate) mod tests;
