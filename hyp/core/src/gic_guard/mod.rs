//! Guard of the physical interrupt controller: the GIC reads and writes tables in memory by itself, so the host reaches
//! the registers that name them (RD_base of each redistributor, the control frame of each ITS) through here only.
//! Which page may be a table is asked of `memory`; SGI_base, the distributor and GITS_TRANSLATER are not trapped.
//! All registers: Arm IHI 0069, chapter 12.

mod command;
mod its;
mod queue;
mod redistributor;
#[cfg(test)]
mod tests;

use arrayvec::ArrayVec;
use porthole_abi::{Error, PAGE_SIZE};

use crate::addr::{PhysAddr, PhysPages};
use crate::hw::Machine;
use crate::lock::Mutex;
use crate::memory::HostMemory;
use its::{Its, Site};
use redistributor::Redistributor;

/// Most redistributors.
pub const REDISTRIBUTORS_MAX: usize = 16;
/// Most ITSs.
pub const ITS_MAX: usize = 4;
/// Bytes of a register frame.
pub const FRAME_BYTES: u64 = 0x1_0000;
/// Offset of the VLPI_base and reserved frames of a GICv4 redistributor.
const VIRTUAL_FRAMES: u64 = 0x2_0000;

/// Where the interrupt controller's frames are.
#[derive(Clone, Copy, Debug, Default)]
pub struct GicConfig<'a> {
    /// RD_base of every redistributor, those of CPUs that the device tree does not name among them.
    pub redistributors: &'a [PhysAddr],
    /// Control frame of every ITS.
    pub its: &'a [PhysAddr],
    /// GICD_TYPER.IDbits: INTIDs have one bit more.
    pub id_bits: u8,
}

/// What a trapped frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Redistributor(u8),
    Its(u8),
    /// Of GICv4, which the host is not shown: reads as zero, ignores writes.
    Nothing,
}

/// The frames that trap, by their number: address in units of [`FRAME_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Frames(ArrayVec<(u32, Kind), { 3 * REDISTRIBUTORS_MAX + ITS_MAX }>);

/// An access to a trapped frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameAccess {
    kind: Kind,
    /// In the frame.
    offset: u64,
}

/// What `memory` and the hardware are to a redistributor.
struct Context<'a, M> {
    machine: &'a M,
    memory: &'a HostMemory<'static>,
    id_bits: u8,
}

impl<'a, M> Context<'a, M> {
    fn site(&self, redistributors: &'a [Redistributor]) -> Site<'a, M> {
        Site {
            machine: self.machine,
            memory: self.memory,
            id_bits: self.id_bits,
            redistributors,
        }
    }
}

/// All redistributors.
type Redistributors = ArrayVec<Redistributor, REDISTRIBUTORS_MAX>;

/// What the lock protects: in pages of the pool, since boot's stack is small.
struct Inner<M: Machine> {
    redistributors: M::Boxed<Redistributors>,
    its: M::Boxed<ArrayVec<Its<M>, ITS_MAX>>,
}

/// The guard. Its lock comes before the memory lock and after nothing: it is taken for a host's access only.
pub(crate) struct GicGuard<M: Machine> {
    frames: Frames,
    id_bits: u8,
    inner: Mutex<Inner<M>>,
}

impl Frames {
    /// Finds all frames that are to trap.
    ///
    /// # Errors
    /// `TooLarge` for more than [`REDISTRIBUTORS_MAX`] or [`ITS_MAX`]; `Unaligned`.
    pub fn find<M: Machine>(machine: &M, config: &GicConfig<'_>) -> Result<Self, Error> {
        if config.redistributors.len() > REDISTRIBUTORS_MAX || config.its.len() > ITS_MAX {
            return Err(Error::TooLarge);
        }
        let mut all = config.redistributors.iter().chain(config.its);
        if !all.all(|base| base.is_aligned(FRAME_BYTES)) {
            return Err(Error::Unaligned);
        }
        let mut frames = Self::default();
        for (index, base) in (0..).zip(config.redistributors) {
            frames.add(base.raw(), Kind::Redistributor(index))?;
            if redistributor::has_virtual_frames(machine, *base) {
                for offset in [VIRTUAL_FRAMES, VIRTUAL_FRAMES + FRAME_BYTES] {
                    frames.add(base.raw() + offset, Kind::Nothing)?;
                }
            }
        }
        for (index, base) in (0..).zip(config.its) {
            frames.add(base.raw(), Kind::Its(index))?;
        }
        Ok(frames)
    }

    fn add(&mut self, base: u64, kind: Kind) -> Result<(), Error> {
        let number = u32::try_from(base / FRAME_BYTES).map_err(|_| Error::TooLarge)?;
        self.0.try_push((number, kind)).map_err(|_| Error::TooLarge)
    }

