//! `--net tap=NAME[,create]|user[,tcp=..][,udp=..]|socket=PATH[,listen][,mac=..][,mtu=N][,queues=N][,queue-size=N]`: a
//! virtio network device. What carries its frames lives in `virtio::net`.

use std::path::PathBuf;
use std::str::FromStr;

use super::disk::queue_size;
use super::keys::{DeviceArgs, Keys, entries, switches};
use super::print::Entry;
use super::values::{number, switch};
use crate::virtio::net::Forward;

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

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no forwarding; write PORT, PORT:GUESTPORT or ADDRESS/PORT:GUESTPORT"
            )
        };
        let (address, ports) = match text.split_once('/') {
            Some((address, ports)) => (Some(address.parse().map_err(|_| wrong())?), ports),
            None => (None, text),
        };
        let port = |text: &str| match text.parse() {
            Ok(port @ 1..) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(wrong()),
        };
        let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self {
            address,
            host: port(host)?,
            guest: port(guest)?,
        })
    }
}

/// Several of them with `+` between.
fn forwards(text: &str) -> Result<Vec<Forward>, String> {
    text.split('+').map(str::parse).collect()
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetArgs {
    /// Where frames go; `parse` lets none through without.
    pub backend: Option<Backend>,
    /// Its address, if not one made from its place.
    pub mac: Option<[u8; 6]>,
    /// The longest packets, as the guest is told, if not the backend's usual ones.
    pub mtu: Option<u16>,
    /// A TAP device that does not exist comes into being.
    pub create: bool,
    /// The other side of the socket connects to us.
    pub listen: bool,
    /// TCP ports of the host that lead to the guest, with the backend `User`.
    pub tcp: Vec<Forward>,
    /// UDP ports.
    pub udp: Vec<Forward>,
    /// Pairs of queues, if not the device's usual number.
    pub queues: Option<u16>,
    /// Entries of each, a power of two, if not the usual number.
    pub queue_size: Option<u16>,
    /// What all devices have.
    pub device: DeviceArgs,
}

impl Keys for NetArgs {
    const WHAT: &'static str = "a network device";
    const KEYS: &'static [&'static str] = &[
        "tap",
        "create",
        "user",
        "tcp",
        "udp",
        "socket",
        "listen",
        "mac",
        "mtu",
        "queues",
        "queue-size",
    ];

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let backend = match key {
            "mac" => {
                self.mac = Some(mac(value)?);
                return Ok(());
            }
            "mtu" => {
                // From IPv4's least (RFC 791) to the longest packet that goes into 64 KiB with what is around it.
                self.mtu = Some(number(value, 68..=65520)? as u16);
                return Ok(());
            }
            "tcp" => {
                self.tcp = forwards(value)?;
                return Ok(());
            }
            "udp" => {
                self.udp = forwards(value)?;
                return Ok(());
            }
            "create" => {
                self.create = switch(value)?;
                return Ok(());
            }
            "listen" => {
                self.listen = switch(value)?;
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

    fn entries(&self) -> Vec<Entry> {
        let ports = |all: &[Forward]| {
            let all: Vec<_> = all.iter().map(Forward::to_string).collect();
            (!all.is_empty()).then(|| all.join("+"))
        };
        let (tap, socket) = match &self.backend {
            Some(Backend::Tap(name)) => (Some(name.clone()), None),
            Some(Backend::Socket(path)) => (None, Some(path.to_string_lossy().into_owned())),
            Some(Backend::User) | None => (None, None),
        };
        let user = self.backend == Some(Backend::User);
        let mac = self
            .mac
            .map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        let mut all = entries([
            ("tap", tap),
            ("socket", socket),
            ("tcp", ports(&self.tcp)),
            ("udp", ports(&self.udp)),
            ("mac", mac),
            ("mtu", self.mtu.map(|n| n.to_string())),
            ("queues", self.queues.map(|n| n.to_string())),
            ("queue-size", self.queue_size.map(|n| n.to_string())),
        ]);
        all.extend(switches([
            ("user", user),
            ("create", self.create),
            ("listen", self.listen),
        ]));
        all
    }

    fn check(&self) -> Result<(), String> {
        let forwards = !self.tcp.is_empty() || !self.udp.is_empty();
        match &self.backend {
            None => Err("a network device needs tap=NAME, user or socket=PATH".to_owned()),
            Some(Backend::Tap(_) | Backend::Socket(_)) if forwards => Err(
                "tcp and udp go with user; a TAP interface is reached by its address".to_owned(),
            ),
            Some(Backend::Tap(_)) if self.listen => Err("listen goes with socket=PATH".to_owned()),
            Some(Backend::Tap(_)) => Ok(()),
            Some(_) if self.create => Err("create goes with tap=NAME".to_owned()),
            Some(_) if self.queues.is_some_and(|queues| queues > 1) => Err(
                "queues: only tap=NAME has several pairs; the others carry one stream of frames"
                    .to_owned(),
            ),
            Some(Backend::User) if self.listen => Err("listen goes with socket=PATH".to_owned()),
            Some(_) => Ok(()),
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
        let net: NetArgs = parse("tap=t,mac=52:54:00:AB:cd:01,queues=2,queue-size=512").unwrap();
        assert_eq!(net.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 1]));
        assert_eq!((net.queues, net.queue_size), (Some(2), Some(512)));
        let net: NetArgs = parse("socket=/x,listen,mtu=9000").unwrap();
        assert_eq!((net.listen, net.create, net.mtu), (true, false, Some(9000)));
        let net: NetArgs = parse("user,tcp=127.0.0.1/2222:22+8080,udp=::1/53:5353").unwrap();
        let texts = |all: &[Forward]| all.iter().map(Forward::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&net.tcp), ["127.0.0.1/2222:22", "8080:8080"]);
        assert_eq!(texts(&net.udp), ["::1/53:5353"]);
        let net: NetArgs = parse("tap=t,create").unwrap();
        assert_eq!((net.listen, net.create, net.mtu), (false, true, None));
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
            ("user,queues=2", "queues: only tap=NAME has several"),
            ("user,tcp=", "tcp: '' is no forwarding"),
            ("user,tcp=0", "tcp: '0' is no forwarding"),
            ("user,tcp=+80", "tcp: '' is no forwarding"),
            ("user,udp=1:65536", "udp: '1:65536' is no"),
            ("user,udp=localhost/1", "udp: 'localhost/1' is no"),
            ("user,tcp=1:2:3", "tcp: '1:2:3' is no"),
            ("tap=t,tcp=80", "tcp and udp go with user"),
            ("socket=/x,udp=80", "tcp and udp go with user"),
            ("user,create", "create goes with tap"),
            ("user,listen", "listen goes with socket"),
            ("tap=t,listen", "listen goes with socket"),
            ("user,mtu=67", "mtu: 67 is not in 68..=65520"),
        ] {
            let error = parse::<NetArgs>(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
