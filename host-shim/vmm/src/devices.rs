//! The PCI devices of a machine: which slot, which function, which window and where, from a list of device models.
//! What a device does lives in `virtio`; what the user asked for in `cli`. Functions that share a window are one
//! multi-function device.

use std::io;
use std::sync::{Arc, Mutex};

use porthole_abi::{FunctionId, PAGE_SIZE, WINDOW_PAGES_MAX, WindowFlags};
use porthole_uapi::{Vm, WindowCreate};
use vmm_sys_util::eventfd::EventFd;

use crate::backing::Backing;
use crate::cli::SwiotlbMode;
use crate::layout::{MSI_BASE, MSI_COUNT, PCI_REGISTERS, PCI_WINDOWS};
use crate::pci::bus::PciBus;
use crate::pci::msix::MsiLines;
use crate::virtio::transport::common::Swiotlb;
use crate::virtio::transport::registers::{REGISTERS_SIZE, WINDOW_BAR};
use crate::virtio::transport::{BuildError, NotifyPort, Parts, VirtioPci};
use crate::virtio::window::{Window, WindowPort, WindowUse};
use crate::virtio::{VirtioDevice, rings_len};

/// Slot of the first device: 0 is the host bridge's by custom.
const FIRST_SLOT: u8 = 1;
/// Slots of a bus.
const SLOTS: u8 = 32;
/// Functions of a device.
const FUNCTIONS: usize = 8;
/// Smallest window.
pub const WINDOW_MIN: u64 = 64 << 10;
/// Largest window.
pub const WINDOW_MAX: u64 = WINDOW_PAGES_MAX * PAGE_SIZE;

/// A device to be built.
pub struct DeviceSpec {
    /// Name in log lines and errors, such as `disk0`.
    pub name: String,
    /// The model.
    pub device: Box<dyn VirtioDevice>,
    /// How SWIOTLB is offered.
    pub swiotlb: Swiotlb,
    /// Bytes of its window; `None`: what its queues need.
    pub window: Option<u64>,
    /// Devices of the same group are functions of one device and share a window.
    pub group: Option<String>,
}

/// Why devices cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A window that is too small for the device's rings and one request.
    #[error(
        "a window of {} is too small for {name}, which needs {} for its rings and buffers; give it {} or more",
        size(*.given), size(*.needs), size(*.enough)
    )]
    WindowTooSmall {
        /// The device, or the devices that share it.
        name: String,
        /// Bytes it would have.
        given: u64,
        /// Bytes needed.
        needs: u64,
        /// The least size that a window may have and that serves.
        enough: u64,
    },
    /// More than a window can have.
    #[error(
        "{name} needs a window of {}, and {} is the most; give it fewer or smaller queues",
        size(*.needs), size(WINDOW_MAX)
    )]
    WindowTooLarge {
        /// The device, or the devices that share it.
        name: String,
        /// Bytes needed.
        needs: u64,
    },
    /// The bus is full.
    #[error(
        "too many devices: there is no place for {0} on the PCI bus; give some of them a group=, which makes them functions of one device"
    )]
    BusFull(String),
    /// The aperture is full.
    #[error(
        "the windows together are too large: there is no room for {name}'s in {}; give the devices smaller ones",
        size(PCI_WINDOWS.size)
    )]
    ApertureFull {
        /// The device.
        name: String,
    },
    /// The driver or the hypervisor refused a window or an interrupt.
    #[error("cannot {what} of {name}: {source}{}", hint(source))]
    Driver {
        /// The step.
        what: &'static str,
        /// The device.
        name: String,
        /// Why.
        source: porthole_uapi::Error,
    },
    /// A function cannot be built.
    #[error("cannot build {name}: {source}")]
    Build {
        /// The device.
        name: String,
        /// Why.
        source: BuildError,
    },
    /// The system has no more of something.
    #[error("cannot set up the devices' interrupts: {0}")]
    System(#[from] io::Error),
}

