//! `porthole dma`: devices of the host that reach one region of memory only, and what the others were refused.
//! Which driver a device has is the kernel's to say (sysfs); everything else is the driver's and the hypervisor's.

use std::fmt::Write as _;
use std::fs;

use porthole_abi::{
    DMA_CONFINED_MAX, DMA_SOURCES_MAX, DmaRecord, Error as Refusal, FunctionId, NO_ADDRESS,
};
use porthole_uapi::{DmaConfine, DmaInfo, DmaObstacle, System};
use serde::Serialize;

use super::{CommandError, bytes, show};
use crate::cli::DmaCommand;

/// Why a device cannot be confined or released.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// No such device.
    #[error("there is no PCI function {0}; see ls /sys/bus/pci/devices")]
    NoDevice(FunctionId),
    /// It has a driver.
    #[error(
        "{function} has a driver, {driver}; unbind it first: echo {function} > /sys/bus/pci/drivers/{driver}/unbind"
    )]
    Bound {
        /// The device.
        function: FunctionId,
        /// Its driver.
        driver: String,
    },
    /// It is confined.
    #[error("{0} is confined already; `porthole dma release {0}` gives it all memory again")]
    Confined(FunctionId),
    /// It is not confined.
    #[error("{0} is not confined; see `porthole dma list`")]
    NotConfined(FunctionId),
    /// Something about the device.
    #[error("{function} cannot be confined: {reason}")]
    Obstacle {
        /// The device.
        function: FunctionId,
        /// What and what to do.
        reason: &'static str,
    },
    /// No memory.
    #[error(
        "no {} of memory in one piece; {available}; boot the host with a larger cma= on its kernel command line for more",
        bytes(*.size)
    )]
    NoMemory {
        /// As asked for, in bytes.
        size: u64,
        /// What there is.
        available: String,
    },
}

const fn reason(obstacle: DmaObstacle) -> &'static str {
    match obstacle {
        DmaObstacle::Bridge => "it is a bridge; name the device behind it",
        DmaObstacle::Alias => {
            "its accesses carry another function's id (it is behind a bridge to conventional PCI, or known for it); put it on a PCI Express port of its own"
        }
        DmaObstacle::Iommu => {
            "the host's kernel drives an IOMMU for it; boot the host with iommu.passthrough=1 or without that IOMMU"
        }
        DmaObstacle::Address => {
            "its bus addresses are not physical addresses, or its accesses pass the CPUs' caches by; this machine cannot confine it"
        }
        DmaObstacle::Kernel => {
            "the host's kernel has no CONFIG_ARCH_HAS_DMA_OPS; use one that has, as Debian's"
        }
        DmaObstacle::Size => {
            "a virtio disk has requests of up to 1.25 MiB in its region at once, and one that does not fit is tried for ever; give it at least 2M"
        }
    }
}

/// The driver's name, as the kernel has it.
fn bound(function: FunctionId) -> DmaError {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{function}/driver"));
    let driver = link.ok().and_then(|path| {
        let name = path.file_name()?;
        Some(name.to_string_lossy().into_owned())
    });
    DmaError::Bound {
        function,
        driver: driver.unwrap_or_else(|| "DRIVER".to_owned()),
    }
}

/// What an error means for the device; `None` if nothing more than it says itself.
fn explain(
    error: &porthole_uapi::Error,
    function: FunctionId,
    asked: &DmaConfine,
) -> Option<DmaError> {
    let obstacle = |reason| DmaError::Obstacle { function, reason };
    if let Some(refusal) = error.refusal() {
        return Some(match refusal {
            Refusal::BadStream => {
                obstacle("no SMMU stands before it (`porthole log` names those that there are)")
            }
            Refusal::NoSlot => obstacle("16 devices are confined, and there are no more places"),
            Refusal::AlreadyConfined => DmaError::Confined(function),
            Refusal::NotConfined => DmaError::NotConfined(function),
            _ => return None,
        });
    }
    Some(match error.errno()? {
        libc::ENODEV => DmaError::NoDevice(function),
        libc::EBUSY => bound(function),
        libc::EEXIST => DmaError::Confined(function),
        libc::ENOENT => DmaError::NotConfined(function),
        libc::ETIMEDOUT => {
            obstacle("accesses of it are under way that do not end; reset it and try again")
        }
        libc::ENOMEM => DmaError::NoMemory {
            size: asked.size,
            available: match asked.available {
                0 => "nor the least that would do (2M for a virtio disk, a page for others)"
                    .to_owned(),
                size => format!("{} can be had", bytes(size)),
            },
        },
        libc::EOPNOTSUPP => obstacle(reason(DmaObstacle::from_number(asked.obstacle)?)),
        _ => return None,
    })
}

