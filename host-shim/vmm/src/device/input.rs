//! Standard input: the terminal's mode, the key that leaves, and where what is typed goes.
//! The devices that take the bytes are elsewhere.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};

use vmm_sys_util::terminal::Terminal;

use super::serial::SerialPort;
use crate::end::End;
use crate::virtio::console::Input;
use crate::virtio::transport::VirtioPci;

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Keeps a terminal raw while it lives; nothing if standard input is none.
pub struct RawTerminal(bool);

impl RawTerminal {
    /// Switches echo, line editing and signal keys off.
    pub fn enter() -> Self {
        let stdin = io::stdin();
        let raw = stdin.is_terminal() && stdin.lock().set_raw_mode().is_ok();
        Self(raw)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The reader has a descriptor of its own, so the lock is free.
        if self.0 && io::stdin().lock().set_canon_mode().is_err() {
            eprintln!("porthole: cannot restore the terminal; type `reset`");
        }
    }
}

/// Takes what is typed.
pub struct Keyboard {
    /// The virtio console and its function, if it is on standard input.
    pub console: Option<(Arc<Input>, Arc<VirtioPci>)>,
    /// The serial port, if it is.
    pub serial: Option<Arc<SerialPort>>,
    /// Told when the user wants to leave.
    pub events: mpsc::Sender<End>,
}

impl Keyboard {
    /// Reads standard input in a thread of its own until it ends.
    pub fn start(self) -> io::Result<()> {
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let builder = std::thread::Builder::new().name("stdin".to_owned());
        builder.spawn(move || self.read(stdin)).map(|_| ())
    }

    fn read(&self, mut stdin: File) {
        let terminal = io::stdin().is_terminal();
        let mut buffer = [0; 4096];
        loop {
            let count = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    tracing::debug!("standard input: {e}");
                    return;
                }
            };
            let typed = &buffer[..count];
            let left = typed.iter().position(|b| terminal && *b == LEAVE);
            self.give(&typed[..left.unwrap_or(count)]);
            if left.is_some() {
                let _ = self.events.send(End::Left);
                return;
            }
        }
    }

    /// To the virtio console while a driver runs it, else to the serial port.
    fn give(&self, data: &[u8]) {
        match (&self.console, &self.serial) {
            (Some((input, function)), serial) if function.running() || serial.is_none() => {
                input.push_all(data);
            }
            (_, Some(serial)) => serial.push_all(data),
            _ => {}
        }
    }
}
