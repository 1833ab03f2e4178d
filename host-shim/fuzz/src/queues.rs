//! A device's handlers without threads, driven by a script: the guest writes its window and rings, the device serves.

use std::sync::Arc;

use porthole_vmm::pci::msix::{MsiLines, Msix};
use porthole_vmm::virtio::queue::{DeviceQueue, check_rings};
use porthole_vmm::virtio::shared::Shared;
use porthole_vmm::virtio::window::WindowMemory;
use porthole_vmm::virtio::{Handler, VirtioDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::script::{Op, decode};

/// Where the window is, and its bytes.
pub const BASE: u64 = 0x1000_0000;
/// See [`BASE`].
pub const SIZE: u64 = 0x4_0000;
/// Entries of each queue, unless it has fewer.
const ENTRIES: u16 = 16;
/// Bytes between the rings of two queues.
const RINGS: u64 = 0x1000;
/// The indirect table.
pub const INDIRECT: u64 = BASE + 0x1_0000;
/// Where buffers are.
const BUFFERS: u64 = BASE + 0x2_0000;

/// The address that a place stands for.
pub fn address(place: u8) -> u64 {
    let low = u64::from(place & 0x3f);
    match place >> 6 {
        // Neighbours of each other, so that buffers touch and overlap.
        0 | 1 => BUFFERS + 64 * u64::from(place & 0x7f),
        2 if low < 16 => BASE + SIZE - 8 * low,
        2 if low < 32 => INDIRECT + 16 * (low - 16),
        2 if low < 48 => BASE + RINGS * (low & 3) + 16 * (low & 12),
        2 => BASE - 8 + (low - 48),
        _ if low < 32 => u64::MAX - low,
        _ => 0x8000_0000 + low,
    }
}

/// What the lower bits of a length stand for: nothing, a status, nearly a header, a header, indirect tables.
const REST: [u32; 8] = [0, 1, 15, 16, 17, 32, 48, 100];

/// The bytes that a length stands for: 128 for each of its upper bits, and one of [`REST`].
fn length(code: u8) -> u32 {
    match code {
        0xff => u32::MAX,
        0xfe => 0x8000_0000,
        code => u32::from(code >> 3) * 128 + REST[usize::from(code & 7)],
    }
}

/// A device's queues as the guest has them in its window.
pub struct Guest {
    memory: Arc<WindowMemory>,
    posted: Vec<u16>,
    /// Entries of each queue.
    pub entries: Vec<u16>,
}

impl Guest {
    /// A guest for a device with queues of these sizes, in this window.
    pub fn new(memory: Arc<WindowMemory>, sizes: &[u16]) -> Self {
        Self {
            memory,
            posted: vec![0; sizes.len()],
            entries: sizes.iter().map(|s| ENTRIES.min(*s)).collect(),
        }
    }

    /// The window.
    pub fn memory(&self) -> Arc<WindowMemory> {
        self.memory.clone()
    }

    /// Writes zeros to all of it.
    pub fn clear(&self) {
        let zeros = vec![0; SIZE as usize];
        let _ = self.memory.write_slice(&zeros, GuestAddress(BASE));
    }

    /// Addresses of a queue's three parts.
    pub fn rings(queue: usize) -> [u64; 3] {
        let at = BASE + RINGS * queue as u64;
        [at, at + 0x400, at + 0x800]
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        // Places outside the window are for descriptors; the guest's own writes there do not reach the device.
        let _ = self.memory.write_obj(value, GuestAddress(at));
    }

    fn set_index(&self, queue: usize, index: u16) {
        self.write(index, Self::rings(queue)[1] + 2);
    }

    /// Does it, unless it is nothing that a guest does to its window.
    pub fn act(&mut self, op: Op) {
        let queues = self.posted.len();
        match op {
            Op::Descriptor {
                table,
                index,
                place,
                length: code,
                flags,
                next,
            } => {
                let table = match table {
                    0x80.. => INDIRECT,
                    queue => Self::rings(usize::from(queue) % queues)[0],
                };
                let at = table + 16 * u64::from(index % 32);
                self.write(address(place), at);
                self.write(length(code), at + 8);
                self.write(u16::from(flags & 7), at + 12);
                self.write(u16::from(next % 40), at + 14);
            }
            Op::Header {
                place,
                kind,
                sector,
            } => {
                let at = address(place);
                self.write(u32::from(kind % 16), at);
                let sector = if sector == 0xff {
                    u64::MAX
                } else {
                    sector.into()
                };
                self.write(sector, at.wrapping_add(8));
            }
            Op::Post { queue, head } => {
                let queue = usize::from(queue) % queues;
                let slot = self.posted[queue] % self.entries[queue];
                self.write(
                    u16::from(head % 20),
                    Self::rings(queue)[1] + 4 + 2 * u64::from(slot),
                );
                self.posted[queue] = self.posted[queue].wrapping_add(1);
                self.set_index(queue, self.posted[queue]);
            }
            Op::Index { queue, more } => {
                let queue = usize::from(queue) % queues;
                self.set_index(queue, self.posted[queue].wrapping_add(more.into()));
            }
            Op::Poke { offset, value } => {
                self.write(value, BASE + 16 * (u64::from(offset) % (SIZE / 16)));
            }
            Op::Ring { .. } | Op::Config { .. } | Op::Register { .. } => {}
        }
    }
}

/// Starts the device's handlers over fresh queues.
fn start(
    device: &mut dyn VirtioDevice,
    guest: &Guest,
    shared: &Arc<Shared>,
) -> Option<Vec<Box<dyn Handler>>> {
    let mut queues = Vec::new();
    for (index, entries) in guest.entries.iter().enumerate() {
        let mut queue = Queue::new(*entries).ok()?;
        let [table, available, used] = Guest::rings(index).map(|at| Some(at as u32));
        queue.set_desc_table_address(table, Some(0));
        queue.set_avail_ring_address(available, Some(0));
        queue.set_used_ring_address(used, Some(0));
        queue.set_event_idx(index % 2 == 0);
        queue.set_ready(true);
        check_rings(&guest.memory, index as u16, &queue).expect("rings in the window");
        queues.push(DeviceQueue::new(
            queue,
            index as u16,
            guest.memory.clone(),
            shared.clone(),
            EventFd::new(libc::EFD_NONBLOCK).ok()?,
            true,
        ));
    }
    device.start(device.features(), queues, shared).ok()
}

/// Plays a script against a device. After a fault the driver resets the device and starts it again, as a real one
/// would; when all is over nothing may be in flight.
pub fn drive(device: &mut dyn VirtioDevice, data: &[u8]) {
    let window = [(GuestAddress(BASE), SIZE as usize)];
    let Ok(memory) = WindowMemory::from_ranges(&window) else {
        return;
    };
    let sizes = device.queue_sizes().to_vec();
    let lines = Arc::new(MsiLines::new(64, Vec::new()));
    let msix = Arc::new(Msix::new("fuzz", 0, lines));
    let shared = Arc::new(Shared::new("fuzz", sizes.len(), msix));
    let mut guest = Guest::new(Arc::new(memory), &sizes);
    let Some(mut handlers) = start(device, &guest, &shared) else {
        return;
    };
    for op in decode(data) {
        let Op::Ring { queue } = op else {
            guest.act(op);
            continue;
        };
        let queue = u16::from(queue) % sizes.len() as u16;
        let handler = handlers
            .iter_mut()
            .find(|h| h.queues().iter().any(|q| q.index() == queue));
        if handler.is_some_and(|h| h.doorbell(queue).is_err()) {
            handlers.clear();
            let fresh = WindowMemory::from_ranges(&window).expect("memory");
            guest = Guest::new(Arc::new(fresh), &sizes);
            handlers = start(device, &guest, &shared).expect("a device starts again after a reset");
        }
    }
    drop(handlers);
    let stats = shared.stats().snapshot();
    assert_eq!(stats.slots_in_flight, 0, "slots are lost: {stats:?}");
}
