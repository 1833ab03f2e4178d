//! The VMM's control socket: who asks gets how the VM stands, one JSON object a connection.
//! Read only: nothing that is said here changes the guest. The other end is `command::status`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use porthole_abi::{ExitKind, VmState};
use porthole_uapi::{RunPage, Vm};
use serde::Serialize;

use crate::virtio::transport::{FunctionStatus, VirtioPci};

/// Folder of the sockets.
pub const FOLDER: &str = "/run/porthole";
/// What is asked.
const STATUS: &str = "status";
/// Longest question, in bytes.
const REQUEST_MAX: u64 = 64;
/// How long one asker may take to say or hear anything, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(10);
/// Askers that are served side by side, so that a slow one keeps nobody waiting.
const ASKERS_MAX: usize = 16;

/// The socket of the VM with this handle.
pub fn path(folder: &Path, handle: u64) -> PathBuf {
    folder.join(format!("{handle:#x}.sock"))
}

/// A vCPU's exits since it started.
#[derive(Debug, Serialize)]
struct VcpuStatus {
    index: usize,
    /// By kind.
    exits: serde_json::Map<String, serde_json::Value>,
}

/// How a VM stands.
#[derive(Debug, Serialize)]
struct Status {
    handle: String,
    name: Option<String>,
    pid: u32,
    state: &'static str,
    protected: bool,
    memory_pages: u64,
    blocks_2m: u64,
    ram_faults: u64,
    metadata_pages: u64,
    metadata_free: u64,
    windows: u32,
    vcpus: Vec<VcpuStatus>,
    devices: Vec<FunctionStatus>,
}

/// What an answer is made of.
pub struct Source {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its handle.
    pub handle: u64,
    /// Its name.
    pub name: Option<String>,
    /// Whether its memory is private.
    pub protected: bool,
    /// Its vCPUs' run pages, in order.
    pub pages: Vec<RunPage>,
    /// Its devices; not held, since each cleans up (a socket's file, an interface) when the VM is dropped.
    pub functions: Vec<Weak<VirtioPci>>,
}

/// Exits by the names of their kinds; those that never happened are left out.
fn by_name(exits: &[u64]) -> serde_json::Map<String, serde_json::Value> {
    let named = exits.iter().zip(0u64..).filter(|(count, _)| **count > 0);
    let named = named.filter_map(|(count, kind)| {
        let kind = ExitKind::from_number(kind)?;
        Some((format!("{kind:?}"), (*count).into()))
    });
    named.collect()
}

impl Source {
    fn status(&self) -> io::Result<Status> {
        let info = self.vm.info()?;
        let vcpus = self.pages.iter().enumerate().map(|(index, page)| {
            let exits = by_name(&page.exits());
            VcpuStatus { index, exits }
        });
        Ok(Status {
            handle: format!("{:#x}", self.handle),
            name: self.name.clone(),
            pid: std::process::id(),
            state: VmState::from_number(info.state.into()).map_or("Unknown", VmState::name),
            protected: self.protected,
            memory_pages: info.memory_pages,
            blocks_2m: info.blocks_2m,
            ram_faults: info.ram_faults,
            metadata_pages: info.metadata_pages,
            metadata_free: info.metadata_free,
            windows: info.windows,
            vcpus: vcpus.collect(),
            devices: self
                .functions
                .iter()
                .filter_map(Weak::upgrade)
                .map(|f| f.status())
                .collect(),
        })
    }
}

/// The socket; gone from its folder when this is dropped.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Answers at `path` in a thread of its own. `answer` gives the object.
pub fn serve<F, T>(path: PathBuf, answer: F) -> io::Result<Socket>
where
    F: Fn() -> io::Result<T> + Send + Sync + 'static,
    T: Serialize,
{
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    // Handles are never used twice while the machine runs: what lies here is of an earlier boot.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let socket = Socket(path);
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            // Each asker's thread holds one, and the loop here another.
            let answer = Arc::new(answer);
            for stream in listener.incoming() {
                let started = stream.and_then(|stream| serve_one(stream, &answer));
                if let Err(e) = started {
                    tracing::debug!("control socket: {e}");
                    // Out of descriptors or threads, most likely: whoever asks again may find one.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        })?;
    Ok(socket)
}

/// Answers one asker in a thread of its own; one too many is hung up on.
fn serve_one<F, T>(stream: UnixStream, answer: &Arc<F>) -> io::Result<()>
where
    F: Fn() -> io::Result<T> + Send + Sync + 'static,
    T: Serialize,
{
    if Arc::strong_count(answer) > ASKERS_MAX {
        return Err(io::Error::other("too many ask at once"));
    }
    let answer = answer.clone();
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            if let Err(e) = reply(stream, &*answer) {
                tracing::debug!("control socket: {e}");
            }
        })?;
    Ok(())
}

