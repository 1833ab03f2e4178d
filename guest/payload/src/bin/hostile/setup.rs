//! Set-up against the rules: features, the order of the status bits, sizes and places of rings, doorbells of nobody,
//! accesses of any width anywhere. Source: VIRTIO 1.2, 2.1, 3.1.1, 4.1.4.3; PCI Local Bus 3.0, 6.1.

use porthole_payload::fail;

use crate::Bench;
use crate::victim::{DRIVER, DRIVER_OK, F_VERSION_1, FEATURES_OK, NEEDS_RESET, RUNNING, Victim};

/// Registers of BAR 0 that are written at random: all of it but the MSI-X table, which only sends messages.
const REGISTERS: u64 = 0x4000;
/// Configuration space that is written at random: the header behind the BARs, and the capabilities.
const CAPABILITIES: core::ops::Range<u64> = 0x28..0x100;
/// Random accesses in one go.
const ACCESSES: u32 = 400;

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    features(bench, n);
    order(bench, n);
    sizes(bench, n);
    fixed(bench, n);
    rings(bench, n);
    doorbells(bench, n);
    noise(bench, n);
}

fn refuse(bench: &mut Bench, n: usize, ok: bool, what: &str) {
    let victim = &mut bench.victims[n];
    victim.attacks += 1;
    if !ok {
        fail!(
            "{}: {what}: not refused, status {:#x}",
            victim.name,
            victim.raw.status()
        );
    }
    bench.restart(n, what);
}

/// Features that were not offered, and a driver without those that it must have.
fn features(bench: &mut Bench, n: usize) {
    let offered = bench.victims[n].raw.offered();
    let good = bench.victims[n].features();
    for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
        let victim = &mut bench.victims[n];
        victim.attacks += 1;
        if victim.negotiate(good | 1 << bit) {
            fail!(
                "{}: feature {bit} is not offered, and agreed to",
                victim.name
            );
        }
    }
    for (what, features) in [
        ("no features", 0),
        ("no VIRTIO_F_VERSION_1", good & !F_VERSION_1),
        ("no VIRTIO_F_SWIOTLB", good & !bench.victims[n].swiotlb()),
        ("all features there could be", u64::MAX),
    ] {
        let refused = !bench.victims[n].negotiate(features);
        refuse(bench, n, refused, what);
    }
    // Once agreed they are fixed.
    let victim = &mut bench.victims[n];
    victim.negotiate(good);
    victim.raw.accept(u64::MAX);
    victim.raw.set_status(DRIVER | FEATURES_OK);
    let kept = victim.raw.status() == DRIVER | FEATURES_OK;
    refuse(bench, n, kept, "features after they were agreed to");
}

/// DRIVER_OK and queues before their time; status bits that are the device's.
fn order(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    victim.raw.reset();
    victim.raw.set_status(DRIVER | DRIVER_OK);
    let refused = victim.raw.status() & DRIVER_OK == 0;
    refuse(bench, n, refused, "DRIVER_OK before the features");
    let victim = &mut bench.victims[n];
    victim.raw.reset();
    victim.set_up(0);
    let refused = !victim.raw.enabled();
    refuse(bench, n, refused, "a queue before the features");
    let victim = &mut bench.victims[n];
    victim.raw.set_status(RUNNING | NEEDS_RESET);
    let refused = victim.raw.status() == RUNNING;
    refuse(bench, n, refused, "NEEDS_RESET by the driver");
    let victim = &mut bench.victims[n];
    victim.raw.set_status(DRIVER);
    let refused = victim.raw.status() == RUNNING;
    refuse(bench, n, refused, "status bits taken back");
    // Running without a single queue.
    let victim = &mut bench.victims[n];
    let features = victim.features();
    victim.negotiate(features);
    victim.raw.set_status(RUNNING);
    for at in (0..victim.raw.notify.size()).step_by(4) {
        victim.raw.ring(at, at as u16 / 4);
    }
    let running = victim.raw.status() == RUNNING;
    refuse(bench, n, running, "no queues at all");
}

/// Queue sizes that cannot be leave the size as it was.
fn sizes(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    let features = victim.features();
    victim.negotiate(features);
    for queue in 0..victim.queues() {
        victim.raw.select(queue);
        let most = victim.raw.queue_size();
        for size in [
            0,
            3,
            most - 1,
            most + 1,
            most.saturating_mul(2),
            0x8000,
            u16::MAX,
        ] {
            victim.attacks += 1;
            victim.raw.set_queue_size(size);
            if victim.raw.queue_size() != most {
                fail!("{}: queue {queue} takes {size} entries", victim.name);
            }
        }
    }
    bench.restart(n, "odd queue sizes");
    let victim = &mut bench.victims[n];
    victim.negotiate(features);
    for queue in [victim.raw.queue_count(), 0x7fff, u16::MAX] {
        victim.attacks += 1;
        victim.raw.select(queue);
        victim.raw.set_queue_size(4);
        victim.raw.set_rings([victim.bus(0); 3]);
        victim.raw.enable();
        if victim.raw.enabled() || victim.raw.queue_size() != 0 {
            fail!("{}: there is a queue {queue}", victim.name);
        }
    }
    victim.raw.set_status(RUNNING);
    bench.restart(n, "queues that do not exist");
}

