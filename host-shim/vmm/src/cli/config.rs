//! `--config FILE.toml`: every option of `run` under its own name, read by the same rules as the command line.
//! What the command line says goes before what the file says; how the two come together stands here too.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::console::Serial;
use super::keys::{Keys, SwiotlbMode, mode, parse};
use super::run::RunOptions;
use super::values::{Affinity, Cmdline, Cpus, Memory, Name, PoolSize, WindowSize};
use super::{ConsoleArgs, DiskArgs, NetArgs, RngArgs, VsockArgs};

/// Longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why a file gives no options: with its name, the line and what stands there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read configuration {path}: {source}; check the path")]
    Read {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is no text of a sane size.
    #[error("configuration {0} is longer than 1M; it cannot be a list of options")]
    TooLong(PathBuf),
    /// Something in it is wrong.
    #[error("{path}:{line}: `{text}`: {message}")]
    Wrong {
        /// As given.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Reads a file of options.
pub fn read(path: &Path) -> Result<RunOptions, ConfigError> {
    let failed = |source| {
        let path = path.to_owned();
        ConfigError::Read { path, source }
    };
    // A pipe has no length, so what is read is what is limited.
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let mut limited = std::io::Read::take(file, FILE_MAX + 1);
    std::io::Read::read_to_string(&mut limited, &mut text).map_err(failed)?;
    if text.len() as u64 > FILE_MAX {
        return Err(ConfigError::TooLong(path.to_owned()));
    }
    from_text(&text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let before = text.as_bytes()[..at].iter();
        let line = before.filter(|b| **b == b'\n').count();
        ConfigError::Wrong {
            path: path.to_owned(),
            line: line + 1,
            text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
            message: e.message().replace('\n', " "),
        }
    })
}

fn from_text(text: &str) -> Result<RunOptions, toml::de::Error> {
    toml::from_str(text)
}

impl RunOptions {
    /// These options before those of a file. Devices come after the file's; one that has the id of a device in
    /// the file takes its place.
    pub fn before(self, file: Self) -> Self {
        Self {
            config: self.config,
            print_config: self.print_config,
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            mem: self.mem.or(file.mem),
            cpus: self.cpus.or(file.cpus),
            cpu_affinity: self.cpu_affinity.or(file.cpu_affinity),
            name: self.name.or(file.name),
            serial: self.serial.or(file.serial),
            console: self.console.or(file.console),
            disk: list(self.disk, file.disk),
            net: list(self.net, file.net),
            vsock: self.vsock.or(file.vsock),
            rng: self.rng.or(file.rng),
            window: self.window.or(file.window),
            swiotlb: self.swiotlb.or(file.swiotlb),
            swiotlb_feature_bit: self.swiotlb_feature_bit.or(file.swiotlb_feature_bit),
            swiotlb_cfg_type: self.swiotlb_cfg_type.or(file.swiotlb_cfg_type),
            unprotected: self.unprotected.or(file.unprotected),
            dt_pool: self.dt_pool.or(file.dt_pool),
            prefault: self.prefault.or(file.prefault),
            seed: self.seed.or(file.seed),
            measurement: self.measurement.or(file.measurement),
        }
    }
}

fn list<T: Keys>(own: Vec<T>, mut file: Vec<T>) -> Vec<T> {
    let count = file.len();
    for mut device in own {
        let id = device.device().id.clone();
        let same = |other: &mut T| !id.is_empty() && other.device().id == id;
        match file[..count].iter_mut().find_map(|o| same(o).then_some(o)) {
            Some(place) => *place = device,
            None => file.push(device),
        }
    }
    file
}

/// A string, a number or a truth value, as the text that stands for it on the command line.
struct Text<F>(F);

impl<'de, T, F: FnOnce(&str) -> Result<T, String>> DeserializeSeed<'de> for Text<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        from.deserialize_any(self)
    }
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number, true or false")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<T, E> {
        self.visit_str(if on { "true" } else { "false" })
    }
}

macro_rules! from_text {
    ($($name:ty)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Text(<$name>::from_str).deserialize(from)
            }
        }
    )*};
}
from_text!(Memory WindowSize PoolSize Cpus Cmdline Name Affinity Serial);

impl<'de> Deserialize<'de> for SwiotlbMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Text(mode).deserialize(from)
    }
}

/// A device: a table of its keys, or the text of its option.
struct Device<T>(PhantomData<T>);

impl<'de, T: Keys> Visitor<'de> for Device<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a table of {}'s keys, or text as for the option",
            T::WHAT
        )
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut device = T::default();
        while let Some(key) = map.next_key_seed(Text(known::<T>))? {
            map.next_value_seed(Text(|value: &str| device.take(key, value)))?;
        }
        device.check().map_err(A::Error::custom)?;
        Ok(device)
    }
}

/// A key of the device, or why it is none: told at the key's own place in the file.
fn known<T: Keys>(key: &str) -> Result<&'static str, String> {
    let known = T::known().find(|known| *known == key);
    known.ok_or_else(|| unknown::<T>(key))
}

