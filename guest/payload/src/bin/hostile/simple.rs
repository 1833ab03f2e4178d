//! What only a console or an entropy device can be told: buffers of the other direction, of nothing, of all there is.
//! Source: VIRTIO 1.2, 5.3.6, 5.4.6.

use porthole_payload::fail;

use crate::Bench;
use crate::victim::{DATA, NEXT, WRITE, descriptor, patiently};

/// Requests in a row that a device may not take more time for than others have patience.
const FLOOD: u32 = 64;

/// All attacks on the console at `n`.
pub fn console(bench: &mut Bench, n: usize) {
    let victim = &bench.victims[n];
    let (at, half) = (victim.bus(DATA), (victim.window().size() / 2) as u32);
    let chains = [
        (
            "a message that the device writes",
            [descriptor(at, 64, WRITE, 0); 2],
        ),
        ("a message of nothing", [descriptor(at, 0, 0, 0); 2]),
        (
            "a message with room behind it",
            [descriptor(at, 64, NEXT, 1), descriptor(at, 64, WRITE, 0)],
        ),
        (
            "half a window, once as it is and once again",
            [
                descriptor(victim.bus(0), half, NEXT, 1),
                descriptor(victim.bus(0), half, 0, 0),
            ],
        ),
    ];
    for (what, chain) in chains {
        let victim = &mut bench.victims[n];
        victim.submit(1, 0, &chain);
        // Where it echoes it waits for room in its receive queue.
        let done = patiently(|| {
            while victim.receive(0).is_some() {}
            victim.used(1).is_some()
        });
        if !done {
            fail!("{}: {what}: no answer", victim.name);
        }
        bench.harmless(n, what);
    }
    // Receive buffers that the device may not write come back empty, and cost nothing but themselves.
    let victim = &mut bench.victims[n];
    let features = victim.features();
    victim.start_with(features, false);
    for slot in [8, 9] {
        victim.describe(0, slot, descriptor(at, 64, 0, 0));
        victim.offer(0, slot);
    }
    victim.kick(0);
    victim.send(1, b"into nothing", "after buffers without room");
    for _ in 0..2 {
        let (_, length) = victim.wait_used(0, "of a buffer without room");
        if length != 0 {
            fail!("console: {length} bytes in a buffer without room");
        }
    }
    victim.attacks += 1;
    bench.restart(n, "receive buffers without room");
}

/// All attacks on the entropy device at `n`.
pub fn rng(bench: &mut Bench, n: usize) {
    let at = bench.victims[n].bus(DATA);
    for (what, chain) in [
        ("a buffer that the device reads", descriptor(at, 64, 0, 0)),
        ("a buffer of nothing", descriptor(at, 0, WRITE, 0)),
    ] {
        bench.victims[n].submit(0, 0, &[chain]);
        bench.needs_reset(n, what);
    }
    let victim = &mut bench.victims[n];
    let most = 0x8000;
    for _ in 0..FLOOD {
        victim.submit(0, 0, &[descriptor(at, most, WRITE, 0)]);
        victim.wait_used(0, "to one of many requests");
    }
    bench.harmless(n, "more than its share of random bytes");
}
