//! The CPU as core sees it: one world switch per physical CPU, reached through the CPU that asks.

use core::ptr::NonNull;

use porthole_arch::guest::{self, Redistributor, this};
use porthole_arch::{host, percpu};
use porthole_core::context::VcpuContext;
use porthole_core::hw::{Cpu, CpuId, GuestException, GuestExit, IrqSource, SysReg};

use crate::fault::stop;
use crate::machine::Hardware;

impl Hardware {
    /// Readies this CPU for guests, on each of its ways up.
    pub fn start_cpu(&self) {
        let cpu = percpu::id();
        let base = self
            .redistributors
            .get(usize::from(cpu.0))
            .copied()
            .flatten();
        let Some(base) = base.and_then(|b| NonNull::new(b.raw() as *mut u8)) else {
            stop(format_args!(
                "cannot start: CPU {} has no redistributor in the device tree",
                cpu.0
            ));
        };
        host::prepare();
        // SAFETY: `find_gic` found it, and it stays mapped.
        guest::init_this(unsafe { Redistributor::new(base) });
    }
}

impl Cpu for Hardware {
    fn id(&self) -> CpuId {
        percpu::id()
    }

    fn list_registers(&self) -> usize {
        this().list_registers()
    }

    fn counter(&self) -> u64 {
        guest::counter()
    }

    fn load(&self, vcpu: &mut VcpuContext) {
        this().load(vcpu);
    }

    fn enter(&self, vcpu: &mut VcpuContext) -> GuestExit {
        this().enter(vcpu)
    }

    fn put(&self, vcpu: &mut VcpuContext) {
        this().put(vcpu);
    }

    fn inject(&self, vcpu: &mut VcpuContext, exception: GuestException) {
        this().inject(vcpu, exception);
    }

    fn guest_timer(&self) -> (u64, u64) {
        this().guest_timer()
    }

    fn deactivate_timer(&self) {
        this().deactivate_timer();
    }

    fn activate_timer(&self) {
        this().activate_timer();
    }

    fn take_irq(&self) -> IrqSource {
        this().take_irq()
    }

    fn kick(&self, cpu: CpuId) {
        if let Some(info) = self.cpus.get(usize::from(cpu.0)) {
            guest::kick(info.mpidr);
        }
    }

    fn id_register(&self, encoding: SysReg) -> u64 {
        this().id_register(encoding)
    }

    fn random(&self) -> Option<u64> {
        this().random()
    }

    fn has_random(&self) -> bool {
        this().has_random()
    }
}
