//! VMs and their slots: who lives where, from creation to the last page given back.
//! Pages are `memory`'s business, running vCPUs `run`'s; arguments of the host are read in `host::calls`.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::lock::{Mutex, RwLock};
use porthole_abi::{
    DONATE_PAGES_MAX, Error, Features, RegionKind, SPI_BASE, SPIS_MAX, VCPUS_MAX, VMS_MAX,
    VmConfig, VmFlags, VmHandle, VmState, version_ok,
};

use crate::addr::{Ipa, IpaPages, PhysAddr, PhysPages};
use crate::guest::GuestMemory;
use crate::hw::{Machine, Vmid};
use crate::hypervisor::{CPUS_MAX, Hypervisor};
use crate::measure::Launch;
use crate::regions::Regions;
use crate::tracker::{PageState, VmSlot};
use crate::vcpu::{Link, Poke, Power, Start, Vcpu};
use crate::vgic::{Gic, GicConfig, VcpuMask};

/// Metadata pages that a VM takes at once: its root table and its interrupt controller.
const FIRST_METADATA: u64 = 2;

/// One VM.
///
/// Lock order: the slot that it lives in, a vCPU, `memory`; `gic`, `launch` and a vCPU's power are leaves.
pub(crate) struct Vm<M: Machine> {
    pub(crate) handle: VmHandle,
    pub(crate) vmid: Vmid,
    state: AtomicU8,
    /// A copy of the map in `memory`, for exits, which must not wait for a donation.
    pub(crate) map: AddressMap,
    pub(crate) memory: Mutex<GuestMemory>,
    /// In a page of metadata; gone when the VM is torn down.
    pub(crate) gic: Mutex<Option<M::Boxed<Gic>>>,
    pub(crate) launch: Mutex<Launch>,
    pub(crate) vcpu_count: usize,
    /// Each in a page of metadata, made by `VCPU_CREATE`; gone when the VM is torn down.
    pub(crate) vcpus: [Mutex<Option<M::Boxed<Vcpu>>>; VCPUS_MAX],
    pub(crate) links: [Link; VCPUS_MAX],
    /// Counter value at creation, which is the guest's zero.
    pub(crate) cntvoff: u64,
    /// For each physical CPU, the vCPU that it ran last, plus one.
    last_vcpu: [AtomicU8; CPUS_MAX],
}

/// A VM's regions with those of the interrupt controller at hand.
pub(crate) struct AddressMap {
    regions: Regions,
    distributor: IpaPages,
    redistributors: IpaPages,
    messages: Option<IpaPages>,
}

/// What a guest address is to the exit handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Private memory.
    Ram,
    /// GICD, at this offset.
    Distributor(u64),
    /// GICR, at this offset from the first vCPU's frames.
    Redistributor(u64),
    /// The GICv2m frame, at this offset.
    Messages(u64),
    /// The host's to emulate: no region, or a place in the aperture where no window is.
    Host,
}

impl AddressMap {
    /// # Errors
    /// `BadRegions` without exactly one distributor and one run of redistributors.
    fn new(regions: Regions) -> Result<Self, Error> {
        let of_kind = |kind| regions.of_kind(kind).map(|region| region.pages);
        Ok(Self {
            distributor: of_kind(RegionKind::GicDistributor).ok_or(Error::BadRegions)?,
            redistributors: of_kind(RegionKind::GicRedistributors).ok_or(Error::BadRegions)?,
            messages: of_kind(RegionKind::GicV2m),
            regions,
        })
    }

    /// What lies at an address. The distributor comes first: it is the one that must be fast.
    pub(crate) fn target(&self, ipa: Ipa) -> Target {
        let offset = |pages: &IpaPages| {
            pages
                .contains(ipa)
                .then(|| ipa.raw().wrapping_sub(pages.start().raw()))
        };
        if let Some(offset) = offset(&self.distributor) {
            return Target::Distributor(offset);
        }
        if let Some(offset) = offset(&self.redistributors) {
            return Target::Redistributor(offset);
        }
        if let Some(offset) = self.messages.as_ref().and_then(offset) {
            return Target::Messages(offset);
        }
        match self.regions.find(ipa) {
            Some(region) if region.kind == RegionKind::Ram => Target::Ram,
            _ => Target::Host,
        }
    }

    /// Whether an instruction can be fetched there once there is a page.
    pub(crate) fn is_entry(&self, entry: Ipa) -> bool {
        let kind = self.regions.find(entry).map(|region| region.kind);
        entry.is_aligned(4) && matches!(kind, Some(RegionKind::Ram | RegionKind::OpenRam))
    }

