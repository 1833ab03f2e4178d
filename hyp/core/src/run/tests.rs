//! Runs of vCPUs on the fake machine: exits are scripted, everything else is the production code.

mod calls;
mod exits;
mod interrupts;
mod power;
mod random;

use porthole_abi::{ExitKind, HostFunction};

use crate::context::VcpuContext;
use crate::hw::GuestExit;
use crate::testing::{Guest, Host, VmPlan};

/// A finalized VM of two vCPUs.
fn ready() -> (Host, u64) {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    (host, vm)
}

fn sync(esr: u64) -> GuestExit {
    GuestExit::Sync {
        esr,
        far: 0,
        hpfar: 0,
    }
}

/// HVC #0 of AArch64.
fn hvc() -> GuestExit {
    sync(0x16 << 26)
}

/// A trapped WFI.
fn wfi() -> GuestExit {
    sync(0x01 << 26)
}

/// An abort of class `class` with this syndrome at an address, virtual equal to intermediate.
fn abort(class: u64, iss: u64, ipa: u64) -> GuestExit {
    GuestExit::Sync {
        esr: class << 26 | iss,
        far: ipa,
        hpfar: ipa >> 12 << 4,
    }
}

/// A translation fault of a load or store with a syndrome.
fn mmio(ipa: u64, width_log2: u64, register: u64, write: bool) -> GuestExit {
    let iss = 1 << 24 | width_log2 << 22 | register << 16 | 1 << 15 | u64::from(write) << 6 | 0x06;
    abort(0x24, iss, ipa)
}

/// MSR or MRS of a system register.
fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64, rt: u64, read: bool) -> GuestExit {
    sync(
        0x18 << 26
            | op0 << 20
            | op2 << 17
            | op1 << 14
            | crn << 10
            | rt << 5
            | crm << 1
            | u64::from(read),
    )
}

/// Runs a guest that is this function of its registers and the number of its entry.
fn play(
    host: &Host,
    vm: u64,
    vcpu: u64,
    value: u64,
    mut guest: impl FnMut(&mut VcpuContext, usize) -> Option<GuestExit> + Send + 'static,
) -> (ExitKind, [u64; 3]) {
    let mut entry = 0;
    host.machine().cpu.script().guest = Some(Guest(Box::new(move |context| {
        entry += 1;
        guest(context, entry - 1)
    })));
    let exit = host.run(vm, vcpu, value).unwrap();
    host.machine().cpu.script().guest = None;
    exit
}

/// Makes one guest call and returns the registers after it.
pub(crate) fn guest_call(
    host: &Host,
    vm: u64,
    vcpu: u64,
    x: &[u64],
) -> ([u64; 31], (ExitKind, [u64; 3])) {
    let x = x.to_vec();
    let after = std::sync::Arc::new(std::sync::Mutex::new([0u64; 31]));
    let to = after.clone();
    let exit = play(host, vm, vcpu, 0, move |context, entry| {
        if entry == 0 {
            context.x = [0x5ec2; 31];
            context.x[..x.len()].copy_from_slice(&x);
            return Some(hvc());
        }
        *to.lock().unwrap() = context.x;
        None
    });
    let x = *after.lock().unwrap();
    (x, exit)
}

/// What the guest's registers are at its next entry.
fn look(host: &Host, vm: u64, vcpu: u64, value: u64) -> VcpuContext {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(VcpuContext::default()));
    let to = seen.clone();
    play(host, vm, vcpu, value, move |context, _| {
        *to.lock().unwrap() = context.clone();
        None
    });
    std::mem::take(&mut *seen.lock().unwrap())
}

fn state(host: &Host, vm: u64) -> u64 {
    let slot = vm & 0xff;
    host.call(HostFunction::VmInfo, &[slot]).unwrap()[2]
}
