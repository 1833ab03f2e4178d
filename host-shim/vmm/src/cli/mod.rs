//! The command line: options, their values, and what --help says. Parsing only; `command` carries it out.
//! Options of `run` and what becomes of them are in `run`, each device's in a file of its own, on top of `keys`.

pub mod config;
pub mod console;
pub mod disk;
pub mod dma;
pub mod keys;
pub mod net;
pub mod print;
pub mod rng;
pub mod run;
pub mod values;
pub mod vsock;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::console::{ConsoleArgs, Sink};
pub use self::disk::{DiskArgs, DiskFormat};
pub use self::dma::DmaCommand;
pub use self::keys::{DeviceArgs, SwiotlbMode};
pub use self::net::{Backend, NetArgs};
pub use self::rng::RngArgs;
pub use self::run::{RunArgs, RunOptions};
pub use self::values::{Affinity, CMDLINE_MAX, Size};
pub use self::vsock::VsockArgs;

/// Runs protected guests under the Porthole hypervisor and shows what it guards.
#[derive(Debug, Parser)]
#[command(name = "porthole", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More messages on standard error; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The driver's device.
    #[arg(long, global = true, hide = true, default_value = porthole_uapi::DEVICE)]
    pub device: PathBuf,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a protected guest and stay until it ends.
    Run(Box<RunOptions>),
    /// Show the hypervisor: ABI version, features, CPUs, memory kept from the host.
    Info(OutputArgs),
    /// Show living VMs and their windows.
    List(ListArgs),
    /// Show a VM: exits of its vCPUs, its devices and how they use their windows.
    Status(StatusArgs),
    /// Draw physical memory by owner.
    Map(MapArgs),
    /// Have the hypervisor prove that host and guests share the windows and nothing else.
    ///
    /// Exit status 0 if it holds, 1 if not.
    Audit(OutputArgs),
    /// Confine devices of the host to regions of memory, and show which are.
    #[command(subcommand)]
    Dma(DmaCommand),
    /// Print the hypervisor's log.
    Log(LogArgs),
    /// Show the hypervisor's counters.
    Stats(OutputArgs),
    /// Print a completion script for a shell.
    ///
    /// For bash: porthole completions bash > /etc/bash_completion.d/porthole
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the command, or of one subcommand, for man(1).
    ///
    /// To read it: porthole man | man -l -
    Man {
        /// The subcommand, and below it: `dma confine` or `dma-confine`.
        topic: Vec<String>,
    },
}

/// How results are printed.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Name a physical page of each VM's memory and windows too.
    #[arg(long)]
    pub pages: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The VM: its handle, its name or the pid of its `porthole run`.
    pub vm: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show it again every so many seconds (1 if none are given) until interrupted or the VM is gone.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
          default_missing_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub watch: Option<u16>,
}

/// Options of `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// Print JSON: one object for each run of pages of one owner.
    #[arg(long, conflicts_with = "svg")]
    pub json: bool,
    /// Write a picture to this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Options of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Print JSON: one object with the position and text of each line.
    #[arg(long)]
    pub json: bool,
    /// Wait for more until interrupted.
    #[arg(short, long)]
    pub follow: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
