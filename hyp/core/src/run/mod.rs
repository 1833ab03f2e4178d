//! `VCPU_RUN`: the loop that enters a guest and handles its exits until one is the host's.
//! What an exit means is in `exit`, `mmio`, `sysreg`, `call` and `psci`; interrupts in `interrupt`.
//!
//! A vCPU's lock is held for the whole run, its slot's for reading: nothing of the VM goes away meanwhile.
//! The way of an exit that EL2 answers alone takes no lock and copies no state.

mod call;
mod exit;
mod interrupt;
mod mmio;
mod psci;
mod sysreg;
#[cfg(test)]
pub(crate) mod tests;

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use porthole_abi::{Error, ExitKind, VmState};

use crate::hw::{CpuId, GuestException, Machine};
use crate::hypervisor::Hypervisor;
use crate::stats::count_own;
use crate::vcpu::{Link, Power, Start, Vcpu};
use crate::vgic::VcpuMask;
use crate::vm::Vm;

/// PSTATE.SS and BTYPE in SPSR_EL2 (Arm ARM C5.2.20).
const PSTATE_SS: u64 = 1 << 21;
const PSTATE_BTYPE: u64 = 3 << 10;

/// Why a run ended: what the host gets in x1 to x4, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) kind: ExitKind,
    pub(crate) payload: [u64; 3],
}

impl Exit {
    const fn new(kind: ExitKind, payload: [u64; 3]) -> Self {
        Self { kind, payload }
    }

    const fn plain(kind: ExitKind) -> Self {
        Self::new(kind, [0; 3])
    }

    const fn wake(mask: VcpuMask) -> Self {
        Self::new(ExitKind::Wake, [mask as u64, 0, 0])
    }
}

/// What follows from an exit: the guest goes on, or the host has something to do.
type Flow = ControlFlow<Exit>;

/// The guest goes on.
const RESUME: Flow = ControlFlow::Continue(());

/// The host must act.
fn leave(kind: ExitKind, payload: [u64; 3]) -> Flow {
    ControlFlow::Break(Exit::new(kind, payload))
}

/// One run of one vCPU on this CPU.
struct Run<'a, M: Machine> {
    hyp: &'a Hypervisor<M>,
    machine: &'a M,
    vm: &'a Vm<M>,
    vcpu: &'a mut Vcpu,
    link: &'a Link,
    index: usize,
    cpu: CpuId,
    /// vCPUs that the host must wake.
    wake: VcpuMask,
    /// The guest powered this vCPU down until an interrupt; it goes on here.
    suspended: Option<Start>,
}

impl<M: Machine> Hypervisor<M> {
    /// `VCPU_RUN`. `value` answers the MMIO read that the last run ended with; ignored after another exit.
    ///
    /// # Errors
    /// `BadHandle`; `BadState` unless the VM is final; `BadVcpu`; `Busy` if the vCPU runs elsewhere.
    pub(crate) fn run_vcpu(&self, handle: u64, index: u64, value: u64) -> Result<Exit, Error> {
        self.slots.with(handle, |vm| {
            let cell = vm.vcpu(index)?;
            vm.in_state(&[VmState::Final])?;
            let index = index as usize;
            let link = vm.links.get(index).ok_or(Error::BadVcpu)?;
            let mut guard = cell.try_lock().ok_or(Error::Busy)?;
            let vcpu: &mut Vcpu = guard.as_mut().ok_or(Error::BadVcpu)?;
            let mut power = link.power.lock();
            match *power {
                Power::Off => return Ok(Exit::plain(ExitKind::CpuOff)),
                Power::Starting(start) => {
                    vcpu.reset(start);
                    *power = Power::On;
                }
                Power::On => {}
            }
            drop(power);
            let run = Run {
                hyp: self,
                machine: &self.machine,
                vm,
                wake: core::mem::take(&mut vcpu.wake),
                vcpu,
                link,
                index,
                cpu: self.machine.id(),
                suspended: None,
            };
            Ok(run.run(value))
        })
    }
}

