//! Random sequences against a flat model: one owner per slot, one byte array for the window.
//! The model predicts every result, address, byte of the window and counter.

use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::{BUS, pool};
use crate::raw::fake::HostView;
use crate::{
    BouncePool, BusAddr, Direction, Error, MAX_MAPPING_SLOTS, PAGE_SIZE, SLOT_SIZE, Stats,
};

#[derive(Clone, Debug)]
enum Op {
    Map(usize, Direction, usize, u8),
    Unmap(usize),
    Release(usize),
    Coherent(usize),
    FreeCoherent(usize),
    SyncForCpu(usize, usize, usize),
    SyncForDevice(usize, usize, usize, u8),
    /// The host writes where it likes.
    Scribble(usize, usize, u8),
    /// Unmap and free at any address, with any length.
    Wild(u64, usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let direction = prop_oneof![
        Just(Direction::ToDevice),
        Just(Direction::FromDevice),
        Just(Direction::Bidirectional)
    ];
    let len = prop_oneof![4 => 0..6000usize, 1 => 0..300_000usize];
    let op = prop_oneof![
        6 => (len, direction, 0..16u32, any::<u8>())
            .prop_map(|(l, d, a, fill)| Op::Map(l, d, 1 << a, fill)),
        3 => any::<usize>().prop_map(Op::Unmap),
        1 => any::<usize>().prop_map(Op::Release),
        2 => (0..9usize).prop_map(Op::Coherent),
        1 => any::<usize>().prop_map(Op::FreeCoherent),
        1 => (any::<usize>(), 0..6000usize, 0..3000usize).prop_map(|(w, o, l)| Op::SyncForCpu(w, o, l)),
        1 => (any::<usize>(), 0..6000usize, 0..3000usize, any::<u8>())
            .prop_map(|(w, o, l, fill)| Op::SyncForDevice(w, o, l, fill)),
        2 => (any::<usize>(), 0..5000usize, any::<u8>()).prop_map(|(o, l, b)| Op::Scribble(o, l, b)),
        1 => (any::<u64>(), 0..5000usize).prop_map(|(a, l)| Op::Wild(a, l)),
    ];
    prop::collection::vec(op, 1..120)
}

#[derive(Clone, Debug)]
enum Kind {
    Streaming(Direction),
    Coherent,
}

#[derive(Clone, Debug)]
struct Live {
    start: usize,
    len: usize,
    kind: Kind,
}

impl Live {
    fn addr(&self) -> BusAddr {
        BusAddr::new(BUS + (self.start * SLOT_SIZE) as u64)
    }

    fn slots(&self) -> core::ops::Range<usize> {
        self.start..self.start + self.len.div_ceil(SLOT_SIZE)
    }
}

struct Model {
    taken: Vec<bool>,
    bytes: Vec<u8>,
    live: Vec<Live>,
    stats: Stats,
}

impl Model {
    fn new(pages: usize) -> Self {
        let slots = pages * 2;
        Self {
            taken: vec![false; slots],
            bytes: vec![0xa5; pages * PAGE_SIZE],
            live: Vec::new(),
            stats: Stats {
                slots_total: slots,
                ..Stats::default()
            },
        }
    }

    /// The lowest (or highest) start at which `slots` slots are free, aligned to `align` bytes of the
    /// bus.
    fn fit(&self, slots: usize, align: usize, lowest: bool) -> Option<usize> {
        let mut starts = (0..(self.taken.len() + 1).saturating_sub(slots)).filter(move |&start| {
            (BUS + (start * SLOT_SIZE) as u64).is_multiple_of(align as u64)
                && !self.taken[start..start + slots].contains(&true)
        });
        if lowest {
            starts.next()
        } else {
            starts.next_back()
        }
    }

    fn full(&mut self, slots: usize) -> Error {
        self.stats.full += 1;
        let free = self.taken.iter().filter(|&&taken| !taken).count();
        self.stats.full_fragmented += u64::from(free >= slots);
        Error::Full
    }

    fn take(&mut self, live: Live) {
        self.taken[live.slots()].fill(true);
        self.bytes[live.start * SLOT_SIZE..live.slots().end * SLOT_SIZE].fill(0);
        self.stats.slots_used += live.slots().len();
        self.stats.slots_high_water = self.stats.slots_high_water.max(self.stats.slots_used);
        self.live.push(live);
    }

