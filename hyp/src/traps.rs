//! Synchronous exceptions of the host: hypercalls, SMCs, stage-2 faults, registers that it does not have.
//! Each goes to core or ends in an exception of the host's own; none is fatal.

use porthole_arch::exceptions::{Frame, Syndrome};
use porthole_arch::host;
use porthole_core::hw::SysReg;
use porthole_core::hypervisor::HostFaultAction;

use crate::{HYPERVISOR, fault};

/// Exception classes, ESR_EL2.EC (Arm ARM D24.2.40).
mod class {
    pub const HVC64: u64 = 0x16;
    pub const SMC64: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    pub const DATA_ABORT: u64 = 0x24;
}

/// ESR_ELx.IL.
const IL: u64 = 1 << 25;
/// ISS of an abort: fault status code.
const STATUS: u64 = 0x3f;
/// ISS of an abort: the fault happened on a stage-1 table walk.
const ON_WALK: u64 = 1 << 7;
/// ISS bits of a data abort that hold at EL1 too: WnR and CM.
const DATA_KEPT: u64 = 1 << 6 | 1 << 8;

#[unsafe(no_mangle)]
extern "C" fn porthole_host_sync(frame: &mut Frame) {
    let syndrome = Syndrome::read();
    let Some(hypervisor) = HYPERVISOR.get() else {
        fault::stop(format_args!("fatal: a trap before there was a host"));
    };
    match syndrome.class() {
        class::HVC64 => {
            fault::note_call(frame.x[0]);
            hypervisor.host_hvc(syndrome.esr as u16, &mut frame.x);
        }
        class::SMC64 => {
            fault::note_call(frame.x[0]);
            frame.step_over();
            hypervisor.host_smc(syndrome.esr as u16, &mut frame.x);
        }
        class::DATA_ABORT | class::INSTRUCTION_ABORT => abort(frame, syndrome),
        class::SYSTEM_REGISTER => system_register(frame, syndrome.esr),
        other => {
            log::debug!(
                "undefined instruction for the host: class {other:#x} at {:#x}",
                frame.pc
            );
            host::inject(frame, host::ESR_UNDEFINED, None);
        }
    }
}

/// A stage-2 fault: core says what it becomes.
fn abort(frame: &mut Frame, syndrome: Syndrome) {
    let Some(hypervisor) = HYPERVISOR.get() else {
        return;
    };
    let Syndrome { esr, far, hpfar } = syndrome;
    let el0 = host::from_el0(frame);
    let level = esr & 3;
    let on_walk = esr & ON_WALK != 0;
    let status = match hypervisor.host_fault(esr, far, hpfar, el0, &mut frame.x) {
        HostFaultAction::Retry => return,
        HostFaultAction::Skip => {
            frame.step_over();
            return;
        }
        HostFaultAction::ExternalAbort if on_walk => 0b010100 | level,
        HostFaultAction::ExternalAbort => 0b010000,
        HostFaultAction::TranslationFault => 0b000111,
    };
    let is_data = syndrome.class() == class::DATA_ABORT;
    let same_level = u64::from(!el0);
    let kept = if is_data { esr & DATA_KEPT } else { 0 };
    let esr = (syndrome.class() | same_level) << 26 | esr & IL | kept | status & STATUS;
    host::inject(frame, esr, Some(far));
}

/// An access to a system register: identification registers are answered, the others do not exist for the host.
fn system_register(frame: &mut Frame, esr: u64) {
    let field = |shift: u32, bits: u32| (esr >> shift) as u8 & ((1 << bits) - 1);
    let register = SysReg::new(
        field(20, 2),
        field(14, 3),
        field(10, 4),
        field(1, 4),
        field(17, 3),
    );
    let is_read = esr & 1 != 0;
    let identification =
        (SysReg::new(3, 0, 0, 1, 0)..=SysReg::new(3, 0, 0, 7, 7)).contains(&register);
    if is_read && identification {
        // Register number 31 is XZR: the value is dropped.
        if let Some(target) = frame.x.get_mut(usize::from(field(5, 5))) {
            *target = host::id_register(register);
        }
        frame.step_over();
    } else {
        log::debug!(
            "undefined register for the host: {register:?} at {:#x}",
            frame.pc
        );
        host::inject(frame, host::ESR_UNDEFINED, None);
    }
}
