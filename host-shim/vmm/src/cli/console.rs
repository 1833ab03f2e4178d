//! `--console stdio|echo|off|file=PATH` with a device's common keys, and `--serial`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::keys::{DeviceArgs, Keys};
use super::print::Entry;

/// Where a console's bytes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sink {
    /// This process's standard input and output.
    #[default]
    Stdio,
    /// Back to the guest.
    Echo,
    /// Nowhere.
    Off,
    /// To a file; no input.
    File(PathBuf),
}

/// The virtio console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleArgs {
    sink: Option<Sink>,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl ConsoleArgs {
    /// Where its bytes go.
    pub fn sink(&self) -> Sink {
        self.sink.clone().unwrap_or_default()
    }
}

impl Keys for ConsoleArgs {
    const WHAT: &'static str = "the console";
    const KEYS: &'static [&'static str] = &["stdio", "echo", "off", "file"];

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let sink = match (key, value) {
            ("file", "") => return Err("a path is missing".to_owned()),
            ("file", path) => Sink::File(path.into()),
            ("stdio", "" | "true") => Sink::Stdio,
            ("echo", "" | "true") => Sink::Echo,
            ("off", "" | "true") => Sink::Off,
            _ => return Err(format!("takes no value '{value}'")),
        };
        match self.sink.replace(sink) {
            None => Ok(()),
            Some(_) => Err("write one of stdio, echo, off and file=PATH".to_owned()),
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let sink = self.sink.iter().map(|sink| match sink {
            Sink::Stdio => ("stdio", None),
            Sink::Echo => ("echo", None),
            Sink::Off => ("off", None),
            Sink::File(path) => ("file", Some(path.to_string_lossy().into_owned())),
        });
        sink.collect()
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn device(&mut self) -> &mut DeviceArgs {
        &mut self.device
    }
}

/// Where the serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serial(pub Sink);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Sink::Stdio => f.write_str("stdio"),
            Sink::File(path) => write!(f, "file={}", path.to_string_lossy()),
            // A serial port does not echo.
            Sink::Off | Sink::Echo => f.write_str("off"),
        }
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self(Sink::Stdio)),
            "off" => Ok(Self(Sink::Off)),
            _ => match text.strip_prefix("file=") {
                Some(path) if !path.is_empty() => Ok(Self(Sink::File(path.into()))),
                _ => Err("write stdio, off or file=PATH".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys::parse;

    #[test]
    fn consoles_go_where_they_are_told_to() {
        for (text, sink) in [
            ("", Sink::Stdio),
            ("window=64K", Sink::Stdio),
            ("stdio", Sink::Stdio),
            ("echo", Sink::Echo),
            ("off", Sink::Off),
            ("file=/tmp/x,swiotlb=offer", Sink::File("/tmp/x".into())),
        ] {
            assert_eq!(parse::<ConsoleArgs>(text).unwrap().sink(), sink, "{text}");
        }
        for text in ["file=", "tty", "echo,off", "echo=2", "echo,echo"] {
            assert!(parse::<ConsoleArgs>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_serial_port_does_not_echo() {
        assert_eq!("file=/x".parse(), Ok(Serial(Sink::File("/x".into()))));
        for text in ["echo", "file=", "tty", ""] {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }
}
