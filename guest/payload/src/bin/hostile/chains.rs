//! Descriptor chains that break the rules, in every queue of every device: places outside the window, loops, tables
//! that are not, indexes beyond them, available indexes that jump. Each must end in a device that asks for a reset.
//! Source: VIRTIO 1.2, 2.7.5 to 2.7.7.

use alloc::vec::Vec;

use virtio_drivers::transport::DeviceType;

use crate::health::{NOBODY, arp, cid, packet};
use crate::victim::{
    DATA, Descriptor, F_INDIRECT, INDIRECT, NEXT, SEND, TABLE, Victim, WRITE, descriptor,
};
use crate::{Bench, health};

/// Most entries of an indirect table that the device takes.
const TABLE_MAX: u32 = 1024;

/// A chain with its name.
type Attack = (&'static str, Vec<Descriptor>);

/// All attacks on all queues of device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    for queue in 0..bench.victims[n].queues() {
        let forbidden = bench.forbidden(n);
        let flags = bench.victims[n].write_flag(queue);
        for (what, address, length) in forbidden {
            let chain = [descriptor(address, length, flags, 0)];
            one(bench, n, queue, what, &chain);
            let behind = [
                descriptor(bench.victims[n].bus(DATA), 64, flags | NEXT, 1),
                descriptor(address, length, flags, 0),
            ];
            one(bench, n, queue, what, &behind);
            if length > 0 {
                indirect_buffer(bench, n, queue, (what, address, length));
                let table = [descriptor(address, 16, INDIRECT, 0)];
                // Sixteen bytes of the window from its start on are no mistake.
                if !bench.victims[n].holds(address, 16) {
                    one(bench, n, queue, what, &table);
                }
            }
        }
        for (what, chain) in broken(&bench.victims[n], queue) {
            one(bench, n, queue, what, &chain);
        }
        for (what, chain) in tables(&bench.victims[n], queue) {
            one(bench, n, queue, what, &chain);
        }
        indirect_inside(bench, n, queue);
        too_much(bench, n, queue);
        not_negotiated(bench, n, queue);
        let entries = bench.victims[n].entries(queue);
        for head in [entries, entries + 1, 0x7fff, u16::MAX] {
            begin(bench, n, queue);
            bench.victims[n].offer(queue, head);
            finish(bench, n, queue, "a head beyond the table");
        }
        for ahead in [entries + 1, 0x7fff, 0x8000, u16::MAX] {
            begin(bench, n, queue);
            let victim = &mut bench.victims[n];
            let next = victim.next(queue).wrapping_add(ahead);
            victim.jump(queue, next);
            finish(bench, n, queue, "an available index that jumps");
        }
    }
}

impl Victim {
    /// The flag of a buffer that suits a queue.
    fn write_flag(&self, queue: u16) -> u16 {
        if self.receives(queue) { WRITE } else { 0 }
    }

    /// Whether all of these bytes lie in the window.
    fn holds(&self, address: u64, length: u64) -> bool {
        let window = self.window();
        address >= window.base()
            && address
                .checked_add(length)
                .is_some_and(|e| e <= window.end())
    }
}

/// Starts the device anew where buffers wait in the queue, so that the attack's is the first.
fn begin(bench: &mut Bench, n: usize, queue: u16) {
    let victim = &mut bench.victims[n];
    if victim.waits(queue) {
        let features = victim.features();
        victim.start_with(features, false);
    }
}

/// Makes the device look at the queue, and sees what becomes of it.
fn finish(bench: &mut Bench, n: usize, queue: u16, what: &str) {
    provoke(&mut bench.victims[n], queue);
    bench.needs_reset(n, what);
}

fn provoke(victim: &mut Victim, queue: u16) {
    victim.kick(queue);
    if !victim.waits(queue) {
        return;
    }
    // Something has to arrive.
    let message = match victim.kind {
        DeviceType::Console => alloc::vec![b'x'; 16],
        DeviceType::Network => arp(1),
        _ => packet(cid(victim), (1, NOBODY), health::REQUEST, 0).to_vec(),
    };
    victim.window().copy_in(SEND, &message);
    let d = descriptor(victim.bus(SEND), message.len() as u32, 0, 0);
    victim.submit(1, 0, &[d]);
}

fn one(bench: &mut Bench, n: usize, queue: u16, what: &str, chain: &[Descriptor]) {
    begin(bench, n, queue);
    let victim = &mut bench.victims[n];
    for (index, d) in (0..).zip(chain) {
        victim.describe(queue, index, *d);
    }
    victim.offer(queue, 0);
    finish(bench, n, queue, what);
}

