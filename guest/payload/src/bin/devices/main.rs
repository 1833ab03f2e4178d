//! The devices guest: drives every disk and entropy device it finds with virtio-drivers' own drivers, over their
//! windows, and compares what comes back. `mode=bench` counts what a read costs, `mode=fill` writes until it fails.
//! Parameters (kernel command line): see README.md. Reports on the serial port.
#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod disk;
mod entropy;

use porthole_bounce::{BouncePool, bounce_pool};
use porthole_payload::devices::{Devices, Install};
use porthole_payload::interrupt::Message;
use porthole_payload::machine::{self, Machine};
use porthole_payload::{fail, interrupt};
use porthole_runtime::{println, psci};
use virtio_drivers::transport::DeviceType;

porthole_runtime::entry!(main);

bounce_pool! {
    /// The first disk's pool.
    pub FirstDisk
}
bounce_pool! {
    /// The second disk's pool.
    pub SecondDisk
}
bounce_pool! {
    /// The entropy device's pool.
    pub Entropy
}

fn main(dtb: u64) -> ! {
    let machine = machine::start(dtb);
    let message = interrupt::init(&machine.gic, machine.msi.as_ref());
    let devices = Devices::find(&machine);
    let mut disks = 0;
    for found in devices.of(DeviceType::Block) {
        let name = ["disk0", "disk1"].get(disks).copied();
        match disks {
            0 => one_disk::<FirstDisk>(&machine, &devices, found, message, FirstDisk::install),
            1 => one_disk::<SecondDisk>(&machine, &devices, found, message, SecondDisk::install),
            _ => fail!("more than two disks"),
        }
        println!("devices: {} ok", name.unwrap_or_default());
        disks += 1;
    }
    let mut sources = 0;
    for found in devices.of(DeviceType::EntropySource).take(1) {
        let (transport, pool) = devices.open("rng", found, message, Entropy::install);
        entropy::check(transport);
        settled("rng", pool);
        println!("devices: rng ok");
        sources += 1;
    }
    println!(
        "devices: {disks} disks, {sources} entropy devices, {} interrupts: done",
        interrupt::taken()
    );
    psci::system_off()
}

fn one_disk<P: porthole_bounce::PoolProvider>(
    machine: &Machine,
    devices: &Devices<'_>,
    found: &porthole_payload::devices::Found,
    message: Option<Message>,
    install: Install,
) {
    let (transport, pool) = devices.open("disk", found, message, install);
    let messages = transport.sends_messages();
    let mut disk = disk::Disk::<P>::new(transport, messages);
    match machine.args.get("mode") {
        None | Some("check") => disk.check(),
        Some("bench") => bench::all(&mut disk, machine.args.number("reps", 256).max(1)),
        Some("fill") => disk.fill(),
        Some(other) => fail!("parameter mode={other}: check, bench or fill"),
    }
    drop(disk);
    settled("disk", pool);
}

/// After the driver is gone the pool must be as it was.
fn settled(name: &str, pool: &BouncePool<'_>) {
    let s = pool.stats();
    println!(
        "{name}: pool: {} maps, high-water mark {} of {} slots, {} bytes to the device, {} from it",
        s.maps, s.slots_high_water, s.slots_total, s.bytes_to_device, s.bytes_from_device
    );
    if s.slots_used != 0 || !pool.check() {
        fail!("{name}: {} slots of the pool are lost", s.slots_used);
    }
    if s.full + s.too_large + s.outside_window + s.invalid > 0 {
        fail!("{name}: the pool refused requests");
    }
}
