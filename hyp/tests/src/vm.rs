//! A VM under test: builder with the usual address map, donation, life cycle, and the strings of the puppet.
//! It remembers what it donated, so that `destroy` gives everything back and shows what does not come.

use porthole_abi::{
    ABI_VERSION, DONATE_PAGES_MAX, Error, ExitKind, Extent, FunctionId, HostFunction, PAGE_SIZE,
    RegionDesc, RegionKind, VmConfig, WindowConfig,
};

use crate::arena;
use crate::hyp::{Exit, call, vcpu_run};
use crate::puppet;

/// Guest RAM starts here.
pub const RAM: u64 = 0x8000_0000;
/// Size of the RAM region: 64 MiB, mostly without pages.
pub const RAM_SIZE: u64 = 64 << 20;
/// The window region.
pub const APERTURE: u64 = 0x1000_0000;
/// Its size.
pub const APERTURE_SIZE: u64 = 0x1f00_0000;
/// Distributor.
pub const GICD: u64 = 0x0800_0000;
/// Redistributors.
pub const GICR: u64 = 0x080a_0000;
/// GICv2m frame.
pub const V2M: u64 = 0x0802_0000;
/// SPIs declared.
pub const SPIS: u32 = 64;
/// Metadata pages that a VM starts with.
pub const META: u64 = 32;

const RUNS: usize = 32;

/// A VM.
pub struct Vm {
    /// Its handle.
    pub handle: u64,
    runs: [(u64, u64); RUNS],
    used: usize,
}

/// What the puppet reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// x0 to x3.
    pub x: [u64; 4],
    /// ESR_EL1 of the exception, 0 for none.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// The last INTID its IRQ handler acknowledged meanwhile.
    pub irq: Option<u64>,
}

impl Report {
    /// Takes one of the puppet's reports; false for any other exit.
    fn take(&mut self, exit: &Exit) -> bool {
        let offset = exit.p[0].wrapping_sub(puppet::STRINGS);
        match (exit.kind, offset) {
            (ExitKind::MmioWrite, 0x40..=0x58) => {
                self.x[((offset - 0x40) / 8) as usize] = exit.p[2];
            }
            (ExitKind::MmioWrite, 0x60) => self.esr = exit.p[2],
            (ExitKind::MmioWrite, 0x68) => self.far = exit.p[2],
            (ExitKind::MmioWrite, puppet::IRQ) => self.irq = Some(exit.p[2]),
            (ExitKind::MmioWrite, puppet::DONE) => {}
            _ => return false,
        }
        true
    }

    /// Exception class.
    pub const fn class(&self) -> u64 {
        (self.esr >> 26) & 0x3f
    }
}

/// A configuration with the usual map and `META` fresh metadata pages.
pub fn config(vcpus: u32) -> VmConfig {
    let mut regions = [RegionDesc::default(); porthole_abi::VM_REGIONS_MAX];
    let map = [
        (RAM, RAM_SIZE, RegionKind::Ram),
        (APERTURE, APERTURE_SIZE, RegionKind::Window),
        (GICD, 0x1_0000, RegionKind::GicDistributor),
        (
            GICR,
            u64::from(vcpus) * 0x2_0000,
            RegionKind::GicRedistributors,
        ),
        (V2M, 0x1000, RegionKind::GicV2m),
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
        vcpus,
        flags: 0,
        spi_count: SPIS,
        msi_base: 64,
        msi_count: 16,
        region_count: map.len() as u32,
        meta_pa: arena::pages(META, PAGE_SIZE),
        meta_pages: META,
        reserved: [0; 2],
        regions,
    }
}

/// VM_CREATE with a block in a fresh page.
pub fn create(config: &VmConfig) -> Result<Vm, Error> {
    let block = arena::page();
    arena::put(block, config);
    let handle = call(HostFunction::VmCreate, &[block])?[1];
    let mut vm = Vm {
        handle,
        runs: [(0, 0); RUNS],
        used: 0,
    };
    vm.remember(config.meta_pa, config.meta_pages);
    Ok(vm)
}

