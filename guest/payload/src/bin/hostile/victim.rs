//! A device under attack: its queues set up by hand in its window, chains written as the attack wants them, and what
//! shows afterwards. What an orderly driver does with each kind of device is in `health`, attacks are elsewhere.

use alloc::vec::Vec;

use porthole_payload::raw::{Memory, Raw};
use porthole_payload::{fail, interrupt};
use porthole_runtime::{reg, timer};
use virtio_drivers::transport::DeviceType;

/// Entries of a queue, if it can have so many.
const ENTRIES: u16 = 16;
/// Most queues that are used.
const QUEUES: u16 = 3;
/// Bytes of the window for each queue: descriptors, available and used ring.
const QUEUE_ROOM: u64 = 0x2000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0x1000;
/// Where indirect tables go: room for 1024 entries.
pub const TABLE: u64 = 0x6000;
/// Receive buffers.
const RECEIVE: u64 = 0xa000;
/// Bytes of each.
pub const BUFFER: u64 = 0x800;
/// How many are posted.
const BUFFERS: u16 = 8;
/// What is sent, and headers.
pub const SEND: u64 = 0xe000;
/// Where a device writes a status.
pub const STATUS: u64 = 0xf000;
/// Data, up to the guard.
pub const DATA: u64 = 0x1_0000;
/// Bytes at the window's end that no device is ever given.
const GUARD: u64 = 0x1000;
/// What stands there, and in private memory that no device may reach.
pub const CANARY: u64 = 0x4841_4e44_5320_4f46;

/// Id of the MSI-X capability.
const MSIX: u8 = 0x11;
/// Seconds until an answer is given up.
const PATIENCE: u64 = 300;

/// Descriptor flags (VIRTIO 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Status bits (VIRTIO 1.2, 2.1).
pub const DRIVER: u8 = 3;
pub const FEATURES_OK: u8 = 8;
pub const DRIVER_OK: u8 = 4;
pub const RUNNING: u8 = DRIVER | FEATURES_OK | DRIVER_OK;
pub const NEEDS_RESET: u8 = 64;

/// Features of every device.
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_VERSION_1: u64 = 1 << 32;

/// A descriptor as it stands in memory.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// A descriptor.
pub const fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

#[derive(Clone, Copy, Default)]
struct Ring {
    entries: u16,
    doorbell: u64,
    next: u16,
    seen: u16,
}

/// A device under attack.
pub struct Victim {
    /// As the VMM calls it in its log.
    pub name: &'static str,
    pub kind: DeviceType,
    pub raw: Raw,
    /// Feature bits of the device's own that are accepted where offered.
    wanted: u64,
    swiotlb: u64,
    rings: [Ring; QUEUES as usize],
    /// Attacks so far.
    pub attacks: u32,
    /// How many of them made the device ask for a reset.
    pub resets: u32,
}

