//! The virtio console over its window: finding the device, checking every window of the guest, mapping the
//! console's as ordinary memory, and a pool over it. Whatever does not fit ends the guest with a line that says what.

use alloc::vec;
use core::ptr::NonNull;

use porthole_bounce::{
    Binding, BounceHal, BouncePool, BusAddr, SlotGroup, Window as PoolWindow, bounce_pool,
};
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::println;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;

use crate::fail;
use crate::interrupt::{self, Message};
use crate::machine::{Machine, PciHost};
use crate::pci::{self, Bars, Function, Space};
use crate::transport::{self, Confinement, Layout, Numbers, WindowTransport};
use crate::window::{self, Claim, Windows};

bounce_pool! {
    /// The console's pool.
    pub ConsolePool
}

/// Most bytes of one message: the driver's receive buffer is a page, and an answer must fit it.
pub const MESSAGE_MAX: usize = porthole_bounce::PAGE_SIZE;
/// Bytes of a pool in RAM, for `swiotlb=off`.
pub const RAM_POOL: u64 = 1 << 20;

/// The console, ready.
pub struct Console {
    driver: VirtIOConsole<BounceHal<ConsolePool>, WindowTransport>,
    messages: bool,
    /// Its pool.
    pub pool: &'static BouncePool<'static>,
    /// All windows of this guest.
    pub windows: Windows,
}

/// A virtio function that was set up, and what it says of itself.
struct Found {
    function: Function,
    bars: Bars,
    layout: Layout,
}

/// The numbers of the proposal, from the command line or as proposed.
fn numbers(machine: &Machine) -> Numbers {
    let number = |key, default| machine.args.number(key, default);
    Numbers {
        feature_bit: number("swiotlb-bit", 27).min(63) as u32,
        cfg_type: number("swiotlb-cfg", 10) as u8,
    }
}

/// Sets the console up. With `swiotlb=off` on the command line a device without a window gets a pool in RAM: for
/// trying the guest on a machine without Porthole, where nothing is protected anyway.
pub fn open(machine: &Machine, message: Option<Message>) -> Console {
    let Some(host) = &machine.pci else {
        fail!("no PCI host bridge in the device tree");
    };
    let need_window = match machine.args.get("swiotlb") {
        None | Some("require") => true,
        Some("off") => false,
        Some(other) => fail!("parameter swiotlb={other}: require or off"),
    };
    let numbers = numbers(machine);
    let found = scan(host, numbers);
    let windows = if need_window {
        check_windows(&found)
    } else {
        Windows::new()
    };
    let is_console = |f: &&Found| transport::device_type(&f.function) == Some(DeviceType::Console);
    let Some(device) = found.iter().find(is_console) else {
        fail!("no virtio console on the PCI bus");
    };
    let (ipa, length) = place(machine, host, device, need_window);
    let pool = make_pool(ipa, length);
    let transport = WindowTransport::new(
        &device.function,
        &device.layout,
        (&device.bars, host),
        numbers,
        message,
        (pool, need_window),
    )
    .unwrap_or_else(|e| fail!("{}: {e}", device.function.id));
    let messages = transport.sends_messages();
    println!(
        "console {}: {} bytes of pool at {ipa:#x}, {}, {}",
        device.function.id,
        length,
        match transport.confinement() {
            Confinement::Negotiated => "VIRTIO_F_SWIOTLB negotiated",
            Confinement::Hinted => "capability without the feature",
            Confinement::None => "not confined",
        },
        if messages { "MSI-X" } else { "polled" }
    );
    let driver =
        VirtIOConsole::new(transport).unwrap_or_else(|e| fail!("console: cannot be driven: {e}"));
    Console {
        driver,
        messages,
        pool,
        windows,
    }
}

/// Places the BARs of all virtio functions and reads their capabilities.
fn scan(host: &PciHost, numbers: Numbers) -> vec::Vec<Found> {
    let mut space = Space::new(host);
    let mut found = vec::Vec::new();
    for function in pci::functions(host) {
        let (vendor, id) = (function.vendor(), function.device());
        println!("pci {}: {vendor:04x}:{id:04x}", function.id);
        if transport::device_type(&function).is_none() {
            continue;
        }
        let bars = function.place_bars(&mut space);
        let bars = bars.unwrap_or_else(|e| fail!("{}: {e}", function.id));
        let layout = Layout::read(&function, numbers);
        let layout = layout.unwrap_or_else(|e| fail!("{}: {e}", function.id));
        found.push(Found {
            function,
            bars,
            layout,
        });
    }
    found
}

fn check_windows(found: &[Found]) -> Windows {
    let claims: vec::Vec<Claim> = found
        .iter()
        .filter_map(|f| {
            Some(Claim {
                function: f.function.id,
                structure: f.layout.swiotlb?,
                bars: f.bars,
            })
        })
        .collect();
    let checked = window::enumerate().and_then(|windows| {
        window::check(&claims, &windows)?;
        Ok(windows)
    });
    let windows = checked.unwrap_or_else(|e| fail!("windows: {e}"));
    for w in &windows {
        println!(
            "window {}: ipa {:#x}, {} bytes, {} BAR {} offset {:#x}, functions {:#04x}: as config space has it",
            w.slot, w.ipa, w.length, w.function, w.bar, w.offset, w.functions
        );
    }
    windows
}

/// Maps the memory for the pool: the window, or some of our RAM where there is none. First address and bytes.
fn place(machine: &Machine, host: &PciHost, device: &Found, need_window: bool) -> (u64, u64) {
    match device.layout.swiotlb {
        Some(structure) if need_window => {
            let place = structure.address(&device.bars);
            let ipa = place.unwrap_or_else(|e| fail!("{}: {e}", device.function.id));
            let length = u64::from(structure.length);
            // The hypervisor confirmed it; the tree, which was measured, must agree too.
            let aperture = host.windows.clone().unwrap_or(0..0);
            if ipa < aperture.start || length > aperture.end.saturating_sub(ipa) {
                fail!("the window at {ipa:#x} is outside the device tree's prefetchable range");
            }
            mmu::map(ipa, ipa, length, Attr::Data);
            (ipa, length)
        }
        None if need_window => fail!("{}: no SWIOTLB capability", device.function.id),
        _ => match machine.top(0, RAM_POOL) {
            Some(range) => (range.start, RAM_POOL),
            None => fail!("no memory for a pool"),
        },
    }
}

fn make_pool(ipa: u64, length: u64) -> &'static BouncePool<'static> {
    let (Some(base), Ok(length)) = (NonNull::new(ipa as *mut u8), usize::try_from(length)) else {
        fail!("a pool of {length:#x} bytes at {ipa:#x}");
    };
    // SAFETY: `place` mapped it as ordinary memory that nothing else of this guest uses, and it stays mapped.
    let window = unsafe { PoolWindow::new(base, BusAddr::new(ipa), length) };
    let groups = vec![SlotGroup::NEW; SlotGroup::needed_for(length)].leak();
    // The transport maps registers itself, so the Hal has no aperture to find any in.
    let binding = window
        .and_then(|window| BouncePool::new(window, groups))
        .map(|pool| Binding {
            pool,
            apertures: &[],
        })
        .and_then(ConsolePool::install);
    match binding {
        Ok(binding) => &binding.pool,
        Err(e) => fail!("a pool of {length:#x} bytes at {ipa:#x}: {e}"),
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
