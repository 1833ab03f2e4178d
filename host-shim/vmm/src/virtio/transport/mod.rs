//! virtio-pci, modern only: one function with its registers, its window and its device.
//! The window follows its BAR; the worker runs while the driver does. What registers mean is in `common`,
//! where they are in `registers`; the bus is `pci::bus`. Source: VIRTIO 1.2, 4.1.

pub mod common;
pub mod registers;

use std::io;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use self::common::{Action, Common, Swiotlb};
use self::registers::{
    COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE, PART, Places,
    REGISTERS_BAR, REGISTERS_SIZE, WINDOW_BAR,
};
use super::queue::{DeviceQueue, Fault, check_rings};
use super::shared::Shared;
use super::stats::StatsSnapshot;
use super::window::{WindowMemory, WindowUse};
use super::worker::Workers;
use super::{RESERVED_FEATURES, VirtioDevice, feature};
use crate::bus::lock;
use crate::cli::SwiotlbMode;
use crate::pci::bus::PciFunction;
use crate::pci::config::{ConfigError, ConfigSpace};
use crate::pci::msix::{MsiLines, Msix};
use crate::seccomp::Filter;

/// Makes guest writes to an address signal an eventfd without an exit to this process.
pub trait NotifyPort: Send {
    /// From now on; or no longer.
    fn set(&self, ipa: u64, event: &EventFd, assign: bool) -> io::Result<()>;
}

/// Why a function cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A mistake in the device model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// VIRTIO_F_SWIOTLB would have the bit of another feature.
    #[error(
        "feature bit {0} means something else to its drivers; choose another --swiotlb-feature-bit (27 is the default)"
    )]
    FeatureTaken(u32),
    /// The system has no more of something.
    #[error("cannot create an eventfd: {0}")]
    System(#[from] io::Error),
    /// The filter for its threads.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(#[from] seccompiler::Error),
}

/// What a function is made of.
pub struct Parts {
    /// Name in log lines.
    pub name: String,
    /// Behind the transport.
    pub device: Box<dyn VirtioDevice>,
    /// Its window, placed where BAR 4 starts (its own, or that of another function).
    pub window: WindowUse,
    /// Whether its device has other functions.
    pub multi_function: bool,
    /// Where BAR 0 starts.
    pub registers: u64,
    /// How SWIOTLB is offered.
    pub swiotlb: Swiotlb,
    /// The machine's MSIs.
    pub lines: Arc<MsiLines>,
    /// Doorbells without exits.
    pub notify: Box<dyn NotifyPort>,
}

/// How a function stands, for whoever shows it.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionStatus {
    /// Name in log lines.
    pub name: String,
    /// virtio device id.
    pub virtio_id: u16,
    /// Whether a driver runs it.
    pub running: bool,
    /// Whether it waits for a reset.
    pub needs_reset: bool,
    /// Features agreed with the driver.
    pub features: u64,
    /// Queues that the driver enabled.
    pub queues: usize,
    /// BAR that the window is in; `None`: the device has none and reaches RAM or the pool of the device tree.
    pub window_bar: Option<usize>,
    /// Function whose BAR that is, if another's.
    pub window_of_function: Option<u8>,
    /// Where the guest sees the window.
    pub window_ipa: Option<u64>,
    /// Bytes of the window.
    pub window_size: u64,
    /// Counters.
    #[serde(flatten)]
    pub stats: StatsSnapshot,
}

struct State {
    config: ConfigSpace,
    places: Places,
    common: Common,
    device: Box<dyn VirtioDevice>,
    window: WindowUse,
    /// Whether that is a window, in a BAR.
    has_window: bool,
    workers: Option<Workers>,
    doorbells: Vec<EventFd>,
    notify: Box<dyn NotifyPort>,
    /// Where the doorbells are bound, and how many.
    bound: Option<(u64, usize)>,
    filter: Arc<Filter>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    shared: Arc<Shared>,
    msix: Arc<Msix>,
    state: Mutex<State>,
}

