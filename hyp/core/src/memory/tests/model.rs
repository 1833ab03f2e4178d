//! Every sequence of memory calls on a machine of 4 pages, 2 VMs and 2 windows each, explored to the end: the
//! transition function is the production code on the fake machine, legal and illegal calls alike.
//!
//! Two states count as one when owners, maps, windows and free counts are equal: which of several equal free
//! pages becomes a table decides nothing else. Refused calls are checked to leave every word as it was.

use std::hash::{Hash, Hasher};

use porthole_abi::{Error, FunctionId, PageOwner};
use stateright::{Checker, Model, Property};

use super::super::{Confined, Content, HostMemory, Inner};
use super::support::{
    APERTURE, BLOCK, BYSTANDER, DEVICE, DOORBELL, GUEST_RAM, pa, pages, regions, slot, window,
};
use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::guest::GuestMemory;
use crate::hw::Vmid;
use crate::memory::MemoryConfig;
use crate::stage2::{PaRange, Stage2};
use crate::testing::{FakeMachine, FakeState};
use crate::tracker::{PageEntry, PageState, Tracker};

const RAM: u64 = 0x4000_0000;
/// The hypervisor's block, then the host's.
const RAM_PAGES: u64 = 1024;
const PAGE: u64 = 4096;
/// Pages that change hands: the host's block has them at its start.
const PAGES: u64 = 4;
/// Metadata pages of each VM behind them: root and two tables each for RAM and windows.
const META: u64 = 5;
const TRACKED: u64 = PAGES + 2 * META;
const POOL: u64 = 12;

fn page(index: u64) -> u64 {
    RAM + BLOCK + index * PAGE
}

fn meta(vm: usize) -> u64 {
    page(PAGES + vm as u64 * META)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Create(usize),
    Donate(usize, u64, u64),
    /// VM, pages, place in the aperture, PCI device and function.
    Register(usize, [u64; 2], u64, u8, u8),
    Unregister(usize, u64, u64),
    Retire(usize),
    Reclaim(usize, u64),
    ReclaimMeta(usize),
    Destroy(usize),
    Pin(u64),
    Unpin(u64),
    TakeTable(u64),
    GiveTable(u64),
    /// First page and number of pages.
    Confine(u64, u64),
    Release,
}

/// What the checker compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    owners: Vec<PageEntry>,
    host_tables: u64,
    host: Vec<Option<u64>>,
    guests: [Option<GuestShape>; 2],
    confined: Option<PhysPages>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GuestShape {
    retired: bool,
    memory: u64,
    metadata: u64,
    free: u64,
    /// Pages at the four places that actions use: two in RAM, two in the aperture with the page behind.
    maps: Vec<Option<(u64, bool)>>,
    windows: Vec<(usize, u64, u64, u32, u8)>,
}

#[derive(Clone)]
struct State {
    fake: FakeState,
    stage2: Stage2,
    tables: u64,
    confined: Confined,
    guests: [Option<GuestMemory>; 2],
    shape: Shape,
    fault: Option<String>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.fault == other.fault
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.shape.hash(hasher);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.shape, self.fault)
    }
}

const PLACES: [u64; 6] = [
    GUEST_RAM,
    GUEST_RAM + PAGE,
    APERTURE,
    APERTURE + PAGE,
    APERTURE + 4 * PAGE,
    APERTURE + 5 * PAGE,
];

/// The production code around a state, for one call.
struct Bench<'t> {
    machine: FakeMachine,
    memory: HostMemory<'t>,
    guests: [Option<GuestMemory>; 2],
}

impl<'t> Bench<'t> {
    fn restore(state: &State, entries: &'t mut [PageEntry]) -> Self {
        let mut tracker = Tracker::new(&[pages(RAM, RAM_PAGES)], entries).unwrap();
        tracker.set_range(&pages(RAM + BLOCK, 512), PageState::Host);
        for (index, entry) in (0..).zip(&state.shape.owners) {
            if entry.state() != PageState::Host {
                tracker.set_range(&pages(page(index), 1), entry.state());
            }
        }
        let inner = Inner {
            tracker,
            stage2: state.stage2.clone(),
            tables: state.tables,
            donated: 0,
            reclaimed: 0,
        };
        Self {
            machine: FakeMachine::restore(state.fake.clone()),
            memory: HostMemory {
                regime: inner.stage2.regime(),
                inner: crate::lock::Mutex::new(inner),
                pa_range: PaRange::new(0),
                confined: crate::lock::Mutex::new(state.confined.clone()),
                doorbells: [pa(DOORBELL)].into_iter().collect(),
            },
            guests: state.guests.clone(),
        }
    }

