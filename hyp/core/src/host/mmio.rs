//! Accesses of the host that EL2 makes in its place: registers that trap, by the address that they fault at.
//! The syndrome must describe the access; what a register then does is its guard's.

use crate::addr::PhysAddr;
use crate::hw::Machine;
use crate::hypervisor::Hypervisor;
use crate::syndrome::{Syndrome, ec};
use crate::tracker::PageState;

impl<M: Machine> Hypervisor<M> {
    /// Makes the access of the host's EL1 that found nothing mapped at `address`; whether there was one to make.
    /// A read's result is in `x` then.
    pub(super) fn host_access(
        &self,
        syndrome: Syndrome,
        address: PhysAddr,
        x: &mut [u64; 31],
    ) -> bool {
        if syndrome.class() != ec::DATA_ABORT_LOWER || syndrome.is_walk() {
            return false;
        }
        let Some(frame) = self.gic.find(address) else {
            // A host cleans a table that it has just given to hardware that does not look into caches. Nobody has
            // anything of such a page in a cache: there is nothing to be done.
            return syndrome.is_cache_maintenance()
                && self.memory.page_state(address) == Some(PageState::HwTable);
        };
        let Some(access) = syndrome.access() else {
            return false;
        };
        let register = usize::from(access.register);
        // Register 31 is the zero register.
        let value = access.write.then(|| x.get(register).copied().unwrap_or(0));
        let read = self
            .gic
            .access(&self.machine, &self.memory, frame, access.width(), value);
        if let (Some(read), false, Some(target)) = (read, access.write, x.get_mut(register)) {
            *target = access.extend(read);
        }
        read.is_some()
    }
}