/// What to do about a refusal.
fn hint(source: &porthole_uapi::Error) -> &'static str {
    match source.refusal() {
        Some(porthole_abi::Error::NoSlot) => {
            "; a VM has 32 windows, of which an unprotected one takes one for each 64M of RAM: lower --mem, or give devices a group="
        }
        _ => "",
    }
}

/// Bytes as one types them.
fn size(bytes: u64) -> String {
    match bytes {
        b if b.is_multiple_of(1 << 20) => format!("{}M", b >> 20),
        b => format!("{}K", b.div_ceil(1 << 10)),
    }
}

/// A window to be, and who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    slot: u8,
    ipa: u64,
    size: u64,
    /// Without a window of its own: `size` is 0.
    open: bool,
    /// Positions in the list, in the order of their function numbers.
    members: Vec<usize>,
}

/// What the placement has to know of a device.
struct Demand<'a> {
    name: &'a str,
    least: u64,
    usual: u64,
    window: Option<u64>,
    group: Option<&'a str>,
    open: bool,
}

impl<'a> Demand<'a> {
    fn of(spec: &'a DeviceSpec) -> Self {
        let (rings, buffers) = (rings_len(spec.device.queue_sizes()), spec.device.buffers());
        Self {
            name: &spec.name,
            least: rings.saturating_add(buffers.least),
            usual: rings.saturating_add(buffers.usual),
            window: spec.window,
            group: spec.group.as_deref(),
            open: spec.swiotlb.mode == SwiotlbMode::Off,
        }
    }
}

