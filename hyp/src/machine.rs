//! The machine as core sees it: memory from `mem`, TLB, CPU and firmware from `arch`, SMMUs from `dev`.
//! No decision is made here; each trait method goes straight to the part that does it.

use arrayvec::ArrayVec;
use porthole_abi::{Error, FunctionId, NO_ADDRESS};
use porthole_arch::cache;
use porthole_arch::percpu::CPUS_MAX;
use porthole_arch::tlb::StageTwoTlb;
use porthole_arch::{boot, firmware};
use porthole_core::addr::{Ipa, PhysAddr};
use porthole_core::hw::{CpuId, Dma, DmaEvent, DmaRegime, Firmware, Memory, Tlb, Vmid};
use porthole_core::hypervisor::CpuInfo;
use porthole_dev::smmuv3::{Fault, Mmio, Smmus, StageTwo, StreamError};
use porthole_mem::{CacheMaintenance, PageBox, Ram};

use crate::fault::stop;

/// Caches of the machine.
pub struct Caches;

impl CacheMaintenance for Caches {
    fn clean_invalidate(&self, start: PhysAddr, bytes: u64) {
        cache::clean_invalidate(start, bytes);
    }

    fn invalidate_instructions(&self) {
        cache::invalidate_instructions();
    }
}

/// The machine.
pub struct Hardware {
    /// RAM and pool.
    pub ram: Ram<Caches>,
    /// All CPUs, the index being the [`CpuId`].
    pub cpus: ArrayVec<CpuInfo, CPUS_MAX>,
    /// The CPU that booted: it has the first stack.
    pub boot_cpu: CpuId,
    /// SMMUs, all of EL2's own.
    pub smmus: &'static Smmus<Mmio>,
    /// RD_base of each CPU's redistributor.
    pub redistributors: [Option<PhysAddr>; CPUS_MAX],
}

impl Hardware {
    /// A machine whose redistributors are still to be found.
    pub fn new(
        ram: Ram<Caches>,
        cpus: ArrayVec<CpuInfo, CPUS_MAX>,
        boot_cpu: CpuId,
        smmus: &'static Smmus<Mmio>,
    ) -> Self {
        Self {
            ram,
            cpus,
            boot_cpu,
            smmus,
            redistributors: [None; CPUS_MAX],
        }
    }

    /// The stack of a CPU: the boot CPU came up on the first one, the others take the rest in their order.
    fn stack_slot(&self, cpu: CpuId) -> u8 {
        match cpu.0.cmp(&self.boot_cpu.0) {
            core::cmp::Ordering::Equal => 0,
            core::cmp::Ordering::Less => cpu.0 + 1,
            core::cmp::Ordering::Greater => cpu.0,
        }
    }
}

impl Memory for Hardware {
    type Boxed<T: Send> = PageBox<T>;

    fn read_word(&self, page: PhysAddr, index: usize) -> u64 {
        self.ram.read_word(page, index)
    }

    fn write_word(&self, page: PhysAddr, index: usize, value: u64) {
        self.ram.write_word(page, index, value);
    }

    fn scrub(&self, page: PhysAddr) {
        self.ram.scrub(page);
    }

    fn read_page(&self, page: PhysAddr, show: &mut dyn FnMut(&[u8])) {
        self.ram.read_page(page, show);
    }

    fn forget_instructions(&self) {
        self.ram.forget_instructions();
    }

    fn copy_from_host(&self, from: PhysAddr, to: &mut [u8]) {
        self.ram.copy_from_host(from, to);
    }

    fn alloc_page(&self) -> Option<PhysAddr> {
        self.ram.alloc_page()
    }

    fn free_page(&self, page: PhysAddr) {
        self.ram.free_page(page);
    }

    fn free_pages(&self) -> usize {
        self.ram.free_pages()
    }

    fn place<T: Send>(&self, page: PhysAddr, value: T) -> PageBox<T> {
        self.ram.place(page, value)
    }
}

impl Tlb for Hardware {
    fn flush_ipa(&self, vmid: Vmid, ipa: Ipa) {
        StageTwoTlb.flush_ipa(vmid, ipa);
    }

    fn flush_range(&self, vmid: Vmid, ipa: Ipa, pages: u64) {
        StageTwoTlb.flush_range(vmid, ipa, pages);
    }

    fn flush_vmid(&self, vmid: Vmid) {
        StageTwoTlb.flush_vmid(vmid);
    }

    fn flush_vmid_local(&self, vmid: Vmid) {
        StageTwoTlb.flush_vmid_local(vmid);
    }

    fn sync(&self) {
        StageTwoTlb.sync();
    }
}

/// A regime as the SMMUs take it.
fn stage_two(regime: &DmaRegime) -> StageTwo {
    StageTwo {
        root: regime.root,
        vmid: regime.vmid.0,
        vtcr: regime.geometry.vtcr(),
    }
}

/// Nothing that the host does makes an SMMU fail; nothing is known about the devices behind one that did.
fn or_stop<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| stop(format_args!("fatal: SMMU: {fault}")))
}

impl Dma for Hardware {
    fn dma_in_place(&self) -> bool {
        self.smmus.in_place()
    }

    fn dma_start(&self, host: DmaRegime) {
        if let Err((index, why)) = self.smmus.start(&stage_two(&host)) {
            stop(format_args!("fatal: SMMU {index}: {why}"));
        }
    }

    fn dma_attach(&self, function: FunctionId, regime: DmaRegime) -> Result<(), Error> {
        let page = || self.ram.alloc_page();
        let release = |page| self.ram.free_page(page);
        let result = self
            .smmus
            .set_function(function, Some(&stage_two(&regime)), page, release);
        or_stop(result).map_err(|error| match error {
            StreamError::NoStream => Error::BadStream,
            StreamError::NoPage => Error::NoMemory,
        })
    }

    fn dma_detach(&self, function: FunctionId) {
        let release = |page| self.ram.free_page(page);
        let result = self.smmus.set_function(function, None, || None, release);
        // Core detaches only what it attached.
        let _ = or_stop(result);
    }

    fn dma_flush(&self, vmid: Vmid, ipa: Ipa, pages: u64) {
        or_stop(self.smmus.flush(vmid.0, ipa, pages));
    }

    fn dma_event(&self) -> Option<DmaEvent> {
        let (smmu, event) = self.smmus.event()?;
        Some(DmaEvent {
            smmu,
            stream: event.stream,
            function: self.smmus.function(smmu, event.stream),
            kind: event.kind,
            address: event.address.unwrap_or(NO_ADDRESS),
            write: event.write,
        })
    }
}

impl Firmware for Hardware {
    fn call(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        firmware::call(function, args)
    }

    fn cpu_on(&self, cpu: CpuId) -> i64 {
        const INVALID_PARAMETERS: i64 = -2;
        let Some(info) = self.cpus.get(usize::from(cpu.0)) else {
            return INVALID_PARAMETERS;
        };
        let context = u64::from(self.stack_slot(cpu)) << 8 | u64::from(cpu.0);
        firmware::cpu_on(info.mpidr, boot::secondary_entry(), context)
    }
}
