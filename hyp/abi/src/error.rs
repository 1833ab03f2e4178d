//! Error codes of the ABI, one for each distinct refusal.
//! A refused call has changed nothing. Codes are negative, as SMCCC asks.

macro_rules! errors {
    ($($(#[$meta:meta])* $variant:ident = $value:expr,)*) => {
        /// Why a call was refused; in x0 as a negative 64-bit number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i64)]
        pub enum Error { $($(#[$meta])* $variant = $value,)* }

        impl Error {
            /// Every error.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value in x0.
            pub const fn code(self) -> i64 { self as i64 }

            /// The error with this code, if there is one.
            pub fn from_code(code: i64) -> Option<Self> {
                Self::ALL.iter().copied().find(|e| e.code() == code)
            }

            /// The error's name, as in `docs/abi.md`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }
        }

        impl core::fmt::Display for Error {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{} ({})", self.name(), self.code())
            }
        }

        impl core::error::Error for Error {}
    };
}

errors! {
    /// No such function for this caller (SMCCC NOT_SUPPORTED).
    NotSupported = -1,
    /// An argument has a value that its type does not have (SMCCC INVALID_PARAMETER).
    InvalidParameter = -3,
    /// An address, offset or length is not a multiple of the page size.
    Unaligned = -16,
    /// A range wraps around or ends beyond what its address type can hold.
    Overflow = -17,
    /// A range or count is zero.
    Empty = -18,
    /// A range or count is above the call's limit.
    TooLarge = -19,
    /// A page is not RAM.
    NotRam = -20,
    /// A page is not owned by the host.
    NotHostOwned = -21,
    /// A page of the host is shared through a window.
    PageIsWindow = -22,
    /// A page of the host is pinned: by a table of the interrupt controller, or because a device is confined to it.
    PagePinned = -23,
    /// The VM handle names no living VM.
    BadHandle = -24,
    /// The VM's life has not come to, or is past, the point where the call makes sense.
    BadState = -25,
    /// The VM or vCPU is in use on another CPU; try again.
    Busy = -26,
    /// The hypervisor's own pool has too few free pages.
    NoMemory = -27,
    /// The VM's donated metadata has too few free pages: donate more.
    NoMetadata = -28,
    /// No free VM slot or window slot.
    NoSlot = -29,
    /// An IPA range is not inside one region of the right kind.
    OutsideRegion = -30,
    /// An IPA is already mapped.
    AlreadyMapped = -31,
    /// A reserved field or flag bit is not zero.
    ReservedNonZero = -32,
    /// A BAR number above 5, or a 64-bit BAR in slot 5.
    BadBar = -33,
    /// Offset plus length is beyond the BAR's size.
    OutsideBar = -34,
    /// A PCI function id that cannot exist, or one that does not use the window.
    BadFunction = -35,
    /// The IPA range overlaps another window of the VM.
    WindowOverlap = -36,
    /// The same host page stands twice in one list.
    DuplicatePage = -37,
    /// The VM's regions are empty, unaligned, out of range or overlap each other.
    BadRegions = -38,
    /// No such vCPU, or one that exists already.
    BadVcpu = -39,
    /// A page does not belong to the VM named.
    NotVmOwned = -40,
    /// An interrupt that the VM's configuration did not declare.
    BadIntid = -41,
    /// DMA of the host is not confined on this machine, so no VM is created, an unprotected one neither.
    UnsafeDma = -42,
    /// A parameter block of another major version, or of a later minor one.
    BadVersion = -43,
    /// No such window.
    NoWindow = -44,
    /// The window belongs to another device.
    WindowForeign = -45,
    /// Refused by design.
    Denied = -46,
    /// The VM still owns pages.
    PagesLeft = -47,
    /// A physical CPU that does not exist or has not booted.
    BadCpu = -48,
    /// A PCI function that no SMMU knows.
    BadStream = -49,
    /// The function is not confined.
    NotConfined = -50,
    /// The function is confined already.
    AlreadyConfined = -51,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_negative() {
        for (i, e) in Error::ALL.iter().enumerate() {
            assert!(e.code() < 0);
            assert!(Error::ALL[i + 1..].iter().all(|o| o.code() != e.code()));
            assert_eq!(Error::from_code(e.code()), Some(*e));
        }
        assert_eq!(Error::from_code(0), None);
    }
}
