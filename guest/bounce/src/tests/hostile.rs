//! Several CPUs on one pool, with a host that rewrites the whole window all the time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::vec;
use std::vec::Vec;

use super::{BUS, pool};
use crate::Direction::{Bidirectional, FromDevice, ToDevice};
use crate::{BouncePool, BusAddr, Error, PAGE_SIZE, SLOT_SIZE};

const WORKERS: usize = 3;
const ROUNDS: usize = 4000;

/// Who has which slot, kept apart from the pool: a slot handed out twice is seen at once.
struct Owners(Vec<AtomicUsize>);

impl Owners {
    fn slots(addr: BusAddr, len: usize) -> core::ops::Range<usize> {
        let start = (addr.get() - BUS) as usize / SLOT_SIZE;
        start..start + len.div_ceil(SLOT_SIZE)
    }

    fn take(&self, addr: BusAddr, len: usize, who: usize) {
        for slot in Self::slots(addr, len) {
            assert_eq!(self.0[slot].swap(who, Ordering::SeqCst), 0, "slot {slot}");
        }
    }

    fn give(&self, addr: BusAddr, len: usize, who: usize) {
        for slot in Self::slots(addr, len) {
            assert_eq!(self.0[slot].swap(0, Ordering::SeqCst), who, "slot {slot}");
        }
    }
}

/// A small generator (xorshift), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

fn work(pool: &BouncePool<'_>, owners: &Owners, who: usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 >> who);
    let mut maps = Vec::new();
    let mut rings = Vec::new();
    for _ in 0..ROUNDS {
        match random.below(5) {
            0 | 1 => {
                let len = 1 + random.below(3 * SLOT_SIZE);
                let direction = [ToDevice, FromDevice, Bidirectional][random.below(3)];
                match pool.map(&vec![who as u8; len], direction) {
                    Ok(addr) => {
                        owners.take(addr, len, who);
                        maps.push((addr, len, direction));
                    }
                    Err(error) => assert_eq!(error, Error::Full),
                }
            }
            2 | 3 if !maps.is_empty() => {
                let (addr, len, direction) = maps.swap_remove(random.below(maps.len()));
                owners.give(addr, len, who);
                pool.unmap(addr, &mut vec![0; len], direction).unwrap();
            }
            _ if rings.len() < 2 => match pool.alloc_coherent(1) {
                Ok(ring) => {
                    owners.take(ring.bus, PAGE_SIZE, who);
                    rings.push(ring.bus);
                }
                Err(error) => assert_eq!(error, Error::Full),
            },
            _ => {
                if let Some(ring) = rings.pop() {
                    owners.give(ring, PAGE_SIZE, who);
                    pool.free_coherent(ring, 1).unwrap();
                }
            }
        }
    }
    for (addr, len, direction) in maps {
        owners.give(addr, len, who);
        pool.release(addr, len, direction).unwrap();
    }
    for ring in rings {
        owners.give(ring, PAGE_SIZE, who);
        pool.free_coherent(ring, 1).unwrap();
    }
}

#[test]
fn a_scribbling_host_changes_no_bookkeeping() {
    let (host, pool) = pool(24);
    let owners = Owners((0..48).map(|_| AtomicUsize::new(0)).collect());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let scribbler = scope.spawn(|| {
            let mut random = Random(7);
            while !done.load(Ordering::Relaxed) {
                let byte = random.below(256) as u8;
                host.write(BUS, &vec![byte; host.len]);
            }
        });
        let workers: Vec<_> = (1..=WORKERS)
            .map(|who| {
                scope.spawn({
                    let (pool, owners) = (&pool, &owners);
                    move || work(pool, owners, who)
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
        assert!(results.iter().all(Result::is_ok));
    });
    assert!(pool.check());
    let stats = pool.stats();
    assert_eq!(stats.slots_used, 0);
    assert_eq!(stats.maps, stats.unmaps);
    assert_eq!(stats.coherent_allocs, stats.coherent_frees);
    assert_eq!((stats.outside_window, stats.invalid), (0, 0));
}

#[test]
fn concurrent_mappings_do_not_mix_their_content() {
    let (host, pool) = pool(64);
    thread::scope(|scope| {
        for who in 1..=WORKERS {
            let pool = &pool;
            scope.spawn(move || {
                let mut random = Random(who as u64);
                for round in 0..500 {
                    let len = 1 + random.below(5 * SLOT_SIZE);
                    let mut buffer = vec![(who * 64 + round % 64) as u8; len];
                    let addr = pool.map(&buffer, Bidirectional).unwrap();
                    let mut seen = host.read(addr.get(), len);
                    assert_eq!(seen, buffer);
                    seen.iter_mut().for_each(|byte| *byte ^= 0xff);
                    host.write(addr.get(), &seen);
                    pool.unmap(addr, &mut buffer, Bidirectional).unwrap();
                    assert_eq!(buffer, seen);
                }
            });
        }
    });
    assert_eq!(pool.stats().slots_used, 0);
}

#[test]
fn of_two_racing_unmaps_one_wins() {
    let (_, pool) = pool(4);
    for _ in 0..500 {
        let addr = pool.map(&[1; 4096], FromDevice).unwrap();
        let unmap = || pool.unmap(addr, &mut [0; 4096], FromDevice).is_ok();
        let wins = thread::scope(|scope| {
            let other = scope.spawn(unmap);
            usize::from(unmap()) + usize::from(other.join().unwrap())
        });
        assert_eq!(wins, 1);
        assert!(pool.check());
    }
    assert_eq!(pool.stats().invalid, 500);
}
