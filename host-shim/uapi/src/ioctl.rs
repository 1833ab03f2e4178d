//! The raw calls, and all the `unsafe` of the host's Rust side: `ioctl` with a structure, and files out of the
//! descriptors it returns. Structures with user addresses in them get those here, from live borrows.
//! Meaning and order of calls live in `system`, `vm` and `vcpu`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zerocopy::{FromBytes, IntoBytes};

use crate::layout::{CreateVcpu, CreateVm, List, Load, LogRead, VmEntry};
use crate::number::{self, Call};
use crate::{Error, Result};

/// A structure that carries no user address: any value of it is harmless to hand to the driver.
pub(crate) trait Plain: FromBytes + IntoBytes {}

macro_rules! plain {
    ($($ty:ident),*) => { $(impl Plain for crate::layout::$ty {})* };
}

plain!(
    Info,
    Audit,
    Stats,
    PageInfo,
    PageFind,
    Populate,
    Finalize,
    WindowCreate,
    WindowMove,
    WindowDestroy,
    WindowFunction,
    WindowInfo,
    IrqLine,
    IrqFd,
    IoEventFd,
    Measurement,
    VmInfo
);

/// Calls that return nothing but what they write back.
pub(crate) fn plain<T: Plain>(file: &File, call: &Call<T>, argument: &mut T) -> io::Result<()> {
    // SAFETY: the driver reads and writes one `T` (checked against the header by a test, and any bytes are a
    // valid `T`), `argument` is exclusively borrowed for the call, and `T: Plain` carries no other address.
    check(unsafe { raw(file, call.number, std::ptr::from_mut(argument).cast()) }).map(|_| ())
}

/// VCPU_RUN.
pub(crate) fn run(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no argument; what it writes is the run page, which is only accessed as volatile.
    check(unsafe { raw(file, number::VCPU_RUN.number, std::ptr::null_mut()) }).map(|_| ())
}

/// CREATE_VM: the VM's file.
pub(crate) fn create_vm(file: &File, argument: &mut CreateVm) -> io::Result<File> {
    let pointer = std::ptr::from_mut(argument).cast();
    // SAFETY: one exclusively borrowed `CreateVm`, which carries no address.
    let fd = check(unsafe { raw(file, number::CREATE_VM.number, pointer) })?;
    // SAFETY: the call returned a new descriptor that nobody else has.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// VM_CREATE_VCPU: the vCPU's file.
pub(crate) fn create_vcpu(file: &File, argument: &mut CreateVcpu) -> io::Result<File> {
    let pointer = std::ptr::from_mut(argument).cast();
    // SAFETY: one exclusively borrowed `CreateVcpu`, which carries no address.
    let fd = check(unsafe { raw(file, number::VM_CREATE_VCPU.number, pointer) })?;
    // SAFETY: the call returned a new descriptor that nobody else has.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// VM_LOAD of `data`.
pub(crate) fn load(file: &File, ipa: u64, data: &[u8]) -> (Load, io::Result<()>) {
    let mut argument = Load {
        source: data.as_ptr() as u64,
        ipa,
        size: data.len() as u64,
        ..Load::default()
    };
    let pointer = std::ptr::from_mut(&mut argument).cast();
    // SAFETY: the driver writes to `argument` only, and reads `size` bytes at `source`, which `data` borrows.
    let done = check(unsafe { raw(file, number::VM_LOAD.number, pointer) });
    (argument, done.map(|_| ()))
}

/// LIST into `entries`: how many VMs there are.
pub(crate) fn list(file: &File, entries: &mut [VmEntry]) -> io::Result<usize> {
    let mut argument = List {
        entries: entries.as_mut_ptr() as u64,
        capacity: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        count: 0,
    };
    let pointer = std::ptr::from_mut(&mut argument).cast();
    // SAFETY: the driver writes at most `capacity` entries (any bytes are a valid one) to the exclusively
    // borrowed slice, and to `argument`.
    check(unsafe { raw(file, number::LIST.number, pointer) })?;
    Ok(argument.count as usize)
}

/// LOG_READ from `position` into `buffer`: position of the first byte, and bytes.
pub(crate) fn log_read(file: &File, position: u64, buffer: &mut [u8]) -> io::Result<(u64, usize)> {
    let mut argument = LogRead {
        position,
        buffer: buffer.as_mut_ptr() as u64,
        capacity: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
        length: 0,
    };
    let pointer = std::ptr::from_mut(&mut argument).cast();
    // SAFETY: the driver writes at most `capacity` bytes to the exclusively borrowed slice, and to `argument`.
    check(unsafe { raw(file, number::LOG_READ.number, pointer) })?;
    Ok((argument.position, argument.length as usize))
}

/// The result of a call with a `refusal` field.
pub(crate) fn outcome(call: &'static str, refusal: i32, result: io::Result<()>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(source) => Err(match porthole_abi::Error::from_code(refusal.into()) {
            Some(refusal) => Error::Refused { call, refusal },
            None => Error::System { call, source },
        }),
    }
}

/// # Safety
/// `argument` must be what the request's driver code reads and writes, valid for the length of the call.
unsafe fn raw(file: &File, request: u32, argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the descriptor is open as long as `file` is borrowed; the argument is the caller's promise. The
    // cast is for the C libraries that take a signed request.
    unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
