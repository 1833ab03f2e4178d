//! The guest half of `arch`: switches one physical CPU between the host's EL1 and a vCPU, enters the vCPU, and does
//! what only this CPU's registers can tell. Traps of the host, boot and translation tables of EL2 live elsewhere;
//! what an exit means is decided in `porthole-core`.
//!
//! Life on one CPU: [`init_this`] once, then on [`this`] { [`GuestCpu::load`], [`GuestCpu::enter`] any number of
//! times, [`GuestCpu::put`] }.

mod cpus;
mod debug;
mod el1;
mod enter;
mod features;
mod fp;
mod gic_cpu;
mod gic_virtual;
mod id_regs;
mod inject;
mod profiling;
mod regs;
mod switch;
mod timer;
mod traps;

pub use cpus::{init_this, this};
pub use features::CpuFeatures;
pub use gic_cpu::{KICK_SGI, MAINTENANCE_PPI, Redistributor, VIRTUAL_TIMER_PPI, kick};
pub use id_regs::read as id_register;
pub use switch::GuestCpu;
pub use timer::counter;
