//! SMC and HVC with the full SMCCC 1.2 register set, and with a chosen immediate.

use core::arch::asm;

/// Register file of a call: x0 to x17.
pub type Args = [u64; 18];

macro_rules! conduit {
    ($(#[$m:meta])* $name:ident, $insn:literal) => {
        $(#[$m])*
        pub fn $name(args: Args) -> Args {
            let mut r = args;
            // SAFETY: the call follows SMCCC 1.2: x0 to x17 are replaced, the rest is kept. What it does
            // to memory is the callee's doing, hence no `nomem`.
            unsafe {
                asm!($insn,
                    inout("x0") r[0], inout("x1") r[1], inout("x2") r[2], inout("x3") r[3],
                    inout("x4") r[4], inout("x5") r[5], inout("x6") r[6], inout("x7") r[7],
                    inout("x8") r[8], inout("x9") r[9], inout("x10") r[10], inout("x11") r[11],
                    inout("x12") r[12], inout("x13") r[13], inout("x14") r[14], inout("x15") r[15],
                    inout("x16") r[16], inout("x17") r[17], options(nostack));
            }
            r
        }
    };
}

conduit!(
    /// `HVC #0`.
    hvc, "hvc #0"
);
conduit!(
    /// `HVC #1`: an immediate that no one defines.
    hvc_1, "hvc #1"
);
conduit!(
    /// `HVC #0xffff`.
    hvc_ffff, "hvc #0xffff"
);
conduit!(
    /// `SMC #0`.
    smc, "smc #0"
);
conduit!(
    /// `SMC #1`.
    smc_1, "smc #1"
);

/// `HVC #0` with a function id and up to 17 arguments.
pub fn hvc_with(function: u32, args: &[u64]) -> Args {
    let mut r = [0; 18];
    r[0] = u64::from(function);
    for (to, from) in r[1..].iter_mut().zip(args) {
        *to = *from;
    }
    hvc(r)
}
