//! Pages on their way between owners, as types: what may happen next consumes the token.
//! A [`Taken`] page is reached by no one but EL2; only a [`Clean`] one can go to the host or become metadata.

use crate::addr::{Ipa, PhysPages};
use crate::hw::Memory;

/// Pages that no table maps and no TLB knows any more. The tracker names the VM that they belong to.
#[must_use]
#[derive(Debug)]
pub(crate) struct Taken(PhysPages);

/// Pages that no one reaches, full of zeros.
#[must_use]
#[derive(Debug)]
pub(crate) struct Clean(PhysPages);

/// Pages that no one reaches, with the host's content, which was shown.
#[must_use]
#[derive(Debug)]
pub(crate) struct Shown(PhysPages);

impl Taken {
    /// To be called where the last translation was just flushed.
    pub(super) fn new(pages: PhysPages) -> Self {
        Self(pages)
    }

    /// Zeroes them.
    pub(crate) fn scrub<M: Memory>(self, machine: &M) -> Clean {
        for page in self.0.iter() {
            machine.scrub(page);
        }
        Clean(self.0)
    }

    /// Keeps the content and shows it, page by page, as it will lie at `ipa`.
    pub(crate) fn show<M: Memory>(
        self,
        machine: &M,
        ipa: Ipa,
        show: &mut dyn FnMut(Ipa, &[u8]),
    ) -> Shown {
        for page in self.0.iter() {
            let offset = page.raw() - self.0.start().raw();
            let at = Ipa::new(ipa.raw().wrapping_add(offset));
            machine.read_page(page, &mut |bytes| show(at, bytes));
        }
        Shown(self.0)
    }
}

impl Clean {
    /// The pages themselves.
    pub(crate) fn pages(&self) -> PhysPages {
        self.0
    }
}

/// What a guest may be given.
pub(crate) trait ForGuest {
    /// The pages themselves.
    fn into_pages(self) -> PhysPages;
}

impl ForGuest for Clean {
    fn into_pages(self) -> PhysPages {
        self.0
    }
}

impl ForGuest for Shown {
    fn into_pages(self) -> PhysPages {
        self.0
    }
}
