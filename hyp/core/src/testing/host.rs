//! A host on the fake machine: the whole hypervisor, called as the binary calls it, through registers.

use porthole_abi::{
    ABI_VERSION, Error, ExitKind, Extent, Features, FunctionId, HostFunction, PAGE_SIZE, PageOwner,
    RegionDesc, RegionKind, VM_REGIONS_MAX, VmConfig, WINDOW_EXTENTS_MAX, WindowConfig,
};
use zerocopy::IntoBytes;

use super::{FakeMachine, GicPlan};
use crate::addr::{PhysAddr, PhysPages};
use crate::gic_guard::GicConfig;
use crate::hw::GuestExit;
use crate::hypervisor::{BootConfig, BootError, CpuInfo, HostFaultAction, Hypervisor};
use crate::log_ring::LogRing;
use crate::tracker::PageEntry;
use crate::vm::Slots;

/// What a VM of a test is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmPlan {
    /// vCPUs.
    pub vcpus: u32,
    /// SPIs.
    pub spis: u32,
    /// Metadata pages.
    pub metadata: u64,
}

impl Default for VmPlan {
    fn default() -> Self {
        Self {
            vcpus: 2,
            spis: 64,
            metadata: 32,
        }
    }
}

/// A host of four CPUs and 64 MiB.
pub struct Host {
    /// The hypervisor under it.
    pub hyp: &'static Hypervisor<FakeMachine>,
    next: u64,
}

impl Host {
    /// First address of RAM; the hypervisor's 2 MiB come first.
    pub const RAM: u64 = 0x4000_0000;
    /// Bytes of RAM.
    pub const RAM_BYTES: u64 = 64 << 20;
    /// Bytes of the hypervisor.
    pub const HYP_BYTES: u64 = 2 << 20;
    /// Guest RAM, 64 MiB of addresses.
    pub const GUEST_RAM: u64 = 0x8000_0000;
    /// Guest distributor.
    pub const GICD: u64 = 0x0800_0000;
    /// Guest redistributors.
    pub const GICR: u64 = 0x080a_0000;
    /// Guest GICv2m frame.
    pub const V2M: u64 = 0x0802_0000;
    /// Guest aperture, 64 MiB.
    pub const APERTURE: u64 = 0x1000_0000;
    /// First INTID of the GICv2m frame of a test's VM.
    pub const MSI_BASE: u32 = 80;

    /// PCI functions of the machine's SMMU.
    pub const FUNCTIONS: [FunctionId; 2] =
        [FunctionId::new(0, 0, 3, 0), FunctionId::new(0, 1, 0, 0)];
    /// The page of GITS_TRANSLATER.
    pub const DOORBELL: u64 = 0x0809_0000;

    /// Boots.
    pub fn new() -> Self {
        Self::with_features(Features::UNSAFE_DMA | Features::TRNG)
    }

    /// Boots a machine with these features: with an SMMU if DMA is to be isolated.
    pub fn with_features(features: Features) -> Self {
        let page = |raw| PhysAddr::new(raw);
        let pool = PhysPages::new(page(Self::RAM + 0x10_0000), 64).unwrap();
        let machine = FakeMachine::new(pool);
        if features.contains(Features::DMA_ISOLATED) {
            machine.add_smmu(&Self::FUNCTIONS, true);
        }
        Self::boot(machine, features)
    }

    /// Boots this machine, whose pool lies in the hypervisor's memory.
    pub fn boot(machine: FakeMachine, features: Features) -> Self {
        Self::try_boot(machine, features).unwrap()
    }

    /// The same with a machine that may be refused.
    fn try_boot(machine: FakeMachine, features: Features) -> Result<Self, BootError> {
        let ram = PhysPages::new(PhysAddr::new(Self::RAM), Self::RAM_BYTES / PAGE_SIZE).unwrap();
        let hyp = PhysPages::new(PhysAddr::new(Self::RAM), Self::HYP_BYTES / PAGE_SIZE).unwrap();
        let tracker = vec![PageEntry::default(); ram.count() as usize];
        let (redistributors, its) = machine.gic_bases();
        let config = BootConfig {
            gic: GicConfig {
                redistributors: &redistributors,
                its: &its,
                id_bits: 15,
            },
            ram: &[ram],
            hyp,
            hidden: &[],
            cpus: &[0u64, 1, 0x100, 0x101].map(|mpidr| CpuInfo { mpidr }),
            tracker: Box::leak(tracker.into_boxed_slice()),
            host_root: PhysAddr::new(Self::RAM),
            dma_root: machine
                .has_smmu()
                .then_some(PhysAddr::new(Self::RAM + 2 * PAGE_SIZE)),
            doorbells: &[PhysAddr::new(Self::DOORBELL)],
            features,
            slots: Box::leak(Box::new(Slots::new())),
            log: Box::leak(Box::new(LogRing::new())),
        };
        let hyp: &Hypervisor<FakeMachine> = Box::leak(Box::new(Hypervisor::new(machine, config)?));
        hyp.machine().watch(hyp.host_regime());
        hyp.machine().watch_gic(|page| hyp.memory.page_state(page));
        Ok(Self {
            hyp,
            next: Self::RAM + Self::HYP_BYTES,
        })
    }

