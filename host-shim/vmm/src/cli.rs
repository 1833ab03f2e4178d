//! The command line: options, their values, and what --help says. Parsing only; `command` carries it out.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::layout::{RAM_MAX, RAM_MIN};

/// Longest kernel command line, in bytes (Linux's COMMAND_LINE_SIZE on arm64).
pub const CMDLINE_MAX: usize = 2048;

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
    Run(Box<RunArgs>),
    /// Show the hypervisor: ABI version, features, CPUs, memory kept from the host.
    Info(OutputArgs),
    /// Show living VMs.
    List(ListArgs),
    /// Have the hypervisor prove that host and guests share the windows and nothing else.
    ///
    /// Exit status 0 if it holds, 1 if not.
    Audit(OutputArgs),
    /// Print the hypervisor's log.
    Log(LogArgs),
    /// Show the hypervisor's counters.
    Stats(OutputArgs),
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

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status:
  0    the guest switched itself off (PSCI SYSTEM_OFF), or Ctrl-] was typed
  1    the guest could not be started or run; the reason is on standard error
  2    wrong usage of this command
  3    the guest asked for a reset (PSCI SYSTEM_RESET)
  4    the guest crashed: it did something that no virtual machine can answer
  130  ended by SIGINT; 143 by SIGTERM

On a terminal, Ctrl-] ends the guest. What is typed goes to the virtio console once the guest
runs it (unless --console says otherwise), before that to the serial port.")]
pub struct RunArgs {
    /// Kernel: an arm64 Image, or a flat binary that follows the arm64 boot protocol.
    #[arg(long, value_name = "IMAGE")]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "STRING", default_value = "", value_parser = parse_cmdline)]
    pub cmdline: String,
    /// Memory: a number with K, M or G (M if none).
    #[arg(long, value_name = "SIZE", value_parser = parse_mem)]
    pub mem: Size,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=porthole_abi::VCPUS_MAX as i64))]
    pub cpus: u32,
    /// Keeps vCPUs on CPUs of the host: VCPU=CPU, several with colons between (0=1:1=2).
    #[arg(long, value_name = "LIST", value_parser = parse_affinity)]
    pub cpu_affinity: Option<Affinity>,
    /// Name of the VM, shown by `porthole list`.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,
    /// Where the 16550 serial port goes: stdio, off or file=PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_serial)]
    pub serial: Sink,
    /// Where the virtio console goes: stdio, echo (back to the guest), off (no such device) or file=PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_sink)]
    pub console: Sink,
    /// Size of the console's window.
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_window)]
    pub window: Size,
    /// What the devices ask of the guest's driver.
    #[arg(long, value_enum, default_value_t = SwiotlbMode::Require)]
    pub swiotlb: SwiotlbMode,
    /// Feature bit of VIRTIO_F_SWIOTLB.
    #[arg(long, hide = true, default_value_t = 27, value_parser = clap::value_parser!(u32).range(24..=63))]
    pub swiotlb_feature_bit: u32,
    /// cfg_type of VIRTIO_PCI_CAP_SWIOTLB.
    #[arg(long, hide = true, default_value_t = 10, value_parser = clap::value_parser!(u8).range(6..))]
    pub swiotlb_cfg_type: u8,
    /// Give the guest all its memory at once instead of on first touch.
    #[arg(long)]
    pub prefault: bool,
    /// Put random seeds into the device tree. The host knows them, and the measurement then differs in each run.
    #[arg(long)]
    pub seed: bool,
    /// Print the launch measurement before the guest runs.
    #[arg(long)]
    pub measurement: bool,
}

/// Bytes, from a number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size; write a number with K, M or G, as in 64M");
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 10,
            "" | "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "b" => 0,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << unit).ok_or_else(wrong)?;
        Ok(Self(bytes))
    }
}

fn parse_mem(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if !size.0.is_multiple_of(porthole_abi::PAGE_SIZE) {
        return Err(format!("{text} is not a multiple of 4K"));
    }
    if !(RAM_MIN..=RAM_MAX).contains(&size.0) {
        return Err(format!(
            "a guest has {}M to {}G; {text} is outside",
            RAM_MIN >> 20,
            RAM_MAX >> 30
        ));
    }
    Ok(size)
}

/// Largest and smallest window; between them powers of two.
const WINDOW_LIMITS: std::ops::RangeInclusive<u64> =
    64 << 10..=porthole_abi::WINDOW_PAGES_MAX * porthole_abi::PAGE_SIZE;

fn parse_window(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if !size.0.is_power_of_two() || !WINDOW_LIMITS.contains(&size.0) {
        return Err(format!(
            "a window is a BAR: a power of two from {}K to {}M; {text} is not",
            WINDOW_LIMITS.start() >> 10,
            WINDOW_LIMITS.end() >> 20
        ));
    }
    Ok(size)
}