impl Victim {
    pub fn new(
        (name, kind, wanted): (&'static str, DeviceType, u64),
        raw: Raw,
        swiotlb: u64,
    ) -> Self {
        let victim = Self {
            name,
            kind,
            raw,
            wanted,
            swiotlb,
            rings: [Ring::default(); QUEUES as usize],
            attacks: 0,
            resets: 0,
        };
        victim.guard();
        victim
    }

    /// Puts the canary behind everything that a device is given.
    pub fn guard(&self) {
        let window = self.window();
        window.fill(window.size() - GUARD, GUARD, CANARY);
    }

    /// Whether it is still there.
    pub fn guarded(&self) -> bool {
        let window = self.window();
        window
            .find_other(window.size() - GUARD, GUARD, CANARY)
            .is_none()
    }

    pub fn window(&self) -> Memory {
        self.raw.window
    }

    /// Address of a place in the window.
    pub fn bus(&self, offset: u64) -> u64 {
        self.window().base() + offset
    }

    /// Queues that it has, as far as they are used.
    pub fn queues(&self) -> u16 {
        (0..QUEUES)
            .take_while(|queue| {
                self.raw.select(*queue);
                self.raw.queue_size() != 0
            })
            .count() as u16
    }

    /// Queues whose buffers the device writes.
    pub fn receives(&self, queue: u16) -> bool {
        match self.kind {
            DeviceType::EntropySource => true,
            DeviceType::Block => false,
            DeviceType::Socket => queue != 1,
            _ => queue == 0,
        }
    }

    /// Queues in which buffers wait for something to arrive.
    pub fn waits(&self, queue: u16) -> bool {
        queue == 0 && !matches!(self.kind, DeviceType::EntropySource | DeviceType::Block)
    }

    /// VIRTIO_F_SWIOTLB.
    pub fn swiotlb(&self) -> u64 {
        self.swiotlb
    }

    /// Switches messages off, whatever an attack wrote there: MSI-X control, all other bits of which are read only.
    pub fn messages_off(&self) {
        let capabilities = self.raw.function.capabilities();
        let Ok(capabilities) = capabilities else {
            fail!("{}: its capability list has changed", self.name);
        };
        if let Some((_, at)) = capabilities.iter().find(|(id, _)| *id == MSIX) {
            self.raw.function.config().write16(at + 2, 0);
        }
    }

    /// All features that an orderly driver takes.
    pub fn features(&self) -> u64 {
        let all = self.wanted | self.swiotlb | F_INDIRECT | F_VERSION_1;
        self.raw.offered() & all
    }

    /// Resets it and offers `features`: whether it agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        if !self.raw.reset() {
            fail!("{}: it does not reset", self.name);
        }
        self.raw.set_status(DRIVER);
        self.raw.accept(features);
        self.raw.set_status(DRIVER | FEATURES_OK);
        self.raw.status() & FEATURES_OK != 0
    }

    /// Addresses of the rings of a queue.
    pub fn rings(&self, queue: u16) -> [u64; 3] {
        let at = self.bus(u64::from(queue) * QUEUE_ROOM);
        [at, at + AVAILABLE, at + USED]
    }

    /// Entries that a queue has.
    pub fn entries(&self, queue: u16) -> u16 {
        self.rings[usize::from(queue)].entries
    }

    /// Empties the rings of a queue of a device that was just reset, and chooses it.
    pub fn choose(&mut self, queue: u16) {
        let at = u64::from(queue) * QUEUE_ROOM;
        self.window().fill(at, QUEUE_ROOM, 0);
        self.raw.select(queue);
        self.rings[usize::from(queue)] = Ring {
            entries: ENTRIES.min(self.raw.queue_size()),
            doorbell: self.raw.doorbell(),
            ..Ring::default()
        };
    }

    /// Sets a queue up as it should be.
    pub fn set_up(&mut self, queue: u16) {
        self.choose(queue);
        self.raw.set_queue_size(self.entries(queue));
        self.raw.set_rings(self.rings(queue));
        self.raw.enable();
    }

    /// Resets and starts it with these features; `fill`: with receive buffers.
    pub fn start_with(&mut self, features: u64, fill: bool) {
        if !self.negotiate(features) {
            fail!("{}: it refuses the features {features:#x}", self.name);
        }
        let queues = self.queues();
        for queue in 0..queues {
            self.set_up(queue);
        }
        self.raw.set_status(RUNNING);
        if self.raw.status() != RUNNING {
            fail!(
                "{}: status {:#x} after its start",
                self.name,
                self.raw.status()
            );
        }
        for queue in 0..queues {
            if fill && self.waits(queue) {
                for slot in 0..BUFFERS {
                    self.post_buffer(queue, slot);
                }
                self.kick(queue);
            }
        }
    }

    /// Resets and starts it as an orderly driver does.
    pub fn start(&mut self) {
        self.start_with(self.features(), true);
    }

    fn post_buffer(&mut self, queue: u16, slot: u16) {
        let at = self.bus(RECEIVE + u64::from(slot) * BUFFER);
        self.describe(queue, slot, descriptor(at, BUFFER as u32, WRITE, 0));
        self.offer(queue, slot);
    }

    /// Writes a descriptor of a queue.
    pub fn describe(&self, queue: u16, index: u16, d: Descriptor) {
        let at = u64::from(queue) * QUEUE_ROOM + 16 * u64::from(index);
        self.describe_at(at, d);
    }

    /// Writes a descriptor anywhere in the window.
    pub fn describe_at(&self, at: u64, d: Descriptor) {
        let window = self.window();
        window.write(at, d.address);
        window.write(at + 8, d.length);
        window.write(at + 12, d.flags);
        window.write(at + 14, d.next);
    }

    /// Makes the chain from `head` available.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let next = self.rings[usize::from(queue)].next;
        let at = u64::from(queue) * QUEUE_ROOM + AVAILABLE;
        let entry = at + 4 + 2 * u64::from(next % self.entries(queue));
        self.window().write(entry, head);
        self.jump(queue, next.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn jump(&mut self, queue: u16, index: u16) {
        reg::barrier();
        let at = u64::from(queue) * QUEUE_ROOM + AVAILABLE;
        self.window().write(at + 2, index);
        self.rings[usize::from(queue)].next = index;
    }

    /// The index after the last entry made available.
    pub fn next(&self, queue: u16) -> u16 {
        self.rings[usize::from(queue)].next
    }

    pub fn kick(&self, queue: u16) {
        self.raw
            .ring(self.rings[usize::from(queue)].doorbell, queue);
    }

    /// The next used entry, if there is one: head and length.
    pub fn used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let at = u64::from(queue) * QUEUE_ROOM + USED;
        let window = self.window();
        let ring = &mut self.rings[usize::from(queue)];
        if window.read::<u16>(at + 2) == ring.seen {
            return None;
        }
        reg::barrier();
        let entry = at + 4 + 8 * u64::from(ring.seen % ring.entries);
        ring.seen = ring.seen.wrapping_add(1);
        Some((window.read(entry), window.read(entry + 4)))
    }

    /// Waits for the next used entry.
    pub fn wait_used(&mut self, queue: u16, what: &str) -> (u32, u32) {
        let mut entry = None;
        if !patiently(|| {
            entry = self.used(queue);
            entry.is_some()
        }) {
            let status = self.raw.status();
            fail!(
                "{}: no answer in queue {queue} {what}, status {status:#x}",
                self.name
            );
        }
        entry.unwrap_or_default()
    }

    /// Makes one chain of these descriptors available, the first at `head`, and rings.
    pub fn submit(&mut self, queue: u16, head: u16, chain: &[Descriptor]) {
        for (index, d) in (head..).zip(chain) {
            self.describe(queue, index, *d);
        }
        self.offer(queue, head);
        self.kick(queue);
    }

    /// Sends `bytes` in one buffer and waits until the device has them.
    pub fn send(&mut self, queue: u16, bytes: &[u8], what: &str) {
        self.window().copy_in(SEND, bytes);
        let d = descriptor(self.bus(SEND), bytes.len() as u32, 0, 0);
        self.submit(queue, 0, &[d]);
        self.wait_used(queue, what);
    }

    /// What has arrived in the next receive buffer, which is posted again.
    pub fn receive(&mut self, queue: u16) -> Option<Vec<u8>> {
        let (slot, length) = self.used(queue)?;
        if slot >= BUFFERS.into() || u64::from(length) > BUFFER {
            fail!("{}: buffer {slot} came back with {length} bytes", self.name);
        }
        let mut bytes = alloc::vec![0; length as usize];
        self.window()
            .copy_out(RECEIVE + u64::from(slot) * BUFFER, &mut bytes);
        self.post_buffer(queue, slot as u16);
        self.kick(queue);
        Some(bytes)
    }

    /// Waits until the device asks for a reset.
    pub fn expect_reset(&mut self, what: &str) {
        self.attacks += 1;
        self.resets += 1;
        if !patiently(|| self.raw.status() & NEEDS_RESET != 0) {
            fail!("{}: {what}: it does not ask for a reset", self.name);
        }
    }

    /// It runs on.
    pub fn expect_running(&mut self, what: &str) {
        self.attacks += 1;
        let status = self.raw.status();
        if status != RUNNING {
            fail!(
                "{}: {what}: status {status:#x}, which should have been harmless",
                self.name
            );
        }
    }
}

/// Waits until `happened`: false if it does not in time.
pub fn patiently(happened: impl FnMut() -> bool) -> bool {
    let deadline = reg::counter() + PATIENCE * timer::frequency();
    interrupt::sleep_until(false, Some(deadline), happened)
}
