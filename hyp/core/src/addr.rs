//! One newtype for each address space, with checked arithmetic only.
//! Nothing here says who owns a page: see the tracker.

use porthole_abi::{Error, PAGE_SHIFT, PAGE_SIZE};

macro_rules! address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address; any value is allowed, ranges check it.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Number of the 4 KiB frame it lies in.
            pub const fn frame(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }

            /// Whether it is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }

            /// The address `bytes` further, if there is one.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The start of the page it lies in.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A physical address. Equal to the host's intermediate physical address: its stage 2 is an identity map.
    PhysAddr
);
address!(
    /// A guest's intermediate physical address.
    Ipa
);

/// A non-empty run of whole pages that does not wrap. `A` is [`PhysAddr`] or [`Ipa`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pages<A> {
    start: A,
    count: u64,
}

macro_rules! pages {
    ($addr:ident) => {
        impl Pages<$addr> {
            /// Checks an allegation of a caller.
            ///
            /// # Errors
            /// `Empty` for no page, `Unaligned`, `Overflow` when the end is beyond 2^64.
            pub const fn new(start: $addr, count: u64) -> Result<Self, Error> {
                if count == 0 {
                    return Err(Error::Empty);
                }
                if !start.is_aligned(PAGE_SIZE) {
                    return Err(Error::Unaligned);
                }
                let Some(bytes) = count.checked_mul(PAGE_SIZE) else {
                    return Err(Error::Overflow);
                };
                if start.checked_add(bytes).is_none() {
                    return Err(Error::Overflow);
                }
                Ok(Self { start, count })
            }

            /// First address.
            pub const fn start(&self) -> $addr {
                self.start
            }

            /// First address behind the run.
            pub const fn end(&self) -> $addr {
                $addr::new(self.start.raw() + self.count * PAGE_SIZE)
            }

            /// Number of pages, at least 1.
            pub const fn count(&self) -> u64 {
                self.count
            }

            /// Number of bytes.
            pub const fn bytes(&self) -> u64 {
                self.count * PAGE_SIZE
            }

            /// Whether `addr` lies inside.
            pub const fn contains(&self, addr: $addr) -> bool {
                addr.raw() >= self.start.raw() && addr.raw() < self.end().raw()
            }

            /// Whether all of `other` lies inside.
            pub const fn covers(&self, other: &Self) -> bool {
                other.start.raw() >= self.start.raw() && other.end().raw() <= self.end().raw()
            }

            /// Whether the two share a page.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.raw() < other.end().raw() && other.start.raw() < self.end().raw()
            }

            /// Address of each page in order.
            pub fn iter(&self) -> impl DoubleEndedIterator<Item = $addr> + use<> {
                let start = self.start.raw();
                (0..self.count).map(move |i| $addr::new(start + i * PAGE_SIZE))
            }
        }
    };
}

pages!(PhysAddr);
pages!(Ipa);

/// A run of physical pages.
pub type PhysPages = Pages<PhysAddr>;
/// A run of guest pages.
pub type IpaPages = Pages<Ipa>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_refuse_empty_unaligned_and_wrapping() {
        let at = PhysAddr::new;
        assert_eq!(PhysPages::new(at(0), 0), Err(Error::Empty));
        assert_eq!(PhysPages::new(at(1), 1), Err(Error::Unaligned));
        assert_eq!(PhysPages::new(at(0), 1 << 52), Err(Error::Overflow));
        assert_eq!(PhysPages::new(at(0), u64::MAX), Err(Error::Overflow));
        assert_eq!(
            PhysPages::new(at(0u64.wrapping_sub(PAGE_SIZE)), 1),
            Err(Error::Overflow)
        );
        assert!(PhysPages::new(at(0u64.wrapping_sub(2 * PAGE_SIZE)), 1).is_ok());
    }

    #[test]
    fn overlap_is_exclusive_of_the_end() {
        let a = IpaPages::new(Ipa::new(0x1000), 2).unwrap();
        let b = IpaPages::new(Ipa::new(0x3000), 1).unwrap();
        assert!(!a.overlaps(&b));
        assert!(a.contains(Ipa::new(0x2fff)));
        assert!(!a.contains(Ipa::new(0x3000)));
        assert!(a.covers(&a));
        assert_eq!(a.iter().count(), 2);
    }
}