/// Bytes of the window that these share. The largest wish counts; without any, there is room to fill all queues.
fn window_size(all: &[&Demand<'_>]) -> Result<u64, DeviceError> {
    let sum = |part: fn(&Demand<'_>) -> u64| {
        all.iter()
            .map(|d| part(d))
            .fold(0, u64::saturating_add)
            .max(WINDOW_MIN)
    };
    let name = || all.iter().map(|d| d.name).collect::<Vec<_>>().join(", ");
    let needs = sum(|d| d.least);
    if needs > WINDOW_MAX {
        return Err(DeviceError::WindowTooLarge {
            name: name(),
            needs,
        });
    }
    match all.iter().filter_map(|d| d.window).max() {
        None => Ok(sum(|d| d.usual).min(WINDOW_MAX).next_power_of_two()),
        Some(given) if given < needs => Err(DeviceError::WindowTooSmall {
            name: name(),
            given,
            needs,
            enough: needs.next_power_of_two(),
        }),
        Some(given) => Ok(given),
    }
}

/// Places devices in the order given; those of one group where the first of them is.
fn place(demands: &[Demand<'_>]) -> Result<Vec<Place>, DeviceError> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, demand) in demands.iter().enumerate() {
        let same = groups
            .iter_mut()
            .find(|members| demand.group.is_some() && demands[members[0]].group == demand.group);
        match same {
            Some(members) if members.len() == FUNCTIONS => {
                return Err(DeviceError::BusFull(demand.name.to_owned()));
            }
            Some(members) => members.push(index),
            None => groups.push(vec![index]),
        }
    }
    let mut free = PCI_WINDOWS.base;
    let mut places = Vec::new();
    for (slot, members) in (FIRST_SLOT..).zip(groups) {
        let name = demands[members[0]].name;
        if slot >= SLOTS {
            return Err(DeviceError::BusFull(name.to_owned()));
        }
        let all: Vec<_> = members.iter().map(|m| &demands[*m]).collect();
        let open = all.iter().any(|d| d.open);
        let size = if open { 0 } else { window_size(&all)? };
        let ipa = free.next_multiple_of(size.max(PAGE_SIZE));
        free = ipa + size;
        if free > PCI_WINDOWS.end() {
            return Err(DeviceError::ApertureFull {
                name: name.to_owned(),
            });
        }
        places.push(Place {
            slot,
            ipa,
            size,
            open,
            members,
        });
    }
    Ok(places)
}

struct DriverWindow(Arc<Vm>, u32);

impl WindowPort for DriverWindow {
    fn place(&self, ipa: Option<u64>) -> io::Result<()> {
        Ok(self.0.window_move(self.1, ipa)?)
    }
}

struct DriverNotify(Arc<Vm>);

impl NotifyPort for DriverNotify {
    fn set(&self, ipa: u64, event: &EventFd, assign: bool) -> io::Result<()> {
        Ok(self.0.ioeventfd(ipa, event, assign)?)
    }
}

/// Builds the devices and puts them on a bus. The functions come in the order of `specs`.
pub fn build(
    vm: &Arc<Vm>,
    specs: Vec<DeviceSpec>,
    backing: Option<&Backing>,
) -> Result<(PciBus, Vec<Arc<VirtioPci>>), DeviceError> {
    let demands: Vec<_> = specs.iter().map(Demand::of).collect();
    let places = place(&demands)?;
    let mut lines = Vec::new();
    if !specs.is_empty() {
        for intid in MSI_BASE..MSI_BASE + MSI_COUNT {
            let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            vm.irqfd(intid, &line)
                .map_err(|source| DeviceError::Driver {
                    what: "bind the interrupts",
                    name: "the devices".to_owned(),
                    source,
                })?;
            lines.push(line);
        }
    }
    let lines = Arc::new(MsiLines::new(MSI_BASE, lines));
    let mut bus = PciBus::default();
    let mut specs: Vec<_> = specs.into_iter().map(Some).collect();
    let mut functions: Vec<_> = specs.iter().map(|_| None).collect();
    for place in places {
        let first = specs[place.members[0]].as_ref().map(|s| s.name.clone());
        let name = first.unwrap_or_default();
        let memory = match backing {
            Some(backing) if place.open => {
                Window::fixed(&name, backing.pages.clone(), backing.range.base)
            }
            _ => window(vm, name, &place)?,
        };
        let shared = Arc::new(Mutex::new(memory));
        for (number, index) in (0u8..).zip(&place.members) {
            let Some(spec) = specs[*index].take() else {
                continue;
            };
            let position = u64::from(place.slot) * FUNCTIONS as u64 + u64::from(number);
            let function = VirtioPci::new(Parts {
                name: spec.name.clone(),
                device: spec.device,
                window: WindowUse {
                    window: shared.clone(),
                    in_function: (number > 0).then_some(0),
                },
                multi_function: place.members.len() > 1,
                registers: PCI_REGISTERS.base + position * REGISTERS_SIZE,
                swiotlb: spec.swiotlb,
                lines: lines.clone(),
                notify: Box::new(DriverNotify(vm.clone())),
            });
            let function = Arc::new(function.map_err(|source| DeviceError::Build {
                name: spec.name.clone(),
                source,
            })?);
            bus.add(place.slot, number, function.clone());
            functions[*index] = Some(function);
        }
    }
    Ok((bus, functions.into_iter().flatten().collect()))
}

/// Creates a window for the functions that share it.
fn window(vm: &Arc<Vm>, name: String, place: &Place) -> Result<Window, DeviceError> {
    let fail = |what| {
        let name = name.clone();
        move |source| DeviceError::Driver { what, name, source }
    };
    let function = |number: usize| FunctionId::new(0, 0, place.slot, number as u8).0;
    let config = WindowCreate {
        ipa: place.ipa,
        length: place.size,
        bar_size: place.size,
        function: function(0),
        bar: WINDOW_BAR as u32,
        flags: WindowFlags::BAR_64.bits(),
        ..WindowCreate::default()
    };
    let id = vm
        .window_create(config)
        .map_err(fail("create the window"))?;
    for number in 1..place.members.len() {
        vm.window_add_function(id, function(number))
            .map_err(fail("share the window"))?;
    }
    let pages = vm
        .window_map(id, place.size as usize)
        .map_err(fail("map the window"))?;
    let port = Box::new(DriverWindow(vm.clone(), id));
    Ok(Window::new(&name, pages, port, Some(place.ipa)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand<'a>(name: &'a str, group: Option<&'a str>, window: Option<u64>) -> Demand<'a> {
        Demand {
            name,
            least: 100 << 10,
            usual: 600 << 10,
            window,
            group,
            open: false,
        }
    }

    #[test]
    fn devices_without_a_window_take_no_room() {
        let all = [
            demand("a", None, None),
            Demand {
                open: true,
                ..demand("b", None, Some(16 << 20))
            },
            demand("c", None, None),
        ];
        let places = place(&all).unwrap();
        let got: Vec<_> = places.iter().map(|p| (p.slot, p.size, p.open)).collect();
        assert_eq!(
            got,
            [(1, 1 << 20, false), (2, 0, true), (3, 1 << 20, false)]
        );
        assert_eq!(places[2].ipa, places[0].ipa + (1 << 20));
    }

    #[test]
    fn windows_are_as_large_as_the_queues_need_and_lie_at_their_own_alignment() {
        let all = [
            demand("a", None, Some(128 << 10)),
            demand("b", None, None),
            demand("c", None, Some(16 << 20)),
        ];
        let places = place(&all).unwrap();
        let got: Vec<_> = places.iter().map(|p| (p.slot, p.size)).collect();
        assert_eq!(got, [(1, 128 << 10), (2, 1 << 20), (3, 16 << 20)]);
        for (at, p) in places.iter().enumerate() {
            assert_eq!(p.ipa % p.size, 0);
            assert_eq!(p.members, [at]);
            assert!(PCI_WINDOWS.covers(p.ipa, p.size));
            assert!(at == 0 || places[at - 1].ipa + places[at - 1].size <= p.ipa);
        }
    }

    #[test]
    fn a_window_that_is_too_small_says_how_much_would_do() {
        let error = place(&[demand("disk0", None, Some(64 << 10))]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a window of 64K is too small for disk0, which needs 100K for its rings and buffers; \
             give it 128K or more"
        );
        let mut huge = demand("net0", None, None);
        huge.least = WINDOW_MAX + 1;
        let error = place(&[huge]).unwrap_err().to_string();
        assert!(error.contains("net0 needs a window of"), "{error}");
        assert!(error.contains("16M is the most"), "{error}");
    }

    #[test]
    fn a_device_that_would_like_more_than_a_window_gets_the_largest() {
        let mut large = demand("net0", None, None);
        large.usual = u64::MAX;
        assert_eq!(place(&[large]).unwrap()[0].size, WINDOW_MAX);
    }

    #[test]
    fn devices_of_a_group_are_functions_of_one_and_share_a_window_for_all() {
        let all = [
            demand("a", Some("x"), None),
            demand("b", None, None),
            demand("c", Some("x"), None),
            demand("d", Some("y"), None),
        ];
        let places = place(&all).unwrap();
        let members: Vec<_> = places.iter().map(|p| p.members.clone()).collect();
        assert_eq!(members, [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(places[0].size, 2 << 20, "twice 600K");
        let small = [
            demand("a", Some("x"), Some(128 << 10)),
            demand("c", Some("x"), None),
        ];
        let error = place(&small).unwrap_err().to_string();
        assert!(error.contains("for a, c, which needs 200K"), "{error}");
    }

    #[test]
    fn a_full_bus_a_full_device_and_a_full_aperture_are_named() {
        let one = |group, window| demand("last", group, window);
        let many: Vec<_> = (0..32).map(|_| one(None, Some(1 << 20))).collect();
        assert!(matches!(place(&many), Err(DeviceError::BusFull(_))));
        let nine: Vec<_> = (0..9).map(|_| one(Some("g"), None)).collect();
        assert!(matches!(place(&nine), Err(DeviceError::BusFull(_))));
        let large: Vec<_> = (0..31).map(|_| one(None, Some(16 << 20))).collect();
        assert!(place(&large).is_ok());
        let mut misaligned = large;
        misaligned[0] = one(None, Some(128 << 10));
        misaligned.push(one(None, Some(16 << 20)));
        assert!(place(&misaligned).is_err());
    }
}
