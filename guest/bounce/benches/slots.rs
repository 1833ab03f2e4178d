//! Cost of taking and giving back slots, in an empty, a half-full and a fragmented window.
//! Bookkeeping only: copies are a matter of the machine's memory, not of the allocator.
//! `cargo bench -p porthole-bounce`; prints nanoseconds for one allocation and one release.

use std::hint::black_box;
use std::time::Instant;

use porthole_bounce::{BusAddr, Direction, SLOT_SIZE, SlotAllocator, SlotGroup, SlotIndex};

const WINDOW: usize = 2 << 20;
const ROUNDS: u32 = 20_000;
const DIR: Direction = Direction::ToDevice;

fn main() {
    println!("{:<44} {:>8}", "case (2 MiB window)", "ns/pair");
    for slots in [1, 2, 8, 128] {
        report("empty", slots, |_| ());
    }
    for slots in [1, 2, 8, 128] {
        report("lower half taken", slots, |pool| {
            for _ in 0..WINDOW / SLOT_SIZE / 2 {
                take(pool, 1);
            }
        });
    }
    for slots in [1, 2, 8] {
        report("every other slot of the lower half taken", slots, |pool| {
            let taken: Vec<_> = (0..WINDOW / SLOT_SIZE / 2).map(|_| take(pool, 1)).collect();
            for slot in taken.into_iter().step_by(2) {
                give(pool, slot, 1);
            }
        });
    }
}

fn report(name: &str, slots: usize, prepare: impl Fn(&mut SlotAllocator<'_>)) {
    let mut groups = vec![SlotGroup::NEW; SlotGroup::needed_for(WINDOW)];
    let mut pool = SlotAllocator::new(&mut groups, BusAddr::new(0x1000_0000), WINDOW)
        .expect("the window is page-aligned");
    prepare(&mut pool);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let slot = black_box(take(&mut pool, black_box(slots)));
        give(&mut pool, slot, slots);
    }
    let nanos = start.elapsed().as_nanos() / u128::from(ROUNDS);
    println!("{:<44} {nanos:>8}", format!("{name}, {slots} slots"));
}

fn take(pool: &mut SlotAllocator<'_>, slots: usize) -> SlotIndex {
    pool.alloc_streaming(slots * SLOT_SIZE, DIR, 1)
        .expect("there is room")
}

fn give(pool: &mut SlotAllocator<'_>, slot: SlotIndex, slots: usize) {
    let run = pool
        .begin_release_streaming(slot, slots * SLOT_SIZE, DIR)
        .expect("it was just taken");
    pool.finish_release(run);
}
