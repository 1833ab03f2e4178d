//! What lies under the driver: one SMMU's registers, the memory that it shares with EL2, barriers and time.
//! [`Mmio`] is the real one; the tests' fake behaves like an SMMU. What is written where is decided above.

use core::ptr::NonNull;

use porthole_core::addr::PhysAddr;

/// One SMMU and the memory between it and EL2. Offsets of registers are those of Arm IHI 0070, chapter 6.
pub trait Bus {
    /// Reads a 32-bit register.
    fn read(&self, register: u32) -> u32;

    /// Writes a 32-bit register.
    fn write(&self, register: u32, value: u32);

    /// Writes a 64-bit register.
    fn write_long(&self, register: u32, value: u64);

    /// Reads a 64-bit word of memory, 8-byte aligned, single-copy atomic.
    fn load(&self, at: PhysAddr) -> u64;

    /// Writes such a word.
    fn store(&self, at: PhysAddr, value: u64);

    /// The SMMU sees all stores before it no later than any register write after it, and loads after it see what the
    /// SMMU stored before it wrote a register that was read before it.
    fn barrier(&self);

    /// A clock, in ticks.
    fn now(&self) -> u64;

    /// Ticks of a second.
    fn second(&self) -> u64;

    /// Waits a little.
    fn relax(&self);
}

/// What the CPU does for [`Mmio`]; `arch` has it.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// DSB SY.
    pub barrier: fn(),
    /// The counter.
    pub now: fn() -> u64,
    /// Ticks of a second.
    pub second: u64,
    /// Waits a little.
    pub relax: fn(),
}

/// A real SMMU.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    cpu: Cpu,
}

// SAFETY: device memory at a fixed address, and memory that is read and written in whole words; the driver's locks order
// what must be ordered.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The SMMU whose registers are at `base`; `None` for address 0.
    ///
    /// # Safety
    /// `base` is the frame of an SMMUv3 ([`super::FRAME_BYTES`] bytes) that EL2 reaches as device memory, and EL2 maps all RAM
    /// by identity, both as long as the value lives. Only memory that was given to this SMMU's driver is handed to
    /// [`Bus::load`] and [`Bus::store`].
    pub unsafe fn new(base: PhysAddr, cpu: Cpu) -> Option<Self> {
        NonNull::new(base.raw() as *mut u8).map(|base| Self { base, cpu })
    }

    fn register<T>(&self, offset: u32) -> *mut T {
        debug_assert!(u64::from(offset) + size_of::<T>() as u64 <= super::FRAME_BYTES);
        self.base.as_ptr().wrapping_add(offset as usize).cast()
    }
}

impl Bus for Mmio {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: inside the frame, by `new`'s contract.
        unsafe { self.register::<u32>(register).read_volatile() }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as above.
        unsafe { self.register::<u32>(register).write_volatile(value) }
    }

    fn write_long(&self, register: u32, value: u64) {
        // SAFETY: as above.
        unsafe { self.register::<u64>(register).write_volatile(value) }
    }

    fn load(&self, at: PhysAddr) -> u64 {
        // SAFETY: memory of this driver, mapped by `new`'s contract.
        unsafe { (at.raw() as *const u64).read_volatile() }
    }

    fn store(&self, at: PhysAddr, value: u64) {
        // SAFETY: as above.
        unsafe { (at.raw() as *mut u64).write_volatile(value) }
    }

    fn barrier(&self) {
        (self.cpu.barrier)();
    }

    fn now(&self) -> u64 {
        (self.cpu.now)()
    }

    fn second(&self) -> u64 {
        self.cpu.second
    }

    fn relax(&self) {
        (self.cpu.relax)();
    }
}

/// The SMMU did not answer for a second, or answers nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No answer in a second.
    #[error("it does not answer ({0})")]
    Silent(&'static str),
    /// It refuses commands that every SMMUv3 knows, or cannot read its queue.
    #[error("it refuses commands (CMDQ_CONS.ERR {0:#x})")]
    Refuses(u32),
}

/// Waits until `done`, a second at most. `what` names the register that is waited for.
pub(super) fn wait<B: Bus>(
    bus: &B,
    what: &'static str,
    mut done: impl FnMut() -> bool,
) -> Result<(), Fault> {
    let start = bus.now();
    loop {
        // The clock first: a CPU that was stopped for a second in between looks once more.
        let late = bus.now().wrapping_sub(start) > bus.second();
        if done() {
            return Ok(());
        }
        if late {
            return Err(Fault::Silent(what));
        }
        bus.relax();
    }
}
