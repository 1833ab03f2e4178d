//! A VM's file: loading, windows, interrupts and doorbells.
//! Dropping the last reference to the file (mappings included) ends the VM; the driver cleans up.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vmm_sys_util::eventfd::EventFd;

use crate::ioctl::{self, outcome};
use crate::layout::{
    CreateVcpu, Finalize, IoEventFd, IrqFd, IrqLine, Measurement, Populate, VmInfo,
    WINDOW_UNMAPPED, WindowCreate, WindowDestroy, WindowFunction, WindowInfo, WindowMove,
};
use crate::number;
use crate::values::IrqFlags;
use crate::{Error, Result, Vcpu};

/// A VM.
#[derive(Debug)]
pub struct Vm(Arc<File>);

impl Vm {
    pub(crate) fn new(file: File) -> Self {
        Self(Arc::new(file))
    }

    /// Copies `data` to fresh, measured pages at the page-aligned `ipa`.
    pub fn load(&self, ipa: u64, data: &[u8]) -> Result<()> {
        let (argument, done) = ioctl::load(&self.0, ipa, data);
        outcome(number::VM_LOAD.name, argument.refusal, done)
    }

    /// Gives the guest its zeroed pages of a range now.
    pub fn populate(&self, ipa: u64, size: u64) -> Result<()> {
        let mut argument = Populate {
            ipa,
            size,
            ..Populate::default()
        };
        let done = ioctl::plain(&self.0, &number::VM_POPULATE, &mut argument);
        outcome(number::VM_POPULATE.name, argument.refusal, done)
    }

    /// Closes the measurement; vCPUs may run.
    pub fn finalize(&self, entry: u64, x0: u64) -> Result<()> {
        let mut argument = Finalize {
            entry,
            x0,
            ..Finalize::default()
        };
        let done = ioctl::plain(&self.0, &number::VM_FINALIZE, &mut argument);
        outcome(number::VM_FINALIZE.name, argument.refusal, done)
    }

    /// Creates vCPU `index`.
    pub fn create_vcpu(&self, index: u32) -> Result<Vcpu> {
        let mut argument = CreateVcpu { index, refusal: 0 };
        match ioctl::create_vcpu(&self.0, &mut argument) {
            Ok(file) => Vcpu::new(file),
            Err(e) => Err(
                outcome(number::VM_CREATE_VCPU.name, argument.refusal, Err(e))
                    .err()
                    .unwrap_or_else(|| unknown(number::VM_CREATE_VCPU.name)),
            ),
        }
    }

    /// SHA-256 of the launch.
    pub fn measurement(&self) -> Result<[u8; 32]> {
        let mut argument = Measurement::default();
        let done = ioctl::plain(&self.0, &number::VM_MEASUREMENT, &mut argument);
        outcome(number::VM_MEASUREMENT.name, 0, done)?;
        Ok(argument.digest)
    }

    /// Counters and state.
    pub fn info(&self) -> Result<VmInfo> {
        let mut argument = VmInfo::default();
        let done = ioctl::plain(&self.0, &number::VM_INFO, &mut argument);
        outcome(number::VM_INFO.name, argument.refusal, done)?;
        Ok(argument)
    }

    /// Allocates a window's pages, and registers it unless its IPA is [`WINDOW_UNMAPPED`]. Its id.
    pub fn window_create(&self, mut argument: WindowCreate) -> Result<u32> {
        let done = ioctl::plain(&self.0, &number::WINDOW_CREATE, &mut argument);
        outcome(number::WINDOW_CREATE.name, argument.refusal, done)?;
        Ok(argument.id)
    }

    /// Maps `length` bytes of a window, shared with the guest.
    pub fn window_map(&self, id: u32, length: usize) -> Result<MmapRegion> {
        let offset = FileOffset::from_arc(self.0.clone(), u64::from(id) << 32);
        MmapRegion::from_file(offset, length).map_err(|e| map_error("window mmap", e))
    }