/// An enabled queue stays as it is.
fn fixed(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    victim.raw.select(0);
    let before = (victim.raw.queue_size(), victim.raw.rings());
    victim.raw.set_queue_size(1);
    victim.raw.set_rings([bench.private.base(); 3]);
    victim.raw.enable();
    let now = (victim.raw.queue_size(), victim.raw.rings());
    if now != before {
        fail!(
            "{}: an enabled queue changes: {before:x?}, then {now:x?}",
            victim.name
        );
    }
    bench.harmless(n, "other rings for an enabled queue");
}

/// Each ring of each queue where it must not be, and unaligned.
fn rings(bench: &mut Bench, n: usize) {
    let window = bench.victims[n].window();
    // Bytes of each part (VIRTIO 1.2, 2.7): a ring may end with the window, and not a byte later.
    for queue in 0..bench.victims[n].queues() {
        let entries = u64::from(bench.victims[n].entries(queue));
        let lengths = [16 * entries, 2 * entries + 6, 8 * entries + 6];
        for (part, length) in lengths.into_iter().enumerate() {
            let last = (window.end() - length) & !15;
            let mut places = alloc::vec![
                ("a ring over the window's end", (last + 16) & !15),
                ("a ring at an odd address", window.base() + 0x4001),
            ];
            let forbidden = bench.forbidden(n);
            let outside = forbidden
                .iter()
                .filter(|(_, _, length)| *length != u32::MAX);
            places.extend(outside.map(|(what, at, _)| (*what, *at & !15)));
            for (what, at) in places {
                if at % 16 == 0 && at >= window.base() && at + length <= window.end() {
                    continue;
                }
                ring_at(bench, n, (queue, part), at, what);
            }
        }
    }
}

fn ring_at(bench: &mut Bench, n: usize, (queue, part): (u16, usize), at: u64, what: &str) {
    let victim = &mut bench.victims[n];
    let features = victim.features();
    victim.negotiate(features);
    for other in 0..victim.queues() {
        victim.choose(other);
        let mut rings = victim.rings(other);
        if other == queue {
            rings[part] = at;
        }
        victim.raw.set_queue_size(victim.entries(other));
        victim.raw.set_rings(rings);
        victim.raw.enable();
    }
    victim.raw.set_status(RUNNING);
    bench.needs_reset(n, what);
}

/// Doorbells before the device runs, of queues that do not exist, with numbers of others.
fn doorbells(bench: &mut Bench, n: usize) {
    let ring_all = |victim: &Victim| {
        let size = victim.raw.notify.size();
        for at in (0..size).step_by(2) {
            for queue in [0, 1, 2, 8, u16::MAX] {
                victim.raw.ring(at, queue);
            }
        }
    };
    let victim = &mut bench.victims[n];
    victim.raw.reset();
    ring_all(victim);
    let features = victim.features();
    victim.negotiate(features);
    ring_all(victim);
    for queue in 0..victim.queues() {
        victim.set_up(queue);
        ring_all(victim);
    }
    bench.restart(n, "doorbells before the device runs");
    ring_all(&bench.victims[n]);
    bench.harmless(n, "doorbells without requests");
}

/// Anything anywhere, in any width that the CPU has.
fn noise(bench: &mut Bench, n: usize) {
    let mut random = Random(0x706f_7274_686f_6c65 + n as u64);
    for _ in 0..4 {
        let victim = &mut bench.victims[n];
        for _ in 0..ACCESSES {
            let (width, value) = (random.below(4), random.next());
            let at = random.below(REGISTERS) & !((1 << width) - 1);
            let registers = &victim.raw.registers;
            match width {
                0 => registers.write8(at, value as u8),
                1 => registers.write16(at, value as u16),
                2 => registers.write32(at, value as u32),
                _ => registers.write64(at, value),
            }
            registers.read64(at & !7);
        }
        victim.attacks += 1;
        bench.restart(n, "noise in the registers");
        let victim = &mut bench.victims[n];
        for _ in 0..ACCESSES {
            let span = CAPABILITIES.end - CAPABILITIES.start;
            let (width, value) = (random.below(3), random.next());
            let at = CAPABILITIES.start + (random.below(span) & !((1 << width) - 1));
            let config = *victim.raw.function.config();
            match width {
                0 => config.write8(at, value as u8),
                1 => config.write16(at, value as u16),
                _ => config.write32(at, value as u32),
            }
            config.read8(at);
        }
        victim.messages_off();
        victim.attacks += 1;
        bench.restart(n, "noise in configuration space");
    }
}

/// A small generator (xorshift), so that a run can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
}
