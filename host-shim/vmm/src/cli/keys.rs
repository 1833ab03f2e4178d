//! `--disk a.img,ro,queues=2`: the words of a device's options, and what all devices have in common.
//! Which keys a device has besides stands in its own file. A comma in a value is written twice.

use clap::ValueEnum;

use super::print::Entry;
use super::values::{Name, Size, WindowSize};

/// What a device asks of the guest's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SwiotlbMode {
    /// The feature is offered, and FEATURES_OK refused without it.
    #[default]
    Require,
    /// The feature is offered and may be declined.
    Offer,
    /// Only the capability is there.
    Hint,
    /// Neither, and no window: the device uses RAM (--unprotected) or the pool of the device tree (--dt-pool).
    Off,
}

/// What every device has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceArgs {
    /// Its name in messages and in `porthole status`; `RunArgs` always has one, and each once.
    pub id: String,
    /// Size of its window, if not the device's usual one.
    pub window: Option<Size>,
    /// What it asks of the driver; `RunArgs` always has it.
    pub swiotlb: Option<SwiotlbMode>,
    /// Devices of the same group are functions of one PCI device and share a window.
    pub group: Option<String>,
}

impl DeviceArgs {
    /// The keys that every device has.
    pub const KEYS: [&str; 4] = ["window", "swiotlb", "id", "group"];

