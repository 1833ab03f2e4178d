//! `--disk PATH[,ro][,direct][,format=raw|qcow2][,queues=N][,queue-size=N]`: a virtio block device.

use std::path::PathBuf;

use super::keys::{DeviceArgs, Keys, entries, switches};
use super::print::Entry;
use super::values::{number, switch};

/// How the disk's content is in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// As it is.
    Raw,
    /// As qcow2.
    Qcow2,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskArgs {
    /// The image, or a block device of the host.
    pub path: PathBuf,
    /// The guest cannot write.
    pub readonly: bool,
    /// Past the host's page cache (O_DIRECT).
    pub direct: bool,
    /// How its content is in it: as it is unless said otherwise. An image that looks like qcow2 then is refused, for
    /// the guest of a raw disk could have made it look so.
    pub format: Option<DiskFormat>,
    /// Request queues, if not the device's usual number.
    pub queues: Option<u16>,
    /// Entries of each, a power of two, if not the usual number.
    pub queue_size: Option<u16>,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl Keys for DiskArgs {
    const WHAT: &'static str = "a disk";
    const FIRST: Option<&'static str> = Some("path");
    const KEYS: &'static [&'static str] =
        &["path", "ro", "direct", "format", "queues", "queue-size"];

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "path" => self.path = value.into(),
            "ro" => self.readonly = switch(value)?,
            "direct" => self.direct = switch(value)?,
            "format" => {
                self.format = Some(match value {
                    "raw" => DiskFormat::Raw,
                    "qcow2" => DiskFormat::Qcow2,
                    _ => return Err(format!("'{value}' is neither raw nor qcow2")),
                });
            }
            "queues" => self.queues = Some(number(value, 1..=16)? as u16),
            _ => self.queue_size = Some(queue_size(value)?),
        }
        Ok(())
    }

    fn entries(&self) -> Vec<Entry> {
        let format = self.format.map(|format| match format {
            DiskFormat::Raw => "raw".to_owned(),
            DiskFormat::Qcow2 => "qcow2".to_owned(),
        });
        let mut all = entries([
            ("path", Some(self.path.to_string_lossy().into_owned())),
            ("format", format),
            ("queues", self.queues.map(|n| n.to_string())),
            ("queue-size", self.queue_size.map(|n| n.to_string())),
        ]);
        all.extend(switches([("ro", self.readonly), ("direct", self.direct)]));
        all
    }

    fn check(&self) -> Result<(), String> {
        if self.path.as_os_str().is_empty() {
            return Err("a disk needs a path, as in --disk root.img,ro".to_owned());
        }
        Ok(())
    }

    fn device(&mut self) -> &mut DeviceArgs {
        &mut self.device
    }
}

/// Entries of a queue.
pub fn queue_size(text: &str) -> Result<u16, String> {
    let size = number(text, 4..=1024)? as u16;
    if !size.is_power_of_two() {
        return Err(format!("{text} is not a power of two"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys::parse;

    #[test]
    fn a_path_comes_first() {
        let disk: DiskArgs =
            parse("/img/root.raw,ro,direct=off,format=qcow2,queues=4,queue-size=256").unwrap();
        let expected = DiskArgs {
            path: "/img/root.raw".into(),
            readonly: true,
            format: Some(DiskFormat::Qcow2),
            queues: Some(4),
            queue_size: Some(256),
            ..DiskArgs::default()
        };
        assert_eq!(disk, expected);
        assert_eq!(
            parse::<DiskArgs>("ro,path=x"),
            Err("'path' stands twice".to_owned())
        );
        assert_eq!(
            parse::<DiskArgs>("path=x").unwrap().path.to_str(),
            Some("x")
        );
    }

    #[test]
    fn bad_disks_are_refused() {
        for (text, says) in [
            ("", "a disk needs a path"),
            ("a,queues=0", "queues: 0 is not in 1..=16"),
            ("a,format=vmdk", "format: 'vmdk' is neither raw nor qcow2"),
            ("a,queue-size=2", "queue-size: 2 is not in 4..=1024"),
            ("a,queue-size=100", "queue-size: 100 is not a power of two"),
            ("a,ro=perhaps", "ro: 'perhaps' is neither on nor off"),
        ] {
            let error = parse::<DiskArgs>(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