    /// The pages of them: the host's stage 2 must not map these.
    pub fn pages(&self) -> impl Iterator<Item = PhysPages> {
        self.0.iter().filter_map(|(number, _)| {
            let base = PhysAddr::new(u64::from(*number) * FRAME_BYTES);
            PhysPages::new(base, FRAME_BYTES / PAGE_SIZE).ok()
        })
    }
}

impl<M: Machine> GicGuard<M> {
    /// Takes the tables that firmware may have left into account, and gives every ITS its command queue.
    ///
    /// # Errors
    /// `NoMemory` for the queues; `Busy` for an ITS that cannot be switched off; those of [`HostMemory::pin`] where LPIs are on and cannot be switched off, with
    /// tables in pages that are not the host's.
    pub fn new(
        machine: &M,
        memory: &HostMemory<'static>,
        frames: Frames,
        config: &GicConfig<'_>,
    ) -> Result<Self, Error> {
        let context = Context {
            machine,
            memory,
            id_bits: config.id_bits,
        };
        let page = || machine.alloc_page().ok_or(Error::NoMemory);
        let mut redistributors: M::Boxed<Redistributors> = machine.place(page()?, ArrayVec::new());
        for base in config.redistributors {
            redistributors.push(Redistributor::adopt(&context, *base)?);
        }
        let mut its: M::Boxed<ArrayVec<Its<M>, ITS_MAX>> = machine.place(page()?, ArrayVec::new());
        for base in config.its {
            its.push(Its::new(&context.site(&redistributors), *base)?);
        }
        Ok(Self {
            frames,
            id_bits: config.id_bits,
            inner: Mutex::new(Inner {
                redistributors,
                its,
            }),
        })
    }

    /// Which trapped frame an address lies in.
    pub fn find(&self, address: PhysAddr) -> Option<FrameAccess> {
        let number = address.raw() / FRAME_BYTES;
        let mut frames = self.frames.0.iter();
        let (_, kind) = frames.find(|(at, _)| u64::from(*at) == number)?;
        Some(FrameAccess {
            kind: *kind,
            offset: address.raw() % FRAME_BYTES,
        })
    }

    /// Makes an access of 4 or 8 bytes in the host's place: writes `write`, or reads (0 for a write). `None` for an
    /// access that no register allows: nothing has changed.
    pub fn access(
        &self,
        machine: &M,
        memory: &HostMemory<'static>,
        access: FrameAccess,
        width: u64,
        write: Option<u64>,
    ) -> Option<u64> {
        let FrameAccess { kind, offset } = access;
        let is_wide = match kind {
            Kind::Redistributor(_) => redistributor::is_wide(offset),
            Kind::Its(_) => its::is_wide(offset),
            Kind::Nothing => true,
        };
        if !(width == 4 || width == 8 && is_wide) || !offset.is_multiple_of(width) {
            return None;
        }
        // Halves of 64-bit registers may be accessed one by one (12.1.3).
        let (register, shift) = if is_wide {
            (offset & !7, 8 * (offset & 7))
        } else {
            (offset, 0)
        };
        let context = Context {
            machine,
            memory,
            id_bits: self.id_bits,
        };
        let mut inner = self.inner.lock();
        let mask = u64::MAX >> (64 - 8 * width);
        let Some(value) = write else {
            return Some(inner.read(&context, kind, register) >> shift & mask);
        };
        let value = if is_wide && width == 4 {
            let old = inner.asked(kind, register);
            old & !(mask << shift) | (value & mask) << shift
        } else {
            value & mask
        };
        inner.write(&context, kind, register, value);
        Some(0)
    }
}

impl<M: Machine> Inner<M> {
    fn read(&mut self, context: &Context<'_, M>, kind: Kind, register: u64) -> u64 {
        let Self {
            redistributors,
            its,
        } = self;
        match kind {
            Kind::Redistributor(index) => redistributors
                .get_mut(usize::from(index))
                .map_or(0, |r| r.read(context, register)),
            Kind::Its(index) => its
                .get_mut(usize::from(index))
                .map_or(0, |its| its.read(&context.site(redistributors), register)),
            Kind::Nothing => 0,
        }
    }

    /// What a 64-bit register is when one of its halves is written: as the host last asked for it. A register that refused
    /// a half for what the other one still held reads otherwise.
    fn asked(&self, kind: Kind, register: u64) -> u64 {
        match kind {
            Kind::Redistributor(index) => self
                .redistributors
                .get(usize::from(index))
                .map_or(0, |r| r.asked(register)),
            Kind::Its(index) => self
                .its
                .get(usize::from(index))
                .map_or(0, |its| its.asked(register)),
            Kind::Nothing => 0,
        }
    }

    fn write(&mut self, context: &Context<'_, M>, kind: Kind, register: u64, value: u64) {
        let Self {
            redistributors,
            its,
        } = self;
        match kind {
            Kind::Redistributor(index) => {
                let shared = redistributors
                    .iter()
                    .find_map(Redistributor::property_table);
                if let Some(redistributor) = redistributors.get_mut(usize::from(index)) {
                    redistributor.write(context, shared, register, value);
                }
            }
            Kind::Its(index) => {
                if let Some(its) = its.get_mut(usize::from(index)) {
                    its.write(&context.site(redistributors), register, value);
                }
            }
            Kind::Nothing => {}
        }
    }
}

/// Counts a refusal; whether it is told. A host that is refused in a loop must not flood the log.
fn is_told(refused: &mut u64) -> bool {
    *refused = refused.wrapping_add(1);
    *refused < 32 || refused.is_power_of_two()
}

/// The pages that `bytes` (not 0) bytes from `start` on lie in.
fn pages_of(start: u64, bytes: u64) -> Result<PhysPages, Error> {
    let first = PhysAddr::new(start).page();
    let end = start.checked_add(bytes).ok_or(Error::Overflow)?;
    PhysPages::new(first, (end - first.raw()).div_ceil(PAGE_SIZE))
}
