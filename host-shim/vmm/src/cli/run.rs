//! `porthole run`: its options as the user wrote them, and what they come to.
//! What the machine is then built from is `RunArgs`, checked as a whole and without gaps.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::console::{ConsoleArgs, Serial, Sink};
use super::disk::DiskArgs;
use super::keys::{DeviceArgs, Keys, SwiotlbMode, parse};
use super::net::NetArgs;
use super::rng::RngArgs;
use super::values::{Affinity, Cmdline, Cpus, Memory, Name, PoolSize, Size, WindowSize};
use super::vsock::VsockArgs;
use crate::layout::OPEN_RAM_MAX;

/// Options of `run` as written.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(after_help = "\
Every device takes window=SIZE, swiotlb=MODE, id=NAME and group=NAME too: the size of its window, what it
asks of the driver, its name, and devices that shall share a window. A comma in a value is written twice.

Exit status:
  0    the guest switched itself off (PSCI SYSTEM_OFF), or Ctrl-] was typed
  1    the guest could not be started or run; the reason is on standard error
  2    wrong usage of this command
  3    the guest asked for a reset (PSCI SYSTEM_RESET)
  4    the guest crashed: it did something that no virtual machine can answer
  129  ended by SIGHUP; 130 by SIGINT; 143 by SIGTERM

On a terminal, Ctrl-] ends the guest. What is typed goes to the virtio console once the guest
runs it (unless --console says otherwise), before that to the serial port.")]
pub struct RunOptions {
    /// Options in a TOML file, each under its own name; those given here go before them.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print what these options amount to as a file for --config, and do not run it.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    /// Kernel: an arm64 Image, or a flat binary that follows the arm64 boot protocol.
    #[arg(long, value_name = "IMAGE", required_unless_present = "config")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "STRING")]
    pub cmdline: Option<Cmdline>,
    /// Memory: a number with K, M or G (M if none).
    #[arg(long, value_name = "SIZE", required_unless_present = "config")]
    pub mem: Option<Memory>,
    /// Virtual CPUs, 1 to 8 [default: 1].
    #[arg(long, value_name = "N")]
    pub cpus: Option<Cpus>,
    /// Keeps vCPUs on CPUs of the host: VCPU=CPU, several with colons between (0=1:1=2).
    #[arg(long, value_name = "LIST")]
    pub cpu_affinity: Option<Affinity>,
    /// Name of the VM, shown by `porthole list`.
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// Where the 16550 serial port goes: stdio, off or file=PATH [default: stdio].
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<Serial>,
    /// Where the virtio console goes: stdio, echo (back to the guest), off (no such device) or file=PATH
    /// [default: stdio].
    #[arg(long, value_name = "WHERE[,KEYS]", value_parser = parse::<ConsoleArgs>)]
    pub console: Option<ConsoleArgs>,
    /// A disk: PATH, then any of ro, direct, format=raw or qcow2, queues=N, queue-size=N; may be repeated.
    #[arg(long, value_name = "PATH[,KEYS]", value_parser = parse::<DiskArgs>)]
    pub disk: Vec<DiskArgs>,
    /// A network device: tap=NAME (and create), user (by passt; tcp=PORT:GUESTPORT and udp=, several with + between,
    /// lead from the host to the guest) or socket=PATH (and listen), then any of mac=ADDRESS, mtu=N, queues=N,
    /// queue-size=N; may be repeated.
    #[arg(long, value_name = "BACKEND[,KEYS]", value_parser = parse::<NetArgs>)]
    pub net: Vec<NetArgs>,
    /// A socket device: cid=N,path=SOCKET. The host connects to SOCKET; the guest reaches port N at SOCKET_N.
    #[arg(long, value_name = "cid=N,path=SOCKET[,KEYS]", value_parser = parse::<VsockArgs>)]
    pub vsock: Option<VsockArgs>,
    /// An entropy device, from /dev/urandom unless src=PATH says otherwise.
    #[arg(long, value_name = "KEYS", value_parser = parse::<RngArgs>,
          num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub rng: Option<RngArgs>,
    /// Size of the window of each device that names none itself.
    #[arg(long, value_name = "SIZE")]
    pub window: Option<WindowSize>,
    /// What the devices ask of the guest's driver, if they do not say so themselves [default: require].
    #[arg(long, value_enum, value_name = "MODE")]
    pub swiotlb: Option<SwiotlbMode>,
    /// Run a guest without protection: the host reaches all its memory. Guest and measurement say so.
    ///
    /// For comparison, and for kernels that know neither windows nor pools. Devices then use all of RAM, unless
    /// they are given --swiotlb or swiotlb=.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub unprotected: Option<bool>,
    /// One pool of this size for all devices, which the guest finds in its device tree (restricted-dma-pool).
    ///
    /// For kernels without VIRTIO_F_SWIOTLB but with CONFIG_DMA_RESTRICTED_POOL. The devices demand
    /// VIRTIO_F_ACCESS_PLATFORM and reach the pool and nothing else.
    #[arg(long, value_name = "SIZE")]
    pub dt_pool: Option<PoolSize>,
    /// Feature bit of VIRTIO_F_SWIOTLB (default 27). The guest must know it by the same number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(24..=63))]
    pub swiotlb_feature_bit: Option<u32>,
    /// cfg_type of VIRTIO_PCI_CAP_SWIOTLB (default 10). The guest must know it by the same number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(10..))]
    pub swiotlb_cfg_type: Option<u8>,
    /// Give the guest all its memory at once instead of on first touch.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub prefault: Option<bool>,
    /// Put random seeds into the device tree. The host knows them, and the measurement then differs in each run.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub seed: Option<bool>,
    /// Print the launch measurement before the guest runs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub measurement: Option<bool>,
}

