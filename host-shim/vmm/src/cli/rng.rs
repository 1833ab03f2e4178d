//! `--rng[=src=PATH]`: a virtio entropy device.

use std::path::PathBuf;

use super::keys::{DeviceArgs, Keys, entries};
use super::print::Entry;

/// An entropy device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngArgs {
    /// Where the bytes come from.
    pub source: PathBuf,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl Default for RngArgs {
    fn default() -> Self {
        Self {
            source: "/dev/urandom".into(),
            device: DeviceArgs::default(),
        }
    }
}

impl Keys for RngArgs {
    const WHAT: &'static str = "an entropy device";
    const KEYS: &'static [&'static str] = &["src"];

    fn set(&mut self, _: &str, value: &str) -> Result<(), String> {
        self.source = value.into();
        Ok(())
    }

    fn entries(&self) -> Vec<Entry> {
        entries([("src", Some(self.source.to_string_lossy().into_owned()))])
    }

    fn check(&self) -> Result<(), String> {
        if self.source.as_os_str().is_empty() {
            return Err("src: a path is missing".to_owned());
        }
        Ok(())
    }

    fn device(&mut self) -> &mut DeviceArgs {
        &mut self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys::parse;

    #[test]
    fn bytes_come_from_the_kernel_unless_said_otherwise() {
        let rng: RngArgs = parse("").unwrap();
        assert_eq!(rng.source.to_str(), Some("/dev/urandom"));
        let rng: RngArgs = parse("src=/dev/hwrng").unwrap();
        assert_eq!(rng.source.to_str(), Some("/dev/hwrng"));
        assert!(parse::<RngArgs>("src=").is_err());
    }
}
