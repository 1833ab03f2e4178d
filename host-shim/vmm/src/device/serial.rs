//! The 16550A serial port: vm-superio's model on the guest's bus, its interrupt an SPI through an eventfd.
//! Output goes to a writer; input comes through `SerialInput`. Registers and FIFO are the crate's.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{MmioDevice, lock};

/// The port's interrupt line.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells those who wait that the guest read its input.
#[derive(Clone, Default)]
struct Drained(Arc<(Mutex<u64>, Condvar)>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        *lock(&self.0.0) += 1;
        self.0.1.notify_all();
    }
}

type Port = Serial<Line, Drained, Box<dyn Write + Send>>;

/// The port.
pub struct SerialPort {
    port: Mutex<Port>,
    drained: Drained,
}

impl SerialPort {
    /// A port with this interrupt line that writes to `output`.
    pub fn new(line: EventFd, output: Box<dyn Write + Send>) -> Self {
        let drained = Drained::default();
        Self {
            port: Mutex::new(Serial::with_events(Line(line), drained.clone(), output)),
            drained,
        }
    }

    /// Gives the guest these bytes, waiting while its FIFO is full.
    pub fn push_all(&self, mut data: &[u8]) {
        while !data.is_empty() {
            let before = *lock(&self.drained.0.0);
            let mut port = lock(&self.port);
            // Nothing is taken in loopback mode: what was typed is lost, as on a wire.
            let loopback = port.state().modem_control & 1 << 4 != 0;
            let taken = if loopback {
                data.len()
            } else {
                let room = port.fifo_capacity().min(data.len());
                if let Err(e) = port.enqueue_raw_bytes(&data[..room])
                    && room > 0
                {
                    tracing::debug!("serial input: {e}");
                }
                room
            };
            drop(port);
            data = &data[taken..];
            if taken == 0 {
                let mut count = lock(&self.drained.0.0);
                while *count == before {
                    let woken = self.drained.0.1.wait(count);
                    count = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl MmioDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Ok(register), Some(first)) = (u8::try_from(offset), data.first_mut()) {
            *first = lock(&self.port).read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), Some(value)) = (u8::try_from(offset), data.first())
            && let Err(e) = lock(&self.port).write(register, *value)
        {
            tracing::debug!("serial output lost: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<u8>>>);

    impl Write for Sent {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Sent, EventFd) {
        let (sent, line) = (Sent::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let port = SerialPort::new(line.try_clone().unwrap(), Box::new(sent.clone()));
        (port, sent, line)
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_a_wide_store_writes_its_low_byte() {
        let (port, sent, _) = port();
        port.write(0, b"a");
        port.write(0, &0x62_u32.to_le_bytes());
        assert_eq!(*lock(&sent.0), b"ab");
    }

    #[test]
    fn input_raises_the_line_and_waits_for_room() {
        let (port, _, line) = port();
        port.write(1, &[1]);
        let text: Vec<u8> = (0..200).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| port.push_all(&text));
            let mut got = Vec::new();
            while got.len() < text.len() {
                let mut byte = [0];
                port.read(5, &mut byte);
                if byte[0] & 1 != 0 {
                    port.read(0, &mut byte);
                    got.push(byte[0]);
                }
            }
            assert_eq!(got, text);
        });
        assert!(line.read().is_ok());
    }

    #[test]
    fn registers_beyond_the_port_read_as_zero() {
        let (port, ..) = port();
        let mut data = [0; 4];
        port.read(0x100, &mut data);
        port.read(0xfff, &mut data);
        port.write(0xfff, &[1]);
        assert_eq!(data, [0; 4]);
    }
}
