//! Unix sockets that the command makes: with a path that an earlier process may have left behind.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens at `path` without blocking; a socket there that nobody listens at is replaced.
///
/// # Errors
/// `AddrInUse` if somebody listens there, or it is no socket; whatever bind(2) says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() || UnixStream::connect(path).is_ok() {
            return Err(ErrorKind::AddrInUse.into());
        }
        // Left behind by a process that was killed.
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_without_a_listener_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = listen(&path).unwrap();
        let busy = |path: &Path| listen(path).unwrap_err().kind() == ErrorKind::AddrInUse;
        assert!(busy(&path));
        drop(first);
        listen(&path).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"kept").unwrap();
        assert!(busy(&file));
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
