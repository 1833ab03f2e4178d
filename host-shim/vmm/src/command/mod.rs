//! The subcommands: what each does, in a module of its own. Parsing is in `cli`.

mod audit;
mod dma;
mod info;
mod list;
mod log;
mod manual;
mod map;
mod run;
mod stats;
mod status;

use std::io::{self, Write};
use std::path::Path;

use porthole_uapi::System;

use crate::cli::{Cli, Command};

/// Why a command failed: one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The device is not there.
    #[error(
        "no hypervisor: {0} is missing; boot this machine under Porthole and load porthole.ko (see host-shim/vmm/README.md)"
    )]
    NoDevice(String),
    /// The device cannot be opened.
    #[error(
        "cannot open {path}: {source}; run it as root, or as a user to whom root gave the device"
    )]
    Open {
        /// The device.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Another version of the interfaces.
    #[error(
        "the {what} speaks version {theirs:#x} and this command {ours:#x}; install matching versions"
    )]
    Version {
        /// Hypervisor or driver.
        what: &'static str,
        /// Its version.
        theirs: u32,
        /// This command's.
        ours: u32,
    },
    /// The driver or the hypervisor refused.
    #[error(transparent)]
    Driver(#[from] porthole_uapi::Error),
    /// Options that do not go together.
    #[error(transparent)]
    Options(#[from] crate::cli::run::OptionsError),
    /// A device that cannot be confined or released.
    #[error(transparent)]
    Dma(#[from] dma::DmaError),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] crate::cli::config::ConfigError),
    /// No such VM.
    #[error("no VM is called '{0}'; see `porthole list` for handles, names and pids")]
    NoVm(String),
    /// A name that several have.
    #[error("several VMs are called '{0}'; name one by its handle (see `porthole list`)")]
    ManyVms(String),
    /// The VM's process does not answer.
    #[error("VM {vm} gives no status: {source}; was it started by this version of `porthole run`?")]
    NoStatus {
        /// As given.
        vm: String,
        /// What went wrong with its socket.
        source: io::Error,
    },
    /// A path that no configuration can have.
    #[error(
        "a path is not UTF-8, and a TOML file is; rename the file or run it without --print-config"
    )]
    NoText,
    /// A picture that cannot be written.
    #[error("cannot write {path}: {source}; check the path and its permissions")]
    Write {
        /// As given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// No such page.
    #[error("there is no subcommand '{0}'; see porthole --help")]
    NoTopic(String),
    /// The guest's machine.
    #[error(transparent)]
    Machine(#[from] crate::machine::MachineError),
    /// Standard output, threads, signals.
    #[error("cannot write the output, or set up the command's threads: {0}")]
    System(#[from] io::Error),
    /// Output that cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<crate::models::ModelError> for CommandError {
    fn from(error: crate::models::ModelError) -> Self {
        Self::Machine(error.into())
    }
}

impl From<crate::boot::plan::PlanError> for CommandError {
    fn from(error: crate::boot::plan::PlanError) -> Self {
        Self::Machine(error.into())
    }
}

/// Carries out the command; the exit status.
pub fn execute(cli: &Cli) -> Result<u8, CommandError> {
    let open = || open(&cli.device);
    match &cli.command {
        Command::Run(options) => run::run(options, open),
        Command::Info(args) => info::info(&open()?, args.json),
        Command::List(args) => list::list(&open()?, args),
        Command::Status(args) => status::status(&open()?, args),
        Command::Map(args) => map::map(&open()?, args),
        Command::Audit(args) => audit::audit(&open()?, args.json),
        Command::Dma(command) => dma::dma(command, &open()?),
        Command::Log(args) => log::log(&open()?, args),
        Command::Stats(args) => stats::stats(&open()?, args.json),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { topic } => manual::page(topic),
    }
}

/// Opens the driver and makes sure that it and the hypervisor are of the right version.
fn open(path: &Path) -> Result<System, CommandError> {
    let system = System::open(path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            CommandError::NoDevice(path.display().to_string())
        }
        _ => CommandError::Open {
            path: path.display().to_string(),
            source,
        },
    })?;
    let info = system.info()?;
    if info.uapi_version != porthole_uapi::UAPI_VERSION {
        return Err(CommandError::Version {
            what: "driver",
            theirs: info.uapi_version,
            ours: porthole_uapi::UAPI_VERSION,
        });
    }
    if info.abi_version >> 16 != porthole_abi::ABI_VERSION >> 16 {
        return Err(CommandError::Version {
            what: "hypervisor",
            theirs: info.abi_version,
            ours: porthole_abi::ABI_VERSION,
        });
    }
    Ok(system)
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints a value as JSON, or what `text` makes of it.
fn show<T: serde::Serialize>(
    value: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> Result<(), CommandError> {
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(value)?))
    } else {
        print(&text(value))
    }
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    match count {
        0..0x10_0000 => format!("{} KiB", count >> 10),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", count as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_that_fits() {
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(5 << 20), "5.0 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
