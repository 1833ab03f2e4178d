//! A virtio device whose model is small and whose queues lie: it writes the used ring itself, and more than that.
//! What a request means is the model's, which lie it is `lie`'s. Source: VIRTIO 1.2, 2.7 (split virtqueues).

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use porthole_vmm::seccomp::Right;
use porthole_vmm::virtio::chain::Chain;
use porthole_vmm::virtio::queue::{DeviceQueue, Fault};
use porthole_vmm::virtio::shared::Shared;
use porthole_vmm::virtio::window::WindowMemory;
use porthole_vmm::virtio::{BufferNeed, Handler, Source, VirtioDevice, read_bytes};
use vm_memory::{Bytes, GuestAddress};

use crate::lie::Lie;
use crate::models::Model;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const DESC_SIZE: u64 = 16;

type Shelf = Arc<Mutex<Box<dyn Model>>>;

fn lock(model: &Shelf) -> MutexGuard<'_, Box<dyn Model>> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device.
pub struct Lying {
    model: Shelf,
    lie: Arc<Lie>,
    identity: (u16, [u8; 3]),
    sizes: Vec<u16>,
    features: u64,
    config_len: usize,
}

impl Lying {
    /// A device of this model that tells this lie.
    pub fn new(model: Box<dyn Model>, lie: Arc<Lie>) -> Self {
        Self {
            identity: (model.id(), model.class()),
            sizes: model.queue_sizes().to_vec(),
            features: model.features(),
            config_len: model.config(&Lie::default()).len(),
            model: Arc::new(Mutex::new(model)),
            lie,
        }
    }
}

impl VirtioDevice for Lying {
    fn id(&self) -> u16 {
        self.identity.0
    }

    fn class(&self) -> [u8; 3] {
        self.identity.1
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_len(&self) -> usize {
        self.config_len
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&lock(&self.model).config(&self.lie), offset, data);
    }

    fn buffers(&self) -> BufferNeed {
        BufferNeed {
            least: 64 << 10,
            usual: 768 << 10,
        }
    }

    fn rights(&self) -> &'static [Right] {
        &[]
    }

    fn start(
        &mut self,
        _: u64,
        queues: Vec<DeviceQueue>,
        shared: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        lock(&self.model).restart();
        let rings = queues.iter().map(|_| Ring::default()).collect();
        Ok(vec![Box::new(Work {
            queues,
            rings,
            says: VecDeque::new(),
            model: self.model.clone(),
            lie: self.lie.clone(),
            shared: shared.clone(),
        })])
    }
}

/// What the device knows of a queue.
#[derive(Default)]
struct Ring {
    /// The next index of the used ring.
    used: u16,
    /// Buffers that wait for something to be put into them.
    waiting: VecDeque<Chain>,
}

struct Work {
    queues: Vec<DeviceQueue>,
    rings: Vec<Ring>,
    /// What waits for buffers: queue and bytes.
    says: VecDeque<(u16, Vec<u8>)>,
    model: Shelf,
    lie: Arc<Lie>,
    shared: Arc<Shared>,
}

impl Work {
    fn place(&self, queue: u16) -> Option<usize> {
        self.queues.iter().position(|q| q.index() == queue)
    }

    fn serve(&mut self, at: usize) -> Result<(), Fault> {
        let queue = self.queues[at].index();
        loop {
            self.queues[at].disable_notification()?;
            while let Some(chain) = self.queues[at].pop()? {
                if lock(&self.model).keeps(queue) {
                    self.rings[at].waiting.push_back(chain);
                } else {
                    self.answer(at, chain)?;
                }
            }
            if !self.queues[at].enable_notification()? {
                break;
            }
        }
        self.speak()
    }

    fn answer(&mut self, at: usize, chain: Chain) -> Result<(), Fault> {
        let queue = &self.queues[at];
        let broken = |error| queue.broken(error);
        let mut request = vec![0; chain.readable_len() as usize];
        chain
            .read(queue.memory(), 0, &mut request)
            .map_err(broken)?;
        let room = chain.writable_len();
        let answer = lock(&self.model).serve(&self.lie, queue.index(), &request, room);
        for (offset, bytes) in &answer.writes {
            chain
                .write(queue.memory(), *offset, bytes)
                .map_err(broken)?;
        }
        self.says.extend(answer.says);
        if answer.config_changed {
            self.shared.config_changed();
        }
        self.give(at, &chain, answer.written)
    }