    /// Caches every translation that the actions could make stale.
    fn warm(&self) {
        for at in (0..TRACKED + 2).map(page) {
            self.machine.access(Vmid::HOST, Ipa::new(at));
            self.machine.dma_access(DEVICE, Ipa::new(at));
            self.machine.dma_access(BYSTANDER, Ipa::new(at));
        }
        for (vm, ipa) in [0, 1]
            .into_iter()
            .flat_map(|vm| PLACES.map(|ipa| (vm, ipa)))
        {
            self.machine.access(slot(vm).vmid(), Ipa::new(ipa));
        }
    }

    fn act(&mut self, action: Action) -> Result<(), Error> {
        let Self {
            machine,
            memory,
            guests,
        } = self;
        let mut on = |vm: usize, call: &mut dyn FnMut(&mut GuestMemory) -> Result<(), Error>| {
            guests[vm].as_mut().map_or(Err(Error::BadHandle), call)
        };
        match action {
            Action::Create(vm) => {
                if guests[vm].is_some() {
                    return Err(Error::NoSlot);
                }
                let meta = pages(meta(vm), META);
                let guest = memory.create_guest(machine, slot(vm), regions(), meta)?;
                machine.watch(guest.regime());
                guests[vm] = Some(guest);
                Ok(())
            }
            Action::Donate(vm, index, place) => on(vm, &mut |guest| {
                let to = Ipa::new(GUEST_RAM + place * PAGE);
                let from = pages(page(index), 1);
                memory.donate(machine, guest, from, to, Content::Zeroed)
            }),
            Action::Register(vm, [first, second], place, device, function) => {
                let mut config = window(
                    APERTURE + place * 4 * PAGE,
                    &[(page(first), 1), (page(second), 1)],
                );
                config.function = FunctionId::new(0, 0, device, function).0;
                on(vm, &mut |guest| {
                    memory.register_window(machine, guest, &config).map(drop)
                })
            }
            Action::Unregister(vm, window, function) => on(vm, &mut |guest| {
                memory.unregister_window(machine, guest, window, function)
            }),
            Action::Retire(vm) => on(vm, &mut |guest| {
                memory.retire_step(machine, guest);
                Ok(())
            }),
            Action::Reclaim(vm, index) => on(vm, &mut |guest| {
                memory.reclaim(machine, guest, pages(page(index), 1))
            }),
            Action::ReclaimMeta(vm) => on(vm, &mut |guest| {
                memory.reclaim(machine, guest, pages(meta(vm), META))
            }),
            Action::Destroy(vm) => {
                on(vm, &mut |guest| {
                    let left = guest.memory_pages() + guest.metadata_pages();
                    if left > 0 || !guest.is_retired() {
                        return Err(Error::PagesLeft);
                    }
                    Ok(())
                })?;
                guests[vm] = None;
                machine.unwatch(slot(vm).vmid());
                Ok(())
            }
            Action::Pin(index) => memory.pin(&pages(page(index), 1)),
            Action::Unpin(index) => memory.unpin(&pages(page(index), 1)),
            Action::TakeTable(index) => memory.take_table(machine, pages(page(index), 1)),
            Action::GiveTable(index) => memory.give_table(machine, pages(page(index), 1)),
            Action::Confine(first, count) => {
                memory.confine(machine, DEVICE, pages(page(first), count))
            }
            Action::Release => memory.release(machine, DEVICE),
        }
    }