impl VirtioPci {
    /// Builds the function; its BARs are placed and decoded.
    pub fn new(parts: Parts) -> Result<Self, BuildError> {
        let device = parts.device;
        let sizes = device.queue_sizes().to_vec();
        let Swiotlb { mode, bit, .. } = parts.swiotlb;
        let offered = matches!(mode, SwiotlbMode::Require | SwiotlbMode::Offer);
        if offered && feature(bit) & (RESERVED_FEATURES | device.features()) != 0 {
            return Err(BuildError::FeatureTaken(bit));
        }
        let filter = Arc::new(Filter::device_worker(device.rights())?);
        let (size, place) = {
            let window = lock(&parts.window.window);
            (window.size(), window.place().unwrap_or(0))
        };
        let bars = registers::Bars {
            registers: parts.registers,
            window: place,
            window_size: size,
            window_in_function: parts.window.in_function,
            multi_function: parts.multi_function,
        };
        let (config, places) = registers::build(&*device, parts.swiotlb, bars)?;
        let vectors = registers::vectors(sizes.len());
        let msix = Arc::new(Msix::new(&parts.name, vectors, parts.lines));
        let shared = Arc::new(Shared::new(&parts.name, sizes.len(), msix.clone()));
        lock(&parts.window.window).join(shared.clone());
        let doorbells = sizes
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<io::Result<Vec<_>>>()?;
        let mut state = State {
            config,
            places,
            common: Common::new(device.features(), &sizes, parts.swiotlb),
            device,
            window: parts.window,
            has_window: parts.swiotlb.mode != SwiotlbMode::Off,
            workers: None,
            doorbells,
            notify: parts.notify,
            bound: None,
            filter,
        };
        state.bind_doorbells(shared.name());
        Ok(Self {
            shared,
            msix,
            state: Mutex::new(state),
        })
    }

    /// What the registers share with the worker: status, faults.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether a driver runs the device, and it works.
    pub fn running(&self) -> bool {
        self.shared.running() && !self.shared.needs_reset()
    }

    /// How it stands now.
    pub fn status(&self) -> FunctionStatus {
        let state = lock(&self.state);
        let window = lock(&state.window.window);
        FunctionStatus {
            name: self.shared.name().to_owned(),
            virtio_id: state.device.id(),
            running: self.running(),
            needs_reset: self.shared.needs_reset(),
            features: state.common.features(),
            queues: state.common.enabled().len(),
            window_bar: state.has_window.then_some(WINDOW_BAR),
            window_of_function: state.window.in_function,
            window_ipa: window.place(),
            window_size: window.size(),
            stats: self.shared.stats().snapshot(),
        }
    }

    fn read_registers(&self, state: &State, offset: usize, data: &mut [u8]) {
        let at = offset % PART;
        match offset - at {
            COMMON => state.common.read(&self.shared, at, data),
            ISR if at == 0 && !data.is_empty() => data[0] = self.shared.take_isr(),
            DEVICE => state.device.read_config(at, data),
            MSIX_TABLE => self.msix.table_read(at, data),
            MSIX_PENDING => self.msix.pending_read(at, data),
            _ => {}
        }
    }

    fn write_registers(&self, state: &mut State, offset: usize, data: &[u8]) {
        let at = offset % PART;
        match offset - at {
            COMMON => {
                let action = state.common.write(&self.shared, at, data);
                self.act(state, action);
            }
            DEVICE => state.device.write_config(at, data),
            NOTIFY => {
                // Comes here only when the driver could not bind the doorbell.
                if let Some(doorbell) = state.doorbells.get(at / NOTIFY_STRIDE) {
                    let _ = doorbell.write(1);
                }
            }
            MSIX_TABLE => self.msix.table_write(at, data),
            _ => {}
        }
    }

    fn act(&self, state: &mut State, action: Action) {
        let result = match action {
            Action::None => Ok(()),
            Action::Reset => {
                state.stop(&self.shared);
                state.common.reset();
                self.shared.reset();
                Ok(())
            }
            Action::QueueEnabled(index) => state.check_queue(index),
            Action::Start => state.start(&self.shared),
        };
        if let Err(fault) = result {
            state.stop(&self.shared);
            self.shared.fault(&fault);
        }
    }

    /// The guest may have moved or switched off a BAR.
    fn follow_bars(&self, state: &mut State) {
        state.bind_doorbells(self.shared.name());
        if state.window.in_function.is_some() || !state.has_window {
            return;
        }
        let place = state.config.bar_address(WINDOW_BAR);
        if lock(&state.window.window).follow(place) {
            state.workers = None;
        }
    }

    /// An access through VIRTIO_PCI_CAP_PCI_CFG: offset in the registers' BAR, if it names one.
    fn through_config(&self, state: &State, at: usize, width: usize) -> Option<usize> {
        let capability = state.places.pci_access;
        let mut field = [0; 12];
        state.config.read(capability + 4, &mut field);
        let word = |i: usize| {
            u32::from_le_bytes([field[i], field[i + 1], field[i + 2], field[i + 3]]) as usize
        };
        let (bar, offset, length) = (usize::from(field[0]), word(4), word(8));
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= REGISTERS_SIZE as usize);
        let valid = at == capability + 16
            && bar == REGISTERS_BAR
            && length == width
            && matches!(width, 1 | 2 | 4)
            && offset.is_multiple_of(width)
            && inside;
        valid.then_some(offset)
    }
}

