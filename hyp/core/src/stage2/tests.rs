//! Random mapping, unmapping, splitting and joining against a flat array of pages, seen through the fake's
//! own walker. Plans must be exact, and the TLB, full before every change, must know nothing stale after it.

use porthole_abi::{Error, FunctionId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::plan::{MapPlan, unmap_tables};
use super::*;
use crate::addr::PhysPages;
use crate::hw::Dma;
use crate::testing::FakeMachine;

const GIB: u64 = 1 << 30;
/// Pages of each area that the operations play in: two blocks on each side of a GiB boundary.
const AREA: u64 = 2048;
/// Two areas; the second ends in a block of 1 GiB that is there from the start.
const AREAS: [u64; 2] = [GIB - 1024 * PAGE_SIZE, 2 * GIB - 1024 * PAGE_SIZE];
const POOL: u64 = 0x1_0000_0000;
const DEVICE: FunctionId = FunctionId::new(0, 0, 1, 0);

#[derive(Clone, Copy, Debug)]
enum Op {
    Map { shift: u64, kind: MemoryType },
    Unmap,
}

/// What a page of an area leads to.
type Flat = [Vec<Option<(u64, MemoryType)>>; 2];

fn ops() -> impl Strategy<Value = Vec<(Op, usize, u64, u64)>> {
    let kind = prop_oneof![
        Just(MemoryType::Ram),
        Just(MemoryType::Window),
        Just(MemoryType::Device)
    ];
    // Mostly identity, so that blocks fit and join; else off by pages or by a block.
    let shift = prop_oneof![6 => Just(0), 1 => Just(PAGE_SIZE), 1 => Just(Level::L2.span())];
    let op = prop_oneof![
        3 => (shift, kind).prop_map(|(shift, kind)| Op::Map { shift, kind }),
        2 => Just(Op::Unmap),
    ];
    // Ends at block edges as often as anywhere.
    let edge = || prop_oneof![2 => 0..AREA, 1 => (0..4u64).prop_map(|b| b * 512)];
    let count = prop_oneof![2 => 1..64u64, 2 => 1..1100u64, 1 => Just(512)];
    vec((op, 0..2usize, edge(), count), 1..32)
}

struct Bench {
    machine: FakeMachine,
    tables: Stage2,
    used: u64,
    flat: Flat,
}

impl Bench {
    /// With a mirror whose blocks are changed in place or not, or without one.
    fn new(mirror: Option<bool>) -> Self {
        let pool = PhysPages::new(PhysAddr::new(POOL), 64).unwrap();
        let machine = FakeMachine::new(pool);
        let root = machine.alloc_page().unwrap();
        let mut tables = Stage2::new(root, Geometry::new(36, PaRange::new(4)), Vmid::HOST);
        machine.watch(tables.regime());
        if let Some(in_place) = mirror {
            tables = tables.mirrored(machine.alloc_page().unwrap(), in_place);
            machine.add_smmu(&[DEVICE], in_place);
            machine.dma_start(tables.dma_regime().unwrap());
        }
        let mut bench = Self {
            machine,
            tables,
            used: 0,
            flat: [vec![None; AREA as usize], vec![None; AREA as usize]],
        };
        let upper = 2 * GIB;
        bench
            .map(upper, upper, GIB / PAGE_SIZE, MemoryType::Ram)
            .unwrap();
        for page in 1024..AREA {
            let at = AREAS[1] + page * PAGE_SIZE;
            bench.flat[1][page as usize] = Some((at, MemoryType::Ram));
        }
        bench
    }

    fn map(&mut self, at: u64, to: u64, count: u64, kind: MemoryType) -> Result<(), Error> {
        let Self {
            machine,
            tables,
            used,
            ..
        } = self;
        let (ipa, pa) = (Ipa::new(at), PhysAddr::new(to));
        let mut pool = PoolSource { machine, used };
        let mut plan = MapPlan::default();
        plan.add(&*machine, tables, ipa, pa, count)?;
        let mut reserve = Reserve::fill(plan.tables(), &mut pool)?;
        tables.map(&*machine, ipa, pa, count, Some(kind), &mut reserve);
        assert!(reserve.is_empty(), "the plan was exact");
        tables.join(&*machine, ipa, &mut pool);
        tables.join(&*machine, Ipa::new(at + (count - 1) * PAGE_SIZE), &mut pool);
        Ok(())
    }

    fn unmap(&mut self, at: u64, count: u64) {
        let Self {
            machine,
            tables,
            used,
            ..
        } = self;
        let ipa = Ipa::new(at);
        let mut pool = PoolSource { machine, used };
        let needed = unmap_tables(&*machine, tables, ipa, count);
        let mut reserve = Reserve::fill(needed, &mut pool).unwrap();
        tables.unmap(&*machine, ipa, count, &mut reserve, &mut pool);
        assert!(reserve.is_empty(), "the plan was exact");
    }

    fn run(&mut self, (op, area, first, count): (Op, usize, u64, u64)) {
        let count = count.min(AREA - first);
        let at = AREAS[area] + first * PAGE_SIZE;
        let range = first as usize..(first + count) as usize;
        self.machine.warm();
        self.keep(area, range.clone());
        match op {
            Op::Map { shift, kind } => {
                let is_free = self.flat[area][range.clone()].iter().all(Option::is_none);
                let result = self.map(at, at + shift, count, kind);
                let expected = if is_free {
                    Ok(())
                } else {
                    Err(Error::AlreadyMapped)
                };
                assert_eq!(result, expected);
                if is_free {
                    for (i, page) in self.flat[area][range].iter_mut().enumerate() {
                        *page = Some((at + shift + i as u64 * PAGE_SIZE, kind));
                    }
                }
            }
            Op::Unmap => {
                self.unmap(at, count);
                self.flat[area][range].fill(None);
            }
        }
        self.machine.keep(Vec::new());
        self.check();
    }

    /// Whatever is mapped around a change in the same blocks, devices shall reach all the time.
    fn keep(&self, area: usize, changing: std::ops::Range<usize>) {
        if !self.machine.dma_in_place() {
            return;
        }
        let (first, end) = (changing.start, changing.end);
        let around = [
            0,
            first / 512 * 512,
            first.wrapping_sub(1),
            end,
            end.div_ceil(512) * 512 - 1,
        ];
        let kept = around.into_iter().filter(|i| !changing.contains(i));
        let kept = kept.filter(|i| self.flat[area].get(*i).is_some_and(Option::is_some));
        let mut kept: Vec<u64> = kept.map(|i| AREAS[area] + i as u64 * PAGE_SIZE).collect();
        kept.push(AREAS[1] + AREA * PAGE_SIZE);
        self.machine.keep(kept);
    }

    fn check(&self) {
        self.machine.assert_sound();
        for (base, pages) in AREAS.into_iter().zip(&self.flat) {
            for (i, page) in (0..).zip(pages) {
                let at = base + i * PAGE_SIZE;
                let seen = self.machine.walk(Vmid::HOST, Ipa::new(at));
                if self.machine.has_smmu() {
                    assert_eq!(self.machine.dma_walk(DEVICE, Ipa::new(at)), seen);
                }
                let seen = seen.map(|a| {
                    let kind = match (a.normal, a.execute) {
                        (true, true) => MemoryType::Ram,
                        (true, false) => MemoryType::Window,
                        (false, _) => MemoryType::Device,
                    };
                    (a.pa, kind)
                });
                assert_eq!(seen, *page, "at {at:#x}");
            }
        }
        // Beyond the second area the block of 1 GiB goes on.
        let behind = AREAS[1] + AREA * PAGE_SIZE;
        let seen = self.machine.walk(Vmid::HOST, Ipa::new(behind)).unwrap();
        assert_eq!(seen.pa, behind);
        let mut tables = self.machine.dma_tables();
        tables.extend(self.machine.tables(Vmid::HOST));
        let roots = 1 + u64::from(self.machine.has_smmu());
        assert_eq!(tables.len() as u64, self.used + roots, "no table is lost");
        let is_used = |t: &PhysAddr| (0..512).any(|i| self.machine.read_word(*t, i) & 1 != 0);
        assert!(tables.iter().all(is_used), "no empty table stays");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a07_any_order_of_changes_equals_a_flat_map(ops in ops(), mirror: Option<bool>) {
        let mut bench = Bench::new(mirror);
        for op in ops {
            bench.run(op);
        }
        // Everything back: what was one block is one block again.
        for (area, base) in AREAS.into_iter().enumerate() {
            bench.unmap(base, AREA);
            bench.flat[area].fill(None);
        }
        bench.run((Op::Map { shift: 0, kind: MemoryType::Ram }, 1, 1024, 1024));
        let whole = bench.machine.walk(Vmid::HOST, Ipa::new(2 * GIB)).unwrap();
        prop_assert_eq!(whole.span, GIB);
        prop_assert_eq!(bench.used, 0);
    }
}

#[test]
fn nothing_is_mapped_beyond_the_input_size() {
    let mut bench = Bench::new(None);
    for (at, count) in [
        (1 << 36, 1),
        ((1 << 36) - PAGE_SIZE, 2),
        (!0xfff, 1),
        (0, 1 << 52),
    ] {
        let result = bench.map(at, 0, count, MemoryType::Ram);
        assert_eq!(result, Err(Error::OutsideRegion));
    }
    let beyond = bench
        .tables
        .lookup(&bench.machine, Ipa::new((1 << 36) + 2 * GIB));
    assert_eq!(beyond, Lookup::Hole { end: u64::MAX });
    bench.check();
}

#[test]
fn clear_leaves_nothing() {
    let mut bench = Bench::new(None);
    bench.machine.warm();
    bench.tables.clear(&bench.machine);
    bench.machine.assert_sound();
    assert!(bench.machine.walk(Vmid::HOST, Ipa::new(2 * GIB)).is_none());
}

#[test]
fn what_was_cleared_is_not_written_again() {
    let mut bench = Bench::new(None);
    bench.tables.clear(&bench.machine);
    let root = PhysAddr::new(bench.tables.regime().vttbr & 0xffff_ffff_f000);
    bench.machine.poke(root, 0, 0x5ec2e7);
    bench.tables.clear(&bench.machine);
    assert_eq!(bench.machine.read_word(root, 0), 0x5ec2e7);
}
