//! The sockets guest: drives a network device and a socket device with virtio-drivers' own drivers, over their windows,
//! and compares what comes back. What it does with which is in its parameters (kernel command line): see README.md.
//! Reports on the serial port.
#![no_std]
#![no_main]

extern crate alloc;

mod net;
mod packet;
mod vsock;

use porthole_bounce::{BouncePool, bounce_pool};
use porthole_payload::devices::Devices;
use porthole_payload::{fail, interrupt, machine};
use porthole_runtime::{println, psci};
use virtio_drivers::transport::DeviceType;

porthole_runtime::entry!(main);

bounce_pool! {
    /// The network device's pool.
    pub NetPool
}
bounce_pool! {
    /// The socket device's pool.
    pub VsockPool
}

fn main(dtb: u64) -> ! {
    let machine = machine::start(dtb);
    let message = interrupt::init(&machine.gic, machine.msi.as_ref());
    let devices = Devices::find(&machine);
    let mut used = 0;
    if let Some(found) = devices.of(DeviceType::Network).next() {
        let (transport, pool) = devices.open("net", found, message, NetPool::install);
        net::run(transport, &machine.args);
        settled("net", pool);
        used += 1;
    }
    if let Some(found) = devices.of(DeviceType::Socket).next() {
        let (transport, pool) = devices.open("vsock", found, message, VsockPool::install);
        vsock::run(transport, &machine.args);
        settled("vsock", pool);
        used += 1;
    }
    if used == 0 {
        fail!("neither a network nor a socket device on the PCI bus");
    }
    println!("sockets: {} interrupts: done", interrupt::taken());
    psci::system_off()
}

/// What the pool says once a driver is done. Receive buffers are the driver's until the machine goes off.
fn settled(name: &str, pool: &BouncePool<'_>) {
    let s = pool.stats();
    println!(
        "{name}: pool: {} maps, high-water mark {} of {} slots, {} bytes to the device, {} from it",
        s.maps, s.slots_high_water, s.slots_total, s.bytes_to_device, s.bytes_from_device
    );
    if !pool.check() || s.full + s.too_large + s.outside_window + s.invalid > 0 {
        fail!("{name}: the pool refused requests");
    }
}
