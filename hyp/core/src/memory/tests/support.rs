//! A small machine with its memory, and the invariants that hold after every change.

use std::collections::{BTreeMap, BTreeSet};

use porthole_abi::{
    ABI_VERSION, Extent, FunctionId, PageOwner, RegionDesc, RegionKind, VM_REGIONS_MAX, VmConfig,
    WINDOW_EXTENTS_MAX, WindowConfig,
};

use super::super::{HostMemory, MemoryConfig};
use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::guest::GuestMemory;
use crate::hw::{Memory, Vmid};
use crate::regions::Regions;
use crate::testing::FakeMachine;
use crate::tracker::{PageEntry, PageState, VmSlot};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 2 * MIB;
/// First RAM range: 16 MiB, the hypervisor's 2 MiB and a bit at its start.
pub const RAM: u64 = 0x4000_0000;
pub const RAM_PAGES: u64 = 4096;
pub const HYP_PAGES: u64 = 600;
/// Second RAM range, one block of 1 GiB.
pub const HIGH: u64 = 0x8000_0000;
pub const HIGH_PAGES: u64 = 1 << 18;
/// MMIO that the host does not reach.
pub const UART: u64 = 0x0900_0000;
/// Where devices write their interrupts.
pub const DOORBELL: u64 = 0x0808_0000;
/// Devices behind the SMMU.
pub const DEVICE: FunctionId = FunctionId::new(0, 0, 3, 0);
pub const OTHER_DEVICE: FunctionId = FunctionId::new(0, 1, 0, 0);
/// One that no test confines.
pub const BYSTANDER: FunctionId = FunctionId::new(0, 1, 0, 1);
/// Pages of the pool, enough for everything but the tests that limit it.
pub const POOL_PAGES: u64 = 256;
/// A 2 MiB block of host RAM to play with.
pub const FREE: u64 = RAM + 4 * BLOCK;
/// Where guests have RAM and windows.
pub const GUEST_RAM: u64 = 0x8000_0000;
pub const GUEST_RAM_BYTES: u64 = 64 * MIB;
pub const APERTURE: u64 = 0x1000_0000;
pub const APERTURE_BYTES: u64 = 64 * MIB;

pub fn pa(raw: u64) -> PhysAddr {
    PhysAddr::new(raw)
}

pub fn pages(start: u64, count: u64) -> PhysPages {
    PhysPages::new(pa(start), count).unwrap()
}

pub fn slot(index: usize) -> VmSlot {
    VmSlot::new(index).unwrap()
}

pub fn tracker() -> Vec<PageEntry> {
    vec![PageEntry::default(); (RAM_PAGES + HIGH_PAGES) as usize]
}

pub fn regions() -> Regions {
    let mut config = VmConfig {
        version: ABI_VERSION,
        vcpus: 1,
        flags: 0,
        spi_count: 0,
        msi_base: 0,
        msi_count: 0,
        region_count: 2,
        meta_pa: 0,
        meta_pages: 0,
        reserved: [0; 2],
        regions: [RegionDesc::default(); VM_REGIONS_MAX],
    };
    config.regions[0] = RegionDesc {
        base: GUEST_RAM,
        size: GUEST_RAM_BYTES,
        kind: RegionKind::Ram as u32,
        reserved: 0,
    };
    config.regions[1] = RegionDesc {
        base: APERTURE,
        size: APERTURE_BYTES,
        kind: RegionKind::Window as u32,
        reserved: 0,
    };
    Regions::new(&config).unwrap()
}

/// A window of device 0:1.0 at `ipa` over these extents (address, pages).
pub fn window(ipa: u64, extents: &[(u64, u64)]) -> WindowConfig {
    let mut config = WindowConfig {
        version: ABI_VERSION,
        flags: 0,
        vm: 0,
        function: FunctionId::new(0, 0, 1, 0).0,
        bar: 2,
        bar_size: 16 * MIB,
        bar_offset: 0,
        length: extents.iter().map(|e| e.1 * 4096).sum(),
        ipa,
        extent_count: extents.len() as u32,
        reserved: 0,
        extents: [Extent::default(); WINDOW_EXTENTS_MAX],
    };
    for (to, (pa, pages)) in config.extents.iter_mut().zip(extents) {
        *to = Extent {
            pa: *pa,
            pages: *pages,
        };
    }
    config
}

