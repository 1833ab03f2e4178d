//! A vCPU's file and its run page.
//! The page is shared with the driver, so it is only touched with atomic loads and stores of whole fields.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory};

use crate::ioctl;
use crate::layout::{RUN_EXITS, RUN_SIZE, Run, RunMmio};
use crate::number;
use crate::values::RunReason;
use crate::vm::map_error;
use crate::{Error, Result};

/// What a vCPU wants when RUN returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// A load of `width` bytes; answer with [`RunPage::answer`].
    MmioRead {
        /// Address.
        ipa: u64,
        /// 1, 2, 4 or 8.
        width: usize,
    },
    /// A store of `width` bytes.
    MmioWrite {
        /// Address.
        ipa: u64,
        /// 1, 2, 4 or 8.
        width: usize,
        /// Zero-extended.
        value: u64,
    },
    /// PSCI SYSTEM_OFF.
    SystemOff,
    /// PSCI SYSTEM_RESET: 0 cold, else SYSTEM_RESET2's type.
    SystemReset(u64),
    /// The guest cannot go on: exception class.
    Crash(u64),
    /// Another vCPU ended the VM.
    Stopped,
    /// A signal, or [`RunPage::stop`]: run again or leave.
    Interrupted,
}

/// The page shared with the driver; clones show the same page.
#[derive(Clone, Debug)]
pub struct RunPage(Arc<MmapRegion>);

impl RunPage {
    fn word(&self, offset: usize) -> &AtomicU32 {
        self.0
            .get_atomic_ref(offset)
            .expect("an aligned offset in a page that was mapped whole")
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        self.0
            .get_atomic_ref(offset)
            .expect("an aligned offset in a page that was mapped whole")
    }

    /// Value of the load that the last exit asked for.
    pub fn answer(&self, value: u64) {
        let at = std::mem::offset_of!(Run, mmio) + std::mem::offset_of!(RunMmio, data);
        self.long(at).store(value, Ordering::Relaxed);
    }

    /// Makes RUN return before it enters the guest, from now on. A signal is needed too if it is inside.
    pub fn stop(&self) {
        self.word(std::mem::offset_of!(Run, immediate_exit))
            .store(1, Ordering::SeqCst);
    }

    /// Exits so far, by `porthole_abi::ExitKind`; those that the driver served are among them.
    pub fn exits(&self) -> [u64; RUN_EXITS] {
        let first = std::mem::offset_of!(Run, exits);
        std::array::from_fn(|kind| self.long(first + 8 * kind).load(Ordering::Relaxed))
    }

    fn exit(&self) -> Result<RunExit> {
        let mmio = std::mem::offset_of!(Run, mmio);
        let long = |offset| self.long(offset).load(Ordering::Relaxed);
        let word = |offset| self.word(offset).load(Ordering::Relaxed);
        let ipa = || long(mmio + std::mem::offset_of!(RunMmio, ipa));
        let width = || word(mmio + std::mem::offset_of!(RunMmio, width)) as usize;
        let system = || long(std::mem::offset_of!(Run, system));
        let reason = word(std::mem::offset_of!(Run, exit_reason));
        Ok(match RunReason::from_number(reason) {
            Some(RunReason::MmioRead) => RunExit::MmioRead {
                ipa: ipa(),
                width: width(),
            },
            Some(RunReason::MmioWrite) => RunExit::MmioWrite {
                ipa: ipa(),
                width: width(),
                value: long(mmio + std::mem::offset_of!(RunMmio, data)),
            },
            Some(RunReason::SystemOff) => RunExit::SystemOff,
            Some(RunReason::SystemReset) => RunExit::SystemReset(system()),
            Some(RunReason::Crash) => RunExit::Crash(system()),
            Some(RunReason::Stopped) => RunExit::Stopped,
            Some(RunReason::Interrupted) => RunExit::Interrupted,
            Some(RunReason::None) | None => {
                return Err(Error::System {
                    call: number::VCPU_RUN.name,
                    source: io::Error::other(format!("the driver gave exit reason {reason}")),
                });
            }
        })
    }
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    file: Arc<File>,
    page: RunPage,
}

impl Vcpu {
    pub(crate) fn new(file: File) -> Result<Self> {
        let file = Arc::new(file);
        let offset = FileOffset::from_arc(file.clone(), 0);
        let page =
            MmapRegion::from_file(offset, RUN_SIZE).map_err(|e| map_error("run page mmap", e))?;
        Ok(Self {
            file,
            page: RunPage(Arc::new(page)),
        })
    }

    /// Its run page.
    pub fn page(&self) -> &RunPage {
        &self.page
    }

    /// Enters the guest until it needs the caller.
    pub fn run(&self) -> Result<RunExit> {
        match ioctl::run(&self.file) {
            Ok(()) => self.page.exit(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(RunExit::Interrupted),
            Err(source) => Err(Error::System {
                call: number::VCPU_RUN.name,
                source,
            }),
        }
    }
}