fn parse_cmdline(text: &str) -> Result<String, String> {
    let mut line = linux_loader::cmdline::Cmdline::new(CMDLINE_MAX).map_err(|e| e.to_string())?;
    if !text.is_empty() {
        line.insert_str(text).map_err(|e| {
            format!("{e}; a command line is printable ASCII of at most {CMDLINE_MAX} bytes")
        })?;
    }
    Ok(text.to_owned())
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned())
        .ok_or_else(|| "a name has 1 to 15 printable characters without blanks".to_owned())
}

/// Which vCPU is kept on which CPU of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity(Vec<(usize, usize)>);

impl Affinity {
    /// The CPU that a vCPU is kept on.
    pub fn cpu(&self, vcpu: usize) -> Option<usize> {
        self.0.iter().find(|(v, _)| *v == vcpu).map(|(_, cpu)| *cpu)
    }
}

fn parse_affinity(text: &str) -> Result<Affinity, String> {
    let pair = |word: &str| {
        let (vcpu, cpu) = word.split_once('=')?;
        Some((vcpu.parse().ok()?, cpu.parse().ok()?))
    };
    let mut list: Vec<(usize, usize)> = Vec::new();
    for word in text.split(':') {
        let (vcpu, cpu) =
            pair(word).ok_or_else(|| format!("'{word}' is not VCPU=CPU, as in 0=1:1=2"))?;
        if list.iter().any(|(v, _)| *v == vcpu) {
            return Err(format!("vCPU {vcpu} stands twice"));
        }
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(format!("no host has a CPU {cpu}"));
        }
        list.push((vcpu, cpu));
    }
    Ok(Affinity(list))
}

/// Where a console's bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// This process's standard input and output.
    Stdio,
    /// Back to the guest.
    Echo,
    /// Nowhere.
    Off,
    /// To a file; no input.
    File(PathBuf),
}

fn parse_sink(text: &str) -> Result<Sink, String> {
    match text {
        "stdio" => Ok(Sink::Stdio),
        "echo" => Ok(Sink::Echo),
        "off" => Ok(Sink::Off),
        _ => match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => Ok(Sink::File(path.into())),
            _ => Err("write stdio, echo, off or file=PATH".to_owned()),
        },
    }
}

fn parse_serial(text: &str) -> Result<Sink, String> {
    match parse_sink(text) {
        Ok(Sink::Echo) | Err(_) => Err("write stdio, off or file=PATH".to_owned()),
        sink => sink,
    }
}

/// What a device asks of the guest's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SwiotlbMode {
    /// The feature is offered, and FEATURES_OK refused without it.
    Require,
    /// The feature is offered and may be declined.
    Offer,
    /// Only the capability is there.
    Hint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_names_each_vcpu_once() {
        let list = parse_affinity("0=1:1=0").unwrap();
        let cpus = [list.cpu(0), list.cpu(1), list.cpu(2)];
        assert_eq!(cpus, [Some(1), Some(0), None]);
        for bad in ["", "0", "0=", "=1", "0=1:0=2", "0=1,1=2", "-1=0", "0=4096"] {
            assert!(parse_affinity(bad).is_err(), "{bad}");
        }
    }

    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_take_units_and_refuse_nonsense() {
        for (text, bytes) in [
            ("64", 64 << 20),
            ("64M", 64 << 20),
            ("2g", 2 << 30),
            ("512KiB", 512 << 10),
            ("4096b", 4096),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "1T",
            "1.5G",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn memory_outside_the_guests_address_space_is_refused() {
        assert_eq!(parse_mem("62G"), Ok(Size(62 << 30)));
        assert!(parse_mem("63G").unwrap_err().contains("2M to 62G"));
        assert!(parse_mem("1M").is_err());
        assert!(
            parse_mem("4194305b")
                .unwrap_err()
                .contains("multiple of 4K")
        );
    }

    #[test]
    fn windows_are_powers_of_two() {
        assert_eq!(parse_window("16M"), Ok(Size(16 << 20)));
        for text in ["3M", "32M", "32K", "0"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sinks_are_parsed() {
        assert_eq!(parse_sink("echo"), Ok(Sink::Echo));
        assert_eq!(parse_sink("file=/tmp/x"), Ok(Sink::File("/tmp/x".into())));
        assert!(parse_sink("file=").is_err());
        assert!(parse_sink("tty").is_err());
        assert!(parse_serial("echo").is_err());
    }

    #[test]
    fn command_lines_are_checked() {
        assert!(parse_cmdline("console=ttyS0 root=/dev/vda").is_ok());
        assert!(parse_cmdline(&"x".repeat(CMDLINE_MAX)).is_err());
        assert!(parse_cmdline("a\u{1}b").is_err());
    }
}
