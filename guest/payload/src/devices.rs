//! The virtio functions of this guest: finding them, checking every window against the hypervisor's word, mapping a
//! window as ordinary memory with a pool over it, and a transport for the driver. Whatever does not fit ends the
//! guest with a line that says what. What is done with a device is its user's.

use alloc::vec;
use core::ptr::NonNull;

use porthole_bounce::{Binding, BouncePool, BusAddr, SetupError, SlotGroup, Window as PoolWindow};
use porthole_runtime::mmu::{self, Attr};
use porthole_runtime::println;
use virtio_drivers::transport::DeviceType;

use crate::fail;
use crate::interrupt::Message;
use crate::machine::{Machine, PAGE, PciHost};
use crate::pci::{self, Bars, Function, Space};
use crate::raw::{Memory, Raw};
use crate::transport::{self, Confinement, Layout, Numbers, WindowTransport};
use crate::window::{self, Claim, Windows};

/// Bytes of a pool in RAM, for `swiotlb=off`.
pub const RAM_POOL: u64 = 1 << 20;

/// A virtio function that was set up, and what it says of itself.
pub struct Found {
    /// Which.
    pub function: Function,
    bars: Bars,
    layout: Layout,
}

impl Found {
    /// Device and function of the BAR that its window is in.
    fn window(&self) -> Option<(u32, u8)> {
        let id = self.function.id;
        self.layout.swiotlb?;
        let function = self.layout.swiotlb_function.unwrap_or(id.function());
        Some((id.device(), function))
    }

    /// What it is.
    pub fn kind(&self) -> Option<DeviceType> {
        transport::device_type(&self.function)
    }
}

/// What installs the pool of a device: the `install` of a type that `bounce_pool!` declared.
pub type Install = fn(Binding) -> Result<&'static Binding, SetupError>;

/// All virtio functions.
pub struct Devices<'a> {
    machine: &'a Machine,
    host: &'a PciHost,
    numbers: Numbers,
    need_window: bool,
    found: vec::Vec<Found>,
    /// All windows of this guest; none with `swiotlb=off`.
    pub windows: Windows,
}

impl<'a> Devices<'a> {
    /// Places the BARs of all of them, reads their capabilities and checks the windows. With `swiotlb=off` on the
    /// command line a device without a window gets a pool in RAM: for trying a guest on a machine without Porthole,
    /// where nothing is protected anyway.
    pub fn find(machine: &'a Machine) -> Self {
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
        Self {
            machine,
            host,
            numbers,
            need_window,
            found,
            windows,
        }
    }

    /// Those of a kind, in the order of their places.
    pub fn of(&self, kind: DeviceType) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(move |f| f.kind() == Some(kind))
    }

    /// All of them, in the order of their places.
    pub fn all(&self) -> impl Iterator<Item = &Found> {
        self.found.iter()
    }

    /// The device with its window, for a driver that keeps to no rule.
    pub fn raw(&self, device: &Found) -> Raw {
        if self.sharers(device).count() > 1 {
            fail!("{}: its window is not its own", device.function.id);
        }
        let (ipa, length) = self.place(device);
        // SAFETY: `place` mapped it, and no pool is ever made over it: who takes a device raw opens it no other way.
        let window = unsafe { Memory::new(ipa, length) };
        Raw::new(
            device.function,
            &device.layout,
            (&device.bars, self.host),
            window,
        )
        .unwrap_or_else(|e| fail!("{}: {e}", device.function.id))
    }

    /// Maps the device's window, makes its pool, and takes the device over.
    pub fn open(
        &self,
        name: &str,
        device: &Found,
        message: Option<Message>,
        install: Install,
    ) -> (WindowTransport, &'static BouncePool<'static>) {
        let (ipa, length) = self.place(device);
        let pool = make_pool(ipa, length, install);
        let transport = WindowTransport::new(
            &device.function,
            &device.layout,
            (&device.bars, self.host),
            self.numbers,
            message,
            (pool, self.need_window),
        )
        .unwrap_or_else(|e| fail!("{}: {e}", device.function.id));
        println!(
            "{name} {}: {} bytes of pool at {ipa:#x}, {}, {}",
            device.function.id,
            length,
            match transport.confinement() {
                Confinement::Negotiated => "VIRTIO_F_SWIOTLB negotiated",
                Confinement::Hinted => "capability without the feature",
                Confinement::None => "not confined",
            },
            if transport.sends_messages() {
                "MSI-X"
            } else {
                "polled"
            }
        );
        (transport, pool)
    }

    /// The functions that have the window of this one, itself among them, in their order.
    fn sharers(&self, device: &Found) -> impl Iterator<Item = &Found> {
        let window = device.window();
        self.found
            .iter()
            .filter(move |other| window.is_some() && other.window() == window)
    }

    /// Maps the memory for the pool: the window, or some of our RAM where there is none. First address and bytes. Of a
    /// window that several functions share each gets an equal part.
    fn place(&self, device: &Found) -> (u64, u64) {
        match device.layout.swiotlb {
            Some(structure) if self.need_window => {
                let place = structure.address(&window_bars(&self.found, device));
                let ipa = place.unwrap_or_else(|e| fail!("{}: {e}", device.function.id));
                let length = u64::from(structure.length);
                // The hypervisor confirmed it; the tree, which was measured, must agree too.
                let aperture = self.host.windows.clone().unwrap_or(0..0);
                if ipa < aperture.start || length > aperture.end.saturating_sub(ipa) {
                    fail!("the window at {ipa:#x} is outside the device tree's prefetchable range");
                }
                let (mut before, mut all) = (0, 0);
                for (position, other) in (0..).zip(self.sharers(device)) {
                    if other.function.id == device.function.id {
                        before = position;
                    }
                    all = position + 1;
                }
                let part = (length / all) & !(PAGE - 1);
                let ipa = ipa + before * part;
                mmu::map(ipa, ipa, part, Attr::Data);
                (ipa, part)
            }
            None if self.need_window => fail!("{}: no SWIOTLB capability", device.function.id),
            _ => match self.machine.top(0, RAM_POOL) {
                Some(range) => (range.start, RAM_POOL),
                None => fail!("no memory for a pool"),
            },
        }
    }
}

/// The numbers of the proposal, from the command line or as proposed.
fn numbers(machine: &Machine) -> Numbers {
    let number = |key, default| machine.args.number(key, default);
    Numbers {
        feature_bit: number("swiotlb-bit", 27).min(63) as u32,
        cfg_type: number("swiotlb-cfg", 10) as u8,
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

/// The BARs of the function that has the device's window; none if there is no such function.
fn window_bars(found: &[Found], device: &Found) -> Bars {
    let owner = found.iter().find(|other| {
        let id = other.function.id;
        device.window() == Some((id.device(), id.function()))
    });
    owner.map_or([None; 6], |owner| owner.bars)
}

fn check_windows(found: &[Found]) -> Windows {
    let claims: vec::Vec<Claim> = found
        .iter()
        .filter_map(|f| {
            Some(Claim {
                function: f.function.id,
                structure: f.layout.swiotlb?,
                bars: window_bars(found, f),
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

fn make_pool(ipa: u64, length: u64, install: Install) -> &'static BouncePool<'static> {
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
        .and_then(install);
    match binding {
        Ok(binding) => &binding.pool,
        Err(e) => fail!("a pool of {length:#x} bytes at {ipa:#x}: {e}"),
    }
}
