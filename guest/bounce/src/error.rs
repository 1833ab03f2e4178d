//! What can go wrong, one small enum for the life of a pool and one for its construction.
//! None of these is reachable by the host: they name mistakes of the caller or a full pool.
//! Nothing here panics, allocates or touches the window.

use thiserror::Error;

/// Why a request to a pool was refused. The pool is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// No free run of slots is long (and aligned) enough now; unmapping may help.
    #[error("bounce pool is full")]
    Full,
    /// More than [`max_mapping_size`](crate::BouncePool::max_mapping_size) for a streaming mapping,
    /// or more than the whole window for a coherent one; can never succeed.
    #[error("request is larger than the bounce pool allows")]
    TooLarge,
    /// The address is not inside the window.
    #[error("address is outside the window")]
    OutsideWindow,
    /// The request is for zero bytes or zero pages.
    #[error("empty request")]
    Empty,
    /// The alignment asked for is not a power of two.
    #[error("alignment is not a power of two")]
    BadAlignment,
    /// Nothing is mapped at this address of the window: never was, or is unmapped already.
    #[error("no mapping starts at this address")]
    NotMapped,
    /// A mapping starts at this address, but with another length.
    #[error("length differs from that of the mapping")]
    WrongSize,
    /// A mapping starts at this address, but with a direction that does not fit the request.
    #[error("direction differs from that of the mapping")]
    WrongDirection,
    /// A coherent allocation was given to a streaming call, or the other way round.
    #[error("streaming and coherent calls mixed up")]
    WrongKind,
    /// The part to be copied reaches past the end of its mapping.
    #[error("range reaches past the end of the mapping")]
    OutsideMapping,
}

/// Why a window or a pool could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetupError {
    /// Base, bus address or length is not a multiple of [`PAGE_SIZE`](crate::PAGE_SIZE).
    #[error("window is not page-aligned")]
    Unaligned,
    /// The window has no pages.
    #[error("window is empty")]
    Empty,
    /// The window reaches past the end of an address space, or starts at bus address zero, which
    /// virtio-drivers takes for a failure (and the DMB proposal never uses).
    #[error("window is at an impossible address")]
    BadAddress,
    /// Fewer [`SlotGroup`](crate::SlotGroup)s than
    /// [`SlotGroup::needed_for`](crate::SlotGroup::needed_for) asks for.
    #[error("too little bookkeeping memory for this window")]
    TooLittleBookkeeping,
    /// The Hal has a pool already.
    #[error("a pool is installed already")]
    AlreadyInstalled,
}