    /// Takes a common key; false if it is none.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let name = || value.parse::<Name>().map(|name| name.0);
        match key {
            "window" => self.window = Some(value.parse::<WindowSize>()?.0),
            "swiotlb" => self.swiotlb = Some(mode(value)?),
            "id" => self.id = name()?,
            "group" => self.group = Some(name()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Those that were given.
    pub fn entries(&self) -> Vec<Entry> {
        let id = Some(&self.id).filter(|id| !id.is_empty());
        entries([
            ("window", self.window.map(|size| size.to_string())),
            ("swiotlb", self.swiotlb.map(mode_name)),
            ("id", id.cloned()),
            ("group", self.group.clone()),
        ])
    }

    /// What it asks of the driver.
    pub fn mode(&self) -> SwiotlbMode {
        self.swiotlb.unwrap_or_default()
    }

    /// Bytes of its window, `usual` unless the user named a size.
    pub fn window(&self, usual: u64) -> u64 {
        self.window.map_or(usual, |size| size.0)
    }
}

/// A mode by its name.
pub fn mode(text: &str) -> Result<SwiotlbMode, String> {
    let names = || {
        let all = SwiotlbMode::value_variants().iter();
        let all = all.filter_map(ValueEnum::to_possible_value);
        all.map(|v| v.get_name().to_owned())
            .collect::<Vec<_>>()
            .join(", ")
    };
    SwiotlbMode::from_str(text, false).map_err(|_| format!("'{text}' is none of {}", names()))
}

/// What a mode is called.
pub fn mode_name(mode: SwiotlbMode) -> String {
    let value = mode.to_possible_value();
    value.map_or(String::new(), |v| v.get_name().to_owned())
}

/// Those of the keys that have a value.
pub fn entries<const N: usize>(all: [(&'static str, Option<String>); N]) -> Vec<Entry> {
    let given = all.into_iter().filter(|(_, value)| value.is_some());
    given.collect()
}

/// Those of the switches that are on.
pub fn switches<const N: usize>(all: [(&'static str, bool); N]) -> impl Iterator<Item = Entry> {
    let on = all.into_iter().filter(|(_, on)| *on);
    on.map(|(key, _)| (key, None))
}

/// Options of one device.
pub trait Keys: Default {
    /// What it is, with an article: `a disk`.
    const WHAT: &'static str;
    /// The key that the first word is the value of, if it has none of its own.
    const FIRST: Option<&'static str> = None;
    /// Its own keys.
    const KEYS: &'static [&'static str];
    /// Takes one of its own keys; a word without `=` has an empty value.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String>;
    /// Its own keys that were given, as [`Keys::set`] takes them.
    fn entries(&self) -> Vec<Entry>;
    /// Whether all that it needs is there.
    fn check(&self) -> Result<(), String>;
    /// What all devices have.
    fn device(&mut self) -> &mut DeviceArgs;

    /// All its keys.
    fn known() -> impl Iterator<Item = &'static str> {
        Self::KEYS.iter().copied().chain(DeviceArgs::KEYS)
    }

    /// Takes a key, its own or a common one.
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        if !Self::known().any(|known| known == key) {
            let known: Vec<_> = Self::known().collect();
            let (what, known) = (Self::WHAT, known.join(", "));
            return Err(format!("{what} has no '{key}'; it has {known}"));
        }
        let taken = self.device().set(key, value);
        let done = match taken {
            Ok(false) => self.set(key, value),
            other => other.map(|_| ()),
        };
        done.map_err(|why| format!("{key}: {why}"))
    }
}

/// Reads a device's options from the command line.
pub fn parse<T: Keys>(text: &str) -> Result<T, String> {
    let mut device = T::default();
    let mut seen: Vec<String> = Vec::new();
    for (index, word) in words(text).into_iter().enumerate() {
        let (key, value) = match (word.split_once('='), T::FIRST) {
            // A path may have a `=` in it.
            (Some((key, _)), Some(first)) if index == 0 && !T::known().any(|k| k == key) => {
                (first, word.as_str())
            }
            (None, Some(first)) if index == 0 => (first, word.as_str()),
            (Some(pair), _) => pair,
            (None, _) => (word.as_str(), ""),
        };
        if seen.iter().any(|s| s == key) {
            return Err(format!("'{key}' stands twice"));
        }
        device.take(key, value)?;
        seen.push(key.to_owned());
    }
    device.check()?;
    Ok(device)
}

/// The text between commas; a double comma is one of the text's own.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    if text.is_empty() { Vec::new() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Backend, DiskArgs, NetArgs, RngArgs};

    #[test]
    fn every_device_takes_the_common_keys() {
        let rng: RngArgs = parse("window=256K,swiotlb=hint,id=noise,group=a").unwrap();
        assert_eq!(rng.device.window(0), 256 << 10);
        assert_eq!(rng.device.mode(), SwiotlbMode::Hint);
        assert_eq!(rng.device.id, "noise");
        assert_eq!(rng.device.group.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_not_said_has_its_usual_value() {
        let rng: RngArgs = parse("").unwrap();
        assert_eq!(rng.device.window(4096), 4096);
        assert_eq!(rng.device.mode(), SwiotlbMode::Require);
    }

    #[test]
    fn an_unknown_key_is_named_with_those_there_are() {
        let error = parse::<DiskArgs>("a.img,colour=red").unwrap_err();
        assert!(error.contains("a disk has no 'colour'"), "{error}");
        assert!(error.contains("queue-size, window, swiotlb"), "{error}");
    }

    #[test]
    fn a_bad_value_is_named_with_its_key() {
        for (text, says) in [
            ("a,window=3M", "window: a window is a BAR"),
            (
                "a,swiotlb=maybe",
                "swiotlb: 'maybe' is none of require, offer, hint",
            ),
            ("a,id=", "id: a name has"),
            ("a,id=x,id=y", "'id' stands twice"),
            ("a,,b,", "a disk has no ''"),
        ] {
            let error = parse::<DiskArgs>(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_double_comma_belongs_to_the_value() {
        let disk: DiskArgs = parse("/a,,b=c,ro").unwrap();
        assert_eq!(disk.path.to_str(), Some("/a,b=c"));
        assert!(disk.readonly);
        let net: NetArgs = parse("tap=a,,b,queues=1").unwrap();
        assert_eq!(net.backend, Some(Backend::Tap("a,b".to_owned())));
    }
}
