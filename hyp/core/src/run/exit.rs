//! Exits of a guest, by what caused them.
//! Every one ends in a defined way: answered here, handed to the host, an exception in the guest, or its end.

use porthole_abi::ExitKind;

use super::{Flow, RESUME, Run, leave};
use crate::addr::Ipa;
use crate::hw::{GuestException, GuestExit, IrqSource, Machine};
use crate::syndrome::{Fault, Syndrome, ec, fault_ipa};
use crate::vm::Target;

impl<M: Machine> Run<'_, M> {
    #[inline]
    pub(super) fn handle(&mut self, exit: GuestExit) -> Flow {
        match exit {
            GuestExit::Sync { esr, far, hpfar } => self.synchronous(Syndrome(esr), far, hpfar),
            GuestExit::Irq => self.interrupt(),
            // Asynchronous: nobody knows whose it is, so the guest's state cannot be trusted.
            GuestExit::SError { .. } => self.crash(ec::SERROR),
        }
    }

    fn interrupt(&mut self) -> Flow {
        match self.machine.take_irq() {
            IrqSource::Host => leave(ExitKind::HostInterrupt, [0; 3]),
            IrqSource::VirtualTimer => {
                self.timer_fired();
                RESUME
            }
            IrqSource::Maintenance | IrqSource::Kick => {
                self.link.set_attention();
                RESUME
            }
            IrqSource::Spurious => RESUME,
        }
    }

    /// The VM is stopped: `class` is what no virtual machine can answer.
    fn crash(&mut self, class: u64) -> Flow {
        log::warn!(
            "guest {:#x} stopped: exception class {class:#x}",
            self.vm.handle.0
        );
        self.stop(ExitKind::Crash, class)
    }

    fn synchronous(&mut self, syndrome: Syndrome, far: u64, hpfar: u64) -> Flow {
        match syndrome.class() {
            ec::HVC64 => self.call(syndrome.immediate()),
            ec::SMC64 => {
                self.skip();
                self.call(syndrome.immediate())
            }
            ec::DATA_ABORT_LOWER => self.data_abort(syndrome, far, fault_ipa(far, hpfar)),
            ec::INSTRUCTION_ABORT_LOWER => {
                self.instruction_abort(syndrome, far, fault_ipa(far, hpfar))
            }
            ec::SYSREG => self.system_register(syndrome.sysreg()),
            ec::WFX => {
                self.skip();
                if syndrome.is_wfi() {
                    // Whether anything is pending is looked at once the vCPU is put.
                    return leave(ExitKind::Wfi, [0; 3]);
                }
                RESUME
            }
            // What the switch does not keep and the ID registers do not show.
            ec::UNKNOWN
            | ec::CP15_32
            | ec::CP15_64
            | ec::CP14_32
            | ec::CP14_LS
            | ec::FP
            | ec::VMRS
            | ec::PAUTH
            | ec::LS64
            | ec::CP14_64
            | ec::SVE
            | ec::ERET
            | ec::TSTART
            | ec::SME => self.inject(GuestException::Undefined),
            class => self.crash(class),
        }
    }

    /// A fetch that stage 2 refused. A window is never executable, and MMIO holds no instructions.
    fn instruction_abort(&mut self, syndrome: Syndrome, far: u64, ipa: Ipa) -> Flow {
        if syndrome.fault() == Fault::Translation && self.vm.map.target(ipa) == Target::Ram {
            return ram_fault(ipa);
        }
        self.inject(GuestException::InstructionAbort { far })
    }

    fn data_abort(&mut self, syndrome: Syndrome, far: u64, ipa: Ipa) -> Flow {
        let abort = GuestException::DataAbort { far };
        if syndrome.fault() != Fault::Translation {
            // Guest memory is readable and writable wherever it is mapped: this is no missing page.
            return self.inject(abort);
        }
        let target = self.vm.map.target(ipa);
        if target == Target::Ram {
            return ram_fault(ipa);
        }
        // Page tables in MMIO.
        if syndrome.is_walk() {
            return self.inject(abort);
        }
        if syndrome.is_cache_maintenance() {
            // Nothing of a device is ever in a cache.
            self.skip();
            return RESUME;
        }
        match syndrome.access() {
            // Device memory takes aligned accesses only; so none reaches beyond its register.
            Some(access) if !ipa.is_aligned(access.width()) => self.inject(abort),
            Some(access) => self.mmio(target, access, ipa),
            // Load or store pair, exclusive, SIMD: no syndrome, and EL2 decodes no instructions.
            None => self.inject(abort),
        }
    }
}

/// The host must donate a page; the guest repeats the access.
fn ram_fault(ipa: Ipa) -> Flow {
    leave(ExitKind::RamFault, [ipa.page().raw(), 0, 0])
}