    /// Registers a window at `ipa`, wherever it was; `None` takes it away from the guest.
    pub fn window_move(&self, id: u32, ipa: Option<u64>) -> Result<()> {
        let mut argument = WindowMove {
            id,
            refusal: 0,
            ipa: ipa.unwrap_or(WINDOW_UNMAPPED),
        };
        let done = ioctl::plain(&self.0, &number::WINDOW_MOVE, &mut argument);
        outcome(number::WINDOW_MOVE.name, argument.refusal, done)
    }

    /// Takes a window away for good.
    pub fn window_destroy(&self, id: u32) -> Result<()> {
        let mut argument = WindowDestroy { id, refusal: 0 };
        let done = ioctl::plain(&self.0, &number::WINDOW_DESTROY, &mut argument);
        outcome(number::WINDOW_DESTROY.name, argument.refusal, done)
    }

    /// Lets another function of the same device share a window.
    pub fn window_add_function(&self, id: u32, function: u32) -> Result<()> {
        let mut argument = WindowFunction {
            id,
            function,
            ..WindowFunction::default()
        };
        let done = ioctl::plain(&self.0, &number::WINDOW_ADD_FUNCTION, &mut argument);
        outcome(number::WINDOW_ADD_FUNCTION.name, argument.refusal, done)
    }

    /// Undoes [`Vm::window_add_function`].
    pub fn window_remove_function(&self, id: u32, function: u32) -> Result<()> {
        let mut argument = WindowFunction {
            id,
            function,
            ..WindowFunction::default()
        };
        let done = ioctl::plain(&self.0, &number::WINDOW_REMOVE_FUNCTION, &mut argument);
        outcome(number::WINDOW_REMOVE_FUNCTION.name, argument.refusal, done)
    }

    /// What is known of a window.
    pub fn window_info(&self, id: u32) -> Result<WindowInfo> {
        let mut argument = WindowInfo {
            id,
            ..WindowInfo::default()
        };
        let done = ioctl::plain(&self.0, &number::WINDOW_INFO, &mut argument);
        outcome(number::WINDOW_INFO.name, 0, done)?;
        Ok(argument)
    }

    /// Sets the level of a declared SPI.
    pub fn irq_line(&self, intid: u32, level: bool) -> Result<()> {
        let mut argument = IrqLine {
            intid,
            level: level.into(),
            ..IrqLine::default()
        };
        let done = ioctl::plain(&self.0, &number::IRQ_LINE, &mut argument);
        outcome(number::IRQ_LINE.name, argument.refusal, done)
    }

    /// Each write to `event` raises an edge of the SPI.
    pub fn irqfd(&self, intid: u32, event: &EventFd) -> Result<()> {
        let mut argument = IrqFd {
            fd: event.as_raw_fd(),
            intid,
            ..IrqFd::default()
        };
        let done = ioctl::plain(&self.0, &number::IRQFD, &mut argument);
        outcome(number::IRQFD.name, argument.refusal, done)
    }

    /// A guest's write to `ipa`, of any width, signals `event` and does not come out of RUN; or no longer.
    pub fn ioeventfd(&self, ipa: u64, event: &EventFd, assign: bool) -> Result<()> {
        let mut argument = IoEventFd {
            ipa,
            fd: event.as_raw_fd(),
            flags: if assign { 0 } else { IrqFlags::DEASSIGN },
            ..IoEventFd::default()
        };
        let done = ioctl::plain(&self.0, &number::IOEVENTFD, &mut argument);
        outcome(number::IOEVENTFD.name, 0, done)
    }
}

fn unknown(call: &'static str) -> Error {
    Error::System {
        call,
        source: std::io::Error::from(std::io::ErrorKind::Other),
    }
}

pub(crate) fn map_error(call: &'static str, error: MmapRegionError) -> Error {
    let source = match error {
        MmapRegionError::Mmap(source) => source,
        other => std::io::Error::other(other),
    };
    Error::System { call, source }
}
