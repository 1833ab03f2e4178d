//! Between the virtual interrupt controller and the CPU that runs a vCPU: list registers, timer, waiting.
//!
//! While a vCPU is loaded, the virtual timer's physical interrupt is active on this CPU exactly when EL2 has
//! taken note of it: when it is asserted, or when the guest has it active. So it fires once, and the guest's
//! own deactivation (through a hardware list register) lets it fire again.

use porthole_abi::ExitKind;

use super::{Exit, Run};
use crate::hw::Machine;
use crate::vgic::TIMER_INTID;

/// CNTV_CTL_EL0.ENABLE, not IMASK, ISTATUS.
const ASSERTED: u64 = 0b101;
/// Its ENABLE, IMASK and ISTATUS.
const CTL_MASK: u64 = 0b111;
/// Its ENABLE and IMASK, and the value at which the timer can fire.
const CAN_FIRE_MASK: u64 = 0b011;
const CAN_FIRE: u64 = 0b001;

impl<M: Machine> Run<'_, M> {
    /// Takes what is in the list registers into the controller.
    pub(super) fn evacuate_interrupts(&mut self) {
        if self.vcpu.context.gic.used == 0 {
            return;
        }
        let Some(mask) = self.vm.gic.lock().as_mut().map(|gic| {
            gic.evacuate(
                self.index,
                &mut self.vcpu.context.gic,
                &mut self.vcpu.timer_physical,
            )
        }) else {
            return;
        };
        self.link.set_attention();
        self.notify(mask);
    }

    /// Brings list registers and timer up to date.
    pub(super) fn load_interrupts(&mut self) {
        let asserted = self.machine.guest_timer().0 & CTL_MASK == ASSERTED;
        let mask = {
            let mut guard = self.vm.gic.lock();
            let Some(gic) = guard.as_mut() else {
                return;
            };
            let regs = &mut self.vcpu.context.gic;
            let mask = gic.evacuate(self.index, regs, &mut self.vcpu.timer_physical);
            gic.set_timer(self.index, asserted);
            let wanted = asserted || gic.timer_active(self.index);
            if wanted != self.vcpu.timer_physical {
                if wanted {
                    self.machine.activate_timer();
                } else {
                    self.machine.deactivate_timer();
                }
                self.vcpu.timer_physical = wanted;
            }
            gic.fill(self.index, regs, self.machine.list_registers(), wanted);
            mask
        };
        self.notify(mask);
    }

    /// The physical timer interrupt came; it is active on this CPU now.
    pub(super) fn timer_fired(&mut self) {
        // First what the guest did with the last one, then the new one.
        self.evacuate_interrupts();
        self.vcpu.timer_physical = true;
        self.link.set_attention();
    }

    /// Before the vCPU leaves this CPU: nothing of it stays in list registers or active.
    pub(super) fn unload_interrupts(&mut self) {
        let asserted = self.machine.guest_timer().0 & CTL_MASK == ASSERTED;
        let mask = {
            let mut guard = self.vm.gic.lock();
            let Some(gic) = guard.as_mut() else {
                return;
            };
            let regs = &mut self.vcpu.context.gic;
            let mask = gic.evacuate(self.index, regs, &mut self.vcpu.timer_physical);
            gic.set_timer(self.index, asserted);
            mask
        };
        if core::mem::take(&mut self.vcpu.timer_physical) {
            self.machine.deactivate_timer();
        }
        self.notify(mask);
    }

    /// Whether an interrupt that the guest's CPU interface lets through is pending on the vCPU, which is put.
    pub(super) fn signalled(&self) -> bool {
        let priority_mask = (self.vcpu.context.gic.vmcr >> 24 & 0xff) as u8;
        self.vm
            .gic
            .lock()
            .as_ref()
            .is_some_and(|gic| gic.signals(self.index, priority_mask))
    }

    /// The exit of a vCPU that waits: when its timer fires.
    pub(super) fn wait_exit(&self) -> Exit {
        let timer = &self.vcpu.context.timer;
        let deadline = if timer.cntv_ctl & CAN_FIRE_MASK == CAN_FIRE {
            timer.cntv_cval.checked_add(timer.cntvoff)
        } else {
            None
        };
        Exit::new(ExitKind::Wfi, [deadline.unwrap_or(u64::MAX), 0, 0])
    }
}

const _: () = assert!(TIMER_INTID == 27);
