//! The guest's calls to Porthole (porthole-abi), with their results as Rust values.

use porthole_abi::{Error, FunctionId, GuestFunction};
use porthole_runtime::call::{Args, hvc_with};

/// A negative answer: one of the ABI's errors, or a number that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", name(*.0))]
pub struct Refused(pub i64);

fn name(code: i64) -> &'static str {
    Error::from_code(code).map_or("an unknown error", Error::name)
}

/// Calls `function` with `args`: the registers after it, x0 included.
///
/// # Errors
/// What x0 says if it is negative.
pub fn call(function: GuestFunction, args: &[u64]) -> Result<Args, Refused> {
    let result = hvc_with(function.id(), args);
    match result[0].cast_signed() {
        code if code < 0 => Err(Refused(code)),
        _ => Ok(result),
    }
}

/// ABI version and feature bits.
///
/// # Errors
/// Those of the call: without Porthole there is nobody who knows it.
pub fn features() -> Result<(u64, u64), Refused> {
    call(GuestFunction::GuestFeatures, &[]).map(|r| (r[1], r[2]))
}

/// SHA-256 of the launch.
///
/// # Errors
/// Those of the call.
pub fn measurement() -> Result<[u8; 32], Refused> {
    let result = call(GuestFunction::Measurement, &[])?;
    let mut digest = [0; 32];
    for (to, word) in digest.chunks_exact_mut(8).zip(&result[1..5]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Ok(digest)
}

/// A window as the hypervisor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its slot.
    pub slot: u64,
    /// First address at which this guest sees it.
    pub ipa: u64,
    /// Bytes.
    pub length: u64,
    /// A PCI function of the device that has it.
    pub function: FunctionId,
    /// BAR.
    pub bar: u64,
    /// Bytes from the BAR's start.
    pub offset: u64,
    /// Mask of the device's functions that share it.
    pub functions: u64,
}

/// The first window from slot `start` on; `None` behind the last.
///
/// # Errors
/// Those of the call but `NoWindow`.
pub fn window_from(start: u64) -> Result<Option<Window>, Refused> {
    match call(GuestFunction::WindowEnum, &[start]) {
        Ok(r) => Ok(Some(Window {
            slot: r[1],
            ipa: r[2],
            length: r[3],
            function: FunctionId(r[4] as u32),
            bar: r[5],
            offset: r[6],
            functions: r[7],
        })),
        Err(refused) if refused.0 == Error::NoWindow.code() => Ok(None),
        Err(refused) => Err(refused),
    }
}