    fn state(self) -> State {
        let fault = self.fault();
        let inner = self.memory.inner.lock();
        let owners = (0..TRACKED)
            .map(|i| PageEntry::pack(inner.tracker.state(pa(page(i))).unwrap()))
            .collect();
        let see = |vmid, ipa| self.machine.walk(vmid, Ipa::new(ipa));
        let guests = [0, 1].map(|vm: usize| {
            let guest = self.guests[vm].as_ref()?;
            Some(GuestShape {
                retired: guest.is_retired(),
                memory: guest.memory_pages(),
                metadata: guest.metadata_pages(),
                free: guest.metadata_free(),
                maps: PLACES
                    .map(|ipa| see(slot(vm).vmid(), ipa).map(|a| (a.pa, a.execute)))
                    .to_vec(),
                windows: guest
                    .windows()
                    .iter_from(0)
                    .map(|(id, w)| {
                        let range = (w.pages.start().raw(), w.pages.count());
                        let owner = w.function().device();
                        (id.index(), range.0, range.1, owner, w.functions())
                    })
                    .collect(),
            })
        });
        let shape = Shape {
            owners,
            host_tables: inner.tables,
            host: (0..=TRACKED)
                .map(|i| see(Vmid::HOST, page(i)).map(|a| a.span))
                .collect(),
            guests,
            confined: self.memory.confinement(0).map(|(_, region)| region),
        };
        let (stage2, tables) = (inner.stage2.clone(), inner.tables);
        drop(inner);
        let confined = self.memory.confined.lock().clone();
        State {
            fake: self.machine.snapshot().without_tlb(),
            stage2,
            tables,
            confined,
            guests: self.guests,
            shape,
            fault,
        }
    }

    /// What is wrong with this state, if anything is.
    fn fault(&self) -> Option<String> {
        if let Some(unsound) = self.machine.unsound() {
            return Some(unsound);
        }
        let inner = self.memory.inner.lock();
        let mut reached = [0u32; 2 + TRACKED as usize];
        let mut shared = 0;
        for index in 0..TRACKED + 2 {
            let at = page(index);
            let state = inner.tracker.state(pa(at))?;
            let host = self.machine.walk(Vmid::HOST, Ipa::new(at));
            if host.is_some_and(|a| a.pa != at) || host.is_some() != state.host_reaches() {
                return Some(format!("host and page {index}: {state:?}"));
            }
            let region = self.memory.confinement(0).map(|(_, region)| region);
            let device = self.machine.dma_walk(DEVICE, Ipa::new(at));
            let expected = region.map_or(host.is_some(), |r| r.contains(pa(at)));
            let is_confined = region.is_some_and(|r| r.contains(pa(at)));
            if device.is_some_and(|a| a.pa != at)
                || device.is_some() != expected
                || is_confined != (state == PageState::Confined)
                || self.machine.dma_walk(BYSTANDER, Ipa::new(at)) != host
            {
                return Some(format!("devices and page {index}: {state:?}"));
            }
        }
        let mut windows = 0;
        for (vm, guest) in (0..).zip(&self.guests) {
            let Some(guest) = guest else { continue };
            windows += guest
                .windows()
                .iter_from(0)
                .map(|w| w.1.pages.count())
                .sum::<u64>();
            for ipa in PLACES {
                let Some(seen) = self.machine.walk(slot(vm).vmid(), Ipa::new(ipa)) else {
                    continue;
                };
                let index = (seen.pa - page(0)) / PAGE;
                let state = inner.tracker.state(PhysAddr::new(seen.pa));
                let expected = match state {
                    Some(PageState::VmMemory(owner)) => owner == slot(vm) && seen.execute,
                    Some(PageState::Window(owner, id)) => {
                        let record = guest.windows().get(id);
                        let covers = record.is_some_and(|w| w.pages.contains(Ipa::new(ipa)));
                        shared += 1;
                        owner == slot(vm) && covers && !seen.execute
                    }
                    _ => false,
                };
                reached[index as usize] += 1;
                if !expected || reached[index as usize] > 1 {
                    return Some(format!("VM {vm} reaches page {index}: {state:?}"));
                }
            }
        }
        let tracked = inner.tracker.count(PageOwner::Window);
        let mut tables = self.machine.dma_tables();
        tables.extend(self.machine.tables(Vmid::HOST));
        let tables = tables.len() as u64;
        if (shared, shared) != (windows, tracked) || !inner.tracker.check() {
            return Some(format!(
                "{shared} shared, {windows} in windows, {tracked} tracked"
            ));
        }
        (inner.tables + 2 != tables).then(|| format!("{tables} host tables"))
    }
}