/// Chains that are wrong without leaving the window.
fn broken(victim: &Victim, queue: u16) -> Vec<Attack> {
    let (at, f) = (victim.bus(DATA), victim.write_flag(queue));
    alloc::vec![
        (
            "a descriptor that follows itself",
            alloc::vec![descriptor(at, 8, f | NEXT, 0)]
        ),
        (
            "two descriptors that follow each other",
            alloc::vec![
                descriptor(at, 8, f | NEXT, 1),
                descriptor(at, 8, f | NEXT, 0)
            ],
        ),
        (
            "empty descriptors in a circle",
            alloc::vec![
                descriptor(at, 0, f | NEXT, 1),
                descriptor(at, 0, f | NEXT, 0)
            ],
        ),
        (
            "a next beyond the table",
            alloc::vec![descriptor(at, 8, f | NEXT, victim.entries(queue))]
        ),
        (
            "a next far beyond",
            alloc::vec![descriptor(at, 8, f | NEXT, u16::MAX)]
        ),
        (
            "a readable buffer behind a writable one",
            alloc::vec![descriptor(at, 8, WRITE | NEXT, 1), descriptor(at, 8, 0, 0)],
        ),
    ]
}

/// Indirect tables of shapes that cannot be.
fn tables(victim: &Victim, queue: u16) -> Vec<Attack> {
    let at = victim.bus(TABLE);
    let inner = descriptor(victim.bus(DATA), 8, victim.write_flag(queue), 0);
    for entry in 0..4 {
        victim.describe_at(TABLE + 16 * entry, inner);
    }
    let shape = |length| alloc::vec![descriptor(at, length, INDIRECT, 0)];
    alloc::vec![
        ("an indirect table of nothing", shape(0)),
        ("an indirect table of half an entry", shape(8)),
        ("an indirect table of an entry and a byte", shape(17)),
        (
            "an indirect table that is too long",
            shape(16 * (TABLE_MAX + 1))
        ),
        ("an indirect table of 4 GiB", shape(!15)),
        (
            "an indirect table with another behind it",
            alloc::vec![descriptor(at, 16, INDIRECT | NEXT, 1), inner],
        ),
    ]
}

fn through_table(bench: &mut Bench, n: usize, queue: u16, what: &str, entries: &[Descriptor]) {
    let victim = &bench.victims[n];
    for (at, d) in (TABLE..).step_by(16).zip(entries) {
        victim.describe_at(at, *d);
    }
    let length = 16 * entries.len() as u32;
    let outer = descriptor(victim.bus(TABLE), length, INDIRECT, 0);
    one(bench, n, queue, what, &[outer]);
}

fn indirect_buffer(bench: &mut Bench, n: usize, queue: u16, place: (&str, u64, u32)) {
    let (what, address, length) = place;
    let flags = bench.victims[n].write_flag(queue);
    let entry = descriptor(address, length, flags, 0);
    through_table(bench, n, queue, what, &[entry]);
}

/// Indirect tables whose entries are wrong.
fn indirect_inside(bench: &mut Bench, n: usize, queue: u16) {
    let victim = &bench.victims[n];
    let (at, f) = (victim.bus(DATA), victim.write_flag(queue));
    let nested = descriptor(victim.bus(TABLE), 16, INDIRECT, 0);
    let attacks: [(&str, &[Descriptor]); 5] = [
        ("an indirect table in itself", &[nested]),
        (
            "an indirect table behind a buffer of one",
            &[descriptor(at, 8, f | NEXT, 1), nested],
        ),
        (
            "an indirect table that loops",
            &[descriptor(at, 8, f | NEXT, 0)],
        ),
        (
            "a next beyond an indirect table",
            &[descriptor(at, 8, f | NEXT, 1)],
        ),
        (
            "a next far beyond an indirect table",
            &[descriptor(at, 8, f | NEXT, u16::MAX)],
        ),
    ];
    for (what, entries) in attacks {
        through_table(bench, n, queue, what, entries);
    }
}

/// Buffers of more than 32 bits altogether, each of them inside a window that is large enough for that.
fn too_much(bench: &mut Bench, n: usize, queue: u16) {
    let victim = &bench.victims[n];
    let (at, size) = (victim.window().base(), victim.window().size());
    if u64::from(TABLE_MAX) * size < 1 << 32 {
        return;
    }
    let flags = victim.write_flag(queue);
    let entries: Vec<_> = (1..=TABLE_MAX as u16)
        .map(|next| {
            let more = if u32::from(next) < TABLE_MAX { NEXT } else { 0 };
            descriptor(at, size as u32, flags | more, next)
        })
        .collect();
    through_table(bench, n, queue, "buffers of 4 GiB altogether", &entries);
}

/// Indirect descriptors without the feature.
fn not_negotiated(bench: &mut Bench, n: usize, queue: u16) {
    let victim = &mut bench.victims[n];
    let features = victim.features() & !F_INDIRECT;
    victim.start_with(features, false);
    let inner = descriptor(victim.bus(DATA), 8, victim.write_flag(queue), 0);
    victim.describe_at(TABLE, inner);
    let outer = descriptor(victim.bus(TABLE), 16, INDIRECT, 0);
    victim.describe(queue, 0, outer);
    victim.offer(queue, 0);
    finish(bench, n, queue, "an indirect table that was not negotiated");
}
