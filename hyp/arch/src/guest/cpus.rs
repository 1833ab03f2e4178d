//! One [`GuestCpu`] for each physical CPU, found by TPIDR_EL2.
//! Nothing is decided here.

use crate::percpu::{self, CPUS_MAX, PerCpu};

use super::{GuestCpu, Redistributor};

struct Slot(GuestCpu);

// SAFETY: a slot is reached through `this` only, which gives each CPU its own. EL2 runs with interrupts masked and
// never moves a flow of control to another CPU, and `GuestCpu` is not `Sync`, so no reference travels either.
unsafe impl Sync for Slot {}

static CPUS: PerCpu<Slot> = PerCpu::new([const { Slot(GuestCpu::new()) }; CPUS_MAX]);

/// The slot of the CPU that runs this.
pub fn this() -> &'static GuestCpu {
    &CPUS.this().0
}

/// Prepares the CPU that runs this, once on each of its ways up: after `percpu::set_id` and with the EL2 registers of
/// the host in place.
pub fn init_this(redistributor: Redistributor) {
    this().init(percpu::id(), redistributor);
}