    /// The policy that the VM was created with.
    pub(crate) fn flags(&self) -> VmFlags {
        match self.regions.of_kind(RegionKind::OpenRam) {
            Some(_) => VmFlags::UNPROTECTED,
            None => VmFlags::empty(),
        }
    }
}

/// A checked `VmConfig`.
struct Checked {
    regions: Regions,
    map: AddressMap,
    gic: GicConfig,
    metadata: PhysPages,
}

/// Checks everything about a parameter block that needs no state.
fn check(config: &VmConfig) -> Result<Checked, Error> {
    if !version_ok(config.version) {
        return Err(Error::BadVersion);
    }
    if VmFlags::from_bits(config.flags).is_none() || config.reserved != [0; 2] {
        return Err(Error::ReservedNonZero);
    }
    let vcpus = usize::try_from(config.vcpus)
        .ok()
        .filter(|n| (1..=VCPUS_MAX).contains(n))
        .ok_or(Error::InvalidParameter)?;
    if config.spi_count > SPIS_MAX {
        return Err(Error::TooLarge);
    }
    let msi_ok = match config.msi_count {
        0 => config.msi_base == 0,
        count => {
            let end = config.msi_base.checked_add(count);
            config.msi_base >= SPI_BASE && end.is_some_and(|end| end <= SPI_BASE + config.spi_count)
        }
    };
    if !msi_ok {
        return Err(Error::BadIntid);
    }
    let regions = Regions::new(config)?;
    let map = AddressMap::new(regions.clone())?;
    if map.messages.is_some() != (config.msi_count != 0) {
        return Err(Error::BadRegions);
    }
    let metadata = donation(config.meta_pa, config.meta_pages)?;
    if metadata.count() < FIRST_METADATA {
        return Err(Error::NoMetadata);
    }
    Ok(Checked {
        regions,
        map,
        gic: GicConfig {
            vcpus,
            spis: config.spi_count,
            msi_base: config.msi_base,
            msi_count: config.msi_count,
        },
        metadata,
    })
}

/// Pages that a caller names for a donation or a reclaim.
///
/// # Errors
/// `Empty`, `TooLarge`, `Unaligned`, `Overflow`, in this order.
pub(crate) fn donation(pa: u64, pages: u64) -> Result<PhysPages, Error> {
    if pages > DONATE_PAGES_MAX {
        return Err(Error::TooLarge);
    }
    PhysPages::new(PhysAddr::new(pa), pages)
}

impl<M: Machine> Vm<M> {
    /// Where it stands in its life.
    pub(crate) fn state(&self) -> VmState {
        match self.state.load(Ordering::SeqCst) {
            1 => VmState::Created,
            2 => VmState::Final,
            3 => VmState::Stopped,
            _ => VmState::Dying,
        }
    }

    /// Goes from one state to another; false if it was in neither.
    fn advance(&self, from: VmState, to: VmState) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// # Errors
    /// `BadState` unless it is in one of these states.
    pub(crate) fn in_state(&self, states: &[VmState]) -> Result<(), Error> {
        if states.contains(&self.state()) {
            Ok(())
        } else {
            Err(Error::BadState)
        }
    }

    /// The vCPU lock of this index.
    ///
    /// # Errors
    /// `BadVcpu`.
    pub(crate) fn vcpu(&self, index: u64) -> Result<&Mutex<Option<M::Boxed<Vcpu>>>, Error> {
        usize::try_from(index)
            .ok()
            .filter(|index| *index < self.vcpu_count)
            .and_then(|index| self.vcpus.get(index))
            .ok_or(Error::BadVcpu)
    }

    /// Closes the launch: from here on vCPU 0 may run.
    ///
    /// # Errors
    /// `BadState`; `BadVcpu` if a declared vCPU was not made; `Busy` if one is in use, which only happens when
    /// two calls race; `Unaligned`, `OutsideRegion` for an entry that is not an instruction in RAM.
    pub(crate) fn finalize(&self, entry: u64, x0: u64) -> Result<(), Error> {
        self.in_state(&[VmState::Created])?;
        // Before the table lock, which comes after a vCPU's; one that was made stays. Nobody waits here for a
        // vCPU that another CPU has meanwhile finalized and entered.
        for cell in self.vcpus.iter().take(self.vcpu_count) {
            if cell.try_lock().ok_or(Error::Busy)?.is_none() {
                return Err(Error::BadVcpu);
            }
        }
        // The table lock keeps donations out: none of them sees the launch half closed.
        let _memory = self.memory.lock();
        self.in_state(&[VmState::Created])?;
        let entry = Ipa::new(entry);
        if !entry.is_aligned(4) {
            return Err(Error::Unaligned);
        }
        if !self.map.is_entry(entry) {
            return Err(Error::OutsideRegion);
        }
        self.launch.lock().close(entry, x0)?;
        if let Some(link) = self.links.first() {
            *link.power.lock() = Power::Starting(Start {
                entry: entry.raw(),
                x0,
            });
        }
        self.advance(VmState::Created, VmState::Final);
        Ok(())
    }

