//! passt: a program that carries a guest's frames into connections of an ordinary process, without privileges.
//! It gets one end of a socket pair and goes to the background once it is ready, so a network that it cannot have is an
//! error before there is a VM. It ends when the other end is closed: with the VMM, however that ends.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;

/// The program, looked for in PATH.
const PROGRAM: &str = "passt";
/// The longest packets that go through it: the fewest there can be.
pub const MTU: u16 = 65520;

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not there.
    #[error(
        "--net user needs the program {PROGRAM}, which is not in PATH; install Debian's package passt, or use tap=NAME"
    )]
    Missing,
    /// It cannot be started.
    #[error("cannot start {PROGRAM} for --net user: {0}")]
    Start(io::Error),
    /// A port that is to lead to the guest.
    #[error("cannot listen at {0} for the guest: {1}; choose another port or address of the host")]
    Port(Forward, io::Error),
    /// Some versions have no port below 1024, and do not say so.
    #[error("{PROGRAM} does not listen at {0} for the guest; choose a port from 1024 on")]
    Deaf(Forward),
    /// It started, and said no.
    #[error("--net user: {PROGRAM} cannot work here: {0}")]
    Refused(String),
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The host's address that is listened at; all of them if none.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

/// As it is written on the command line, passt's too.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}/")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// Listens at a port of the host for a moment.
type Listen = fn(&Forward) -> io::Result<()>;

fn listen_tcp(forward: &Forward) -> io::Result<()> {
    TcpListener::bind(forward.place()).map(drop)
}

fn listen_udp(forward: &Forward) -> io::Result<()> {
    UdpSocket::bind(forward.place()).map(drop)
}

impl Forward {
    fn place(&self) -> (IpAddr, u16) {
        let all = Ipv4Addr::UNSPECIFIED.into();
        (self.address.unwrap_or(all), self.host)
    }
}

/// What it is to do beside carrying frames.
#[derive(Clone, Copy, Debug)]
pub struct PasstOptions<'a> {
    /// The longest packets, as the guest is told.
    pub mtu: u16,
    /// TCP ports of the host that lead to the guest.
    pub tcp: &'a [Forward],
    /// UDP ports.
    pub udp: &'a [Forward],
}

impl PasstOptions<'_> {
    /// All ports, each with passt's option for it and a way to listen at it.
    fn ports(&self) -> impl Iterator<Item = (&'static str, &Forward, Listen)> {
        let tcp = self
            .tcp
            .iter()
            .map(|f| ("--tcp-ports", f, listen_tcp as Listen));
        tcp.chain(
            self.udp
                .iter()
                .map(|f| ("--udp-ports", f, listen_udp as Listen)),
        )
    }
}

/// Starts it for a guest. Returns the socket with the frames.
pub fn start(options: PasstOptions<'_>) -> Result<UnixStream, PasstError> {
    start_program(PROGRAM, options)
}

fn start_program(program: &str, options: PasstOptions<'_>) -> Result<UnixStream, PasstError> {
    let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
    // Not as its standard input: that it closes when it goes to the background. No other thread starts programs.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|e| PasstError::Start(e.into()))?;
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--stderr", "--fd"])
        .arg(theirs.as_raw_fd().to_string())
        // Without this a guest reaches, at its gateway's address, what only the host itself should: whatever listens
        // on the host's loopback.
        .arg("--no-map-gw")
        .args(["--mtu", &options.mtu.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (option, forward, listen) in options.ports() {
        // It says nothing if it cannot.
        listen(forward).map_err(|e| PasstError::Port(*forward, e))?;
        command.args([option, &forward.to_string()]);
    }
    let output = command.output().map_err(|e| match e.kind() {
        ErrorKind::NotFound => PasstError::Missing,
        _ => PasstError::Start(e),
    })?;
    if output.status.success() {
        let mut deaf = options.ports().filter(|(_, f, listen)| listen(f).is_ok());
        return match deaf.next() {
            None => Ok(ours),
            Some((_, forward, _)) => Err(PasstError::Deaf(*forward)),
        };
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Without a system logger it complains of that too, and that it will not run as root.
    let reason = said
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    Err(PasstError::Refused(match reason {
        Some(reason) => reason.to_owned(),
        None => output.status.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::seccomp::tests::alone;

    const OPTIONS: PasstOptions<'_> = PasstOptions {
        mtu: 1500,
        tcp: &[],
        udp: &[],
    };

    /// A program of this text in place of passt.
    fn script(folder: &Path, text: &str) -> String {
        let path = folder.join("passt");
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let _alone = alone();
        let error = start_program("/nonexistent/passt", OPTIONS).unwrap_err();
        assert!(error.to_string().contains("package passt"), "{error}");
    }

    #[test]
    fn a_program_that_says_no_is_quoted() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        for (text, says) in [
            (
                "echo 'Failed to send 9 bytes to syslog
                No routable interface
                Failed to send 9 bytes to syslog' >&2; exit 1",
                "cannot work here: No routable interface",
            ),
            ("exit 3", "cannot work here: exit status: 3"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let error = start_program(&script(folder.path(), text), OPTIONS).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    /// Goes to the background as passt does, and copies what it gets back, behind the arguments it was given. The other
    /// end of the pair is not among its descriptors.
    const ECHO: &str = r#"
        fd=$(sed -n 's/.*--fd \([0-9]*\) .*/\1/p' <<<"$*")
        (echo "$*" >&$fd; exec cat <&$fd >&$fd 2>/dev/null) </dev/null >/dev/null 2>&1 &
    "#;

    #[test]
    fn the_program_gets_the_socket_and_goes_with_it() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let mut socket = start_program(&script(folder.path(), ECHO), OPTIONS).unwrap();
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.ends_with("--no-map-gw --mtu 1500\n"), "{said}");
        socket.write_all(b"frame").unwrap();
        let mut back = [0; 5];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"frame");
        // Were a copy of our end left with it, it would never see this one close.
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut back).unwrap(), 0, "it ended");
    }

    fn loopback(host: u16, guest: u16) -> Forward {
        let address = Some(Ipv4Addr::LOCALHOST.into());
        Forward {
            address,
            host,
            guest,
        }
    }

    #[test]
    fn ports_that_somebody_has_are_named_and_so_are_those_that_the_program_leaves_out() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "echo $* >$0.said; exit 0");
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let tcp = [loopback(port, 22)];
        let options = PasstOptions {
            tcp: &tcp,
            ..OPTIONS
        };
        let error = start_program(&program, options).unwrap_err().to_string();
        let says = format!("cannot listen at 127.0.0.1/{port}:22 for the guest:");
        assert!(error.starts_with(&says), "{error}");
        drop(held);
        let error = start_program(&program, options).unwrap_err().to_string();
        assert!(error.contains("does not listen at 127.0.0.1/"), "{error}");
        let said = std::fs::read_to_string(folder.path().join("passt.said")).unwrap();
        assert!(
            said.ends_with(&format!("--tcp-ports 127.0.0.1/{port}:22\n")),
            "{said}"
        );
        let held = UdpSocket::bind("0.0.0.0:0").unwrap();
        let udp = [Forward {
            address: None,
            ..loopback(held.local_addr().unwrap().port(), 53)
        }];
        let options = PasstOptions {
            udp: &udp,
            ..OPTIONS
        };
        assert!(
            matches!(start_program(&program, options), Err(PasstError::Port(f, _)) if f == udp[0])
        );
    }
}
