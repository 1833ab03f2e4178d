//! `porthole dma`: subcommands, and how functions of the PCI bus and sizes of regions are written.
//! What they do is in `command::dma`.

use std::str::FromStr;

use clap::Subcommand;
use porthole_abi::{DMA_PAGES_MAX, FunctionId, PAGE_SIZE};

use super::OutputArgs;
use super::values::Size;

/// The subcommands of `dma`.
#[derive(Debug, Subcommand)]
pub enum DmaCommand {
    /// Let a device of the host reach one region of memory and nothing else.
    ///
    /// The device must have no driver. Bind one afterwards: all that it maps for the device is copied through the
    /// region. Anything else that the device reads or writes is refused and counted.
    Confine {
        /// The PCI function, as lspci shows it: 0000:00:02.0 or 00:02.0.
        #[arg(value_name = "BDF")]
        function: Function,
        /// Size of the region, as in 4M: a multiple of 4K, at most 64M.
        size: RegionSize,
    },
    /// Give a confined device all of the host's memory again and free its region.
    ///
    /// The device must have no driver.
    Release {
        /// The PCI function.
        #[arg(value_name = "BDF")]
        function: Function,
    },
    /// Show confined devices, and all whose accesses were refused.
    List(OutputArgs),
}

/// A PCI function of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub FunctionId);

impl FromStr for Function {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = |word: &str, digits: usize, most: u16| {
            let fits = word.len() == digits && word.bytes().all(|b| b.is_ascii_hexdigit());
            let number = u16::from_str_radix(word, 16).ok()?;
            (fits && number <= most).then_some(number)
        };
        let parse = || {
            let (bus, function) = text.rsplit_once('.')?;
            let (bus, device) = bus.rsplit_once(':')?;
            let (segment, bus) = bus.rsplit_once(':').unwrap_or(("0000", bus));
            Some(FunctionId::new(
                hex(segment, 4, u16::MAX)?,
                hex(bus, 2, 0xff)? as u8,
                hex(device, 2, 0x1f)? as u8,
                hex(function, 1, 7)? as u8,
            ))
        };
        parse().map(Self).ok_or_else(|| {
            format!(
                "'{text}' is no PCI function; write SEGMENT:BUS:DEVICE.FUNCTION as lspci -D shows it, as in 0000:00:02.0 or 00:02.0"
            )
        })
    }
}

/// The size of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSize(pub u64);

impl FromStr for RegionSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(bytes) = text.parse()?;
        let most = DMA_PAGES_MAX * PAGE_SIZE;
        if !bytes.is_multiple_of(PAGE_SIZE) || !(PAGE_SIZE..=most).contains(&bytes) {
            return Err(format!(
                "a region is a multiple of 4K up to {}M; {text} is not",
                most >> 20
            ));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_written_as_lspci_does() {
        for (text, parts) in [
            ("0000:00:02.0", (0, 0, 2, 0)),
            ("00:02.0", (0, 0, 2, 0)),
            ("00:1f.7", (0, 0, 31, 7)),
            ("0001:aB:00.1", (1, 0xab, 0, 1)),
        ] {
            let (segment, bus, device, function) = parts;
            let id = FunctionId::new(segment, bus, device, function);
            assert_eq!(text.parse(), Ok(Function(id)), "{text}");
        }
        for text in [
            "",
            "02.0",
            "00:02",
            "0:2.0",
            "00:20.0",
            "00:02.8",
            "00:02.00",
            "100:02.0",
            "00000:00:02.0",
            "+000:00:02.0",
            "0000:0000:00:02.0",
            "18446744073709551615",
            "00:02.0 ",
        ] {
            let error = text.parse::<Function>().unwrap_err();
            assert!(error.contains(text) && error.contains("0000:00:02.0"));
        }
    }

    #[test]
    fn regions_are_pages_up_to_64_mib() {
        for (text, bytes) in [("4K", 4096), ("64M", 64 << 20), ("12k", 12 << 10)] {
            assert_eq!(text.parse(), Ok(RegionSize(bytes)), "{text}");
        }
        for text in ["0", "1b", "65M", "6K", "18446744073709551615b"] {
            assert!(text.parse::<RegionSize>().unwrap_err().contains("64M"));
        }
    }
}
