//! passt: a program that carries a guest's frames into connections of an ordinary process, without privileges.
//! It gets one end of a socket pair as its standard input, and ends when the other end is closed: with the VMM,
//! however that ends.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

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
}

/// The program at work.
#[derive(Debug)]
pub struct Passt(Child);

/// Starts it for a guest with this MTU. Returns it and the socket with the frames.
pub fn start(mtu: u16) -> Result<(Passt, UnixStream), PasstError> {
    start_program(PROGRAM, mtu)
}

fn start_program(program: &str, mtu: u16) -> Result<(Passt, UnixStream), PasstError> {
    let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
    let child = Command::new(program)
        // Without the second line a guest reaches, at its gateway's address, what only the host itself should: whatever
        // listens on the host's loopback.
        .args(["--foreground", "--quiet", "--fd", "0"])
        .args(["--no-map-gw", "--mtu"])
        .arg(mtu.to_string())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Start(e),
        })?;
    Ok((Passt(child), ours))
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Its socket may still be open here; nothing is lost that the guest could get.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = start_program("/nonexistent/passt", 1500).unwrap_err();
        assert!(error.to_string().contains("package passt"), "{error}");
    }

    /// Copies its standard input, which is the socket, back to it, if it was told to keep the guest from the host.
    const SCRIPT: &str =
        "#!/bin/sh\ncase \" $* \" in *' --no-map-gw '*) exec cat <&0 >&0 ;; esac\n";

    #[test]
    fn the_program_gets_the_socket_and_goes_with_it() {
        let script = std::env::temp_dir().join(format!("passt-test-{}", std::process::id()));
        std::fs::write(&script, SCRIPT).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&script, mode).unwrap();
        let (mut passt, mut socket) = start_program(script.to_str().unwrap(), 1500).unwrap();
        std::io::Write::write_all(&mut socket, b"frame").unwrap();
        let mut back = [0; 5];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"frame");
        drop(socket);
        assert!(passt.0.wait().unwrap().success());
        std::fs::remove_file(script).unwrap();
    }
}