    /// The machine.
    pub fn machine(&self) -> &'static FakeMachine {
        self.hyp.machine()
    }

    /// Host pages nobody used yet.
    pub fn pages(&mut self, count: u64) -> u64 {
        let at = self.next;
        self.next += count * PAGE_SIZE;
        assert!(
            self.next <= Self::RAM + Self::RAM_BYTES,
            "the test is too large"
        );
        at
    }

    /// One HVC; all registers as they come back.
    pub fn hvc(&self, x0: u64, args: &[u64]) -> [u64; 31] {
        let mut x = [0; 31];
        x[0] = x0;
        x[1..=args.len()].copy_from_slice(args);
        self.hyp.host_hvc(0, &mut x);
        x
    }

    /// One hypercall.
    ///
    /// # Errors
    /// What it returned.
    pub fn call(&self, function: HostFunction, args: &[u64]) -> Result<[u64; 31], Error> {
        let x = self.hvc(u64::from(function.id()), args);
        match Error::from_code(x[0].cast_signed()) {
            None => {
                assert_eq!(x[0], 0, "neither success nor a known error");
                Ok(x)
            }
            Some(error) => {
                assert_eq!(x[1..=args.len()], *args, "a refused call changes x0 only");
                Err(error)
            }
        }
    }

    /// Boots a machine with an interrupt controller.
    pub fn with_gic(plan: GicPlan) -> Self {
        Self::try_with_gic(plan).unwrap()
    }

    /// The same with an interrupt controller that may be refused.
    ///
    /// # Errors
    /// What the boot ended with.
    pub fn try_with_gic(plan: GicPlan) -> Result<Self, BootError> {
        let pool = PhysPages::new(PhysAddr::new(Self::RAM + 0x10_0000), 64).unwrap();
        let machine = FakeMachine::new(pool);
        machine.add_gic(plan);
        Self::try_boot(machine, Features::UNSAFE_DMA)
    }

    /// An access of EL1 to an address that traps: what it read (0 for a write).
    ///
    /// # Errors
    /// What became of it instead.
    pub fn access(&self, at: u64, width: u64, write: Option<u64>) -> Result<u64, HostFaultAction> {
        let log2 = u64::from(width.trailing_zeros());
        let esr = 0x24 << 26 | 1 << 24 | log2 << 22 | 3 << 16 | 1 << 15 | 7;
        let esr = esr | u64::from(write.is_some()) << 6;
        let mut x = [0x5555; 31];
        x[3] = write.unwrap_or(0x5555);
        let before = x;
        let far = 0xffff_0000_0000_0000 | at;
        let action = self.hyp.host_fault(esr, far, at >> 12 << 4, false, &mut x);
        if action != HostFaultAction::Skip || write.is_some() {
            assert_eq!(x, before, "nothing was read");
        }
        match action {
            HostFaultAction::Skip => Ok(if write.is_some() { 0 } else { x[3] }),
            other => Err(other),
        }
    }

    /// One SMC's x0.
    pub fn smc(&self, function: u32, args: &[u64]) -> i64 {
        let mut x = [0; 31];
        x[0] = u64::from(function);
        x[1..=args.len()].copy_from_slice(args);
        self.hyp.host_smc(0, &mut x);
        x[0].cast_signed()
    }

    /// Writes a parameter block into a fresh page; its address.
    pub fn block(&mut self, bytes: &[u8]) -> u64 {
        let at = self.pages(1);
        for (index, word) in bytes.chunks(8).enumerate() {
            let mut value = [0; 8];
            value[..word.len()].copy_from_slice(word);
            let page = PhysAddr::new(at);
            self.machine().poke(page, index, u64::from_le_bytes(value));
        }
        at
    }

    /// A configuration with the usual map and fresh metadata.
    pub fn config(&mut self, plan: VmPlan) -> VmConfig {
        let mut regions = [RegionDesc::default(); VM_REGIONS_MAX];
        let map = [
            (Self::GUEST_RAM, 64 << 20, RegionKind::Ram),
            (Self::APERTURE, 64 << 20, RegionKind::Window),
            (Self::GICD, 0x1_0000, RegionKind::GicDistributor),
            (
                Self::GICR,
                u64::from(plan.vcpus) * 0x2_0000,
                RegionKind::GicRedistributors,
            ),
            (Self::V2M, 0x1000, RegionKind::GicV2m),
        ];
        for (to, (base, size, kind)) in regions.iter_mut().zip(map) {
            *to = RegionDesc {
                base,
                size,
                kind: kind as u32,
                reserved: 0,
            };
        }
        VmConfig {
            version: ABI_VERSION,
            vcpus: plan.vcpus,
            flags: 0,
            spi_count: plan.spis,
            msi_base: Self::MSI_BASE,
            msi_count: 8,
            region_count: map.len() as u32,
            meta_pa: self.pages(plan.metadata),
            meta_pages: plan.metadata,
            reserved: [0; 2],
            regions,
        }
    }

    /// `VM_CREATE`.
    ///
    /// # Errors
    /// What it returned.
    pub fn create(&mut self, config: &VmConfig) -> Result<u64, Error> {
        let block = self.block(config.as_bytes());
        self.call(HostFunction::VmCreate, &[block]).map(|x| x[1])
    }

    /// A finalized VM, vCPU 0 ready at the start of its RAM.
    pub fn vm(&mut self, plan: VmPlan) -> u64 {
        let config = self.config(plan);
        let vm = self.create(&config).unwrap();
        for index in 0..u64::from(plan.vcpus) {
            self.call(HostFunction::VcpuCreate, &[vm, index]).unwrap();
        }
        self.call(HostFunction::VmFinalize, &[vm, Self::GUEST_RAM, 7])
            .unwrap();
        vm
    }

    /// A window of these host pages at the start of the aperture.
    pub fn window(&self, vm: u64, pa: u64, pages: u64) -> WindowConfig {
        let mut extents = [Extent::default(); WINDOW_EXTENTS_MAX];
        extents[0] = Extent { pa, pages };
        WindowConfig {
            version: ABI_VERSION,
            flags: 0,
            vm,
            function: FunctionId::new(0, 0, 1, 0).0,
            bar: 2,
            bar_size: (pages * PAGE_SIZE).next_power_of_two(),
            bar_offset: 0,
            length: pages * PAGE_SIZE,
            ipa: Self::APERTURE,
            extent_count: 1,
            reserved: 0,
            extents,
        }
    }

    /// `VCPU_RUN`: kind and payload.
    ///
    /// # Errors
    /// What it returned.
    pub fn run(&self, vm: u64, vcpu: u64, value: u64) -> Result<(ExitKind, [u64; 3]), Error> {
        let x = self.call(HostFunction::VcpuRun, &[vm, vcpu, value])?;
        let kind = ExitKind::from_number(x[1]).expect("a known exit");
        assert!(x[5..].iter().all(|r| *r == 0), "an exit has four registers");
        Ok((kind, [x[2], x[3], x[4]]))
    }

    /// Runs a vCPU whose guest exits for these reasons, then for the host.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_through(
        &self,
        vm: u64,
        vcpu: u64,
        exits: &[GuestExit],
    ) -> Result<(ExitKind, [u64; 3]), Error> {
        self.machine().cpu.script().exits = exits.iter().copied().collect();
        self.run(vm, vcpu, 0)
    }

    /// Runs a share audit to its end: shared, windows, offender.
    pub fn audit(&self) -> (u64, u64, Option<u64>) {
        let (mut cursor, mut shared, mut windows, mut offender) = (0, 0, 0, None);
        loop {
            let x = self.call(HostFunction::ShareAudit, &[cursor]).unwrap();
            shared += x[2];
            windows += x[3];
            if x[4] != porthole_abi::NO_ADDRESS {
                offender = offender.or(Some(x[4]));
            }
            cursor = x[1];
            if cursor == 0 {
                return (shared, windows, offender);
            }
        }
    }

    /// What a refused call must not change.
    pub fn state(&self) -> Vec<u64> {
        let mut state: Vec<u64> = (0..PageOwner::ALL.len() as u64)
            .map(|owner| {
                let kind = porthole_abi::StatKind::PagesByOwner as u64;
                self.call(HostFunction::Stats, &[kind, owner]).unwrap()[1]
            })
            .collect();
        let epoch = porthole_abi::StatKind::Epoch as u64;
        state.push(self.call(HostFunction::Stats, &[epoch, 0]).unwrap()[1]);
        for slot in 0..porthole_abi::VMS_MAX as u64 {
            let x = self.call(HostFunction::VmInfo, &[slot]).unwrap();
            state.extend_from_slice(&x[1..8]);
        }
        state.push(self.machine().free_pool());
        state
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeMachine {
    fn free_pool(&self) -> u64 {
        crate::hw::Memory::free_pages(self) as u64
    }
}