    /// The guest is over; no vCPU enters it again. Returns those to kick out.
    pub(crate) fn stop(&self) -> VcpuMask {
        self.advance(VmState::Final, VmState::Stopped);
        u8::MAX >> (8 - self.vcpu_count.clamp(1, 8))
    }

    /// Whether this CPU ran another vCPU of this VM last, whose translations it may still have.
    pub(crate) fn is_new_here(&self, cpu: usize, vcpu: usize) -> bool {
        let number = u8::try_from(vcpu).map_or(u8::MAX, |n| n.wrapping_add(1));
        self.last_vcpu
            .get(cpu)
            .is_none_or(|last| last.swap(number, Ordering::Relaxed) != number)
    }
}

/// What a slot holds.
struct Slot<M: Machine> {
    /// Grows with every VM that lived here.
    generation: u32,
    vm: Option<Vm<M>>,
}

/// All VM slots, for a static of the binary.
pub struct Slots<M: Machine> {
    slots: [RwLock<Slot<M>>; VMS_MAX],
}

impl<M: Machine> Slots<M> {
    /// Empty slots.
    pub const fn new() -> Self {
        Self {
            slots: [const {
                RwLock::new(Slot {
                    generation: 0,
                    vm: None,
                })
            }; VMS_MAX],
        }
    }

    fn of(&self, handle: u64) -> Result<&RwLock<Slot<M>>, Error> {
        self.slots
            .get(VmHandle(handle).slot())
            .ok_or(Error::BadHandle)
    }

    /// Calls `f` with the VM that this handle names, which lives at least until `f` returns.
    ///
    /// # Errors
    /// `BadHandle`, or what `f` returns.
    pub(crate) fn with<R>(
        &self,
        handle: u64,
        f: impl FnOnce(&Vm<M>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let slot = self.of(handle)?.read();
        let vm = slot.vm.as_ref().filter(|vm| vm.handle.0 == handle);
        f(vm.ok_or(Error::BadHandle)?)
    }

    /// Calls `f` with the VM in a slot, if there is one.
    pub(crate) fn with_slot<R>(&self, index: usize, f: impl FnOnce(&Vm<M>) -> R) -> Option<R> {
        let slot = self.slots.get(index)?.read();
        slot.vm.as_ref().map(f)
    }
}

impl<M: Machine> Default for Slots<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> Hypervisor<M> {
    /// `VM_CREATE` of a copied block.
    ///
    /// # Errors
    /// `UnsafeDma`; those of the block's checks; `NoSlot`; those of taking the metadata.
    pub(crate) fn create_vm(&self, config: &VmConfig) -> Result<VmHandle, Error> {
        if !self
            .features
            .intersects(Features::DMA_ISOLATED | Features::UNSAFE_DMA)
        {
            return Err(Error::UnsafeDma);
        }
        let checked = check(config)?;
        let (index, mut slot) = self
            .slots
            .slots
            .iter()
            .enumerate()
            .find_map(|(index, lock)| {
                let slot = lock.try_write()?;
                slot.vm.is_none().then_some((index, slot))
            })
            .ok_or(Error::NoSlot)?;
        let vm_slot = VmSlot::new(index).ok_or(Error::NoSlot)?;
        let launch = Launch::new(config, &checked.regions, self.features);
        let mut memory =
            self.memory
                .create_guest(&self.machine, vm_slot, checked.regions, checked.metadata)?;
        // There is a page for it: `check` asked for two, and the root took one.
        let page = memory.take_metadata(&self.machine)?;
        let gic = self.machine.place(page, Gic::new(checked.gic));
        slot.generation = match slot.generation.wrapping_add(1) {
            0 => 1,
            generation => generation,
        };
        let handle = VmHandle::new(index as u8, slot.generation);
        slot.vm = Some(Vm {
            handle,
            vmid: vm_slot.vmid(),
            state: AtomicU8::new(VmState::Created as u8),
            map: checked.map,
            memory: Mutex::new(memory),
            gic: Mutex::new(Some(gic)),
            launch: Mutex::new(launch),
            vcpu_count: checked.gic.vcpus,
            vcpus: [const { Mutex::new(None) }; VCPUS_MAX],
            links: [const { Link::new() }; VCPUS_MAX],
            cntvoff: self.machine.counter(),
            last_vcpu: [const { AtomicU8::new(0) }; CPUS_MAX],
        });
        Ok(handle)
    }

