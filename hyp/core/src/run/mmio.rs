//! Accesses to guest addresses that are not memory: the interrupt controller here, all else by the host.
//! The program counter moves once, when the access is complete.

use porthole_abi::ExitKind;

use super::{Flow, RESUME, Run, leave};
use crate::addr::Ipa;
use crate::hw::Machine;
use crate::syndrome::Access;
use crate::vgic::{Gic, VcpuMask};
use crate::vm::Target;

impl<M: Machine> Run<'_, M> {
    /// One access; `target` is not RAM.
    pub(super) fn mmio(&mut self, target: Target, access: Access, ipa: Ipa) -> Flow {
        let width = access.width();
        if target == Target::Host {
            if !access.write {
                self.vcpu.read = Some(access);
                return leave(ExitKind::MmioRead, [ipa.raw(), width, 0]);
            }
            let value = self.register(access.register) & access.mask();
            self.skip();
            return leave(ExitKind::MmioWrite, [ipa.raw(), width, value]);
        }
        if access.write {
            let value = self.register(access.register) & access.mask();
            self.write_gic(target, width, value);
        } else {
            let value = self.read_gic(target, width);
            self.set_register(access.register, access.extend(value));
        }
        self.skip();
        RESUME
    }

    /// The host's answer to the MMIO read that the last run ended with, if it did.
    pub(super) fn finish_read(&mut self, value: u64) {
        if let Some(access) = self.vcpu.read.take() {
            self.set_register(access.register, access.extend(value));
            self.skip();
        }
    }

    fn read_gic(&mut self, target: Target, width: u64) -> u64 {
        if shows_lists(target) {
            self.evacuate_interrupts();
        }
        let guard = self.vm.gic.lock();
        let Some(gic) = guard.as_ref() else {
            return 0;
        };
        match target {
            Target::Distributor(offset) => gic.read_distributor(offset, width),
            Target::Redistributor(offset) => gic.read_redistributor(offset, width),
            Target::Messages(offset) => gic.read_message_frame(offset, width),
            Target::Ram | Target::Host => 0,
        }
    }

    fn write_gic(&mut self, target: Target, width: u64, value: u64) {
        if shows_lists(target) {
            self.evacuate_interrupts();
        }
        let mask = {
            let mut guard = self.vm.gic.lock();
            let Some(gic) = guard.as_mut() else {
                return;
            };
            match target {
                Target::Distributor(offset) => gic.write_distributor(offset, width, value),
                Target::Redistributor(offset) => gic.write_redistributor(offset, width, value),
                Target::Messages(offset) => gic.write_message_frame(offset, width, value),
                Target::Ram | Target::Host => 0,
            }
        };
        // What this vCPU has in list registers may look different now.
        self.link.set_attention();
        self.notify(mask & !own(self.index));
    }
}

fn own(index: usize) -> VcpuMask {
    1u8.wrapping_shl(index as u32)
}

/// Whether a register of the interrupt controller shows or changes what list registers hold.
fn shows_lists(target: Target) -> bool {
    match target {
        Target::Distributor(offset) => Gic::needs_evacuation(offset),
        Target::Redistributor(offset) => {
            Gic::sgi_frame_offset(offset).is_some_and(Gic::needs_evacuation)
        }
        Target::Messages(_) | Target::Ram | Target::Host => false,
    }
}