/// What a run is made of: every device has an id of its own and a mode.
#[derive(Clone, Debug)]
pub struct RunArgs {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Memory, in pages' multiples.
    pub mem: Size,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Which of them stay where.
    pub cpu_affinity: Affinity,
    /// Name of the VM.
    pub name: Option<String>,
    /// Where the serial port goes.
    pub serial: Sink,
    /// The virtio console, unless it is off.
    pub console: Option<ConsoleArgs>,
    /// Disks, in the order given.
    pub disks: Vec<DiskArgs>,
    /// Network devices, in the order given.
    pub nets: Vec<NetArgs>,
    /// The socket device.
    pub vsock: Option<VsockArgs>,
    /// The entropy device.
    pub rng: Option<RngArgs>,
    /// The host reaches all memory.
    pub unprotected: bool,
    /// Bytes of the device tree's pool; 0 without one.
    pub dt_pool: u64,
    /// Feature bit of VIRTIO_F_SWIOTLB.
    pub swiotlb_feature_bit: u32,
    /// cfg_type of VIRTIO_PCI_CAP_SWIOTLB.
    pub swiotlb_cfg_type: u8,
    /// All memory at once.
    pub prefault: bool,
    /// Random seeds in the device tree.
    pub seed: bool,
    /// Print the measurement.
    pub measurement: bool,
}

/// Options that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Neither the command line nor a file has it.
    #[error("{0} is missing: a guest needs it; give --{0} or write it into the configuration")]
    Missing(&'static str),
    /// Two devices of one name.
    #[error("two devices are called '{0}'; give one of them another id=")]
    SameId(String),
    /// A group that cannot share.
    #[error("group '{group}': {why}")]
    Group {
        /// Its name.
        group: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// No memory that such a device could use.
    #[error(
        "'{0}' has swiotlb=off, so it needs the guest's RAM (--unprotected) or a pool (--dt-pool SIZE)"
    )]
    NoMemory(String),
    /// Two ways at once.
    #[error("--unprotected and --dt-pool exclude each other; an unprotected guest needs no pool")]
    TwoWays,
    /// More than windows can be.
    #[error("an unprotected guest has at most {}M, all its windows; lower --mem", OPEN_RAM_MAX >> 20)]
    TooMuchOpen,
    /// A vCPU that is not there.
    #[error("--cpu-affinity names vCPU {0}, and there are {1}; raise --cpus or drop it")]
    NoVcpu(usize, u32),
}

