//! Windows: what config space claims, what the hypervisor says, and whether they agree.
//! The hypervisor's word counts. A difference is not repaired but refused, by name: the host is lying or broken.

use arrayvec::ArrayVec;
use porthole_abi::{FunctionId, WINDOWS_MAX};

use crate::hypercall::{self, Refused, Window};
use crate::pci::{Bars, Structure};

/// A SWIOTLB capability: what config space says of a function's window.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The function that has the capability.
    pub function: FunctionId,
    /// BAR, offset and length.
    pub structure: Structure,
    /// The function's BARs.
    pub bars: Bars,
}

/// Config space and hypervisor differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The call failed.
    #[error("windows cannot be enumerated: {0}")]
    Call(#[from] Refused),
    /// More windows than a VM can have.
    #[error("the enumeration of windows does not end")]
    Endless,
    /// The capability names a place that does not exist.
    #[error("{function}: config space claims a window outside BAR {bar}")]
    NoPlace {
        /// Who claims it.
        function: FunctionId,
        /// Its BAR.
        bar: u8,
    },
    /// A capability without a window.
    #[error("{0}: config space claims a window, the hypervisor has none for this device")]
    Missing(FunctionId),
    /// A window without a capability.
    #[error("the hypervisor has a window of {0} at {1:#x} that config space does not claim")]
    Unclaimed(FunctionId, u64),
    /// A value differs.
    #[error(
        "{function}: {value} of the window is {claimed:#x} in config space, {real:#x} for the hypervisor"
    )]
    Differs {
        /// Who claims it.
        function: FunctionId,
        /// Which value.
        value: &'static str,
        /// As config space has it.
        claimed: u64,
        /// As the hypervisor has it.
        real: u64,
    },
}

/// All windows of this guest.
pub type Windows = ArrayVec<Window, WINDOWS_MAX>;

/// Enumerates the windows by hypercall.
///
/// # Errors
/// `Call`, `Endless`.
pub fn enumerate() -> Result<Windows, Mismatch> {
    let mut windows = Windows::new();
    let mut slot = 0;
    while let Some(window) = hypercall::window_from(slot)? {
        if window.slot < slot || windows.try_push(window).is_err() {
            return Err(Mismatch::Endless);
        }
        slot = window.slot + 1;
    }
    Ok(windows)
}

/// Whether `window` is one of the device that `function` belongs to, and shared by `function`.
fn belongs(window: &Window, function: FunctionId) -> bool {
    window.function.device() == function.device()
        && window.functions >> function.function() & 1 == 1
}

/// Compares all claims with all windows.
///
/// # Errors
/// The first difference.
pub fn check(claims: &[Claim], windows: &Windows) -> Result<(), Mismatch> {
    for claim in claims {
        check_claim(claim, windows)?;
    }
    let claimed = |w: &Window| claims.iter().any(|c| belongs(w, c.function));
    match windows.iter().find(|w| !claimed(w)) {
        Some(window) => Err(Mismatch::Unclaimed(window.function, window.ipa)),
        None => Ok(()),
    }
}

fn check_claim(claim: &Claim, windows: &Windows) -> Result<(), Mismatch> {
    let function = claim.function;
    let Structure {
        bar,
        offset,
        length,
    } = claim.structure;
    let address = claim
        .structure
        .address(&claim.bars)
        .map_err(|_| Mismatch::NoPlace { function, bar })?;
    let window = windows
        .iter()
        .find(|w| belongs(w, function))
        .ok_or(Mismatch::Missing(function))?;
    for (value, claimed, real) in [
        ("BAR number", u64::from(bar), window.bar),
        ("offset in the BAR", u64::from(offset), window.offset),
        ("length", u64::from(length), window.length),
        ("address", address, window.ipa),
    ] {
        if claimed != real {
            return Err(Mismatch::Differs {
                function,
                value,
                claimed,
                real,
            });
        }
    }
    Ok(())
}