    /// Puts what there is to say into buffers that wait for it.
    fn speak(&mut self) -> Result<(), Fault> {
        while let Some((queue, _)) = self.says.front() {
            let Some(at) = self.place(*queue) else {
                self.says.pop_front();
                continue;
            };
            let Some(chain) = self.rings[at].waiting.pop_front() else {
                return Ok(());
            };
            let bytes = self.says.pop_front().map(|(_, b)| b).unwrap_or_default();
            let queue = &self.queues[at];
            let done = chain
                .write(queue.memory(), 0, &bytes)
                .map_err(|error| queue.broken(error))?;
            self.give(at, &chain, done as u32)?;
        }
        Ok(())
    }

    /// Gives a chain back, with so many bytes written, or with what the lie makes of it.
    fn give(&mut self, at: usize, chain: &Chain, written: u32) -> Result<(), Fault> {
        let (queue, ring, lie) = (&self.queues[at], &mut self.rings[at], &*self.lie);
        let memory = queue.memory();
        let size = queue.size();
        let [table, _, used] = queue.rings();
        let (mut id, mut length, mut entries, mut ahead) = (u32::from(chain.head()), written, 1, 0);
        if lock(&self.model).lies_on(queue.index()) {
            if lie.is("len-zero") {
                length = 0;
            } else if lie.is("len-short") {
                length = 1;
            } else if lie.is("len-less") {
                length = written.saturating_sub(1);
            } else if lie.is("len-over") {
                length = chain.writable_len() + 64;
            } else if lie.is("len-max") {
                length = u32::MAX;
            } else if lie.is("id-range") {
                id = u32::from(size) + 7;
            } else if lie.is("id-free") {
                let posted = |n: &u16| {
                    *n == chain.head() || ring.waiting.iter().any(|other| other.head() == *n)
                };
                id = (0..size).rev().find(|n| !posted(n)).unwrap_or(0).into();
            } else if lie.is("id-twice") {
                entries = 2;
            } else if lie.is("idx-jump") {
                ahead = 2 * size + 1;
            } else if lie.is("ring-rewrite") {
                rewrite(memory, table, chain.head(), size)?;
            }
        }
        for _ in 0..entries {
            let place = used + 4 + 8 * u64::from(ring.used % size);
            let entry = u64::from(length) << 32 | u64::from(id);
            put(memory, place, entry)?;
            ring.used = ring.used.wrapping_add(1);
        }
        let index = ring.used.wrapping_add(ahead);
        memory
            .store(index, GuestAddress(used + 2), Ordering::Release)
            .map_err(io::Error::other)?;
        self.shared.interrupt_queue(queue.index());
        Ok(())
    }
}

fn put<T: vm_memory::ByteValued>(memory: &WindowMemory, at: u64, value: T) -> Result<(), Fault> {
    memory
        .write_obj(value, GuestAddress(at))
        .map_err(|e| io::Error::other(e).into())
}

fn get<T: vm_memory::ByteValued>(memory: &WindowMemory, at: u64) -> Result<T, Fault> {
    memory
        .read_obj(GuestAddress(at))
        .map_err(|e| io::Error::other(e).into())
}

/// Rewrites the descriptors of a chain that the driver has posted: its indirect table, and its head, which then leads
/// on to a descriptor of somebody else.
fn rewrite(memory: &WindowMemory, table: u64, head: u16, size: u16) -> Result<(), Fault> {
    let at = table + DESC_SIZE * u64::from(head);
    let (address, length, flags): (u64, u32, u16) = (
        get(memory, at)?,
        get(memory, at + 8)?,
        get(memory, at + 12)?,
    );
    if flags & DESC_F_INDIRECT != 0 {
        for entry in 0..u64::from(length) / DESC_SIZE {
            scramble(memory, address + DESC_SIZE * entry, entry as u16 + 1)?;
        }
    }
    scramble(memory, at, (head + 1) % size)
}

fn scramble(memory: &WindowMemory, at: u64, next: u16) -> Result<(), Fault> {
    put(memory, at, 0xffff_ffff_ffff_f000_u64)?;
    put(memory, at + 8, u32::MAX)?;
    put(memory, at + 12, DESC_F_NEXT | DESC_F_WRITE)?;
    put(memory, at + 14, next)
}

impl Handler for Work {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn doorbell(&mut self, queue: u16) -> Result<(), Fault> {
        match self.place(queue) {
            Some(at) => self.serve(at),
            None => Ok(()),
        }
    }

    fn event(&mut self, _: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}