impl RunOptions {
    /// Checks the options together and fills the gaps.
    pub fn resolve(self) -> Result<RunArgs, OptionsError> {
        let mut args = RunArgs {
            kernel: self.kernel.ok_or(OptionsError::Missing("kernel"))?,
            initrd: self.initrd,
            cmdline: self.cmdline.map_or(String::new(), |line| line.0),
            mem: self.mem.ok_or(OptionsError::Missing("mem"))?.0,
            cpus: self.cpus.map_or(1, |cpus| cpus.0),
            cpu_affinity: self.cpu_affinity.unwrap_or_default(),
            name: self.name.map(|name| name.0),
            serial: self.serial.map_or(Sink::Stdio, |serial| serial.0),
            console: Some(self.console.unwrap_or_default()).filter(|c| c.sink() != Sink::Off),
            disks: self.disk,
            nets: self.net,
            vsock: self.vsock,
            rng: self.rng,
            unprotected: self.unprotected.unwrap_or(false),
            dt_pool: self.dt_pool.map_or(0, |pool| pool.0.0),
            swiotlb_feature_bit: self.swiotlb_feature_bit.unwrap_or(27),
            swiotlb_cfg_type: self.swiotlb_cfg_type.unwrap_or(10),
            prefault: self.prefault.unwrap_or(false),
            seed: self.seed.unwrap_or(false),
            measurement: self.measurement.unwrap_or(false),
        };
        let usual = if args.unprotected || args.dt_pool > 0 {
            SwiotlbMode::Off
        } else {
            SwiotlbMode::Require
        };
        for (name, device) in args.devices() {
            if device.id.is_empty() {
                device.id = name;
            }
            device.swiotlb = device.swiotlb.or(self.swiotlb).or(Some(usual));
            device.window = device.window.or(self.window.map(|w| w.0));
        }
        args.check()?;
        Ok(args)
    }
}

impl RunArgs {
    /// All devices in the order of their places on the bus, and how each is called if nobody named it.
    fn devices(&mut self) -> Vec<(String, &mut DeviceArgs)> {
        let mut all = Vec::new();
        let console = self.console.iter_mut().map(Keys::device);
        all.extend(console.map(|d| ("console".to_owned(), d)));
        let disks = self.disks.iter_mut().map(Keys::device).enumerate();
        all.extend(disks.map(|(i, d)| (format!("disk{i}"), d)));
        let nets = self.nets.iter_mut().map(Keys::device).enumerate();
        all.extend(nets.map(|(i, d)| (format!("net{i}"), d)));
        let vsock = self.vsock.iter_mut().map(Keys::device);
        all.extend(vsock.map(|d| ("vsock".to_owned(), d)));
        let rng = self.rng.iter_mut().map(Keys::device);
        all.extend(rng.map(|d| ("rng".to_owned(), d)));
        all
    }

