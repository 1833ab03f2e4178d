//! Where messages go: the ring always; a UART of the hypervisor's own if the machine has one; else the console until
//! the host runs. A fatal report goes everywhere.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use porthole_arch::time;
use porthole_core::addr::PhysAddr;
use porthole_core::log_ring::LogRing;
use porthole_dev::pl011::Pl011;
use spin::Mutex;

/// What `LOG_READ` shows.
pub static RING: LogRing = LogRing::new();

/// UART bases, 0 for none; each is mapped before it is stored here.
static CONSOLE: AtomicU64 = AtomicU64::new(0);
static LOG_UART: AtomicU64 = AtomicU64::new(0);
/// The console is the host's now.
static HOST_RUNS: AtomicBool = AtomicBool::new(false);
/// Keeps lines whole. A leaf lock, taken with interrupts masked like every lock of EL2.
static LINE: Mutex<()> = Mutex::new(());
/// How long a fatal report waits for the line lock, whose holder may be the one who failed.
const FATAL_PATIENCE: u32 = 1_000_000;

struct Logger;

static LOGGER: Logger = Logger;

/// Opens the console.
///
/// # Safety
/// `base` is a PL011 that EL2 reaches as device memory, or with the MMU off, for good.
pub unsafe fn set_console(base: PhysAddr) {
    CONSOLE.store(base.raw(), Ordering::Relaxed);
}

/// Opens the hypervisor's own UART.
///
/// # Safety
/// As for [`set_console`].
pub unsafe fn set_log_uart(base: PhysAddr) {
    LOG_UART.store(base.raw(), Ordering::Relaxed);
}

/// Starts logging.
pub fn init(level: LevelFilter) {
    // It fails when a logger is set already, which only this function does.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// From now on the console is left to the host.
pub fn host_runs() {
    HOST_RUNS.store(true, Ordering::Relaxed);
}

fn uart(base: &AtomicU64) -> Option<Pl011> {
    // SAFETY: only the setters above store a base, under the contract of `Pl011::new`.
    unsafe { Pl011::new(PhysAddr::new(base.load(Ordering::Relaxed))) }
}

/// All places for one text.
struct Sinks {
    ring: &'static LogRing,
    uarts: [Option<Pl011>; 2],
}

impl Sinks {
    fn for_log() -> Self {
        let own = uart(&LOG_UART);
        let console = if own.is_none() && !HOST_RUNS.load(Ordering::Relaxed) {
            uart(&CONSOLE)
        } else {
            None
        };
        Self {
            ring: &RING,
            uarts: [own, console],
        }
    }

    fn for_fatal() -> Self {
        Self {
            ring: &RING,
            uarts: [uart(&LOG_UART), uart(&CONSOLE)],
        }
    }
}

impl Write for Sinks {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.ring.write(text.as_bytes());
        for uart in self.uarts.iter_mut().flatten() {
            uart.write_str(text)?;
        }
        Ok(())
    }
}

/// Time since the counter started, as seconds and microseconds.
fn time_stamp() -> (u64, u64) {
    let (now, frequency) = (time::counter(), time::frequency().max(1));
    (now / frequency, now % frequency * 1_000_000 / frequency)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (seconds, micros) = time_stamp();
        let _line = LINE.lock();
        // Sinks never fail.
        let _ = writeln!(
            Sinks::for_log(),
            "[{seconds:5}.{micros:06}] porthole: {}{}",
            match record.level() {
                log::Level::Error => "error: ",
                log::Level::Warn => "warning: ",
                _ => "",
            },
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Writes one line everywhere, whatever state the machine is in. Bounded, takes no lock for long.
pub fn fatal(line: fmt::Arguments<'_>) {
    let guard = (0..FATAL_PATIENCE).find_map(|_| LINE.try_lock());
    let mut sinks = Sinks::for_fatal();
    let _ = writeln!(sinks, "porthole: {line}");
    for uart in sinks.uarts.iter_mut().flatten() {
        uart.drain();
    }
    drop(guard);
}

/// Writes one line on the console with the MMU off: no lock, no ring.
///
/// # Safety
/// `base` is a PL011; the MMU is off or maps it as device memory.
pub unsafe fn bare_line(base: PhysAddr, line: fmt::Arguments<'_>) {
    // SAFETY: the caller's promise.
    if let Some(mut uart) = unsafe { Pl011::new(base) } {
        let _ = writeln!(uart, "porthole: {line}");
        uart.drain();
    }
}
