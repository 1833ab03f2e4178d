//! The virtio console of a guest, over its window.

use porthole_bounce::{BounceHal, BouncePool, bounce_pool};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;

use crate::devices::Devices;
use crate::fail;
use crate::interrupt::{self, Message};
use crate::machine::Machine;
use crate::transport::WindowTransport;
use crate::window::Windows;

bounce_pool! {
    /// The console's pool.
    pub ConsolePool
}

/// Most bytes of one message: the driver's receive buffer is a page, and an answer must fit it.
pub const MESSAGE_MAX: usize = porthole_bounce::PAGE_SIZE;

/// The console, ready.
pub struct Console {
    driver: VirtIOConsole<BounceHal<ConsolePool>, WindowTransport>,
    messages: bool,
    /// Its pool.
    pub pool: &'static BouncePool<'static>,
    /// All windows of this guest.
    pub windows: Windows,
}

/// Sets the console up.
pub fn open(machine: &Machine, message: Option<Message>) -> Console {
    let devices = Devices::find(machine);
    let Some(device) = devices.of(DeviceType::Console).next() else {
        fail!("no virtio console on the PCI bus");
    };
    let (transport, pool) = devices.open("console", device, message, ConsolePool::install);
    let messages = transport.sends_messages();
    let driver =
        VirtIOConsole::new(transport).unwrap_or_else(|e| fail!("console: cannot be driven: {e}"));
    Console {
        driver,
        messages,
        pool,
        windows: devices.windows,
    }
}

impl Console {
    /// Sends `bytes`, at most [`MESSAGE_MAX`], and waits until the device has them.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(e) = self.driver.send_bytes(bytes) {
            fail!("console: cannot send {} bytes: {e}", bytes.len());
        }
    }

    fn byte(&mut self, take: bool) -> Option<u8> {
        let byte = self.driver.recv(take);
        byte.unwrap_or_else(|e| fail!("console: cannot receive: {e}"))
    }

    /// Takes what has come, up to the length of `buffer`: how much that was.
    pub fn receive(&mut self, buffer: &mut [u8]) -> usize {
        let mut got = 0;
        for to in buffer {
            match self.byte(true) {
                Some(byte) => *to = byte,
                None => break,
            }
            got += 1;
        }
        got
    }

    /// Sleeps until there is something to receive; false if `deadline` (a counter value) came first.
    pub fn wait(&mut self, deadline: Option<u64>) -> bool {
        interrupt::sleep_until(self.messages, deadline, || self.byte(false).is_some())
    }
}