/// The status of a VM at its usual place.
pub fn serve_status(source: Source) -> io::Result<Socket> {
    serve(path(Path::new(FOLDER), source.handle), move || {
        source.status()
    })
}

fn reply<T: Serialize>(
    mut stream: UnixStream,
    answer: &impl Fn() -> io::Result<T>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new((&stream).take(REQUEST_MAX)).read_line(&mut request)?;
    let text = match request.trim_end() {
        STATUS => answer()
            .and_then(|status| serde_json::to_string(&status).map_err(io::Error::other))
            .unwrap_or_else(|e| error(&e.to_string())),
        other => error(&format!("'{other}' is no request; ask for {STATUS}")),
    };
    stream.write_all(text.as_bytes())?;
    stream.write_all(b"\n")
}

fn error(why: &str) -> String {
    serde_json::json!({ "error": why }).to_string()
}

/// Asks at a socket; the object that came back.
pub fn ask(path: &Path) -> io::Result<serde_json::Value> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{STATUS}")?;
    let value: serde_json::Value = serde_json::from_reader(BufReader::new(stream))?;
    match value.get("error").and_then(|e| e.as_str()) {
        Some(why) => Err(io::Error::other(why.to_owned())),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn served() -> (tempfile::TempDir, PathBuf, Socket) {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("run"), 0x101);
        let socket = serve(path.clone(), || Ok(serde_json::json!({ "vcpus": 2 }))).unwrap();
        (folder, path, socket)
    }

    #[test]
    fn who_asks_gets_one_object() {
        let (_folder, path, _socket) = served();
        assert!(path.ends_with("run/0x101.sock"));
        for _ in 0..3 {
            assert_eq!(ask(&path).unwrap()["vcpus"], 2);
        }
    }

    #[test]
    fn other_requests_are_answered_with_an_error() {
        let (_folder, path, _socket) = served();
        for request in ["reboot\n".to_owned(), "\n".to_owned(), "x".repeat(4096)] {
            let mut stream = UnixStream::connect(&path).unwrap();
            // The other end may have closed before all of a long one was written.
            let _ = stream.write_all(request.as_bytes());
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            assert!(text.contains("ask for status") || text.is_empty(), "{text}");
        }
        assert_eq!(ask(&path).unwrap()["vcpus"], 2);
    }

    #[test]
    fn an_asker_that_goes_away_holds_nobody_up() {
        let (_folder, path, _socket) = served();
        drop(UnixStream::connect(&path).unwrap());
        assert_eq!(ask(&path).unwrap()["vcpus"], 2);
    }

    #[test]
    fn askers_that_say_nothing_keep_nobody_waiting_and_are_not_without_end() {
        let (_folder, path, _socket) = served();
        let connect = || UnixStream::connect(&path).unwrap();
        let mut silent: Vec<_> = (1..ASKERS_MAX).map(|_| connect()).collect();
        let start = Instant::now();
        assert_eq!(ask(&path).unwrap()["vcpus"], 2);
        assert!(start.elapsed() < PATIENCE, "behind those who say nothing");
        silent.extend((0..4).map(|_| connect()));
        // Those beyond the most are hung up on before the others' time is over.
        let last = silent.last_mut().unwrap();
        last.set_read_timeout(Some(PATIENCE / 2)).unwrap();
        assert_eq!(last.read(&mut [0]).unwrap(), 0);
        drop(silent);
        while ask(&path).is_err() {
            assert!(start.elapsed() < 4 * PATIENCE);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn the_socket_goes_with_its_vm_and_only_its_owner_may_ask() {
        let (_folder, path, socket) = served();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn exits_are_named() {
        let mut exits = [0; 11];
        exits[ExitKind::MmioRead as usize] = 3;
        let named = by_name(&exits);
        assert_eq!(named.len(), 1);
        assert_eq!(named["MmioRead"], 3);
    }
}
