//! The raw calls, and all the `unsafe` of the host's Rust side: `ioctl` with a structure, files out of the
//! descriptors it returns, `readv`, `pwritev` and the like on a guest's memory. Addresses come from live borrows here.
//! Meaning and order of calls live in `system`, `vm` and `vcpu`, those of TAP interfaces in `tap`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use arrayvec::ArrayVec;
use vm_memory::VolatileSlice;
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
    VmWindow,
    DmaConfine,
    DmaRelease,
    DmaInfo,
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

impl Plain for crate::tap::InterfaceRequest {}
impl Plain for i32 {}

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

/// TUNSETOFFLOAD: the flags are the argument itself.
pub(crate) fn tun_set_offload(file: &File, flags: u32) -> io::Result<()> {
    const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    let flags = std::ptr::without_provenance_mut(flags as usize);
    // SAFETY: the kernel takes the argument as a number and looks at no memory.
    check(unsafe { raw(file, TUNSETOFFLOAD, flags) }).map(|_| ())
}

/// Buffers of one call that need no heap.
const VECTORS_INLINE: usize = 256;

/// Reads once into `head` and then into the guest's memory, in order. Returns the bytes read.
///
/// # Errors
/// readv(2)'s; `EINVAL` for more buffers than it takes (1024).
pub fn read_vectored(
    file: impl AsFd,
    head: &mut [u8],
    guest: &[VolatileSlice<'_>],
) -> io::Result<usize> {
    let fd = file.as_fd().as_raw_fd();
    with_vectors(head.as_mut_ptr(), head.len(), guest, |vectors, count| {
        // SAFETY: each vector is `head`, which is exclusively borrowed, or guest memory, which is borrowed, writable
        // and may change under anybody's hands.
        unsafe { libc::readv(fd, vectors, count) }
    })
}

/// Writes `head` and then what is in the guest's memory, in one call. Returns the bytes written.
///
/// # Errors
/// writev(2)'s; `EINVAL` for more buffers than it takes (1024).
pub fn write_vectored(
    file: impl AsFd,
    head: &[u8],
    guest: &[VolatileSlice<'_>],
) -> io::Result<usize> {
    let fd = file.as_fd().as_raw_fd();
    with_vectors(
        head.as_ptr().cast_mut(),
        head.len(),
        guest,
        |vectors, count| {
            // SAFETY: each vector is `head` or guest memory, both borrowed; the kernel only reads them.
            unsafe { libc::writev(fd, vectors, count) }
        },
    )
}

/// Reads from byte `offset` of a file into the guest's memory. Returns the bytes read.
///
/// # Errors
/// preadv(2)'s; `EINVAL` for an offset beyond `i64` or for more buffers than it takes (1024).
pub fn read_vectored_at(
    file: impl AsFd,
    guest: &[VolatileSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let (fd, offset) = (file.as_fd().as_raw_fd(), file_offset(offset)?);
    with_vectors(std::ptr::null_mut(), 0, guest, |vectors, count| {
        // SAFETY: each vector is guest memory, which is borrowed, writable and may change under anybody's hands.
        unsafe { libc::preadv(fd, vectors, count, offset) }
    })
}

/// Writes what is in the guest's memory at byte `offset` of a file. Returns the bytes written.
///
/// # Errors
/// pwritev(2)'s; `EINVAL` for an offset beyond `i64` or for more buffers than it takes (1024).
pub fn write_vectored_at(
    file: impl AsFd,
    guest: &[VolatileSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let (fd, offset) = (file.as_fd().as_raw_fd(), file_offset(offset)?);
    with_vectors(std::ptr::null_mut(), 0, guest, |vectors, count| {
        // SAFETY: each vector is guest memory, which is borrowed; the kernel only reads it.
        unsafe { libc::pwritev(fd, vectors, count, offset) }
    })
}

fn file_offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn with_vectors(
    head: *mut u8,
    length: usize,
    guest: &[VolatileSlice<'_>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let head = (length > 0).then_some(libc::iovec {
        iov_base: head.cast(),
        iov_len: length,
    });
    let all = head.into_iter().chain(guest.iter().map(|part| libc::iovec {
        // The guard's address holds as long as the slice: mappings of windows are not guarded.
        iov_base: part.ptr_guard_mut().as_ptr().cast(),
        iov_len: part.len(),
    }));
    let run = |vectors: &[libc::iovec]| match libc::c_int::try_from(vectors.len()) {
        Ok(count) => call(vectors.as_ptr(), count),
        Err(_) => -1,
    };
    let done = if guest.len() < VECTORS_INLINE {
        run(&all.collect::<ArrayVec<_, VECTORS_INLINE>>())
    } else {
        run(&all.collect::<Vec<_>>())
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn heads_and_guest_memory_go_out_and_come_in_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (mut one, mut two) = ([1u8; 3], [2u8; 70]);
        let parts = [&mut one[..], &mut two[..]].map(VolatileSlice::from);
        assert_eq!(write_vectored(&near, b"head", &parts).unwrap(), 77);
        let mut got = [0; 77];
        far.read_exact(&mut got).unwrap();
        assert_eq!((&got[..4], &got[4..7]), (&b"head"[..], &[1u8; 3][..]));
        assert_eq!(got[7..], [2; 70]);
        far.write_all(b"HEADabcdef").unwrap();
        let mut head = [0; 4];
        assert_eq!(read_vectored(&near, &mut head, &parts).unwrap(), 10);
        assert_eq!((&head, &one, &two[..4]), (b"HEAD", b"abc", &b"def\x02"[..]));
    }

    #[test]
    fn many_buffers_need_the_heap_and_too_many_are_an_error() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut bytes = [7u8; 1100];
        let many = VECTORS_INLINE + 1;
        let parts: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
        assert_eq!(write_vectored(&near, &[], &parts[..many]).unwrap(), many);
        let mut got = [0; VECTORS_INLINE + 1];
        far.read_exact(&mut got).unwrap();
        assert_eq!(got, [7; VECTORS_INLINE + 1]);
        let error = write_vectored(&near, &[], &parts).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn files_are_read_and_written_where_asked() {
        let path = std::env::temp_dir().join(format!("porthole-uapi-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let (mut one, mut two) = (*b"abc", *b"defg");
        let parts = [&mut one[..], &mut two[..]].map(VolatileSlice::from);
        assert_eq!(write_vectored_at(&file, &parts, 10).unwrap(), 7);
        assert_eq!(read_vectored_at(&file, &parts, 12).unwrap(), 5, "the end");
        for offset in [u64::MAX, 1 << 63] {
            let error = read_vectored_at(&file, &parts, offset).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            assert!(write_vectored_at(&file, &parts, offset).is_err());
        }
        assert_eq!((&one, &two), (b"cde", b"fgfg"));
    }
}
