//! HVC and SMC of a guest.

use porthole_abi::{
    ABI_VERSION, CALL_COUNT, CALL_REVISION, CALL_UID, Error, ExitKind, GuestFunction, HostFunction,
    UID,
};

use super::*;
use crate::smccc::{SMCCC_ARCH_FEATURES, SMCCC_VERSION, trng};

const NOT_SUPPORTED: u64 = u64::MAX;

/// A call's registers; it must not leave to the host.
fn answer(host: &Host, vm: u64, x: &[u64]) -> [u64; 31] {
    let (x, exit) = guest_call(host, vm, 0, x);
    assert_eq!(exit.0, ExitKind::HostInterrupt);
    x
}

#[test]
fn a42_unknown_guest_calls_change_x0_only() {
    let (host, vm) = ready();
    let hosts = HostFunction::ALL.iter().map(|f| f.id());
    for id in hosts.chain([0, 1, 0xc600_0000, 0x8600_0000, 0xffff_ffff, 0x8400_000e]) {
        for upper in [0, 1 << 32, u64::MAX << 32] {
            let x = answer(&host, vm, &[u64::from(id) | upper]);
            assert_eq!(x[0], NOT_SUPPORTED, "{id:#x}");
            assert!(x[1..].iter().all(|r| *r == 0x5ec2));
        }
    }
}

#[test]
fn a42_immediates_of_a_guest_are_refused() {
    let (host, vm) = ready();
    for class in [0x16u64, 0x17] {
        for immediate in [1, 0xffff] {
            let exit = play(&host, vm, 0, 0, move |context, entry| {
                if entry == 0 {
                    context.x[0] = u64::from(crate::smccc::PSCI_VERSION);
                    return Some(sync(class << 26 | immediate));
                }
                assert_eq!(context.x[0], NOT_SUPPORTED);
                None
            });
            assert_eq!(exit.0, ExitKind::HostInterrupt);
        }
    }
    assert_eq!(look(&host, vm, 0, 0).pc, Host::GUEST_RAM + 8, "SMC only");
}

#[test]
fn discovery_names_this_hypervisor() {
    let (host, vm) = ready();
    let x = answer(&host, vm, &[u64::from(CALL_UID)]);
    assert_eq!(x[..4], UID.map(u64::from));
    assert_eq!(answer(&host, vm, &[u64::from(CALL_REVISION)])[..2], [1, 0]);
    assert_eq!(answer(&host, vm, &[u64::from(CALL_COUNT)])[0], 8);
    assert_eq!(answer(&host, vm, &[u64::from(SMCCC_VERSION)])[0], 0x1_0002);
    let features = u64::from(SMCCC_ARCH_FEATURES);
    assert_eq!(answer(&host, vm, &[features, 0x8000_0000])[0], 0);
    assert_eq!(
        answer(&host, vm, &[features, 0x8000_8000])[0],
        NOT_SUPPORTED
    );
}

#[test]
fn guests_read_features_measurement_and_windows() {
    let (mut host, vm) = ready();
    let id = |f: GuestFunction| u64::from(f.id());
    let x = answer(&host, vm, &[id(GuestFunction::GuestFeatures)]);
    assert_eq!(x[..2], [0, u64::from(ABI_VERSION)]);
    let measured = host.call(HostFunction::VmMeasurement, &[vm]).unwrap();
    let x = answer(&host, vm, &[id(GuestFunction::Measurement)]);
    assert_eq!(x[1..5], measured[1..5]);
    let enumerate = id(GuestFunction::WindowEnum);
    let none = Error::NoWindow.code() as u64;
    assert_eq!(answer(&host, vm, &[enumerate, 0])[0], none);
    let page = host.pages(2);
    let config = host.window(vm, page, 2);
    let block = host.block(zerocopy::IntoBytes::as_bytes(&config));
    host.call(HostFunction::WindowRegister, &[block]).unwrap();
    let x = answer(&host, vm, &[enumerate, 0]);
    assert_eq!(
        x[..8],
        [0, 0, Host::APERTURE, 0x2000, 1 << 3, 2, 0, 1],
        "slot, IPA, bytes, function, BAR, offset, functions"
    );
    for start in [1, 32, u64::MAX] {
        assert_eq!(answer(&host, vm, &[enumerate, start])[0], none);
    }
}

#[test]
fn a_guest_never_shares_its_memory() {
    let (host, vm) = ready();
    let before = host.state();
    for function in [GuestFunction::MemShare, GuestFunction::MemUnshare] {
        let x = answer(&host, vm, &[u64::from(function.id()), Host::GUEST_RAM, 1]);
        assert_eq!(x[0], Error::Denied.code() as u64);
    }
    assert_eq!(host.state(), before);
}

#[test]
fn random_numbers_come_from_the_cpu_or_not_at_all() {
    let (host, vm) = ready();
    for id in [trng::VERSION, trng::RND32, trng::RND64] {
        assert_eq!(answer(&host, vm, &[u64::from(id), 64])[0], NOT_SUPPORTED);
    }
    host.machine().cpu.script().random = Some(u64::MAX);
    assert_eq!(answer(&host, vm, &[u64::from(trng::VERSION)])[0], 0x1_0000);
    let rnd64 = u64::from(trng::RND64);
    assert_eq!(answer(&host, vm, &[rnd64, 1])[..4], [0, 0, 0, 1]);
    assert_eq!(answer(&host, vm, &[rnd64, 65])[..4], [0, 0, 1, u64::MAX]);
    assert_eq!(answer(&host, vm, &[rnd64, 192])[1..4], [u64::MAX; 3]);
    let rnd32 = u64::from(trng::RND32);
    assert_eq!(answer(&host, vm, &[rnd32, 96])[1..4], [0xffff_ffff; 3]);
    for (id, bits) in [(rnd64, 0), (rnd64, 193), (rnd64, u64::MAX), (rnd32, 97)] {
        assert_eq!(answer(&host, vm, &[id, bits])[0], -2i64 as u64);
    }
    // 32-bit calls have 32-bit arguments.
    assert_eq!(
        answer(&host, vm, &[rnd32, 1 << 32 | 8])[..4],
        [0, 0, 0, 0xff]
    );
}
