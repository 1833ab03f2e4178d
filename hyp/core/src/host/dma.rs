//! What the host can ask about its devices' DMA: confinement, and a count of the accesses that SMMUs refused.
//! Pages and tables are `memory::confine`'s business; what an SMMU does stands behind `hw::Dma`.

use core::fmt;

use arrayvec::ArrayVec;
use porthole_abi::{
    DMA_CONFINED_MAX, DMA_PAGES_MAX, DMA_SOURCES_MAX, DmaRecord, Error, FunctionId, NO_ADDRESS,
};

use crate::addr::{PhysAddr, PhysPages};
use crate::hw::{DmaEvent, Machine};
use crate::hypervisor::Hypervisor;

/// Most events that one call takes from the queues: a device that faults in a loop keeps no caller here.
const EVENTS_PER_CALL: usize = 64;

/// A device whose accesses were refused.
#[derive(Debug)]
struct Source {
    last: DmaEvent,
    count: u64,
}

/// Refused accesses, by device as long as there is room.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    total: u64,
    sources: ArrayVec<Source, DMA_SOURCES_MAX>,
}

impl Faults {
    /// Counts an event: in the total, and for its device if that has an entry or there is room for one.
    fn note(&mut self, event: DmaEvent) {
        self.total = self.total.wrapping_add(1);
        // A device that faults in a loop must not flood the log.
        if self.total <= 32 || self.total.is_power_of_two() {
            event.log(self.total);
        }
        if event.kind == 0 {
            return;
        }
        let same = |s: &&mut Source| (s.last.smmu, s.last.stream) == (event.smmu, event.stream);
        match self.sources.iter_mut().find(same) {
            Some(source) => {
                source.last = event;
                source.count = source.count.wrapping_add(1);
            }
            None => {
                let _ = self.sources.try_push(Source {
                    last: event,
                    count: 1,
                });
            }
        }
    }
}

/// The function that a stream stands for, as a log line begins.
struct Who(Option<FunctionId>);

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(function) => write!(f, "{function}, "),
            None => Ok(()),
        }
    }
}

impl DmaEvent {
    fn log(&self, number: u64) {
        let Self {
            smmu,
            stream,
            address,
            kind,
            ..
        } = self;
        if *kind == 0 {
            log::warn!("SMMU {smmu}: DMA events were lost, number {number}");
            return;
        }
        let name = self.name();
        let who = Who(self.function);
        if *address == NO_ADDRESS {
            log::warn!(
                "DMA refused: {who}SMMU {smmu}, stream {stream:#x}: {name} (event {kind:#x}), number {number}"
            );
        } else {
            let doing = if self.write { "write" } else { "read" };
            log::warn!(
                "DMA refused: {who}SMMU {smmu}, stream {stream:#x}: {doing} at {address:#x}, {name} (event {kind:#x}), number {number}"
            );
        }
    }

    /// What happened (Arm IHI 0070, 7.3).
    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            0x01 => "unsupported upstream transaction",
            0x02 => "stream without an entry",
            0x03 => "stream table unreadable",
            0x04 => "stream not configured",
            0x05 => "bad ATS request",
            0x06 => "stream disabled",
            0x07 => "ATS-translated access",
            0x08 => "bad substream",
            0x0b => "table walk aborted",
            0x10 => "address not the device's",
            0x11 => "address too large",
            0x12 => "access flag",
            0x13 => "permission",
            _ => "other event",
        }
    }
}

/// The function that an argument names; one that cannot exist is known to no SMMU.
fn function(raw: u64) -> Result<FunctionId, Error> {
    u32::try_from(raw)
        .map(FunctionId)
        .map_err(|_| Error::BadStream)
}

impl<M: Machine> Hypervisor<M> {
    /// `DMA_CONFINE`.
    ///
    /// # Errors
    /// `TooLarge`, `Empty`, `Unaligned`, `Overflow`; those of `HostMemory::confine`.
    pub(super) fn call_dma_confine(&self, id: u64, pa: u64, pages: u64) -> Result<(), Error> {
        if pages > DMA_PAGES_MAX {
            return Err(Error::TooLarge);
        }
        let pages = PhysPages::new(PhysAddr::new(pa), pages)?;
        self.memory.confine(&self.machine, function(id)?, pages)
    }

    /// `DMA_RELEASE`.
    ///
    /// # Errors
    /// `NotConfined`.
    pub(super) fn call_dma_release(&self, id: u64) -> Result<(), Error> {
        let id = function(id).map_err(|_| Error::NotConfined)?;
        self.memory.release(&self.machine, id)
    }

    /// `DMA_INFO`: confined functions first, then refused accesses by device.
    ///
    /// # Errors
    /// `InvalidParameter` behind the last index.
    pub(super) fn call_dma_info(&self, index: u64) -> Result<[u64; 6], Error> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParameter)?;
        let Some(source) = index.checked_sub(DMA_CONFINED_MAX) else {
            let confined = self.memory.confinement(index);
            return Ok(confined.map_or([0; 6], |(function, pages)| {
                let (start, count) = (pages.start().raw(), pages.count());
                let kind = DmaRecord::Confined as u64;
                [kind, function.0.into(), start, count, 0, 0]
            }));
        };
        if source >= DMA_SOURCES_MAX {
            return Err(Error::InvalidParameter);
        }
        self.poll_dma();
        let faults = self.dma_faults.lock();
        Ok(faults.sources.get(source).map_or([0; 6], |source| {
            let last = &source.last;
            [
                DmaRecord::Faults as u64,
                last.function.map_or(NO_ADDRESS, |f| f.0.into()),
                u64::from(last.smmu) << 32 | u64::from(last.stream),
                source.count,
                last.address,
                u64::from(last.write) << 8 | u64::from(last.kind),
            ]
        }))
    }

    /// Accesses refused since boot.
    pub(super) fn dma_faults(&self) -> u64 {
        self.poll_dma();
        self.dma_faults.lock().total
    }

    /// Counts what the SMMUs have reported.
    pub(super) fn poll_dma(&self) {
        let mut faults = self.dma_faults.lock();
        for _ in 0..EVENTS_PER_CALL {
            let Some(event) = self.machine.dma_event() else {
                break;
            };
            faults.note(event);
        }
    }
}
