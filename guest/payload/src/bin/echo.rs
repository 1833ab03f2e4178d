//! The echo guest: everything it and the host exchange goes through one window. Sends back what it gets on the
//! virtio console until a line says `quit`, or plays `mode=ping` against a console that echoes.
//! Parameters (kernel command line): see README.md. Reports on the serial port.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use core::fmt::{self, Display};
use core::ops::Range;

use porthole_payload::console::{Console, MESSAGE_MAX};
use porthole_payload::devices::RAM_POOL;
use porthole_payload::machine::{self, Machine, PAGE};
use porthole_payload::{console, fail, hypercall, interrupt};
use porthole_runtime::{println, psci, reg, timer};

porthole_runtime::entry!(main);

/// What a private page is filled with; the host must never find it.
const SECRET: &[u8; 16] = b"PORTHOLE PRIVATE";
/// Microseconds between two looks for early input.
const EARLY_MICROS: u64 = 20_000;
/// Seconds until a ping's answer is given up.
const PING_SECONDS: u64 = 300;

fn main(dtb: u64) -> ! {
    let machine = machine::start(dtb);
    println!("echo: bare-metal guest, {} cpus", machine.cpus.len());
    let secret = Secret::keep(&machine);
    println!("echo: private page at ipa {:#x}", secret.0.start);
    if machine.protected {
        introduce();
    }
    let message = interrupt::init(&machine.gic, machine.msi.as_ref());
    let mut console = console::open(&machine, message);
    match machine.args.get("mode") {
        None | Some("echo") => echo(&mut console),
        Some("ping") => ping(&machine, &mut console),
        Some(other) => fail!("parameter mode={other}: echo or ping"),
    }
    hold(&machine, &mut console);
    if !secret.holds() {
        fail!("the private page at {:#x} was changed", secret.0.start);
    }
    statistics(&console);
    drop(console);
    println!("echo: done");
    psci::system_off()
}

/// Says what the hypervisor says of itself and of this guest.
fn introduce() {
    match hypercall::features() {
        Ok((version, features)) => println!("echo: ABI {version:#x}, features {features:#x}"),
        Err(e) => fail!("the hypervisor does not answer: {e}"),
    }
    match hypercall::measurement() {
        Ok(digest) => println!("echo: measurement {}", Hex(&digest)),
        Err(e) => fail!("no measurement: {e}"),
    }
}

/// Sends back what comes, as it comes, until one line of it is `quit`.
fn echo(console: &mut Console) {
    console.send(b"echo: hello through the window\r\n");
    println!("echo: ready");
    let mut buffer = vec![0; MESSAGE_MAX];
    let mut lines = Lines::default();
    // A VMM gives the serial port what it got before the console was up: that counts too.
    let second = timer::frequency();
    let mut early_until = reg::counter() + second;
    loop {
        let now = reg::counter();
        let early = (now < early_until).then(|| now + timer::ticks(EARLY_MICROS));
        console.wait(early);
        let mut got = 0;
        while let Some(byte) = buffer
            .get(got)
            .and_then(|_| porthole_runtime::console::read())
        {
            buffer[got] = byte;
            got += 1;
            early_until = reg::counter() + second;
        }
        got += console.receive(&mut buffer[got..]);
        if got > 0 {
            console.send(&buffer[..got]);
        }
        if lines.find_quit(&buffer[..got]) {
            return;
        }
    }
}

/// The line that is coming in.
#[derive(Default)]
struct Lines {
    start: [u8; 8],
    length: usize,
}

impl Lines {
    /// Takes more bytes; true if a line of them, or one that they end, is `quit`.
    fn find_quit(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for &byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                found |= self.start.get(..self.length) == Some(b"quit");
                self.length = 0;
                continue;
            }
            if let Some(place) = self.start.get_mut(self.length) {
                *place = byte;
            }
            self.length = self.length.saturating_add(1);
        }
        found
    }
}

/// Sends `count` messages of `size` bytes and compares what comes back.
fn ping(machine: &Machine, console: &mut Console) {
    let count = machine.args.number("count", 100);
    let size = machine.args.number("size", 256);
    let size = match usize::try_from(size) {
        Ok(size @ 1..=MESSAGE_MAX) => size,
        _ => fail!("parameter size={size}: 1 to {MESSAGE_MAX}"),
    };
    println!("echo: ready");
    let (mut sent, mut back) = (vec![0; size], vec![0; size]);
    for n in 0..count {
        for (i, byte) in sent.iter_mut().enumerate() {
            *byte = pattern(n, i);
        }
        console.send(&sent);
        let mut got = 0;
        while got < size {
            let deadline = reg::counter() + PING_SECONDS * timer::frequency();
            if !console.wait(Some(deadline)) {
                fail!("message {n}: {got} of {size} bytes came back in {PING_SECONDS} s");
            }
            got += console.receive(&mut back[got..]);
        }
        if let Some(at) = (0..size).find(|i| sent[*i] != back[*i]) {
            let (expected, found) = (sent[at], back[at]);
            fail!("message {n}: byte {at} is {found:#04x}, not {expected:#04x}");
        }
    }
    println!("echo: {count} messages ok");
}

/// Byte `i` of message `n`.
fn pattern(n: u64, i: usize) -> u8 {
    (n.wrapping_mul(37) as usize).wrapping_add(i.wrapping_mul(7)) as u8
}

/// Stays for `hold=SECONDS`, or until a key comes on the console with `hold=key`.
fn hold(machine: &Machine, console: &mut Console) {
    match machine.args.get("hold") {
        None => {}
        Some("key") => {
            println!("echo: holding until a key");
            console.wait(None);
        }
        Some(_) => {
            let seconds = machine.args.number("hold", 0);
            println!("echo: holding for {seconds} s");
            let ticks = seconds.saturating_mul(timer::frequency());
            let deadline = reg::counter().saturating_add(ticks);
            interrupt::sleep_until(true, Some(deadline), || false);
        }
    }
}

fn statistics(console: &Console) {
    let s = console.pool.stats();
    println!(
        "echo: pool: {} maps, {} unmaps, {} coherent, {} bytes to the device, {} from it",
        s.maps, s.unmaps, s.coherent_allocs, s.bytes_to_device, s.bytes_from_device
    );
    println!(
        "echo: pool: {} of {} slots in use, high-water mark {}, refused: {} full, {} too large, {} other",
        s.slots_used,
        s.slots_total,
        s.slots_high_water,
        s.full,
        s.too_large,
        s.outside_window + s.invalid
    );
    println!(
        "echo: {} windows, {} interrupts",
        console.windows.len(),
        interrupt::taken()
    );
    if s.full + s.too_large + s.outside_window + s.invalid > 0 || !console.pool.check() {
        fail!("the pool refused requests");
    }
}

/// A page of private memory with a known content.
struct Secret(Range<u64>);

impl Secret {
    fn keep(machine: &Machine) -> Self {
        // Below what `swiotlb=off` takes.
        let Some(page) = machine.top(RAM_POOL, PAGE) else {
            fail!("no free page");
        };
        for at in page.clone().step_by(SECRET.len()) {
            // SAFETY: free RAM, mapped, of which only this page is used by anybody.
            unsafe { (at as *mut [u8; 16]).write_volatile(*SECRET) };
        }
        Self(page)
    }

    fn holds(&self) -> bool {
        self.0.clone().step_by(SECRET.len()).all(|at| {
            // SAFETY: as in `keep`.
            unsafe { (at as *const [u8; 16]).read_volatile() == *SECRET }
        })
    }
}

struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