/// A device, confined or refused something.
#[derive(Debug, Serialize)]
struct Entry {
    function: String,
    confined: bool,
    region: Option<String>,
    bytes: u64,
    used: u64,
    no_room: u64,
    earlier_kernel: bool,
    refused: u64,
    last_refused: Option<String>,
}

impl Entry {
    fn new(function: String) -> Self {
        Self {
            function,
            confined: false,
            region: None,
            bytes: 0,
            used: 0,
            no_room: 0,
            earlier_kernel: false,
            refused: 0,
            last_refused: None,
        }
    }

    fn confined(info: &DmaInfo) -> Self {
        Self {
            confined: true,
            region: Some(format!("{:#x}", info.pa)),
            bytes: info.size,
            used: info.used,
            no_room: info.failed,
            earlier_kernel: info.owned == 0,
            ..Self::new(FunctionId(info.function).to_string())
        }
    }

    fn add_faults(&mut self, info: &DmaInfo) {
        self.refused += info.count;
        if info.address != NO_ADDRESS {
            let doing = if info.event >> 8 & 1 != 0 {
                "write"
            } else {
                "read"
            };
            self.last_refused = Some(format!("{doing} at {:#x}", info.address));
        }
    }
}

/// Confined functions first, then others that were refused something.
fn entries(records: &[DmaInfo]) -> Vec<Entry> {
    let of = |kind: DmaRecord| {
        let is = move |r: &&DmaInfo| r.kind == kind as u32;
        records.iter().filter(is)
    };
    let mut all: Vec<_> = of(DmaRecord::Confined).map(Entry::confined).collect();
    for faults in of(DmaRecord::Faults) {
        let name = match faults.function {
            u32::MAX => format!("stream {:#x}", faults.stream),
            function => FunctionId(function).to_string(),
        };
        match all.iter_mut().find(|e| e.function == name) {
            Some(entry) => entry.add_faults(faults),
            None => {
                let mut entry = Entry::new(name);
                entry.add_faults(faults);
                all.push(entry);
            }
        }
    }
    all
}

fn table(entries: &Vec<Entry>) -> String {
    if entries.is_empty() {
        return "no device is confined, and none was refused anything\n".to_owned();
    }
    let mut text = format!(
        "{:<14} {:<12} {:>9} {:>9} {:>8} {:>8} LAST REFUSED\n",
        "FUNCTION", "REGION", "SIZE", "IN USE", "NO ROOM", "REFUSED"
    );
    for e in entries {
        let of_region = |text: String| if e.confined { text } else { "-".to_owned() };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<14} {:<12} {:>9} {:>9} {:>8} {:>8} {}{}",
            e.function,
            e.region.as_deref().unwrap_or("all"),
            of_region(bytes(e.bytes)),
            of_region(bytes(e.used)),
            of_region(e.no_room.to_string()),
            e.refused,
            e.last_refused.as_deref().unwrap_or("-"),
            if e.earlier_kernel {
                " (confined by an earlier kernel: release it)"
            } else {
                ""
            }
        );
    }
    text
}

fn all(system: &System) -> Result<Vec<Entry>, CommandError> {
    let indexes = 0..(DMA_CONFINED_MAX + DMA_SOURCES_MAX) as u64;
    let records: Result<Vec<_>, _> = indexes.map(|index| system.dma_info(index)).collect();
    Ok(entries(&records?))
}

/// A device of the host that the SMMU refused something.
#[derive(Debug, Serialize)]
pub(super) struct Refused {
    /// Its PCI function, or its stream if no function is known.
    pub function: String,
    /// Accesses refused since boot.
    pub refused: u64,
    /// The last of them.
    pub last: Option<String>,
}

/// The devices that were refused something, confined or not.
pub(super) fn refused(system: &System) -> Result<Vec<Refused>, CommandError> {
    let all = all(system)?.into_iter().filter(|e| e.refused != 0);
    let refused = all.map(|e| Refused {
        function: e.function,
        refused: e.refused,
        last: e.last_refused,
    });
    Ok(refused.collect())
}