    /// `VCPU_CREATE`.
    ///
    /// # Errors
    /// `BadHandle`, `BadState`, `BadVcpu`, `NoMetadata`; `Busy` if another CPU has the vCPU.
    pub(crate) fn create_vcpu(&self, handle: u64, index: u64) -> Result<(), Error> {
        self.slots.with(handle, |vm| {
            vm.in_state(&[VmState::Created])?;
            let mut cell = vm.vcpu(index)?.try_lock().ok_or(Error::Busy)?;
            if cell.is_some() {
                return Err(Error::BadVcpu);
            }
            let mut memory = vm.memory.lock();
            vm.in_state(&[VmState::Created])?;
            let page = memory.take_metadata(&self.machine)?;
            let vcpu = Vcpu::new(index as usize, memory.regime(), vm.cntvoff);
            *cell = Some(self.machine.place(page, vcpu));
            Ok(())
        })
    }

    /// `VM_TEARDOWN`: one bounded step. Returns the windows left.
    ///
    /// # Errors
    /// `BadHandle`; `Busy` while anything of the VM is in use.
    pub(crate) fn teardown_vm(&self, handle: u64) -> Result<u64, Error> {
        let mut slot = self.slots.of(handle)?.try_write().ok_or(Error::Busy)?;
        let vm = slot
            .vm
            .as_mut()
            .filter(|vm| vm.handle.0 == handle)
            .ok_or(Error::BadHandle)?;
        *vm.state.get_mut() = VmState::Dying as u8;
        // What lives in the VM's metadata goes before its pages can.
        *vm.gic.get_mut() = None;
        for vcpu in &mut vm.vcpus {
            *vcpu.get_mut() = None;
        }
        let left = self.memory.retire_step(&self.machine, vm.memory.get_mut());
        Ok(left as u64)
    }

    /// `VM_DESTROY`.
    ///
    /// # Errors
    /// `BadHandle`; `Busy`; `BadState` before the teardown is done; `PagesLeft`.
    pub(crate) fn destroy_vm(&self, handle: u64) -> Result<(), Error> {
        let mut slot = self.slots.of(handle)?.try_write().ok_or(Error::Busy)?;
        let vm = slot
            .vm
            .as_mut()
            .filter(|vm| vm.handle.0 == handle)
            .ok_or(Error::BadHandle)?;
        let memory = vm.memory.get_mut();
        if !memory.is_retired() {
            return Err(Error::BadState);
        }
        if memory.memory_pages() != 0 || memory.metadata_pages() != 0 {
            return Err(Error::PagesLeft);
        }
        slot.vm = None;
        Ok(())
    }

    /// Makes a vCPU look at its interrupts, wherever it is. True if the host must wake it.
    pub(crate) fn poke(&self, vm: &Vm<M>, vcpu: usize) -> bool {
        match vm.links.get(vcpu).map(Link::poke) {
            Some(Poke::Kick(cpu)) => {
                self.machine.kick(cpu);
                false
            }
            Some(Poke::Wake) => true,
            Some(Poke::Nothing) | None => false,
        }
    }

    /// Makes several look; returns those that the host must wake.
    pub(crate) fn poke_all(&self, vm: &Vm<M>, mask: VcpuMask) -> VcpuMask {
        (0..vm.vcpu_count)
            .filter(|vcpu| mask >> vcpu & 1 != 0 && self.poke(vm, *vcpu))
            .fold(0, |wake, vcpu| wake | 1 << vcpu)
    }

    /// Zeroes every page of every guest, before the machine goes down: whoever boots next must not find them.
    /// Not bounded, and it ends all VMs; nobody is there to mind.
    pub(crate) fn wipe_guests(&self) {
        self.halting.store(true, Ordering::SeqCst);
        for lock in &self.slots.slots {
            if let Some(vm) = &lock.read().vm {
                self.poke_all(vm, VcpuMask::MAX);
                // The kick is an interrupt, which the host can withhold. No guest runs on without memory: its next
                // fetch faults, and that exit is its last.
                vm.memory.lock().stage2.clear(&self.machine);
            }
            // Waits for the vCPUs that were just thrown out.
            lock.write().vm = None;
        }
        for page in self.ram.iter().flat_map(PhysPages::iter) {
            if let Some(PageState::VmMemory(_) | PageState::VmMetadata(_)) =
                self.memory.page_state(page)
            {
                self.machine.scrub(page);
            }
        }
    }
}