pub struct World<'t> {
    pub machine: FakeMachine,
    pub memory: HostMemory<'t>,
}

impl<'t> World<'t> {
    pub fn new(tracker: &'t mut [PageEntry]) -> Self {
        Self::with(tracker, Some(true))
    }

    /// With an SMMU or without, which can change blocks in place or not.
    pub fn with(tracker: &'t mut [PageEntry], smmu: Option<bool>) -> Self {
        let machine = FakeMachine::new(pages(RAM + 64 * 4096, POOL_PAGES));
        if let Some(in_place) = smmu {
            machine.add_smmu(&[DEVICE, OTHER_DEVICE, BYSTANDER], in_place);
        }
        let config = MemoryConfig {
            ram: &[pages(RAM, RAM_PAGES), pages(HIGH, HIGH_PAGES)],
            hyp: pages(RAM, HYP_PAGES),
            hidden: &[pages(UART, 1)],
            host_root: pa(RAM),
            pa_range: 4,
            dma_root: smmu.map(|_| pa(RAM + 2 * 4096)),
            doorbells: &[pa(DOORBELL)],
        };
        let memory = HostMemory::new(&machine, &config, tracker).unwrap();
        machine.watch(memory.regime());
        Self { machine, memory }
    }

    /// A VM whose metadata are `meta` pages at this address.
    pub fn guest(&self, index: usize, at: u64, meta: u64) -> GuestMemory {
        let guest = self
            .memory
            .create_guest(&self.machine, slot(index), regions(), pages(at, meta))
            .unwrap();
        self.machine.watch(guest.regime());
        guest
    }

    /// Retires a VM to the end.
    pub fn retire(&self, guest: &mut GuestMemory) {
        while self.memory.retire_step(&self.machine, guest) > 0 {}
    }

    pub fn state(&self, at: u64) -> PageState {
        self.memory.page_state(pa(at)).unwrap()
    }

    /// Runs an audit to its end: shared, windows, offender.
    pub fn audit(&self, guests: &[&GuestMemory]) -> (u64, u64, Option<PhysAddr>) {
        let (mut cursor, mut shared, mut windows, mut offender) = (0, 0, 0, None);
        loop {
            let step = self
                .memory
                .audit(&self.machine, cursor, &mut |slot, look| {
                    if let Some(guest) = guests.iter().find(|g| g.slot() == slot) {
                        look(guest);
                    }
                })
                .unwrap();
            assert_eq!(step.epoch, self.memory.epoch());
            shared += step.shared;
            windows += step.windows;
            offender = offender.or(step.offender);
            assert!(step.next == 0 || step.next > cursor, "cursors grow");
            cursor = step.next;
            if cursor == 0 {
                return (shared, windows, offender);
            }
        }
    }

    /// Every page that a regime maps: input page to access, from the fake's own walker.
    pub fn mapped(&self, vmid: Vmid, ranges: &[(u64, u64)]) -> BTreeMap<u64, (u64, bool)> {
        let mut found = BTreeMap::new();
        for (start, end) in ranges {
            for at in (*start..*end).step_by(4096) {
                if let Some(access) = self.machine.walk(vmid, Ipa::new(at)) {
                    assert!(access.normal && access.write);
                    found.insert(at, (access.pa, access.execute));
                }
            }
        }
        found
    }

