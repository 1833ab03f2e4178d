//! The guest's machine: a VM of the driver with its memory, serial port, clock and PCI devices, ready to run.
//! How it runs is in `vcpu`, how a run is controlled in `command::run`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use porthole_abi::{FunctionId, RegionDesc, SPI_BASE, WindowFlags};
use porthole_uapi::{CreateVm, Error, REGIONS_MAX, System, Vcpu, Vm, WindowCreate};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::fdt::{self, TreeConfig};
use crate::boot::plan::{Loader, Plan, PlanError};
use crate::bus::{MmioBus, Overlap};
use crate::cli::{RunArgs, Sink};
use crate::device::rtc::Clock;
use crate::device::serial::SerialPort;
use crate::layout::{
    MSI_BASE, MSI_COUNT, PCI_ECAM, PCI_REGISTERS, PCI_WINDOWS, RAM_BASE, RTC, SPI_COUNT, UART,
    UART_SPI, regions,
};
use crate::pci::bus::{Aperture, Ecam, PCI_APERTURE, PciBus};
use crate::pci::msix::MsiLines;
use crate::seccomp::Filter;
use crate::virtio::console::{Console, Input, Output};
use crate::virtio::transport::common::Swiotlb;
use crate::virtio::transport::registers::{REGISTERS_SIZE, WINDOW_BAR};
use crate::virtio::transport::{BuildError, NotifyPort, Parts, VirtioPci};
use crate::virtio::window::{Window, WindowPort};

