//! The hostile guest: its driver does to every virtio device what a device must survive, and looks after each attack
//! whether the device asks for a reset or refuses, works again after one, reached nothing outside its window, and
//! whether all other devices go on working. Attacks a23, a25, a26. Parameters (kernel command line): see README.md.
#![no_std]
#![no_main]

extern crate alloc;

mod bars;
mod block;
mod chains;
mod health;
mod midway;
mod net;
mod setup;
mod simple;
mod victim;
mod vsock;

use alloc::vec::Vec;

use porthole_payload::devices::Devices;
use porthole_payload::machine::{self, Machine};
use porthole_payload::raw::Memory;
use porthole_payload::{fail, interrupt};
use porthole_runtime::{println, psci};
use virtio_drivers::transport::DeviceType;

use victim::{CANARY, Victim};

porthole_runtime::entry!(main);

/// Bytes of private memory that no device may reach.
const PRIVATE: u64 = 64 << 10;

/// The devices, as the VMM calls them, with the features that an orderly driver takes here: the network's checksum,
/// TSO over IPv4 and control queue, nothing else.
const KINDS: [(&str, DeviceType, u64); 5] = [
    ("console", DeviceType::Console, 0),
    ("disk0", DeviceType::Block, 1 << 9 | 1 << 13 | 1 << 14),
    ("net0", DeviceType::Network, 1 | 1 << 11 | 1 << 17),
    ("vsock", DeviceType::Socket, 1),
    ("rng", DeviceType::EntropySource, 0),
];

/// All devices, and what no device may reach.
pub struct Bench {
    /// The devices, one of each kind.
    pub victims: Vec<Victim>,
    /// Private memory with the canary in it.
    pub private: Memory,
    /// Where windows may be.
    pub aperture: core::ops::Range<u64>,
    /// MPIDR of a second CPU, if there is one.
    pub helper: Option<u64>,
    rounds: u32,
}

impl Bench {
    /// After an attack on device `n`: nothing was reached that must not be; the device works, and so does another, a
    /// different one each time.
    fn settle(&mut self, n: usize, what: &str) {
        if let Some(at) = self.private.find_other(0, PRIVATE, CANARY) {
            fail!(
                "{what}: private memory at {:#x} was changed",
                self.private.base() + at
            );
        }
        for victim in &self.victims {
            if !victim.guarded() {
                fail!("{what}: what {} was never given was changed", victim.name);
            }
        }
        self.rounds += 1;
        health::check(&mut self.victims[n], self.rounds, what);
        let other = self.rounds as usize % self.victims.len();
        if other != n {
            health::check(&mut self.victims[other], self.rounds, what);
        }
    }

    /// Device `n` must ask for a reset; then it works again.
    pub fn needs_reset(&mut self, n: usize, what: &str) {
        self.victims[n].expect_reset(what);
        self.restart(n, what);
    }

    /// Device `n` must go on as if nothing had been.
    pub fn harmless(&mut self, n: usize, what: &str) {
        self.victims[n].expect_running(what);
        self.settle(n, what);
    }

    /// Starts device `n` anew, after which all work.
    pub fn restart(&mut self, n: usize, what: &str) {
        self.victims[n].start();
        self.settle(n, what);
    }

    /// Addresses that device `n` has no business at: with a name, and how many bytes from there on.
    pub fn forbidden(&self, n: usize) -> [(&'static str, u64, u32); 12] {
        let window = self.victims[n].window();
        let other = self.victims[(n + 1) % self.victims.len()].window();
        [
            ("right before the window", window.base() - 16, 16),
            ("over the window's start", window.base() - 8, 16),
            ("over the window's end", window.end() - 8, 16),
            ("right behind the window", window.end(), 1),
            ("nothing, behind the window", window.end(), 0),
            (
                "all of 32 bits from the window's start",
                window.base(),
                u32::MAX,
            ),
            (
                "all of 32 bits from the window's end",
                window.end() - 1,
                u32::MAX,
            ),
            ("over the end of the address space", u64::MAX - 7, 16),
            ("address 0", 0, 4096),
            ("private memory", self.private.base(), 4096),
            (
                "another device's window",
                other.base() + other.size() - 4096,
                4096,
            ),
            (
                "its own registers",
                self.victims[n].raw.registers.base(),
                64,
            ),
        ]
    }
}

/// Does its worst to the device of this number.
type Attack = fn(&mut Bench, usize);

fn main(dtb: u64) -> ! {
    let machine = machine::start(dtb);
    interrupt::init(&machine.gic, None);
    let devices = Devices::find(&machine);
    let mut bench = make(&machine, &devices);
    if machine.args.get("start") == Some("key") {
        println!("hostile: ready");
        wait_for_key();
    }
    for victim in &mut bench.victims {
        victim.start();
    }
    for n in 0..bench.victims.len() {
        bench.settle(n, "before the first attack");
    }
    println!("hostile: {} devices work", bench.victims.len());
    let attacks: [(&str, Attack); 5] = [
        ("setup", setup::all),
        ("chains", chains::all),
        ("bars", bars::all),
        ("midway", midway::all),
        ("own", own),
    ];
    for (name, attack) in attacks {
        if machine.args.get("only").is_some_and(|only| only != name) {
            continue;
        }
        for n in 0..bench.victims.len() {
            let before = bench.victims[n].attacks;
            attack(&mut bench, n);
            let victim = &bench.victims[n];
            println!(
                "hostile: {}: {name}: {} attacks",
                victim.name,
                victim.attacks - before
            );
        }
    }
    for victim in &bench.victims {
        println!(
            "hostile: {}: {} attacks, {} resets asked for",
            victim.name, victim.attacks, victim.resets
        );
    }
    println!(
        "hostile: {} rounds, all devices work: waiting",
        bench.rounds
    );
    if machine.args.get("hold") == Some("key") {
        wait_for_key();
    }
    psci::system_off()
}

/// Sleeps until somebody types.
fn wait_for_key() {
    interrupt::sleep_until(false, None, || porthole_runtime::console::read().is_some());
}

/// Attacks that only this kind of device knows.
fn own(bench: &mut Bench, n: usize) {
    match bench.victims[n].kind {
        DeviceType::Console => simple::console(bench, n),
        DeviceType::Block => block::all(bench, n),
        DeviceType::Network => net::all(bench, n),
        DeviceType::Socket => vsock::all(bench, n),
        _ => simple::rng(bench, n),
    }
}

fn make(machine: &Machine, devices: &Devices<'_>) -> Bench {
    let Some(range) = machine.top(0, PRIVATE) else {
        fail!("no memory for the canary");
    };
    // SAFETY: free RAM that `machine::start` mapped and nothing else of this program uses.
    let private = unsafe { Memory::new(range.start, PRIVATE) };
    private.fill(0, PRIVATE, CANARY);
    let swiotlb = 1 << machine.args.number("swiotlb-bit", 27).min(63);
    let mut victims = Vec::new();
    for found in devices.all() {
        let Some(kind) = KINDS
            .iter()
            .find(|(_, kind, _)| Some(*kind) == found.kind())
        else {
            continue;
        };
        victims.push(Victim::new(*kind, devices.raw(found), swiotlb));
    }
    if victims.len() != KINDS.len() {
        fail!("{} devices, and one of each kind is wanted", victims.len());
    }
    let aperture = machine.pci.as_ref().and_then(|pci| pci.windows.clone());
    Bench {
        victims,
        private,
        aperture: aperture.unwrap_or(0..0),
        helper: machine.cpus.get(1).copied(),
        rounds: 0,
    }
}
