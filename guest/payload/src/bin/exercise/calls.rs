//! What only Porthole promises: its guest calls, what it refuses, and what it hides. Left out on a bare machine.

use porthole_abi::{ABI_VERSION, Error, GuestFunction};
use porthole_payload::hypercall::{self, Refused};
use porthole_payload::machine::Machine;
use porthole_runtime::mmio::Registers;
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::{call, psci, read_reg};

use crate::{check, debug};

/// SMCCC_VERSION, and TRNG_VERSION and TRNG_RND64 (Arm DEN 0028 and DEN 0098).
const SMCCC_VERSION: u32 = 0x8000_0000;
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_RND64: u32 = 0xC400_0053;
const NOT_SUPPORTED: i64 = -1;
/// An address in a hole of the guest's map.
const HOLE: u64 = 0x0a00_0000;

/// All of it.
pub fn all(machine: &Machine) {
    if !machine.protected {
        return;
    }
    answers();
    refusals();
    random();
    hidden();
    mmu::map(HOLE, HOLE, 4096, Attr::Device);
    // SAFETY: just mapped; nothing is there, and the VMM answers reads with zero.
    let value = unsafe { Registers::new(HOLE, 8) }.read64(0);
    check!(value == 0, "a hole of the map reads {value:#x}");
}

fn answers() {
    let features = hypercall::features();
    check!(
        matches!(features, Ok((version, _)) if version == u64::from(ABI_VERSION)),
        "GuestFeatures says {features:x?}"
    );
    let (first, second) = (hypercall::measurement(), hypercall::measurement());
    check!(
        matches!(first, Ok(digest) if digest != [0; 32]) && first == second,
        "Measurement says {first:x?}, then {second:x?}"
    );
    let version = psci::psci(SMCCC_VERSION, 0, 0, 0);
    check!(version >= 0x1_0001, "SMCCC_VERSION says {version:#x}");
}

fn refusals() {
    for function in [GuestFunction::MemShare, GuestFunction::MemUnshare] {
        let result = hypercall::call(function, &[machine_page(), 1]);
        let denied = Err(Refused(Error::Denied.code()));
        check!(result == denied, "{} says {result:x?}", function.name());
    }
    for function in [0, 0x4b00_0000, 0xc600_0112, 0xc600_ffff, u32::MAX] {
        let mut args = [0; 18];
        args[0] = u64::from(function);
        for (conduit, result) in [("HVC", call::hvc(args)), ("SMC", call::smc(args))] {
            let code = result[0].cast_signed();
            let refused = code == NOT_SUPPORTED || code as i32 == NOT_SUPPORTED as i32;
            check!(refused, "{conduit} of function {function:#x} says {code}");
        }
    }
    // The right function under a wrong immediate.
    let mut args = [0; 18];
    args[0] = u64::from(GuestFunction::GuestFeatures.id());
    for (name, result) in [
        ("HVC #1", call::hvc_1(args)),
        ("HVC #0xffff", call::hvc_ffff(args)),
        ("SMC #1", call::smc_1(args)),
    ] {
        let code = result[0].cast_signed();
        check!(code == NOT_SUPPORTED, "{name} says {code}");
    }
}

/// A page of this image.
fn machine_page() -> u64 {
    porthole_runtime::entry::image_range().start
}

/// Where there is a TRNG, it gives something else each time.
fn random() {
    let version = psci::psci(TRNG_VERSION, 0, 0, 0);
    if version < 0 {
        check!(version as i32 == -1, "TRNG_VERSION says {version}");
        return;
    }
    check!(version >= 0x1_0000, "TRNG_VERSION says {version:#x}");
    let draw = || call::hvc_with(TRNG_RND64, &[192]);
    let (a, b) = (draw(), draw());
    check!(
        a[0] == 0 && b[0] == 0,
        "TRNG_RND64 says {:x}, {:x}",
        a[0],
        b[0]
    );
    check!(a[1..4] != b[1..4], "TRNG_RND64 repeats itself");
}

/// Features whose state is not switched, and registers that are not the guest's.
fn hidden() {
    let pfr0 = read_reg!("id_aa64pfr0_el1");
    let pfr1 = read_reg!("id_aa64pfr1_el1");
    let dfr0 = read_reg!("id_aa64dfr0_el1");
    let mmfr0 = read_reg!("id_aa64mmfr0_el1");
    for (name, register, shift) in [
        ("SVE", pfr0, 32),
        ("MPAM", pfr0, 40),
        ("AMU", pfr0, 44),
        ("RAS", pfr0, 28),
        ("EL2", pfr0, 8),
        ("MTE", pfr1, 8),
        ("SME", pfr1, 24),
        ("PMU", dfr0, 8),
        ("trace", dfr0, 4),
        ("SPE", dfr0, 32),
        ("TRBE", dfr0, 44),
    ] {
        let field = register >> shift & 0xf;
        check!(field == 0, "{name} is shown: {field}");
    }
    let range = mmfr0 & 0xf;
    check!(range == 1, "PARange is {range}, not 36 bits");
    debug::undefined("CNTP_CTL_EL0", || _ = read_reg!("cntp_ctl_el0"));
    debug::undefined("PMCR_EL0", || _ = read_reg!("pmcr_el0"));
    debug::undefined("HCR_EL2", || _ = read_reg!("hcr_el2"));
}