    fn give(&mut self, index: usize) -> Live {
        let live = self.live.swap_remove(index);
        self.taken[live.slots()].fill(false);
        self.stats.slots_used -= live.slots().len();
        live
    }

    fn pick(&self, which: usize, coherent: bool) -> Option<usize> {
        let fits = |live: &Live| matches!(live.kind, Kind::Coherent) == coherent;
        let all: Vec<_> = (0..self.live.len())
            .filter(|&i| fits(&self.live[i]))
            .collect();
        (!all.is_empty()).then(|| all[which % all.len()])
    }

    fn part(&self, live: &Live, offset: usize, len: usize) -> core::ops::Range<usize> {
        let from = live.start * SLOT_SIZE + offset;
        from..from + len
    }
}

fn map(m: &mut Model, pool: &BouncePool<'_>, len: usize, d: Direction, align: usize, fill: u8) {
    let slots = len.div_ceil(SLOT_SIZE);
    let data: Vec<u8> = (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ fill)
        .collect();
    let expected = if len == 0 {
        m.stats.invalid += 1;
        Err(Error::Empty)
    } else if slots > m.taken.len().min(MAX_MAPPING_SLOTS) {
        m.stats.too_large += 1;
        Err(Error::TooLarge)
    } else if let Some(start) = m.fit(slots, align, true) {
        let kind = Kind::Streaming(d);
        let live = Live { start, len, kind };
        let part = m.part(&live, 0, len);
        m.take(live.clone());
        m.stats.maps += 1;
        if d.copies_in() {
            m.bytes[part].copy_from_slice(&data);
            m.stats.bytes_to_device += len as u64;
        }
        Ok(live.addr())
    } else {
        Err(m.full(slots))
    };
    assert_eq!(pool.map_aligned(&data, d, align), expected);
}

fn unmap(m: &mut Model, pool: &BouncePool<'_>, index: usize) {
    let live = m.give(index);
    let Kind::Streaming(direction) = live.kind else {
        unreachable!("only streaming mappings are picked")
    };
    let mut buffer = vec![0x3c; live.len];
    m.stats.unmaps += 1;
    assert_eq!(pool.unmap(live.addr(), &mut buffer, direction), Ok(()));
    if direction.copies_back() {
        m.stats.bytes_from_device += live.len as u64;
        assert_eq!(buffer, m.bytes[m.part(&live, 0, live.len)]);
    } else {
        assert!(buffer.iter().all(|&b| b == 0x3c));
    }
    let twice = pool.unmap(live.addr(), &mut buffer, direction);
    assert_eq!(twice, Err(Error::NotMapped));
    m.stats.invalid += 1;
}

fn coherent(m: &mut Model, pool: &BouncePool<'_>, pages: usize) {
    let slots = pages * 2;
    let expected = if pages == 0 {
        m.stats.invalid += 1;
        Err(Error::Empty)
    } else if slots > m.taken.len() {
        m.stats.too_large += 1;
        Err(Error::TooLarge)
    } else if let Some(start) = m.fit(slots, PAGE_SIZE, false) {
        let live = Live {
            start,
            len: pages * PAGE_SIZE,
            kind: Kind::Coherent,
        };
        m.take(live.clone());
        m.stats.coherent_allocs += 1;
        Ok(live.addr())
    } else {
        Err(m.full(slots))
    };
    assert_eq!(pool.alloc_coherent(pages).map(|run| run.bus), expected);
}

fn sync(
    m: &mut Model,
    pool: &BouncePool<'_>,
    which: usize,
    offset: usize,
    data: &mut [u8],
    cpu: bool,
) {
    let Some(index) = m.pick(which, false) else {
        return;
    };
    let live = m.live[index].clone();
    let Kind::Streaming(direction) = live.kind else {
        unreachable!("only streaming mappings are picked")
    };
    let allowed = if cpu {
        direction.copies_back()
    } else {
        direction.copies_in()
    };
    let expected = if !allowed {
        Err(Error::WrongDirection)
    } else if offset + data.len() > live.len {
        Err(Error::OutsideMapping)
    } else {
        Ok(())
    };
    let result = if cpu {
        pool.sync_for_cpu(live.addr(), offset, data)
    } else {
        pool.sync_for_device(live.addr(), offset, data)
    };
    assert_eq!(result, expected);
    let part = m.part(&live, offset, data.len());
    match (expected, cpu) {
        (Ok(()), true) => {
            assert_eq!(*data, m.bytes[part]);
            m.stats.bytes_from_device += data.len() as u64;
        }
        (Ok(()), false) => {
            m.bytes[part].copy_from_slice(data);
            m.stats.bytes_to_device += data.len() as u64;
        }
        (Err(_), _) => m.stats.invalid += 1,
    }
}

/// An unmap and a free that match nothing live, unless by luck (then left out).
fn wild(m: &mut Model, pool: &BouncePool<'_>, addr: u64, len: usize) {
    // Half of the addresses near the window, half anywhere.
    let addr = if addr & 1 == 0 {
        BUS - 4096 + (addr >> 1) % (m.bytes.len() as u64 + 8192) / 512 * 512
    } else {
        addr
    };
    let inside = (BUS..BUS + m.bytes.len() as u64).contains(&addr);
    if m.live.iter().any(|live| live.addr().get() == addr) {
        return;
    }
    let error = if inside {
        m.stats.invalid += 2;
        Error::NotMapped
    } else {
        m.stats.outside_window += 2;
        Error::OutsideWindow
    };
    let at = BusAddr::new(addr);
    assert_eq!(pool.release(at, len, Direction::ToDevice), Err(error));
    assert_eq!(pool.free_coherent(at, len), Err(error));
}

fn step(m: &mut Model, pool: &BouncePool<'_>, host: &HostView, op: Op) {
    match op {
        Op::Map(len, direction, align, fill) => map(m, pool, len, direction, align, fill),
        Op::Unmap(which) => {
            if let Some(index) = m.pick(which, false) {
                unmap(m, pool, index);
            }
        }
        Op::Release(which) => {
            if let Some(index) = m.pick(which, false) {
                let live = m.give(index);
                if let Kind::Streaming(direction) = live.kind {
                    m.stats.unmaps += 1;
                    let released = pool.release(live.addr(), live.len, direction);
                    assert_eq!(released, Ok(()));
                }
            }
        }
        Op::Coherent(pages) => coherent(m, pool, pages),
        Op::FreeCoherent(which) => {
            if let Some(index) = m.pick(which, true) {
                let live = m.give(index);
                m.stats.coherent_frees += 1;
                let freed = pool.free_coherent(live.addr(), live.len / PAGE_SIZE);
                assert_eq!(freed, Ok(()));
            }
        }
        Op::SyncForCpu(which, offset, len) => {
            sync(m, pool, which, offset, &mut vec![0; len], true);
        }
        Op::SyncForDevice(which, offset, len, fill) => {
            sync(m, pool, which, offset, &mut vec![fill; len], false);
        }
        Op::Scribble(offset, len, byte) => {
            let offset = offset % m.bytes.len();
            let len = len.min(m.bytes.len() - offset);
            host.write(BUS + offset as u64, &vec![byte; len]);
            m.bytes[offset..offset + len].fill(byte);
        }
        Op::Wild(addr, len) => wild(m, pool, addr, len),
    }
}

proptest! {
    #[test]
    fn every_sequence_behaves_as_the_flat_model(pages in 1..100usize, ops in ops()) {
        let (host, pool) = pool(pages);
        let mut model = Model::new(pages);
        for op in ops {
            step(&mut model, &pool, &host, op);
            prop_assert!(pool.check());
            prop_assert_eq!(pool.stats(), model.stats);
        }
        prop_assert_eq!(host.read(BUS, host.len), model.bytes.as_slice());
        while let Some(index) = model.pick(0, false) {
            unmap(&mut model, &pool, index);
        }
        while let Some(index) = model.pick(0, true) {
            let live = model.give(index);
            prop_assert_eq!(pool.free_coherent(live.addr(), live.len / PAGE_SIZE), Ok(()));
        }
        prop_assert!(pool.check());
        prop_assert_eq!(pool.stats().slots_used, 0);
        prop_assert_eq!(pool.largest_free_run(), host.len);
    }
}