struct Calls;

impl Model for Calls {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let machine = FakeMachine::new(pages(RAM + 16 * PAGE, POOL));
        machine.add_smmu(&[DEVICE, BYSTANDER], true);
        let mut entries = vec![PageEntry::default(); RAM_PAGES as usize];
        let config = MemoryConfig {
            ram: &[pages(RAM, RAM_PAGES)],
            hyp: pages(RAM, 512),
            hidden: &[],
            host_root: pa(RAM),
            pa_range: 0,
            dma_root: Some(pa(RAM + 2 * PAGE)),
            doorbells: &[pa(DOORBELL)],
        };
        let memory = HostMemory::new(&machine, &config, &mut entries).unwrap();
        machine.watch(memory.regime());
        let bench = Bench {
            machine,
            memory,
            guests: [None, None],
        };
        vec![bench.state()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for vm in 0..2 {
            actions.extend([
                Action::Create(vm),
                Action::Retire(vm),
                Action::ReclaimMeta(vm),
                Action::Destroy(vm),
            ]);
            for index in 0..PAGES {
                actions.push(Action::Reclaim(vm, index));
                actions.extend((0..RAM_PLACES).map(|place| Action::Donate(vm, index, place)));
            }
            for place in 0..2 {
                for pair in [[0, 1], [1, 0], [2, 3], [1, 2], [3, 3]] {
                    for (device, function) in [(1, 0), (1, 1), (2, 0)] {
                        let register = Action::Register(vm, pair, place, device, function);
                        actions.push(register);
                    }
                }
                actions.extend((0..2).map(|f| Action::Unregister(vm, place, f)));
            }
        }
        actions.extend([
            Action::Unpin(0),
            Action::TakeTable(0),
            Action::GiveTable(0),
            Action::Confine(0, 2),
            Action::Confine(3, 1),
            Action::Release,
        ]);
        // Pins are counted: two of them stand for any number.
        if state.shape.owners[0].state() != PageState::Pinned(2) {
            actions.push(Action::Pin(0));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut entries = vec![PageEntry::default(); RAM_PAGES as usize];
        let mut bench = Bench::restore(state, &mut entries);
        bench.warm();
        let before = (bench.machine.snapshot(), bench.guests.clone());
        if bench.act(action).is_ok() {
            return Some(bench.state());
        }
        if (bench.machine.snapshot(), &bench.guests) == (before.0, &before.1) {
            return None;
        }
        let fault = Some(format!("{action:?} was refused and changed something"));
        let state = bench.state();
        Some(State { fault, ..state })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a20 a22 tables, tracker and windows agree",
                |_, state: &State| state.fault.is_none(),
            ),
            Property::sometimes("both VMs have a window", |_, state: &State| {
                let has =
                    |g: &Option<GuestShape>| g.as_ref().is_some_and(|g| !g.windows.is_empty());
                state.shape.guests.iter().all(has)
            }),
            Property::sometimes("a device is confined beside a VM", |_, state: &State| {
                state.shape.confined.is_some() && state.shape.guests[0].is_some()
            }),
            Property::sometimes("a dead VM still owns memory", |_, state: &State| {
                let has = |g: &GuestShape| g.retired && g.memory > 0;
                state.shape.guests.iter().flatten().any(has)
            }),
            Property::sometimes("a page is a hardware table", |_, state: &State| {
                state.shape.owners[0].state() == PageState::HwTable
            }),
            Property::sometimes("two functions share a window", |_, state: &State| {
                let shares = |g: &GuestShape| g.windows.iter().any(|w| w.4 == 3);
                state.shape.guests.iter().flatten().any(shares)
            }),
        ]
    }
}

/// Places in guest RAM that donations go to.
const RAM_PLACES: u64 = 1;

#[test]
fn a83_every_sequence_of_calls_on_four_pages() {
    let checker = Calls.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    println!(
        "{} states, {} transitions, depth {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    assert!(checker.unique_state_count() > 1000);
}