impl State {
    fn check_queue(&self, index: u16) -> Result<(), Fault> {
        let queue = self.common.queue(index)?;
        match self.memory() {
            Some(memory) => check_rings(&memory, index, &queue),
            None => Ok(()),
        }
    }

    fn memory(&self) -> Option<Arc<WindowMemory>> {
        lock(&self.window.window).memory()
    }

    fn start(&mut self, shared: &Arc<Shared>) -> Result<(), Fault> {
        // Before the window is looked up: whoever moves it from then on sees that it is in use.
        shared.set_running(true);
        let memory = self
            .memory()
            .ok_or(Fault::Setup("its window is mapped nowhere"))?;
        let mut queues = Vec::new();
        for index in self.common.enabled() {
            let queue = self.common.queue(index)?;
            check_rings(&memory, index, &queue)?;
            let doorbell = &self.doorbells[usize::from(index)];
            queues.push(DeviceQueue::new(
                queue,
                index,
                memory.clone(),
                shared.clone(),
                doorbell.try_clone()?,
                self.common.indirect(),
            ));
        }
        let features = self.common.features();
        let handlers = self.device.start(features, queues, shared)?;
        self.workers = Some(Workers::start(handlers, shared, &self.filter)?);
        Ok(())
    }

    fn stop(&mut self, shared: &Shared) {
        shared.set_running(false);
        // Joins the threads: nothing touches the window any more.
        self.workers = None;
        for doorbell in &self.doorbells {
            let _ = doorbell.read();
        }
    }

    /// Binds the doorbells to where BAR 0 is now. Those that cannot be bound work through exits.
    fn bind_doorbells(&mut self, name: &str) {
        let base = self.config.bar_address(REGISTERS_BAR);
        if self.bound.map(|(at, _)| at) == base {
            return;
        }
        if let Some((old, count)) = self.bound.take() {
            for (index, doorbell) in self.doorbells.iter().enumerate().take(count) {
                let address = old + (NOTIFY + index * NOTIFY_STRIDE) as u64;
                if let Err(e) = self.notify.set(address, doorbell, false) {
                    tracing::warn!("{name}: cannot unbind doorbell {index}: {e}");
                }
            }
        }
        self.bound = base.map(|base| (base, 0));
        if let Some(e) = self.bind_rest() {
            tracing::info!("{name}: doorbells at {base:#x?} work through exits: {e}");
        }
    }

    /// Binds the doorbells that are not yet where the registers are; the first error ends it.
    fn bind_rest(&mut self) -> Option<io::Error> {
        let (base, count) = self.bound.as_mut()?;
        for doorbell in &self.doorbells[*count..] {
            let address = *base + (NOTIFY + *count * NOTIFY_STRIDE) as u64;
            if let Err(e) = self.notify.set(address, doorbell, true) {
                return Some(e);
            }
            *count += 1;
        }
        None
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, at: usize, data: &mut [u8]) {
        let mut state = lock(&self.state);
        if let Some(offset) = self.through_config(&state, at, data.len()) {
            data.fill(0);
            self.read_registers(&state, offset, data);
            state.config.set(at, data);
        } else {
            state.config.read(at, data);
        }
    }

    fn config_write(&self, at: usize, data: &[u8]) {
        let mut state = lock(&self.state);
        state.config.write(at, data);
        if let Some(offset) = self.through_config(&state, at, data.len()) {
            self.write_registers(&mut state, offset, data);
        }
        let mut control = [0; 2];
        state.config.read(state.places.msix_control, &mut control);
        self.msix.set_control(u16::from_le_bytes(control));
        self.follow_bars(&mut state);
    }

    fn retry(&self) {
        let mut state = lock(&self.state);
        state.bind_rest();
        if state.window.in_function.is_none() && state.has_window {
            lock(&state.window.window).retry();
        }
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) -> bool {
        let state = lock(&self.state);
        let Some(offset) = registers_offset(&state.config, address, data.len()) else {
            return false;
        };
        self.read_registers(&state, offset, data);
        true
    }

    fn memory_write(&self, address: u64, data: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let Some(offset) = registers_offset(&state.config, address, data.len()) else {
            return false;
        };
        self.write_registers(&mut state, offset, data);
        true
    }
}

fn registers_offset(config: &ConfigSpace, address: u64, length: usize) -> Option<usize> {
    let offset = address.checked_sub(config.bar_address(REGISTERS_BAR)?)?;
    let end = offset.checked_add(length as u64)?;
    (end <= REGISTERS_SIZE).then_some(offset as usize)
}

#[cfg(test)]
mod tests;
