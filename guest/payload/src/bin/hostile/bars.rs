//! BARs that move or vanish under a device that works (a23): the window follows or goes nowhere, the device asks for
//! a reset, nobody else notices, and in the old place is nothing. Source: PCI Local Bus 3.0, 6.2.5.

use porthole_payload::fail;
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::probe;
use virtio_drivers::transport::DeviceType;

use crate::Bench;
use crate::health::{READ, SECTOR, header};
use crate::victim::{
    CANARY, DATA, NEEDS_RESET, NEXT, RUNNING, SEND, STATUS, Victim, WRITE, descriptor,
};

const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
/// Registers, 32 bits.
const REGISTERS_BAR: u64 = 0x10;
/// The window, 64 bits.
const WINDOW_BAR: u64 = 0x20;
const BAR_FLAGS: u64 = 0xf;

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    decode_off(bench, n);
    follows(bench, n);
    for (what, to) in places(bench, n) {
        window_to(bench, n, to, what);
    }
    let others = (0..bench.victims.len()).filter(|other| *other != n);
    let others: alloc::vec::Vec<_> = others
        .map(|other| bench.victims[other].raw.registers.base())
        .collect();
    for to in others {
        registers_to(bench, n, to);
    }
    registers_to(bench, n, bench.aperture.start);
    registers_to(bench, n, 0);
    registers_to(bench, n, bench.private.base());
}

/// Where a window may not go.
fn places(bench: &Bench, n: usize) -> alloc::vec::Vec<(&'static str, u64)> {
    let window = bench.victims[n].window();
    let mut places = alloc::vec![
        ("the window in private memory", bench.private.base()),
        ("the window at address 0", 0),
        ("the window at the interrupt controller", 0x0800_0000),
        (
            "the window behind all addresses",
            0u64.wrapping_sub(window.size())
        ),
        ("the window behind the aperture", bench.aperture.end),
        (
            "the window before the aperture",
            bench.aperture.start - window.size()
        ),
        (
            "the window over the registers",
            bench.victims[n].raw.registers.base()
        ),
    ];
    for other in bench
        .victims
        .iter()
        .filter(|v| v.name != bench.victims[n].name)
    {
        places.push(("the window in another's", other.window().base()));
        let last = other.window().end() - window.size().min(other.window().size());
        places.push(("the window at the end of another's", last));
    }
    places
}

impl Victim {
    fn command(&self, set: u16, clear: u16) {
        let config = self.raw.function.config();
        let command = config.read16(COMMAND);
        config.write16(COMMAND, command & !clear | set);
    }

    fn move_window(&self, to: u64) {
        let config = self.raw.function.config();
        let flags = u64::from(config.read32(WINDOW_BAR)) & BAR_FLAGS;
        // The upper half first: between the two writes the window is nowhere that matters.
        config.write32(WINDOW_BAR + 4, (to >> 32) as u32);
        config.write32(WINDOW_BAR, (to | flags) as u32);
    }

    /// Requests that are under way while something is taken from below them.
    pub fn busy(&mut self) {
        let queue = if self.waits(0) { 1 } else { 0 };
        let flags = if self.receives(queue) { WRITE } else { 0 };
        for index in 0..12 {
            let at = self.bus(DATA + 0x100 * u64::from(index));
            self.describe(queue, index, descriptor(at, 0x100, flags, 0));
        }
        if self.kind == DeviceType::Block {
            header(self.window(), READ, 0);
            let length = 16 * SECTOR;
            let head = descriptor(self.bus(SEND), 16, NEXT, 13);
            self.describe(
                queue,
                13,
                descriptor(self.bus(DATA), length, NEXT | WRITE, 14),
            );
            self.describe(queue, 14, descriptor(self.bus(STATUS), 1, WRITE, 0));
            for index in 0..12 {
                self.describe(queue, index, head);
            }
        }
        for index in 0..12 {
            self.offer(queue, index);
        }
        self.kick(queue);
    }
}

/// What the CPU finds at an address, by a load that may fault.
fn look(at: u64) -> Option<u64> {
    probe::read(at, 0).ok()
}

/// Memory decode off and on again.
fn decode_off(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    victim.busy();
    victim.command(0, COMMAND_MEMORY);
    let guard = victim.window().end() - 8;
    if look(guard) == Some(CANARY) {
        fail!(
            "{}: the window is still there with decoding off",
            victim.name
        );
    }
    victim.command(COMMAND_MEMORY, 0);
    if look(guard) != Some(CANARY) {
        fail!("{}: the window does not come back", victim.name);
    }
    bench.needs_reset(n, "decoding off and on");
}

/// The window somewhere else, and back.
fn window_to(bench: &mut Bench, n: usize, to: u64, what: &str) {
    let victim = &mut bench.victims[n];
    let (home, guard) = (victim.window().base(), victim.window().end() - 8);
    if to & !(victim.window().size() - 1) == home {
        return;
    }
    victim.busy();
    victim.move_window(to);
    if look(guard) == Some(CANARY) {
        fail!("{}: {what}: the window is still where it was", victim.name);
    }
    if victim.raw.status() & NEEDS_RESET == 0 {
        fail!("{}: {what}: its driver does not hear of it", victim.name);
    }
    // A driver that starts it there gets nowhere.
    victim.raw.reset();
    let features = victim.features();
    victim.negotiate(features);
    victim.raw.set_status(RUNNING);
    if victim.raw.status() & NEEDS_RESET == 0 {
        fail!(
            "{}: {what}: it runs with a window that is nowhere",
            victim.name
        );
    }
    victim.move_window(home);
    if look(guard) != Some(CANARY) {
        fail!("{}: {what}: the window does not come back", victim.name);
    }
    bench.needs_reset(n, what);
}

/// The registers somewhere else, and back: the device works on, once they are where they were.
fn registers_to(bench: &mut Bench, n: usize, to: u64) {
    let victim = &mut bench.victims[n];
    let home = victim.raw.registers.base();
    let config = *victim.raw.function.config();
    victim.busy();
    config.write32(REGISTERS_BAR, to as u32);
    if to != home && config.read32(REGISTERS_BAR) == home as u32 {
        fail!("{}: its registers do not move", victim.name);
    }
    config.write32(REGISTERS_BAR, home as u32);
    bench.victims[n].attacks += 1;
    bench.restart(n, "its registers elsewhere");
}

/// The window in free room of the aperture: it follows, with what is in it, and the device works there.
fn follows(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    let (home, size) = (victim.window().base(), victim.window().size());
    let to = (bench.aperture.end - size) & !(size - 1);
    victim.move_window(to);
    mmu::map(to, to, size, Attr::Data);
    if look(to + size - 8) != Some(CANARY) || look(home + size - 8) == Some(CANARY) {
        fail!("{}: the window does not follow its BAR", victim.name);
    }
    victim.move_window(home);
    bench.needs_reset(n, "its window elsewhere");
}
