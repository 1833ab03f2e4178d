//! All SMMUs of a machine, and which stream of which of them a PCI function is. A call reaches every SMMU that it concerns.
//! The lists come from the device tree; they do not change after boot.

use arrayvec::ArrayVec;
use porthole_abi::FunctionId;
use porthole_core::addr::{Ipa, PhysAddr};

use super::{Bus, Event, Fault, Smmu, StageTwo, StreamError, Unfit};

/// Most SMMUs.
pub const SMMUS_MAX: usize = 4;
/// Most runs of streams.
pub const ROUTES_MAX: usize = 16;

/// A run of streams of one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the SMMU.
    pub smmu: u8,
    /// First stream.
    pub stream: u32,
    /// Number of streams, at least 1.
    pub count: u32,
    /// The PCI function that the first of them is; the others follow in order. `None` for other devices.
    pub function: Option<FunctionId>,
}

/// All SMMUs.
#[derive(Debug)]
pub struct Smmus<B> {
    smmus: ArrayVec<(u8, Smmu<B>), SMMUS_MAX>,
    routes: ArrayVec<Route, ROUTES_MAX>,
}

impl<B: Bus> Smmus<B> {
    /// These SMMUs, each with its index in `routes`.
    pub fn new(
        smmus: ArrayVec<(u8, Smmu<B>), SMMUS_MAX>,
        routes: ArrayVec<Route, ROUTES_MAX>,
    ) -> Self {
        Self { smmus, routes }
    }

    /// Number of SMMUs.
    pub fn count(&self) -> usize {
        self.smmus.len()
    }

    /// Whether all can replace a block by its pages, and back, in place (IDR3.BBML 2).
    pub fn in_place(&self) -> bool {
        self.smmus.iter().all(|(_, s)| s.abilities().bbml == 2)
    }

    /// Puts every stream of the lists behind the host's map.
    ///
    /// # Errors
    /// The SMMU that failed, and why.
    pub fn start(&self, host: &StageTwo) -> Result<(), (u8, Unfit)> {
        for (index, smmu) in &self.smmus {
            let own = self.routes.iter().filter(|r| r.smmu == *index);
            smmu.start(host, own.map(|r| (r.stream, r.count)))
                .map_err(|error| (*index, error))?;
        }
        Ok(())
    }

    /// The stream of a function.
    fn find(&self, function: FunctionId) -> Option<(&Smmu<B>, u32)> {
        self.routes.iter().find_map(|route| {
            let offset = function.0.checked_sub(route.function?.0)?;
            let (_, smmu) = self.smmus.iter().find(|(index, _)| *index == route.smmu)?;
            (offset < route.count).then_some((smmu, route.stream + offset))
        })
    }

    /// The function that a stream is.
    pub fn function(&self, smmu: u8, stream: u32) -> Option<FunctionId> {
        self.routes.iter().find_map(|route| {
            let offset = stream.checked_sub(route.stream)?;
            let first = route.function?;
            (route.smmu == smmu && offset < route.count).then_some(FunctionId(first.0 + offset))
        })
    }

    /// [`Smmu::set_stream`] of a function.
    ///
    /// # Errors
    /// As there.
    pub fn set_function(
        &self,
        function: FunctionId,
        stage2: Option<&StageTwo>,
        page: impl FnOnce() -> Option<PhysAddr>,
        release: impl FnOnce(PhysAddr),
    ) -> Result<Result<(), StreamError>, Fault> {
        match self.find(function) {
            Some((smmu, stream)) => smmu.set_stream(stream, stage2, page, release),
            None => Ok(Err(StreamError::NoStream)),
        }
    }

    /// [`Smmu::flush`] of all.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self, vmid: u16, ipa: Ipa, pages: u64) -> Result<(), Fault> {
        self.smmus
            .iter()
            .try_for_each(|(_, smmu)| smmu.flush(vmid, ipa, pages))
    }

    /// The oldest event of the first SMMU that has one.
    pub fn event(&self) -> Option<(u8, Event)> {
        self.smmus
            .iter()
            .find_map(|(index, smmu)| Some((*index, smmu.event()?)))
    }
}
