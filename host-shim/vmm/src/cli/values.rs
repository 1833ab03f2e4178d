//! Values of options: each is read from text by one rule, whether it stands on the command line or in a file.
//! A refusal names the text, the rule and what to write instead.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::layout::{POOL_MAX, RAM_MAX, RAM_MIN};

/// Longest kernel command line, in bytes (Linux's COMMAND_LINE_SIZE on arm64).
pub const CMDLINE_MAX: usize = 2048;
/// Largest and smallest window; between them powers of two.
const WINDOW_LIMITS: RangeInclusive<u64> =
    64 << 10..=porthole_abi::WINDOW_PAGES_MAX * porthole_abi::PAGE_SIZE;

/// What the size of a pool is a multiple of: a block of the guest's own tables.
const POOL_STEP: u64 = 2 << 20;

/// Bytes, from a number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}M", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => write!(f, "{}K", bytes >> 10),
            bytes => write!(f, "{bytes}B"),
        }
    }
}

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

/// The size of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub Size);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Size = text.parse()?;
        if !size.0.is_multiple_of(porthole_abi::PAGE_SIZE) {
            return Err(format!("{text} is not a multiple of 4K"));
        }
        if !(RAM_MIN..=RAM_MAX).contains(&size.0) {
            let (least, most) = (RAM_MIN >> 20, RAM_MAX >> 30);
            return Err(format!(
                "a guest has {least}M to {most}G; {text} is outside"
            ));
        }
        Ok(Self(size))
    }
}

/// The size of a device's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize(pub Size);

impl FromStr for WindowSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Size = text.parse()?;
        if !size.0.is_power_of_two() || !WINDOW_LIMITS.contains(&size.0) {
            let (least, most) = (WINDOW_LIMITS.start() >> 10, WINDOW_LIMITS.end() >> 20);
            return Err(format!(
                "a window is a BAR: a power of two from {least}K to {most}M; {text} is not"
            ));
        }
        Ok(Self(size))
    }
}

/// The size of a pool that the guest finds in its device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize(pub Size);

impl FromStr for PoolSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Size = text.parse()?;
        if !size.0.is_multiple_of(POOL_STEP) || !(POOL_STEP..=POOL_MAX).contains(&size.0) {
            let (least, most) = (POOL_STEP >> 20, POOL_MAX >> 20);
            return Err(format!(
                "a pool is a multiple of {least}M up to {most}M; {text} is not"
            ));
        }
        Ok(Self(size))
    }
}

/// A number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub u32);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number(text, 1..=porthole_abi::VCPUS_MAX as u64).map(|n| Self(n as u32))
    }
}

/// A kernel command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline(pub String);

impl FromStr for Cmdline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut line =
            linux_loader::cmdline::Cmdline::new(CMDLINE_MAX).map_err(|e| e.to_string())?;
        if !text.is_empty() {
            line.insert_str(text).map_err(|e| {
                format!("{e}; a command line is printable ASCII of at most {CMDLINE_MAX} bytes")
            })?;
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a VM or of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=15).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        fits.then(|| Self(text.to_owned()))
            .ok_or_else(|| "a name has 1 to 15 printable characters without blanks or /".to_owned())
    }
}

/// Which vCPU is kept on which CPU of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity(Vec<(usize, usize)>);

impl Affinity {
    /// The CPU that a vCPU is kept on.
    pub fn cpu(&self, vcpu: usize) -> Option<usize> {
        self.0.iter().find(|(v, _)| *v == vcpu).map(|(_, cpu)| *cpu)
    }

    /// The vCPUs that it names.
    pub fn vcpus(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(vcpu, _)| *vcpu)
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|(v, cpu)| format!("{v}={cpu}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

impl FromStr for Affinity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
        Ok(Self(list))
    }
}

/// A whole number of a range.
pub fn number(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let (least, most) = (range.start(), range.end());
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        Ok(_) => Err(format!("{text} is not in {least}..={most}")),
        Err(e) => Err(format!(
            "'{text}' is no whole number from {least} to {most}: {e}"
        )),
    }
}

/// A switch: on if it stands there, or with a word that says so.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "" | "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("'{text}' is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_names_each_vcpu_once() {
        let list: Affinity = "0=1:1=0".parse().unwrap();
        let cpus = [list.cpu(0), list.cpu(1), list.cpu(2)];
        assert_eq!(cpus, [Some(1), Some(0), None]);
        for bad in ["", "0", "0=", "=1", "0=1:0=2", "0=1,1=2", "-1=0", "0=4096"] {
            assert!(bad.parse::<Affinity>().is_err(), "{bad}");
        }
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
        let parse = |text: &str| text.parse::<Memory>();
        assert_eq!(parse("62G"), Ok(Memory(Size(62 << 30))));
        assert!(parse("63G").unwrap_err().contains("2M to 62G"));
        assert!(parse("1M").is_err());
        assert!(parse("4194305b").unwrap_err().contains("multiple of 4K"));
    }

    #[test]
    fn windows_are_powers_of_two() {
        assert_eq!("16M".parse(), Ok(WindowSize(Size(16 << 20))));
        for text in ["3M", "32M", "32K", "0"] {
            assert!(text.parse::<WindowSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn pools_are_blocks() {
        assert_eq!("64M".parse(), Ok(PoolSize(Size(64 << 20))));
        for text in ["0", "3M", "258M", "1M"] {
            assert!(text.parse::<PoolSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn command_lines_are_checked() {
        assert!("console=ttyS0 root=/dev/vda".parse::<Cmdline>().is_ok());
        assert!("x".repeat(CMDLINE_MAX).parse::<Cmdline>().is_err());
        assert!("a\u{1}b".parse::<Cmdline>().is_err());
    }

    #[test]
    fn names_are_short_words_without_a_path() {
        assert!("guest-1".parse::<Name>().is_ok());
        for bad in ["", "two words", "../x", "sixteen-letters!"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_outside_their_range_say_the_range() {
        assert_eq!(number("8", 1..=8), Ok(8));
        assert!(number("9", 1..=8).unwrap_err().contains("1..=8"));
        assert!(
            number("two", 1..=8)
                .unwrap_err()
                .contains("no whole number")
        );
        assert!("0".parse::<Cpus>().is_err());
    }

    #[test]
    fn switches_are_on_when_they_stand_alone() {
        for (text, on) in [("", true), ("on", true), ("true", true), ("off", false)] {
            assert_eq!(switch(text), Ok(on), "{text}");
        }
        assert!(switch("yes").is_err());
    }
}
