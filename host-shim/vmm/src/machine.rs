//! The guest's machine: a VM of the driver with its memory, serial port, clock and PCI devices, ready to run.
//! How it runs is in `vcpu`, how a run is controlled in `command::run`.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use porthole_abi::{RegionDesc, SPI_BASE, VmFlags};
use porthole_uapi::{CreateVm, Error, REGIONS_MAX, System, Vcpu, Vm};
use vmm_sys_util::eventfd::EventFd;

use crate::backing::{Backing, Kind};
use crate::boot::fdt::{self, TreeConfig};
use crate::boot::plan::{Loader, Plan, PlanError};
use crate::bus::{MmioBus, Overlap};
use crate::cli::RunArgs;
use crate::device::rtc::Clock;
use crate::device::serial::SerialPort;
use crate::devices::{self, DeviceError};
use crate::layout::{
    MSI_BASE, MSI_COUNT, PCI_ECAM, RAM_BASE, RTC, SPI_COUNT, UART, UART_SPI, regions,
};
use crate::models::{ModelError, Models, stream};
use crate::pci::bus::{Aperture, Ecam, PCI_APERTURE};
use crate::virtio::console::Input;
use crate::virtio::transport::VirtioPci;

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
    /// A device's model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Something of the operating system.
    #[error("cannot set up the VM: {0}")]
    System(#[from] io::Error),
    /// The PCI devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A mistake in the address map.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

/// What to do about the refusals that a user can do something about.
fn hint(error: &Error) -> &'static str {
    use porthole_abi::Error as E;
    match (error.refusal(), error.errno()) {
        (Some(E::UnsafeDma), _) => {
            "; DMA is not confined on this machine: `porthole log` names what is in the way and what to do; or boot the hypervisor with porthole.allow_unsafe_dma"
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
    /// All virtio functions, in the order of the command line.
    pub functions: Vec<Arc<VirtioPci>>,
}

/// The virtio console: its input and its function.
pub type ConsoleFunction = (Arc<Input>, Arc<VirtioPci>);

struct DriverLoader<'a>(&'a Vm);

impl Loader for DriverLoader<'_> {
    fn load(&self, ipa: u64, data: &[u8]) -> io::Result<()> {
        self.0.load(ipa, data).map_err(|e| {
            let message = format!("{e}{}", hint(&e));
            io::Error::other(message)
        })
    }
}

impl Machine {
    /// Creates the VM, builds its devices, and loads and measures what it starts with.
    pub fn build(
        system: &System,
        args: &RunArgs,
        mut plan: Plan,
        models: Models,
    ) -> Result<Self, MachineError> {
        let mut config = vm_config(args);
        let vm = Arc::new(step("cannot create the VM", system.create_vm(&mut config))?);
        // Before the devices' windows, so that its own come first.
        let backing = backing(&vm, args)?;
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
        let (pci, functions) = devices::build(&vm, models.specs, backing.as_ref())?;
        let console = models.input.zip(functions.first().cloned());
        let pci = Arc::new(pci);
        bus.add(PCI_ECAM, Arc::new(Ecam(pci.clone())))?;
        bus.add(PCI_APERTURE, Arc::new(Aperture(pci)))?;
        let tree = fdt::build(&TreeConfig {
            vcpus: args.cpus,
            ram_size: args.mem.0,
            pool: args.dt_pool,
            cmdline: &args.cmdline,
            initrd: plan.initrd_range,
            seed: args.seed.then(seed).transpose()?,
        })?;
        match &backing {
            Some(ram) if ram.kind == Kind::Ram => plan.load(ram, &tree)?,
            _ => plan.load(&DriverLoader(&vm), &tree)?,
        }
        if let Some(backing) = &backing {
            step("cannot show the guest its memory", backing.place(&vm))?;
        }
        let (entry, x0) = (plan.placement.entry, plan.dtb_ipa);
        step("cannot finalize the VM", vm.finalize(entry, x0))?;
        if args.prefault && !args.unprotected {
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
            functions,
        })
    }
}

/// The memory that devices without a window share, if there is any.
fn backing(vm: &Vm, args: &RunArgs) -> Result<Option<Backing>, MachineError> {
    let (kind, size) = match args.dt_pool {
        _ if args.unprotected => (Kind::Ram, args.mem.0),
        0 => return Ok(None),
        pool => (Kind::Pool, pool),
    };
    let made = Backing::new(vm, kind, size);
    step("cannot make the memory that the host shares", made).map(Some)
}

fn vm_config(args: &RunArgs) -> CreateVm {
    let used = regions(args.mem.0, args.unprotected, args.cpus, args.dt_pool);
    let flags = match args.unprotected {
        true => VmFlags::UNPROTECTED,
        false => VmFlags::empty(),
    };
    let mut all = [RegionDesc::default(); REGIONS_MAX];
    for (to, from) in all.iter_mut().zip(&used) {
        *to = *from;
    }
    CreateVm {
        flags: flags.bits(),
        vcpus: args.cpus,
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
