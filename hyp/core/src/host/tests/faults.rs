//! Stage-2 faults of the host.

use porthole_abi::{HostFunction, StatKind};

use crate::hypervisor::HostFaultAction;
use crate::testing::{Host, VmPlan};

const KERNEL: u64 = 0xffff_0000_4020_0000;
/// Data abort, translation fault level 3.
const ESR: u64 = 0x24 << 26 | 0x07;

fn stat(host: &Host, kind: StatKind) -> u64 {
    host.call(HostFunction::Stats, &[kind as u64, 0]).unwrap()[1]
}

#[test]
fn a01_the_abort_depends_on_who_touched_by_which_address() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let page = host.pages(1);
    host.call(HostFunction::VmDonate, &[vm, page, Host::GUEST_RAM, 1, 0])
        .unwrap();
    let hpfar = page >> 12 << 4;
    for (far, from_el0, expect) in [
        (KERNEL, false, HostFaultAction::TranslationFault),
        (0x1234, false, HostFaultAction::ExternalAbort),
        (0x1234, true, HostFaultAction::ExternalAbort),
        (KERNEL, true, HostFaultAction::ExternalAbort),
    ] {
        assert_eq!(
            host.hyp.host_fault(ESR, far, hpfar, from_el0, &mut [0; 31]),
            expect
        );
        assert_eq!(stat(&host, StatKind::LastAbortAddress), page | far & 0xfff);
    }
    assert_eq!(stat(&host, StatKind::HostAborts), 4);
}

#[test]
fn a_fault_in_the_gap_of_a_change_is_tried_again() {
    let mut host = Host::new();
    let page = host.pages(1);
    let action = host
        .hyp
        .host_fault(ESR, KERNEL, page >> 12 << 4, false, &mut [0; 31]);
    assert_eq!(action, HostFaultAction::Retry);
    assert_eq!(stat(&host, StatKind::HostAborts), 0);
    // Not a translation fault: trying again would loop.
    let permission = 0x20 << 26 | 0x0f;
    let action = host
        .hyp
        .host_fault(permission, KERNEL, page >> 12 << 4, false, &mut [0; 31]);
    assert_eq!(action, HostFaultAction::TranslationFault);
    // HPFAR_EL2 is undefined then: nobody is told what it holds.
    assert_eq!(stat(&host, StatKind::LastAbortAddress), u64::MAX);
    let on_walk = permission | 1 << 7;
    host.hyp
        .host_fault(on_walk, KERNEL, page >> 12 << 4, false, &mut [0; 31]);
    assert_eq!(stat(&host, StatKind::LastAbortAddress), page);
}

#[test]
fn faults_anywhere_end_in_an_abort() {
    let host = Host::new();
    for hpfar in [0, 0x9_0000 << 4, u64::MAX] {
        for esr in [0, ESR, u64::MAX] {
            for far in [0, KERNEL, u64::MAX] {
                host.hyp.host_fault(esr, far, hpfar, far == 0, &mut [0; 31]);
            }
        }
    }
}
