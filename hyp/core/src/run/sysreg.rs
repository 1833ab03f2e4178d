//! Trapped system registers: the ID registers' allow-list, SGIs, and the few that read as zero.
//! Any other is one that the guest must not have: undefined, as on a CPU without it.

use super::{Flow, RESUME, Run};
use crate::hw::{GuestException, Machine, SysReg};
use crate::id_registers::{guest_value, is_id_register};
use crate::syndrome::SysregAccess;

const ICC_DIR: SysReg = SysReg::new(3, 0, 12, 11, 1);
const ICC_SGI1R: SysReg = SysReg::new(3, 0, 12, 11, 5);
const ICC_ASGI1R: SysReg = SysReg::new(3, 0, 12, 11, 6);
const ICC_SGI0R: SysReg = SysReg::new(3, 0, 12, 11, 7);
const ICC_SRE: SysReg = SysReg::new(3, 0, 12, 12, 5);
const ACTLR: SysReg = SysReg::new(3, 0, 1, 0, 1);
const DC_ISW: SysReg = SysReg::new(1, 0, 7, 6, 2);
const DC_CSW: SysReg = SysReg::new(1, 0, 7, 10, 2);
const DC_CISW: SysReg = SysReg::new(1, 0, 7, 14, 2);
const OSLAR: SysReg = SysReg::new(2, 0, 1, 0, 4);
const OSLSR: SysReg = SysReg::new(2, 0, 1, 1, 4);
const OSDLR: SysReg = SysReg::new(2, 0, 1, 3, 4);
const DBGPRCR: SysReg = SysReg::new(2, 0, 1, 4, 4);
/// ICC_SRE_EL1: system registers (SRE), no bypass (DFB, DIB); nothing of it can be written.
const ICC_SRE_ALWAYS: u64 = 0b111;
/// OSLSR_EL1: an OS lock that exists and is free.
const OSLSR_FREE: u64 = 1 << 3;

impl<M: Machine> Run<'_, M> {
    pub(super) fn system_register(&mut self, access: SysregAccess) -> Flow {
        let value = match (access.register, access.read) {
            (register, true) if is_id_register(register) => {
                Some(guest_value(register, self.machine.id_register(register)))
            }
            (ICC_SGI1R, false) => {
                let value = self.register(access.rt);
                let mask = self
                    .vm
                    .gic
                    .lock()
                    .as_mut()
                    .map_or(0, |gic| gic.send_sgi(self.index, value));
                self.notify(mask);
                None
            }
            // Trapped while an active interrupt had no list register: hardware cannot find it.
            (ICC_DIR, false) => {
                let intid = self.register(access.rt) as u32 & 0x00ff_ffff;
                self.evacuate_interrupts();
                let mask = self
                    .vm
                    .gic
                    .lock()
                    .as_mut()
                    .map_or(0, |gic| gic.deactivate(self.index, intid));
                self.notify(mask);
                None
            }
            // One security state, all SGIs through ICC_SGI1R_EL1; set and way means nothing to a guest
            // whose pages may be anywhere; the OS locks stay free.
            (ICC_ASGI1R | ICC_SGI0R | ICC_SRE | ACTLR | DC_ISW | DC_CSW | DC_CISW, false)
            | (OSLAR | OSDLR | DBGPRCR, false) => None,
            (ACTLR | OSDLR | DBGPRCR, true) => Some(0),
            // Trapped where ICC_SRE_EL2.Enable can be cleared: the physical register is the host's.
            (ICC_SRE, true) => Some(ICC_SRE_ALWAYS),
            (OSLSR, true) => Some(OSLSR_FREE),
            _ => return self.inject(GuestException::Undefined),
        };
        if let Some(value) = value {
            self.set_register(access.rt, value);
        }
        self.skip();
        RESUME
    }
}
