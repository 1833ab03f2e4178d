//! `--vsock cid=N,path=P`: a virtio socket device behind Unix sockets.

use std::path::PathBuf;

use super::keys::{DeviceArgs, Keys, entries};
use super::print::Entry;
use super::values::number;
use crate::virtio::vsock::CIDS;

/// A socket device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VsockArgs {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// The socket that the host connects to; the guest's connections to port N go to `PATH_N`.
    pub path: PathBuf,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl Keys for VsockArgs {
    const WHAT: &'static str = "a socket device";
    const KEYS: &'static [&'static str] = &["cid", "path"];

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "cid" => {
                self.cid = number(value, u64::from(CIDS.start)..=u64::from(CIDS.end - 1))? as u32
            }
            _ => self.path = value.into(),
        }
        Ok(())
    }

    fn entries(&self) -> Vec<Entry> {
        entries([
            ("cid", Some(self.cid.to_string())),
            ("path", Some(self.path.to_string_lossy().into_owned())),
        ])
    }

    fn check(&self) -> Result<(), String> {
        if self.cid == 0 || self.path.as_os_str().is_empty() {
            return Err(
                "a socket device needs cid and path, as in --vsock cid=3,path=/run/vm.sock"
                    .to_owned(),
            );
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
    fn a_socket_device_has_a_context_id_and_a_path() {
        let vsock: VsockArgs = parse("cid=3,path=/run/vm.sock").unwrap();
        assert_eq!(vsock.cid, 3);
        assert_eq!(vsock.path.to_str(), Some("/run/vm.sock"));
        for (text, says) in [
            ("", "needs cid and path"),
            ("cid=3", "needs cid and path"),
            ("path=/x", "needs cid and path"),
            ("cid=2,path=/x", "cid: 2 is not in 3..=4294967294"),
            ("cid=4294967295,path=/x", "is not in"),
            ("cid=x,path=/x", "no whole number"),
        ] {
            let error = parse::<VsockArgs>(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
