//! `--net tap=NAME|user|socket=PATH[,mac=..][,queues=N][,queue-size=N]`: a virtio network device.

use std::path::PathBuf;

use super::disk::queue_size;
use super::keys::{DeviceArgs, Keys};
use super::values::{number, switch};

/// Where a network device's frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A TAP device of the host.
    Tap(String),
    /// Connections of an ordinary user's process, without privileges.
    User,
    /// A Unix stream socket: frames behind their length in four bytes, high byte first.
    Socket(PathBuf),
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetArgs {
    /// Where frames go; `parse` lets none through without.
    pub backend: Option<Backend>,
    /// Its address, if not one made from its place.
    pub mac: Option<[u8; 6]>,
    /// Pairs of queues, if not the device's usual number.
    pub queues: Option<u16>,
    /// Entries of each, a power of two, if not the usual number.
    pub queue_size: Option<u16>,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl Keys for NetArgs {
    const WHAT: &'static str = "a network device";
    const KEYS: &'static [&'static str] = &["tap", "user", "socket", "mac", "queues", "queue-size"];

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let backend = match key {
            "mac" => {
                self.mac = Some(mac(value)?);
                return Ok(());
            }
            "queues" => {
                self.queues = Some(number(value, 1..=8)? as u16);
                return Ok(());
            }
            "queue-size" => {
                self.queue_size = Some(queue_size(value)?);
                return Ok(());
            }
            "tap" => Backend::Tap(interface(value)?),
            "socket" if value.is_empty() => return Err("a path is missing".to_owned()),
            "socket" => Backend::Socket(value.into()),
            _ if switch(value)? => Backend::User,
            _ => return Ok(()),
        };
        match self.backend.replace(backend) {
            None => Ok(()),
            Some(_) => Err("a network device has one of tap, user and socket".to_owned()),
        }
    }

    fn check(&self) -> Result<(), String> {
        match self.backend {
            Some(_) => Ok(()),
            None => Err("a network device needs tap=NAME, user or socket=PATH".to_owned()),
        }
    }

    fn device(&mut self) -> &mut DeviceArgs {
        &mut self.device
    }
}

/// A name that the host's kernel takes for an interface (IFNAMSIZ less the final zero).
fn interface(text: &str) -> Result<String, String> {
    let fits = (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:".contains(&b))
        && ![".", ".."].contains(&text);
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("'{text}' is no name of an interface: 1 to 15 letters"))
}

/// A unicast address.
fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("'{text}' is no address; write six bytes, as in 52:54:00:12:34:56");
    let mut address = [0; 6];
    let mut words = text.split(':');
    for byte in &mut address {
        let word = words.next().ok_or_else(wrong)?;
        if word.len() != 2 || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        *byte = u8::from_str_radix(word, 16).map_err(|_| wrong())?;
    }
    if words.next().is_some() {
        return Err(wrong());
    }
    if address == [0; 6] || address[0] & 1 != 0 {
        return Err(format!("{text} is the address of no single device"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys::parse;

    #[test]
    fn backends_are_told_apart() {
        for (text, backend) in [
            ("tap=vmtap0", Backend::Tap("vmtap0".to_owned())),
            ("user", Backend::User),
            ("socket=/run/x.sock", Backend::Socket("/run/x.sock".into())),
        ] {
            let net: NetArgs = parse(text).unwrap();
            assert_eq!(net.backend, Some(backend));
        }
        let net: NetArgs = parse("user,mac=52:54:00:AB:cd:01,queues=2,queue-size=512").unwrap();
        assert_eq!(net.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 1]));
        assert_eq!((net.queues, net.queue_size), (Some(2), Some(512)));
    }

    #[test]
    fn bad_network_devices_are_refused() {
        for (text, says) in [
            ("", "needs tap=NAME, user or socket=PATH"),
            ("mac=52:54:00:12:34:56", "needs tap=NAME"),
            ("user=off", "needs tap=NAME"),
            ("tap=a,user", "user: a network device has one of"),
            ("tap=", "tap: '' is no name of an interface"),
            ("tap=sixteen_letters_", "no name of an interface"),
            ("tap=a/b", "no name of an interface"),
            ("socket=", "socket: a path is missing"),
            ("user,mac=52:54:00:12:34", "mac: '52:54:00:12:34' is no"),
            ("user,mac=52:54:00:12:34:5", "is no address"),
            ("user,mac=+1:54:00:12:34:56", "is no address"),
            ("user,mac=52:54:00:12:34:56:78", "is no address"),
            ("user,mac=00:00:00:00:00:00", "of no single device"),
            ("user,mac=01:00:5e:00:00:01", "of no single device"),
            ("user,queues=9", "queues: 9 is not in 1..=8"),
        ] {
            let error = parse::<NetArgs>(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