    /// The invariants of the design, and that nothing is lost.
    pub fn check(&self, guests: &[&GuestMemory]) {
        let inner = self.memory.inner.lock();
        assert!(inner.tracker.check());
        self.machine.assert_sound();
        self.check_host(&inner.tracker);
        let roots = if self.machine.has_smmu() { 4 } else { 2 };
        let mut tables = self.machine.dma_tables();
        tables.extend(self.machine.tables(Vmid::HOST));
        let tables = tables.len() as u64 - roots;
        assert_eq!(inner.tables, tables, "host tables are counted");
        let free = self.machine.free_pages() as u64;
        assert_eq!(free + tables, POOL_PAGES, "no pool page is lost");
        let mut owned = BTreeSet::new();
        let (mut windows, mut memory, mut metadata) = (0, 0, 0);
        for guest in guests {
            memory += guest.memory_pages();
            metadata += guest.metadata_pages();
            windows += guest
                .windows()
                .iter_from(0)
                .map(|(_, w)| w.pages.count())
                .sum::<u64>();
            self.check_guest(guest, &inner.tracker, &mut owned);
        }
        let count = |owner| inner.tracker.count(owner);
        assert_eq!(count(PageOwner::VmMemory), memory);
        assert_eq!(count(PageOwner::VmMetadata), metadata);
        assert_eq!(count(PageOwner::Window), windows);
        drop(inner);
        assert_eq!(self.audit(guests), (windows, windows, None));
    }

    fn check_host(&self, tracker: &crate::tracker::Tracker<'_>) {
        let mut index = 0;
        while let Some((at, left)) = tracker.run_at(index) {
            let access = self.machine.walk(Vmid::HOST, Ipa::new(at.raw()));
            let device = self.machine.dma_walk(BYSTANDER, Ipa::new(at.raw()));
            assert!(
                !self.machine.has_smmu() || device == access,
                "devices at {at}"
            );
            let in_block = access.map_or(1, |a| (a.span - (at.raw() & (a.span - 1))) / 4096);
            for i in 0..(in_block as usize).min(left) {
                let reaches = tracker.state_at(index + i).host_reaches();
                assert_eq!(reaches, access.is_some(), "page {i} from {at}");
            }
            if let Some(access) = access {
                assert_eq!(access.pa, at.raw());
                assert!(access.normal && access.write && access.execute);
            }
            index += (in_block as usize).min(left);
        }
        assert!(self.machine.walk(Vmid::HOST, Ipa::new(UART)).is_none());
        assert!(self.machine.dma_walk(BYSTANDER, Ipa::new(UART)).is_none());
    }

    fn check_guest(
        &self,
        guest: &GuestMemory,
        tracker: &crate::tracker::Tracker<'_>,
        owned: &mut BTreeSet<u64>,
    ) {
        let vmid = guest.slot().vmid();
        let mapped = self.mapped(
            vmid,
            &[
                (GUEST_RAM, GUEST_RAM + GUEST_RAM_BYTES),
                (APERTURE, APERTURE + APERTURE_BYTES),
            ],
        );
        if guest.is_retired() {
            assert!(mapped.is_empty() && guest.windows().is_empty());
            return;
        }
        let mut private = 0;
        for (ipa, (pa, execute)) in &mapped {
            assert!(owned.insert(*pa), "{pa:#x} has two places");
            match tracker.state(PhysAddr::new(*pa)) {
                Some(PageState::VmMemory(vm)) => {
                    assert!(vm == guest.slot() && *execute && *ipa >= GUEST_RAM);
                    private += 1;
                }
                Some(PageState::Window(vm, window)) => {
                    assert!(vm == guest.slot() && !*execute && *ipa < GUEST_RAM);
                    let record = guest.windows().get(window).unwrap();
                    assert!(record.pages.contains(Ipa::new(*ipa)));
                }
                other => panic!("{pa:#x} is {other:?}"),
            }
        }
        assert_eq!(private, guest.memory_pages());
        let tables = self.machine.tables(vmid);
        for table in &tables {
            assert_eq!(
                tracker.state(*table),
                Some(PageState::VmMetadata(guest.slot()))
            );
        }
        let used = tables.len() as u64 + guest.metadata_free();
        assert!(used <= guest.metadata_pages(), "metadata is not invented");
    }
}