pub(super) fn dma(command: &DmaCommand, system: &System) -> Result<u8, CommandError> {
    match command {
        DmaCommand::Confine { function, size } => {
            let mut asked = DmaConfine {
                size: size.0,
                function: function.0.0,
                ..DmaConfine::default()
            };
            if let Err(error) = system.dma_confine(&mut asked) {
                return Err(failed(error, function.0, &asked));
            }
            super::print(&format!(
                "{} is confined to {} at {:#x}\n",
                function.0,
                bytes(size.0),
                asked.pa
            ))?;
        }
        DmaCommand::Release { function } => system
            .dma_release(function.0)
            .map_err(|error| failed(error, function.0, &DmaConfine::default()))?,
        DmaCommand::List(args) => {
            show(&all(system)?, args.json, table)?;
        }
    }
    Ok(0)
}

fn failed(error: porthole_uapi::Error, function: FunctionId, asked: &DmaConfine) -> CommandError {
    explain(&error, function, asked).map_or(CommandError::Driver(error), CommandError::Dma)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn faults_stand_with_the_function_that_made_them() {
        let confined = DmaInfo {
            kind: DmaRecord::Confined as u32,
            function: 0x10,
            pa: 0x7c00_0000,
            size: 4 << 20,
            used: 8 << 10,
            failed: 3,
            owned: 1,
            ..DmaInfo::default()
        };
        let faults = |function, count, address, event| DmaInfo {
            kind: DmaRecord::Faults as u32,
            function,
            count,
            address,
            event,
            stream: 0x1234,
            ..DmaInfo::default()
        };
        let all = entries(&[
            confined,
            DmaInfo::default(),
            faults(0x18, 5, 0x4000_0000, 0x110),
            faults(0x10, 7, 0x5000, 0x10),
            faults(u32::MAX, 1, NO_ADDRESS, 2),
        ]);
        let text = table(&all);
        let lines: Vec<_> = text.lines().collect();
        let words = |n: usize| lines[n].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(1),
            "0000:00:02.0 0x7c000000 4.0 MiB 8 KiB 3 7 read at 0x5000"
        );
        assert_eq!(words(2), "0000:00:03.0 all - - - 5 write at 0x40000000");
        assert_eq!(words(3), "stream 0x1234 all - - - 1 -");
        assert_eq!(lines.len(), 4);
        let foreign = DmaInfo {
            owned: 0,
            ..confined
        };
        assert!(table(&entries(&[foreign])).contains("earlier kernel"));
        assert!(table(&Vec::new()).contains("no device"));
    }

    #[test]
    fn errors_say_what_to_do() {
        let asked = |available, obstacle| DmaConfine {
            size: 64 << 20,
            available,
            obstacle,
            ..DmaConfine::default()
        };
        let text = |errno, asked: &DmaConfine| {
            let source = io::Error::from_raw_os_error(errno);
            let call = "DMA_CONFINE";
            let error = porthole_uapi::Error::System { call, source };
            explain(&error, FunctionId(0x10), asked).map(|e| e.to_string())
        };
        for (errno, asked, part) in [
            (libc::ENODEV, asked(0, 0), "no PCI function 0000:00:02.0"),
            (
                libc::EBUSY,
                asked(0, 0),
                "echo 0000:00:02.0 > /sys/bus/pci/drivers/",
            ),
            (
                libc::EEXIST,
                asked(0, 0),
                "porthole dma release 0000:00:02.0",
            ),
            (libc::ENOENT, asked(0, 0), "not confined"),
            (libc::ENOMEM, asked(4 << 20, 0), "4.0 MiB can be had"),
            (
                libc::ENOMEM,
                asked(0, 0),
                "nor the least that would do (2M for a virtio disk, a page",
            ),
            (libc::EOPNOTSUPP, asked(0, 1), "bridge"),
            (libc::EOPNOTSUPP, asked(0, 2), "another function's id"),
            (libc::EOPNOTSUPP, asked(0, 3), "iommu.passthrough"),
            (libc::EOPNOTSUPP, asked(0, 4), "bus addresses"),
            (libc::EOPNOTSUPP, asked(0, 5), "CONFIG_ARCH_HAS_DMA_OPS"),
        ] {
            let said = text(errno, &asked).unwrap();
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(text(libc::EPERM, &asked(0, 0)), None);
        let refused = |refusal| {
            let call = "DMA_CONFINE";
            let error = porthole_uapi::Error::Refused { call, refusal };
            explain(&error, FunctionId(0x10), &asked(0, 0)).map(|e| e.to_string())
        };
        for (refusal, part) in [
            (Refusal::BadStream, "no SMMU"),
            (Refusal::NoSlot, "16 devices"),
            (Refusal::AlreadyConfined, "already"),
            (Refusal::NotConfined, "not confined"),
        ] {
            assert!(refused(refusal).unwrap().contains(part));
        }
        assert_eq!(refused(Refusal::Busy), None);
    }
}