/// A window of `pages` pages at `ipa` for function 00:01.0, BAR 4 (64-bit), whole BAR.
pub fn window(vm: &Vm, ipa: u64, pa: u64, pages: u64) -> WindowConfig {
    let mut extents = [Extent::default(); porthole_abi::WINDOW_EXTENTS_MAX];
    extents[0] = Extent { pa, pages };
    WindowConfig {
        version: ABI_VERSION,
        flags: 1,
        vm: vm.handle,
        function: FunctionId::new(0, 0, 1, 0).0,
        bar: 4,
        bar_size: (pages * PAGE_SIZE).next_power_of_two(),
        bar_offset: 0,
        length: pages * PAGE_SIZE,
        ipa,
        extent_count: 1,
        reserved: 0,
        extents,
    }
}

/// WINDOW_REGISTER with a block in a fresh page: the window's id.
pub fn register(config: &WindowConfig) -> Result<u64, Error> {
    let block = arena::page();
    arena::put(block, config);
    Ok(call(HostFunction::WindowRegister, &[block])?[1])
}

impl Vm {
    /// A finalized VM of `vcpus` puppets, vCPU 0 ready to run.
    pub fn puppet(vcpus: u32) -> Self {
        let mut vm = create(&config(vcpus)).expect("a plain VM");
        for i in 0..u64::from(vcpus) {
            vm.create_vcpu(i).expect("a vCPU");
        }
        vm.load_puppet();
        vm.finalize(RAM, 0).expect("finalize");
        vm
    }

    /// Donates the puppet's code with content, and its stack and a free page zeroed.
    pub fn load_puppet(&mut self) {
        let (code, size) = puppet::code();
        let pages = size / PAGE_SIZE;
        let copy = arena::pages(pages, PAGE_SIZE);
        // SAFETY: both are whole pages of our own.
        unsafe {
            core::ptr::copy_nonoverlapping(code as *const u8, copy as *mut u8, size as usize)
        };
        self.donate(copy, RAM, pages, 1).expect("code");
        let rest = 16 - pages;
        let stack = arena::pages(rest, PAGE_SIZE);
        self.donate(stack, RAM + size, rest, 0).expect("stack");
    }

    /// Notes pages that the VM owns now, so that `destroy` reclaims them.
    pub fn remember(&mut self, pa: u64, pages: u64) {
        assert!(self.used < RUNS, "too many donations for the test's list");
        self.runs[self.used] = (pa, pages);
        self.used += 1;
    }