fn unknown<T: Keys>(key: &str) -> String {
    let refused = T::default().take(key, "");
    refused.err().unwrap_or_default()
}

macro_rules! device {
    ($($name:ty)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Device(PhantomData))
            }
        }
    )*};
}
device!(ConsoleArgs DiskArgs NetArgs VsockArgs RngArgs);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::tests::options;
    use crate::cli::{Backend, Sink, Size};

    const EVERYTHING: &str = r#"
kernel = "Image"
initrd = "initrd.gz"
cmdline = "root=/dev/vda"
mem = "256M"
cpus = 2
cpu-affinity = "0=0:1=1"
name = "web"
serial = "off"
console = "file=/tmp/out"
vsock = { cid = 3, path = "/run/web.sock" }
rng = {}
window = "2M"
swiotlb = "offer"
prefault = true
seed = false
measurement = true

[[disk]]
path = "root.img"
ro = true
queues = 2
queue-size = 128

[[disk]]
path = "data.img"
id = "data"
swiotlb = "hint"
window = "4M"

[[net]]
user = true
mac = "52:54:00:12:34:56"
"#;

    fn wrong(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = read(file.path()).unwrap_err().to_string();
        let name = file.path().to_str().unwrap();
        error.strip_prefix(name).unwrap().to_owned()
    }

    #[test]
    fn a_file_has_every_option_of_the_command_line() {
        let args = from_text(EVERYTHING).unwrap().resolve().unwrap();
        assert_eq!(args.kernel.to_str(), Some("Image"));
        assert_eq!((args.mem, args.cpus), (Size(256 << 20), 2));
        assert_eq!(args.console.unwrap().sink(), Sink::File("/tmp/out".into()));
        assert_eq!(
            (args.disks[0].queues, args.disks[0].queue_size),
            (Some(2), Some(128))
        );
        assert_eq!(args.disks[1].device.mode(), SwiotlbMode::Hint);
        assert_eq!(args.disks[0].device.mode(), SwiotlbMode::Offer);
        assert_eq!(args.nets[0].backend, Some(Backend::User));
        assert_eq!(args.vsock.unwrap().cid, 3);
        assert!(args.rng.is_some() && args.prefault && args.measurement && !args.seed);
    }

    #[test]
    fn a_device_may_be_written_as_on_the_command_line() {
        let options = from_text("disk = ['a.img,ro', 'b.img']\nnet = ['tap=t0']").unwrap();
        assert!(options.disk[0].readonly && !options.disk[1].readonly);
        assert_eq!(options.net[0].backend, Some(Backend::Tap("t0".to_owned())));
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let line = "--config x --mem 1G --prefault=false --disk other.img,id=data --disk more.img --rng=src=/x";
        let args = options(line).before(from_text(EVERYTHING).unwrap());
        let args = args.resolve().unwrap();
        assert_eq!(args.mem, Size(1 << 30));
        assert!(!args.prefault && args.measurement);
        let disks: Vec<_> = args
            .disks
            .iter()
            .map(|d| d.path.to_str().unwrap())
            .collect();
        assert_eq!(disks, ["root.img", "other.img", "more.img"]);
        assert_eq!(args.rng.unwrap().source.to_str(), Some("/x"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, says) in [
            (
                "kernel = 'x'\nmem = 'lots'",
                ":2: `mem = 'lots'`: 'lots' is not a size",
            ),
            ("mem = 1.5", ":1: `mem = 1.5`: invalid type: floating point"),
            ("cpus = 9", ":1: `cpus = 9`: 9 is not in 1..=8"),
            (
                "\n\nspeed = 3",
                ":3: `speed = 3`: unknown field `speed`, expected one of",
            ),
            ("mem = '1G'\nmem = '2G'", ":2: `mem = '2G'`: duplicate key"),
            (
                "[[disk]]\npath = 'x'\nsize = 3",
                ":3: `size = 3`: a disk has no 'size'",
            ),
            (
                "[[disk]]\npath = 'x'\nqueues = 0",
                ":3: `queues = 0`: queues: 0 is not in",
            ),
            ("[[disk]]\nro = true", ":1: `[[disk]]`: a disk needs a path"),
            ("disk = 'x'", ":1: `disk = 'x'`: invalid type"),
            (
                "disk = [['x']]",
                ":1: `disk = [['x']]`: invalid type: sequence",
            ),
            (
                "net = ['tap=a/b']",
                ":1: `net = ['tap=a/b']`: tap: 'a/b' is no name",
            ),
            ("kernel = ", ":1: `kernel =`:"),
            (
                "swiotlb = 'no'",
                ":1: `swiotlb = 'no'`: 'no' is none of require",
            ),
            ("config = 'x'", ":1: `config = 'x'`: unknown field"),
        ] {
            let error = wrong(text);
            assert!(error.starts_with(says), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = read(Path::new("/nonexistent/vm.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot read configuration /nonexistent/vm.toml"),
            "{error}"
        );
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("longer than 1M"), "{error}");
    }
}
