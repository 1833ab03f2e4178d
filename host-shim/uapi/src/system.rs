//! `/dev/porthole`: the hypervisor and all VMs.
//! What one VM does lives in `vm`.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use porthole_abi::{FunctionId, PageOwner, StatKind, VMS_MAX};

use crate::ioctl;
use crate::layout::{
    Audit, CreateVm, DmaConfine, DmaInfo, DmaRelease, Info, PageFind, PageInfo, Stats, VmEntry,
    VmWindow,
};
use crate::number;
use crate::{Error, Result, Vm};

/// Where the driver is.
pub const DEVICE: &str = "/dev/porthole";

/// The driver's device.
#[derive(Debug)]
pub struct System(File);

fn system(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { call, source }
}

impl System {
    /// Opens the device at `path`, [`DEVICE`] normally.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self(file))
    }

    /// The hypervisor and the driver.
    pub fn info(&self) -> Result<Info> {
        let mut info = Info::default();
        ioctl::plain(&self.0, &number::INFO, &mut info).map_err(system(number::INFO.name))?;
        Ok(info)
    }

    /// Creates a VM; `config` has the handle afterwards.
    pub fn create_vm(&self, config: &mut CreateVm) -> Result<Vm> {
        match ioctl::create_vm(&self.0, config) {
            Ok(file) => Ok(Vm::new(file)),
            Err(e) => Err(
                match ioctl::outcome(number::CREATE_VM.name, config.refusal, Err(e)) {
                    Err(error) => error,
                    Ok(()) => Error::System {
                        call: number::CREATE_VM.name,
                        source: io::Error::from(io::ErrorKind::Other),
                    },
                },
            ),
        }
    }

    /// All living VMs.
    pub fn list(&self) -> Result<Vec<VmEntry>> {
        let mut entries = vec![VmEntry::default(); VMS_MAX];
        let count = ioctl::list(&self.0, &mut entries).map_err(system(number::LIST.name))?;
        entries.truncate(count);
        Ok(entries)
    }

    /// A whole pass of `SHARE_AUDIT`.
    pub fn audit(&self) -> Result<Audit> {
        let mut audit = Audit::default();
        ioctl::plain(&self.0, &number::AUDIT, &mut audit).map_err(system(number::AUDIT.name))?;
        Ok(audit)
    }

    /// Bytes of the hypervisor's log from `position` on: position of the first one, and how many.
    pub fn log_read(&self, position: u64, buffer: &mut [u8]) -> Result<(u64, usize)> {
        ioctl::log_read(&self.0, position, buffer).map_err(system(number::LOG_READ.name))
    }

    /// One counter.
    pub fn stat(&self, kind: StatKind, index: u64) -> Result<u64> {
        let mut stats = Stats {
            kind: kind as u32,
            index,
            ..Stats::default()
        };
        let done = ioctl::plain(&self.0, &number::STATS, &mut stats);
        ioctl::outcome(number::STATS.name, stats.refusal, done)?;
        Ok(stats.value)
    }

    /// A registered window of the VM with this handle; `None` if it has none of this number.
    pub fn vm_window(&self, vm: u64, id: u64) -> Result<Option<VmWindow>> {
        let mut window = VmWindow {
            vm,
            id,
            ..VmWindow::default()
        };
        let done = ioctl::plain(&self.0, &number::VM_WINDOW, &mut window);
        match ioctl::outcome(number::VM_WINDOW.name, window.refusal, done) {
            Ok(()) => Ok(Some(window)),
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
            Err(e) if e.refusal() == Some(porthole_abi::Error::NoWindow) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Confines a function of the host's PCI bus to a region, which `confine` names afterwards; after an error
    /// `obstacle` and `available` say more.
    pub fn dma_confine(&self, confine: &mut DmaConfine) -> Result<()> {
        let done = ioctl::plain(&self.0, &number::DMA_CONFINE, confine);
        ioctl::outcome(number::DMA_CONFINE.name, confine.refusal, done)
    }

    /// Gives a confined function the host's map again.
    pub fn dma_release(&self, function: FunctionId) -> Result<()> {
        let mut release = DmaRelease {
            function: function.0,
            refusal: 0,
        };
        let done = ioctl::plain(&self.0, &number::DMA_RELEASE, &mut release);
        ioctl::outcome(number::DMA_RELEASE.name, release.refusal, done)
    }

    /// What stands at an index of `DMA_INFO`.
    pub fn dma_info(&self, index: u64) -> Result<DmaInfo> {
        let mut info = DmaInfo {
            index,
            ..DmaInfo::default()
        };
        let done = ioctl::plain(&self.0, &number::DMA_INFO, &mut info);
        ioctl::outcome(number::DMA_INFO.name, info.refusal, done)?;
        Ok(info)
    }

    /// Owner of the page at `pa`, the handle of its VM or 0, and how many pages from it on have the same. Where no
    /// RAM is, the pages to the next RAM, 0 if none comes.
    pub fn page_run(&self, pa: u64) -> Result<(PageOwner, u64, u64)> {
        let mut page = PageInfo {
            pa,
            ..PageInfo::default()
        };
        let done = ioctl::plain(&self.0, &number::PAGE_INFO, &mut page);
        ioctl::outcome(number::PAGE_INFO.name, page.refusal, done)?;
        let owner = PageOwner::from_number(page.owner.into()).unwrap_or(PageOwner::None);
        Ok((owner, page.vm, page.pages))
    }

    /// Owner of the page at `pa`, and the handle of its VM or 0.
    pub fn page_info(&self, pa: u64) -> Result<(Option<PageOwner>, u64)> {
        let mut page = PageInfo {
            pa,
            ..PageInfo::default()
        };
        let done = ioctl::plain(&self.0, &number::PAGE_INFO, &mut page);
        ioctl::outcome(number::PAGE_INFO.name, page.refusal, done)?;
        Ok((PageOwner::from_number(page.owner.into()), page.vm))
    }

    /// The first page from `start` on, below `end`, with this owner (and of this VM unless 0).
    pub fn page_find(
        &self,
        owner: PageOwner,
        vm: u64,
        start: u64,
        end: u64,
    ) -> Result<Option<u64>> {
        let mut find = PageFind {
            start,
            end,
            vm,
            owner: owner as u32,
            reserved: 0,
        };
        match ioctl::plain(&self.0, &number::PAGE_FIND, &mut find) {
            Ok(()) => Ok(Some(find.start)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(system(number::PAGE_FIND.name)(e)),
        }
    }
}