    /// Address and number of its pages, run by run.
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.runs[..self.used]
    }

    /// VCPU_CREATE.
    pub fn create_vcpu(&self, index: u64) -> Result<(), Error> {
        call(HostFunction::VcpuCreate, &[self.handle, index]).map(drop)
    }

    /// VM_DONATE; remembers the pages.
    pub fn donate(&mut self, pa: u64, ipa: u64, pages: u64, flags: u64) -> Result<(), Error> {
        call(
            HostFunction::VmDonate,
            &[self.handle, pa, ipa, pages, flags],
        )?;
        self.remember(pa, pages);
        Ok(())
    }

    /// VM_FINALIZE.
    pub fn finalize(&self, entry: u64, x0: u64) -> Result<(), Error> {
        call(HostFunction::VmFinalize, &[self.handle, entry, x0]).map(drop)
    }

    /// VM_TEARDOWN until it is done.
    pub fn teardown(&self) -> Result<(), Error> {
        while call(HostFunction::VmTeardown, &[self.handle])?[1] != 0 {}
        Ok(())
    }

    /// VM_RECLAIM.
    pub fn reclaim(&self, pa: u64, pages: u64) -> Result<(), Error> {
        call(HostFunction::VmReclaim, &[self.handle, pa, pages]).map(drop)
    }

    /// Tears the VM down, reclaims all that was remembered, destroys it. All pages must come back zero.
    pub fn destroy(self) -> Result<(), Error> {
        self.destroy_under(|_, word| word == 0)
    }

    /// As [`Self::destroy`], while somebody may write to the pages as soon as they are the host's again: `may_be` says
    /// which word there is right at an address.
    pub fn destroy_under(self, may_be: impl Fn(u64, u64) -> bool) -> Result<(), Error> {
        self.destroy_but(|_| true, may_be)
    }

    /// As [`Self::destroy`], while somebody may take `page` away as soon as it is the host's again: it is not looked at.
    pub fn destroy_without(self, page: u64) -> Result<(), Error> {
        self.destroy_but(|at| at & !(PAGE_SIZE - 1) != page, |_, word| word == 0)
    }

    fn destroy_but(
        self,
        looks: impl Fn(u64) -> bool,
        may_be: impl Fn(u64, u64) -> bool,
    ) -> Result<(), Error> {
        self.teardown()?;
        for (pa, pages) in &self.runs[..self.used] {
            let mut done = 0;
            while done < *pages {
                let n = (pages - done).min(DONATE_PAGES_MAX);
                self.reclaim(pa + done * PAGE_SIZE, n)?;
                done += n;
            }
            for at in (*pa..pa + pages * PAGE_SIZE)
                .step_by(8)
                .filter(|at| looks(*at))
            {
                let word = arena::peek(at);
                assert!(
                    may_be(at, word),
                    "a reclaimed page has {word:#x} at {at:#x}"
                );
            }
        }
        call(HostFunction::VmDestroy, &[self.handle]).map(drop)
    }

    /// Runs a vCPU until something that is not the host's interrupt.
    pub fn run(&self, vcpu: u64, value: u64) -> Result<Exit, Error> {
        let mut value = value;
        loop {
            let exit = vcpu_run(self.handle, vcpu, value)?;
            if exit.kind != ExitKind::HostInterrupt {
                return Ok(exit);
            }
            // Take the interrupt; a completed read was consumed by the first run.
            porthole_runtime::reg::irq_enable();
            porthole_runtime::reg::irq_disable();
            value = 0;
        }
    }

    /// Makes puppet `vcpu` execute `insn` with x0 to x5. An exit that is not the puppet's own is returned.
    pub fn pull(&self, vcpu: u64, insn: u32, x: [u64; 6]) -> Result<Report, Exit> {
        match self.pull_until(vcpu, insn, x, 0, &mut |_| None) {
            Ok(report) => Ok(report),
            Err(exit) => Err(exit),
        }
    }

    /// Lets a puppet that exited in the middle of its instruction go on to its report.
    pub fn pull_rest(&self, vcpu: u64) -> Result<Report, Exit> {
        let mut report = Report::default();
        loop {
            let exit = self.run(vcpu, 0).expect("the puppet runs");
            if !report.take(&exit) {
                return Err(exit);
            }
            if exit.p[0] == puppet::STRINGS + puppet::DONE {
                return Ok(report);
            }
        }
    }

    /// As [`Vm::pull`]; exits of the instruction go to `answer`, whose value (for MMIO reads) lets the
    /// puppet go on; `None` ends with that exit. `first` is the value of a read still open.
    pub fn pull_until(
        &self,
        vcpu: u64,
        insn: u32,
        x: [u64; 6],
        first: u64,
        answer: &mut dyn FnMut(Exit) -> Option<u64>,
    ) -> Result<Report, Exit> {
        let mut report = Report::default();
        let mut value = first;
        let mut started = false;
        loop {
            let exit = self.run(vcpu, value).expect("the puppet runs");
            value = 0;
            let offset = exit.p[0].wrapping_sub(puppet::STRINGS);
            match (exit.kind, offset) {
                (ExitKind::MmioRead, 0) => {
                    assert!(!started, "the puppet began again without a report");
                    started = true;
                    value = u64::from(insn);
                }
                (ExitKind::MmioRead, 8..=48) => value = x[(offset / 8 - 1) as usize],
                (ExitKind::MmioWrite, puppet::DONE) => return Ok(report),
                _ if report.take(&exit) => {}
                _ => match answer(exit) {
                    Some(v) => value = v,
                    None => return Err(exit),
                },
            }
        }
    }
}
