//! Several CPUs at once: each drives a VM of its own in pages that lie in the same blocks, while one audits.
//! No step of an audit may ever see an offender, and a pass within one epoch must see equal sums.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use super::super::Content;
use super::support::*;
use crate::addr::Ipa;
use crate::guest::GuestMemory;
use crate::hw::Vmid;

const VMS: usize = 3;
const ROUNDS: u64 = 60;
const META: u64 = 8;

/// The pages of VM `vm`: every `VMS`-th of the blocks that all share.
fn nth(vm: usize, index: u64) -> u64 {
    FREE + (index * VMS as u64 + vm as u64) * 4096
}

fn live_and_die(world: &World<'_>, cell: &Mutex<Option<GuestMemory>>, vm: usize, round: u64) {
    let (m, memory) = (&world.machine, &world.memory);
    let meta = HIGH + (vm as u64) * META * 4096;
    let made = memory.create_guest(m, slot(vm), regions(), pages(meta, META));
    let made = made.unwrap();
    m.watch(made.regime());
    *cell.lock().unwrap() = Some(made);
    let with = |call: &mut dyn FnMut(&mut GuestMemory)| {
        call(cell.lock().unwrap().as_mut().unwrap());
    };
    for index in 0..4 {
        let to = Ipa::new(GUEST_RAM + index * 4096);
        let from = pages(nth(vm, index), 1);
        // The host touches pages all the time, its own and those that it just lost.
        m.access(Vmid::HOST, Ipa::new(nth(vm, index)));
        m.dma_access(DEVICE, Ipa::new(nth(vm, index)));
        with(&mut |guest| memory.donate(m, guest, from, to, Content::Zeroed).unwrap());
        assert!(m.access(Vmid::HOST, Ipa::new(nth(vm, index))).is_none());
        assert!(m.dma_access(DEVICE, Ipa::new(nth(vm, index))).is_none());
        assert!(m.access(slot(vm).vmid(), to).is_some());
    }
    let config = window(
        APERTURE + round % 7 * 4096,
        &[(nth(vm, 8), 1), (nth(vm, 5), 1)],
    );
    with(&mut |guest| {
        memory.register_window(m, guest, &config).unwrap();
    });
    m.access(slot(vm).vmid(), Ipa::new(config.ipa));
    if round.is_multiple_of(2) {
        with(&mut |guest| memory.unregister_window(m, guest, 0, 0).unwrap());
        assert!(m.access(slot(vm).vmid(), Ipa::new(config.ipa)).is_none());
    }
    with(&mut |guest| world.retire(guest));
    for index in 0..4 {
        with(&mut |guest| memory.reclaim(m, guest, pages(nth(vm, index), 1)).unwrap());
    }
    with(&mut |guest| {
        m.unwatch(slot(vm).vmid());
        memory.reclaim(m, guest, pages(meta, META)).unwrap();
    });
    *cell.lock().unwrap() = None;
}

/// One pass; whether it was within one epoch.
fn audit(world: &World<'_>, cells: &[Mutex<Option<GuestMemory>>]) -> bool {
    let (mut cursor, mut shared, mut windows) = (0, 0, 0);
    let epoch = world.memory.epoch();
    let mut still = true;
    loop {
        let step = world
            .memory
            .audit(&world.machine, cursor, &mut |slot, look| {
                if let Some(cell) = cells.get(slot.index())
                    && let Some(guest) = cell.lock().unwrap().as_ref()
                {
                    look(guest);
                }
            });
        let step = step.unwrap();
        assert_eq!(step.offender, None);
        shared += step.shared;
        windows += step.windows;
        still &= step.epoch == epoch;
        cursor = step.next;
        if cursor == 0 {
            break;
        }
    }
    assert!(!still || shared == windows, "{shared} {windows}");
    still
}

#[test]
fn a83_several_cpus_at_once() {
    let mut t = tracker();
    let world = World::new(&mut t);
    let tables = world.memory.host_tables();
    let cells = [const { Mutex::new(None) }; VMS];
    let (start, running) = (Barrier::new(VMS + 1), AtomicUsize::new(VMS));
    std::thread::scope(|scope| {
        for (vm, cell) in cells.iter().enumerate() {
            let (world, start, running) = (&world, &start, &running);
            scope.spawn(move || {
                start.wait();
                let guard = Count(running);
                for round in 0..ROUNDS {
                    live_and_die(world, cell, vm, round);
                }
                drop(guard);
            });
        }
        start.wait();
        while running.load(Ordering::Acquire) > 0 {
            audit(&world, &cells);
        }
    });
    assert!(audit(&world, &cells));
    world.check(&[]);
    assert_eq!(world.memory.host_tables(), tables);
}

/// Counts a thread out, however it ends.
struct Count<'a>(&'a AtomicUsize);

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}