impl<M: Machine> Run<'_, M> {
    /// Runs until the host is needed. The vCPU is on nobody's CPU before and after.
    fn run(mut self, value: u64) -> Exit {
        self.finish_read(value);
        if self.wake != 0 {
            return Exit::wake(self.wake);
        }
        self.link.enter(self.cpu);
        let exit = loop {
            let exit = self.run_loaded();
            let signalled = exit.kind == ExitKind::Wfi && self.signalled();
            if let Some(start) = self.suspended.take() {
                self.vcpu.reset(start);
            }
            if exit.kind != ExitKind::Wfi || self.wake != 0 {
                self.link.leave();
                break exit;
            }
            // Interrupts that came before `idle` are seen by it, later ones find an idle vCPU to wake.
            if !signalled && self.link.idle() {
                break self.wait_exit();
            }
            self.link.enter(self.cpu);
        };
        if let Some(counters) = self.hyp.stats.cpu(self.cpu) {
            count_own(&counters.exits_to_host);
        }
        self.with_wakes(exit)
    }

    /// Tells the host whom to wake: now if the exit can wait, else at the next run.
    fn with_wakes(self, exit: Exit) -> Exit {
        if self.wake == 0 {
            return exit;
        }
        match exit.kind {
            // A wait may end early, a fault is taken again, CPU_OFF is told again, an interrupt is taken
            // in the host whatever it is told.
            ExitKind::Wfi | ExitKind::RamFault | ExitKind::CpuOff | ExitKind::HostInterrupt => {
                Exit::wake(self.wake)
            }
            ExitKind::Wake => Exit::wake(self.wake),
            _ => {
                self.vcpu.wake = self.wake;
                exit
            }
        }
    }

    /// Loads the vCPU, lets it run, puts it.
    fn run_loaded(&mut self) -> Exit {
        if self.vm.is_new_here(usize::from(self.cpu.0), self.index) {
            self.machine.flush_vmid_local(self.vm.vmid);
        }
        self.machine.load(&mut self.vcpu.context);
        // The list registers are empty and the timer is not set up yet.
        self.link.set_attention();
        let exit = loop {
            if let ControlFlow::Break(exit) = self.enter_once() {
                break exit;
            }
            if let Some(counters) = self.hyp.stats.cpu(self.cpu) {
                count_own(&counters.exits_inside);
            }
        };
        self.unload_interrupts();
        self.machine.put(&mut self.vcpu.context);
        exit
    }

    /// Once into the guest and back, and what that exit asks for.
    #[inline]
    fn enter_once(&mut self) -> Flow {
        if self.link.wants_attention() {
            self.look_around()?;
        }
        let exit = self.machine.enter(&mut self.vcpu.context);
        self.handle(exit)?;
        if self.wake != 0 {
            return leave(ExitKind::Wake, [u64::from(self.wake), 0, 0]);
        }
        RESUME
    }

    /// Something changed for this vCPU: its VM may be over, or its interrupts need new list registers.
    fn look_around(&mut self) -> Flow {
        self.link.clear_attention();
        if self.vm.state() != VmState::Final || self.hyp.halting.load(Ordering::SeqCst) {
            return leave(ExitKind::HostInterrupt, [0; 3]);
        }
        self.load_interrupts();
        RESUME
    }

    /// Makes vCPUs look at their interrupts, this one included.
    fn notify(&mut self, mask: VcpuMask) {
        if mask == 0 {
            return;
        }
        let own: VcpuMask = 1u8.wrapping_shl(self.index as u32);
        if mask & own != 0 {
            self.link.set_attention();
        }
        self.wake |= self.hyp.poke_all(self.vm, mask & !own);
    }

    /// Ends the guest: no vCPU enters it again.
    fn stop(&mut self, kind: ExitKind, payload: u64) -> Flow {
        let others = self.vm.stop();
        self.notify(others);
        // Whoever waits in the host is told by the exit itself that the guest is over.
        self.wake = 0;
        leave(kind, [payload, 0, 0])
    }

    fn inject(&mut self, exception: GuestException) -> Flow {
        self.machine.inject(&mut self.vcpu.context, exception);
        RESUME
    }

    /// Steps over the instruction that trapped, which was done for the guest: a guest that single-steps is
    /// at its end now, and it was no branch.
    fn skip(&mut self) {
        let context = &mut self.vcpu.context;
        context.pc = context.pc.wrapping_add(4);
        context.pstate &= !(PSTATE_SS | PSTATE_BTYPE);
    }

    /// General register `n` as an operand: 31 is the zero register.
    fn register(&self, n: u8) -> u64 {
        self.vcpu
            .context
            .x
            .get(usize::from(n))
            .copied()
            .unwrap_or(0)
    }

    /// Sets general register `n`; the zero register stays zero.
    fn set_register(&mut self, n: u8, value: u64) {
        if let Some(register) = self.vcpu.context.x.get_mut(usize::from(n)) {
            *register = value;
        }
    }
}