/// Where the console's function is on the bus.
const CONSOLE_DEVICE: u8 = 1;
/// Bytes of its window, unless the user says otherwise.
const CONSOLE_WINDOW: u64 = 1 << 20;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The driver or the hypervisor refused a step.
    #[error("{what}: {source}{}", hint(.source))]
    Driver {
        /// The step.
        what: &'static str,
        /// Why.
        source: Error,
    },
    /// Kernel, initrd or device tree.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device tree cannot be written.
    #[error("cannot write the device tree: {0}")]
    Tree(#[from] vm_fdt::Error),
    /// A file for a console cannot be opened.
    #[error("cannot open {path} for {what}: {source}; check the path and its permissions")]
    Sink {
        /// Which console.
        what: &'static str,
        /// As given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Something of the operating system.
    #[error("cannot set up the VM: {0}")]
    System(#[from] io::Error),
    /// A device.
    #[error("cannot build the console: {0}")]
    Device(#[from] BuildError),
    /// The filter for device threads.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(#[from] seccompiler::Error),
    /// A mistake in the address map.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

/// What to do about the refusals that a user can do something about.
fn hint(error: &Error) -> &'static str {
    use porthole_abi::Error as E;
    match (error.refusal(), error.errno()) {
        (Some(E::UnsafeDma), _) => {
            "; DMA is not confined on this machine, so boot it with an SMMU, or the hypervisor with porthole.allow_unsafe_dma"
        }
        (Some(E::NoSlot), _) => "; too many VMs live already, so end one (see `porthole list`)",
        (Some(E::NoMemory | E::NoMetadata), _) | (_, Some(libc::ENOMEM)) => {
            "; too little free memory on the host, so free some or lower --mem"
        }
        _ => "",
    }
}

fn step<T>(what: &'static str, result: Result<T, Error>) -> Result<T, MachineError> {
    result.map_err(|source| MachineError::Driver { what, source })
}

/// The guest's machine.
pub struct Machine {
    /// The driver's VM.
    pub vm: Arc<Vm>,
    /// Its handle at the hypervisor.
    pub handle: u64,
    /// Its vCPUs, in order.
    pub vcpus: Vec<Vcpu>,
    /// What its MMIO reaches.
    pub bus: Arc<MmioBus>,
    /// The serial port.
    pub serial: Arc<SerialPort>,
    /// The virtio console and what it takes input from.
    pub console: Option<ConsoleFunction>,
}

struct DriverLoader<'a>(&'a Vm);

impl Loader for DriverLoader<'_> {
    fn load(&self, ipa: u64, data: &[u8]) -> io::Result<()> {
        self.0.load(ipa, data).map_err(|e| {
            let message = format!("{e}{}", hint(&e));
            io::Error::other(message)
        })
    }
}

struct DriverWindow(Arc<Vm>, u32);

impl WindowPort for DriverWindow {
    fn place(&self, ipa: Option<u64>) -> io::Result<()> {
        Ok(self.0.window_move(self.1, ipa)?)
    }
}

struct DriverNotify(Arc<Vm>);

impl NotifyPort for DriverNotify {
    fn set(&self, ipa: u64, event: &EventFd, assign: bool) -> io::Result<()> {
        Ok(self.0.ioeventfd(ipa, event, assign)?)
    }
}

impl Machine {
    /// Creates the VM, builds its devices, and loads and measures what it starts with.
    pub fn build(system: &System, args: &RunArgs, mut plan: Plan) -> Result<Self, MachineError> {
        let mut config = vm_config(args.mem.0, args.cpus);
        let vm = Arc::new(step("cannot create the VM", system.create_vm(&mut config))?);
        let vcpus = (0..args.cpus)
            .map(|index| step("cannot create a vCPU", vm.create_vcpu(index)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut bus = MmioBus::default();
        let line = bind(&vm, SPI_BASE + UART_SPI)?;
        let output: Box<dyn Write + Send> = match stream("the serial port", &args.serial)? {
            Some(stream) => Box::new(stream),
            None => Box::new(io::sink()),
        };
        let serial = Arc::new(SerialPort::new(line, output));
        bus.add(UART, serial.clone())?;
        bus.add(RTC, Arc::new(Clock::default()))?;
        let mut pci = PciBus::default();
        let console = console(&vm, args)?;
        if let Some((_, function)) = &console {
            pci.add(CONSOLE_DEVICE, 0, function.clone());
        }
        let pci = Arc::new(pci);
        bus.add(PCI_ECAM, Arc::new(Ecam(pci.clone())))?;
        bus.add(PCI_APERTURE, Arc::new(Aperture(pci)))?;
        let tree = fdt::build(&TreeConfig {
            vcpus: args.cpus,
            ram_size: args.mem.0,
            cmdline: &args.cmdline,
            initrd: plan.initrd_range,
            seed: args.seed.then(seed).transpose()?,
        })?;
        plan.load(&DriverLoader(&vm), &tree)?;
        let (entry, x0) = (plan.placement.entry, plan.dtb_ipa);
        step("cannot finalize the VM", vm.finalize(entry, x0))?;
        if args.prefault {
            let all = vm.populate(RAM_BASE, args.mem.0);
            step("cannot give the guest its memory", all)?;
        }
        Ok(Self {
            vm,
            handle: config.handle,
            vcpus,
            bus: Arc::new(bus),
            serial,
            console,
        })
    }
}

fn vm_config(ram_size: u64, vcpus: u32) -> CreateVm {
    let used = regions(ram_size, vcpus);
    let mut all = [RegionDesc::default(); REGIONS_MAX];
    for (to, from) in all.iter_mut().zip(&used) {
        *to = *from;
    }
    CreateVm {
        vcpus,
        spi_count: SPI_COUNT,
        msi_base: MSI_BASE,
        msi_count: MSI_COUNT,
        region_count: used.len() as u32,
        regions: all,
        ..CreateVm::default()
    }
}

/// An eventfd whose writes are edges of an SPI.
fn bind(vm: &Vm, intid: u32) -> Result<EventFd, MachineError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    step("cannot bind an interrupt", vm.irqfd(intid, &event))?;
    Ok(event)
}

/// Random bytes for the guest's device tree.
fn seed() -> io::Result<[u8; 64]> {
    use std::io::Read;
    let mut seed = [0; 64];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Where a console writes; `None` if nowhere or back to the guest.
fn stream(what: &'static str, sink: &Sink) -> Result<Option<File>, MachineError> {
    match sink {
        Sink::Off | Sink::Echo => Ok(None),
        // Unbuffered, and not behind the lock of `Stdout`.
        Sink::Stdio => Ok(Some(File::from(io::stdout().as_fd().try_clone_to_owned()?))),
        Sink::File(path) => open(path).map(Some).map_err(|source| MachineError::Sink {
            what,
            path: path.display().to_string(),
            source,
        }),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).open(path)
}

/// The virtio console: its input and its function.
pub type ConsoleFunction = (Arc<Input>, Arc<VirtioPci>);

fn console(vm: &Arc<Vm>, args: &RunArgs) -> Result<Option<ConsoleFunction>, MachineError> {
    let Some(asked) = &args.console else {
        return Ok(None);
    };
    let input = Arc::new(Input::new()?);
    let output = match stream("the virtio console", &asked.sink())? {
        Some(stream) => Output::Stream(Box::new(stream)),
        None => Output::Echo(input.clone()),
    };
    let lines = (MSI_BASE..MSI_BASE + MSI_COUNT)
        .map(|intid| bind(vm, intid))
        .collect::<Result<Vec<_>, _>>()?;
    let function = VirtioPci::new(Parts {
        name: asked.device.id.clone(),
        device: Box::new(Console::new(input.clone(), output)),
        window: window(
            vm,
            &asked.device.id,
            CONSOLE_DEVICE,
            asked.device.window(CONSOLE_WINDOW),
        )?,
        registers: PCI_REGISTERS.base + u64::from(CONSOLE_DEVICE - 1) * REGISTERS_SIZE,
        swiotlb: Swiotlb {
            mode: asked.device.mode(),
            bit: args.swiotlb_feature_bit,
            cfg_type: args.swiotlb_cfg_type,
        },
        lines: Arc::new(MsiLines::new(MSI_BASE, lines)),
        notify: Box::new(DriverNotify(vm.clone())),
        filter: Arc::new(Filter::device_worker()?),
    })?;
    Ok(Some((input, Arc::new(function))))
}

/// A device's window, at the bottom of the aperture.
fn window(vm: &Arc<Vm>, name: &str, device: u8, size: u64) -> Result<Window, MachineError> {
    let ipa = PCI_WINDOWS.base;
    let config = WindowCreate {
        ipa,
        length: size,
        bar_size: size,
        function: FunctionId::new(0, 0, device, 0).0,
        bar: WINDOW_BAR as u32,
        flags: WindowFlags::BAR_64.bits(),
        ..WindowCreate::default()
    };
    let id = step("cannot create a window", vm.window_create(config))?;
    let pages = step("cannot map a window", vm.window_map(id, size as usize))?;
    let port = Box::new(DriverWindow(vm.clone(), id));
    Ok(Window::new(name, pages, port, Some(ipa)))
}
