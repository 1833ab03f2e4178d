//! A console behind a lock: the program gives a byte sink, `println!` works on every CPU.

use core::fmt::{self, Write};

use spin::Mutex;

use crate::mmio;

/// A UART that takes bytes at a fixed address.
#[derive(Clone, Copy)]
pub enum Uart {
    /// Arm PL011 at this address.
    Pl011(u64),
    /// 16550 with byte registers at this address.
    Ns16550(u64),
}

impl Uart {
    fn put(self, byte: u8) {
        // SAFETY: the program named this address as its UART; the registers are byte or word wide there
        // and a write has no effect but sending.
        unsafe {
            match self {
                Self::Pl011(base) => {
                    while mmio::read32(base + 0x18) & (1 << 5) != 0 {}
                    mmio::write32(base, u32::from(byte));
                }
                Self::Ns16550(base) => {
                    while mmio::read8(base + 5) & (1 << 5) == 0 {}
                    mmio::write8(base, byte);
                }
            }
        }
    }
}

impl Uart {
    fn get(self) -> Option<u8> {
        // SAFETY: as in `put`; a read of the data register takes the byte out, which is wanted.
        unsafe {
            match self {
                Self::Pl011(base) => {
                    (mmio::read32(base + 0x18) & (1 << 4) == 0).then(|| mmio::read32(base) as u8)
                }
                Self::Ns16550(base) => (mmio::read8(base + 5) & 1 != 0).then(|| mmio::read8(base)),
            }
        }
    }
}

impl Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for b in s.bytes() {
            if b == b'\n' {
                self.put(b'\r');
            }
            self.put(b);
        }
        Ok(())
    }
}

static CONSOLE: Mutex<Option<Uart>> = Mutex::new(None);

/// Chooses the console; before it nothing is printed.
pub fn set(uart: Uart) {
    *CONSOLE.lock() = Some(uart);
}

/// A byte that has come on the console, if one has.
pub fn read() -> Option<u8> {
    CONSOLE.lock().and_then(Uart::get)
}

/// For `print!` and `println!`.
pub fn print(args: fmt::Arguments<'_>) {
    if let Some(uart) = CONSOLE.lock().as_mut() {
        let _ = uart.write_fmt(args);
    }
}

/// For `println!`: the line and its end under one lock.
pub fn print_line(args: fmt::Arguments<'_>) {
    print(format_args!("{args}\n"));
}

/// Prints to the console that [`set`] chose.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::console::print_line(format_args!($($arg)*)) };
}