    fn check(&mut self) -> Result<(), OptionsError> {
        if let Some(vcpu) = self.cpu_affinity.vcpus().find(|v| *v >= self.cpus as usize) {
            return Err(OptionsError::NoVcpu(vcpu, self.cpus));
        }
        if self.unprotected && self.dt_pool > 0 {
            return Err(OptionsError::TwoWays);
        }
        if self.unprotected && self.mem.0 > OPEN_RAM_MAX {
            return Err(OptionsError::TooMuchOpen);
        }
        let has_memory = self.unprotected || self.dt_pool > 0;
        let devices = self.devices();
        let devices: Vec<&DeviceArgs> = devices.into_iter().map(|(_, d)| &*d).collect();
        for (i, device) in devices.iter().enumerate() {
            if devices[..i].iter().any(|other| other.id == device.id) {
                return Err(OptionsError::SameId(device.id.clone()));
            }
            if device.mode() == SwiotlbMode::Off && !has_memory {
                return Err(OptionsError::NoMemory(device.id.clone()));
            }
            let Some(group) = &device.group else { continue };
            let wrong = |why| {
                let group = group.clone();
                OptionsError::Group { group, why }
            };
            let members = devices[..=i].iter();
            let members: Vec<_> = members
                .filter(|d| d.group.as_ref() == Some(group))
                .collect();
            if members.len() > 8 {
                return Err(wrong(
                    "a PCI device has at most 8 functions; make a second group",
                ));
            }
            if members.iter().any(|d| d.window != device.window) {
                return Err(wrong(
                    "its devices share a window; give each the same window=",
                ));
            }
            let is_off = |d: &DeviceArgs| d.mode() == SwiotlbMode::Off;
            if members.iter().any(|d| is_off(d) != is_off(device)) {
                return Err(wrong(
                    "its devices share a window or have none; give all or none swiotlb=off",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// Options from the words of a line.
    pub(crate) fn options(line: &str) -> RunOptions {
        let words = ["porthole", "run"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    fn resolve(line: &str) -> Result<RunArgs, OptionsError> {
        options(&format!("--kernel k --mem 64M {line}")).resolve()
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let args = resolve("").unwrap();
        assert_eq!((args.cpus, args.mem), (1, Size(64 << 20)));
        assert_eq!(args.serial, Sink::Stdio);
        assert_eq!((args.swiotlb_feature_bit, args.swiotlb_cfg_type), (27, 10));
        let console = args.console.unwrap();
        assert_eq!(
            (console.sink(), console.device.id.as_str()),
            (Sink::Stdio, "console")
        );
        assert_eq!(console.device.mode(), SwiotlbMode::Require);
        assert!(resolve("--console off").unwrap().console.is_none());
    }

    #[test]
    fn devices_are_named_by_kind_and_order() {
        let args = resolve("--disk a --disk b,id=data --disk c --net user --rng").unwrap();
        let ids: Vec<_> = args.disks.iter().map(|d| d.device.id.as_str()).collect();
        assert_eq!(ids, ["disk0", "data", "disk2"]);
        assert_eq!(args.nets[0].device.id, "net0");
        assert_eq!(args.rng.unwrap().device.id, "rng");
    }

    #[test]
    fn a_device_of_its_own_mind_overrides_what_all_have() {
        let args = resolve(
            "--swiotlb offer --window 2M --disk a --disk b,swiotlb=hint,window=4M --rng=window=64K",
        )
        .unwrap();
        let common: Vec<_> = args.disks.iter().map(|d| &d.device).collect();
        assert_eq!(
            (common[0].mode(), common[0].window(0)),
            (SwiotlbMode::Offer, 2 << 20)
        );
        assert_eq!(
            (common[1].mode(), common[1].window(0)),
            (SwiotlbMode::Hint, 4 << 20)
        );
        assert_eq!(args.rng.unwrap().device.window(0), 64 << 10);
    }

    #[test]
    fn one_id_names_one_device() {
        for line in [
            "--disk a,id=x --net user,id=x",
            "--disk a,id=disk1 --disk b",
            "--rng=id=console",
        ] {
            assert!(
                matches!(resolve(line), Err(OptionsError::SameId(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn a_group_is_one_device_with_one_window() {
        assert!(resolve("--disk a,group=g --disk b,group=g --net user").is_ok());
        let nine = "--disk a,group=g ".repeat(9);
        let error = resolve(&nine).unwrap_err().to_string();
        assert!(
            error.contains("'g'") && error.contains("8 functions"),
            "{error}"
        );
        let error = resolve("--disk a,group=g,window=1M --disk b,group=g").unwrap_err();
        assert!(error.to_string().contains("same window="), "{error}");
    }

    #[test]
    fn devices_without_a_window_need_other_memory() {
        for line in ["--swiotlb off", "--console off --disk a,swiotlb=off"] {
            let error = resolve(line).unwrap_err();
            assert!(
                matches!(error, OptionsError::NoMemory(_)),
                "{line}: {error}"
            );
        }
        for line in ["--unprotected", "--dt-pool 16M"] {
            let args = resolve(&format!("{line} --disk a --disk b,swiotlb=require")).unwrap();
            assert_eq!(args.disks[0].device.mode(), SwiotlbMode::Off);
            assert_eq!(args.disks[1].device.mode(), SwiotlbMode::Require);
            let args = resolve(&format!("{line} --swiotlb offer --disk a")).unwrap();
            assert_eq!(args.disks[0].device.mode(), SwiotlbMode::Offer);
        }
        let mixed = "--unprotected --disk a,group=g --disk b,group=g,swiotlb=hint";
        assert!(matches!(resolve(mixed), Err(OptionsError::Group { .. })));
        let both = resolve("--unprotected --dt-pool 16M").unwrap_err();
        assert_eq!(both, OptionsError::TwoWays);
        let large = options("--kernel k --mem 3G --unprotected").resolve();
        assert_eq!(large.unwrap_err(), OptionsError::TooMuchOpen);
    }

    #[test]
    fn affinity_of_a_vcpu_that_is_not_there_is_refused() {
        assert!(resolve("--cpus 2 --cpu-affinity 1=0").is_ok());
        let error = resolve("--cpu-affinity 1=0").unwrap_err();
        assert_eq!(error, OptionsError::NoVcpu(1, 1));
    }
}
