//! A fake segment: functions with configuration space, virtio devices with a window, bridges that answer for the numbers
//! they are given. A register that must not be written fails the test, and so do two bridges that answer for one bus.

use std::cell::{Cell, RefCell};

use super::*;

const WINDOW: u16 = 0x60;
const PLATFORM: u64 = 3 << 32;
const NO_PLATFORM: u64 = 1 << 32;

struct Device {
    devfn: u8,
    space: RefCell<Vec<u32>>,
    kind: Kind,
}

enum Kind {
    Plain,
    /// Features, where the window leads, and device_feature_select.
    Virtio(u64, Window, Cell<u32>),
    Bridge {
        behind: Vec<Device>,
        takes_numbers: bool,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Window {
    Open,
    /// device_feature_select keeps its value.
    Stuck,
    /// Its data is a register that leads nowhere.
    Dead,
}

fn device(devfn: u8, ids: u32, kind: Kind) -> Device {
    let mut space = vec![0; 1024];
    space[0] = ids;
    let space = RefCell::new(space);
    Device { devfn, space, kind }
}

fn plain(devfn: u8) -> Device {
    device(devfn, 0x1000_8086, Kind::Plain)
}

/// QEMU's: MSI-X, common configuration at 0x1000 of BAR 4, window.
fn virtio(devfn: u8, features: u64) -> Device {
    device(
        devfn,
        0x1042_1af4,
        Kind::Virtio(features, Window::Open, Cell::new(7)),
    )
    .with(0x04, 0x0010_0000)
    .with(0x34, 0x40)
    .with(0x40, 0x0000_5011)
    .with(0x50, 0x0110_6009)
    .with(0x54, 4)
    .with(0x58, 0x1000)
    .with(0x5c, 0x1000)
    .with(WINDOW, 0x0514_0009)
    .with(WINDOW + 8, 0x123)
}

fn bridge(devfn: u8, numbers: u32, behind: Vec<Device>) -> Device {
    let kind = Kind::Bridge {
        behind,
        takes_numbers: true,
    };
    device(devfn, 0x000c_1b36, kind)
        .with(HEADER, 0x0081_0000)
        .with(NUMBERS, numbers)
}

impl Device {
    fn with(self, offset: u16, value: u32) -> Self {
        self.space.borrow_mut()[usize::from(offset / 4)] = value;
        self
    }

    fn get(&self, offset: u16) -> u32 {
        self.space.borrow()[usize::from(offset / 4)]
    }

    /// What the window shows: select and features of the common configuration.
    fn window(&self, write: Option<u32>) -> Option<u32> {
        let Kind::Virtio(features, window, select) = &self.kind else {
            return None;
        };
        if *window == Window::Dead || self.get(WINDOW + 12) != 4 || self.get(WINDOW + 4) & 0xff != 4
        {
            return None;
        }
        match (self.get(WINDOW + 8), write) {
            (0x1000, Some(_)) if *window == Window::Stuck => {}
            (0x1000, Some(value)) => select.set(value),
            (0x1000, None) => return Some(select.get()),
            (0x1004, None) => return Some((features >> (32 * select.get())) as u32),
            other => panic!("{other:x?} through the window"),
        }
        None
    }

    fn read(&self, offset: u16) -> u32 {
        let shown = (offset == WINDOW + 16).then(|| self.window(None)).flatten();
        shown.unwrap_or_else(|| self.get(offset))
    }

    fn write(&self, offset: u16, value: u32) {
        match &self.kind {
            Kind::Bridge { takes_numbers, .. } if offset == NUMBERS => {
                if !takes_numbers {
                    return;
                }
            }
            Kind::Virtio(..) if offset == WINDOW + 16 => {
                self.window(Some(value));
            }
            Kind::Virtio(..) if (WINDOW + 4..WINDOW + 16).contains(&offset) => {}
            _ => panic!("{value:#x} written to {offset:#x} of {:02x}", self.devfn),
        }
        self.space.borrow_mut()[usize::from(offset / 4)] = value;
    }

    /// All that the host could notice.
    fn state(&self, into: &mut Vec<u32>) {
        into.extend(self.space.borrow().iter());
        match &self.kind {
            Kind::Bridge { behind, .. } => behind.iter().for_each(|d| d.state(into)),
            Kind::Virtio(_, _, select) => into.push(select.get()),
            Kind::Plain => {}
        }
    }
}

struct Segment(u8, Vec<Device>);

impl Segment {
    fn find(devices: &[Device], here: u8, at: Function) -> Option<&Device> {
        if at.bus == here {
            return devices.iter().find(|d| d.devfn == at.devfn);
        }
        let mut answer = devices.iter().filter_map(|device| {
            let [_, secondary, last, _] = device.get(NUMBERS).to_le_bytes();
            match &device.kind {
                Kind::Bridge { behind, .. } if (secondary..=last).contains(&at.bus) => {
                    Some((behind, secondary))
                }
                _ => None,
            }
        });
        let (behind, secondary) = answer.next()?;
        assert!(answer.next().is_none(), "two bridges for {at:?}");
        Self::find(behind, secondary, at)
    }

    /// What a scan finds; nothing is different afterwards.
    fn scan(&self) -> Vec<(String, Reason)> {
        let state = || {
            let mut all = Vec::new();
            self.1.iter().for_each(|d| d.state(&mut all));
            all
        };
        let before = state();
        let mut found = Vec::new();
        scan(self, self.0..=0x10, |f| {
            found.push((f.to_string(), f.reason))
        });
        assert!(before == state(), "left otherwise than found");
        found
    }
}

impl Config for Segment {
    fn read(&self, at: Function, offset: u16) -> u32 {
        Self::find(&self.1, self.0, at).map_or(u32::MAX, |d| d.read(offset))
    }

    fn write(&self, at: Function, offset: u16, value: u32) {
        if let Some(device) = Self::find(&self.1, self.0, at) {
            device.write(offset, value);
        }
    }
}

fn reasons(devices: Vec<Device>) -> Vec<Reason> {
    let found = Segment(0, devices).scan();
    found.into_iter().map(|(_, reason)| reason).collect()
}

#[test]
fn a63_devices_behind_the_smmu_are_no_finding_and_stay_as_they_were() {
    let host_bridge = plain(0).with(CLASS, 0x0600_0000);
    // Numbers that a firmware gave, which the walk needs for others.
    let behind = vec![virtio(0, PLATFORM)];
    let nested = vec![
        plain(8),
        bridge(0x10, 0x4006_0502, vec![virtio(0x20, PLATFORM)]),
    ];
    let all = vec![
        host_bridge,
        virtio(8, PLATFORM),
        bridge(0x10, 0x0001_0100, behind),
        bridge(0x18, 0x0009_0100, nested),
        bridge(0x20, 0, vec![]),
    ];
    assert_eq!(Segment(0, all).scan(), []);
}

#[test]
fn a63_virtio_without_access_platform_is_named_with_its_way_from_the_root() {
    let found = Segment(
        3,
        vec![
            // Function 1 without function 0.
            virtio(0x09, NO_PLATFORM),
            bridge(0x10, 0, vec![virtio(0, PLATFORM)]),
            bridge(
                0x18,
                0,
                vec![bridge(8, 0, vec![plain(0), virtio(0xff, NO_PLATFORM)])],
            ),
        ],
    )
    .scan();
    let starts = [
        "PCI function 03:01.1 (1af4:1042) does",
        "PCI function 03:03.0/01.0/1f.7 (1af4:1042) does",
    ];
    assert_eq!(found.len(), 2);
    for ((line, reason), start) in found.iter().zip(starts) {
        assert_eq!(*reason, Reason::Bypass);
        assert!(
            line.starts_with(start) && line.contains("add iommu_platform=on"),
            "{line}"
        );
    }
}

#[test]
fn a63_a_balloon_is_outside_whatever_it_offers() {
    for ids in [0x1002_1af4, 0x1045_1af4] {
        let found = Segment(0, vec![virtio(8, PLATFORM).with(0, ids)]).scan();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, Reason::Balloon);
        assert!(found[0].0.contains("memory balloon"), "{}", found[0].0);
    }
}

#[test]
fn a63_legacy_virtio_is_outside_and_other_vendors_are_not_asked() {
    let ids = |ids| device(8, ids, Kind::Plain);
    assert_eq!(reasons(vec![ids(0x1000_1af4)]), [Reason::Bypass]);
    assert_eq!(reasons(vec![ids(0x107f_1af4)]), [Reason::Bypass]);
    assert_eq!(reasons(vec![ids(0x1080_1af4)]), []);
    assert_eq!(reasons(vec![ids(0x0fff_1af4)]), []);
    assert_eq!(reasons(vec![ids(0x1042_1af5)]), []);
    // Capabilities, but none of virtio's.
    assert_eq!(
        reasons(vec![virtio(8, PLATFORM).with(0x40, 0x0000_0011)]),
        [Reason::Bypass]
    );
}

#[test]
fn a63_malformed_capabilities_count_as_outside() {
    for (what, offset, value) in [
        ("a loop", WINDOW, 0x0514_5009),
        ("a link into the header", WINDOW, 0x0514_3009),
        ("the first one in the header", 0x34, 0x10),
        ("a short common configuration", 0x50, 0x010f_6009),
        ("a short window", WINDOW, 0x0513_0009),
        ("a window over the end", 0x40, 0x0000_f011),
        ("no window", WINDOW, 0x0414_0009),
        ("no common configuration", 0x50, 0x0210_6009),
        ("BAR 6", 0x54, 6),
        ("no room for features", 0x5c, 7),
        ("an odd offset", 0x58, 0x1002),
        ("an offset at the end", 0x58, 0xffff_fffc),
        ("extended ones in a loop", 0x100, 0x1001_0001),
        ("extended ones in the header", 0x100, 0x0401_0001),
    ] {
        let mut device = virtio(8, PLATFORM).with(offset, value);
        if what == "a window over the end" {
            device = device.with(0xf0, 0x0514_5009);
        }
        assert_eq!(reasons(vec![device]), [Reason::Unreadable], "{what}");
    }
}

#[test]
fn a63_a_window_that_leads_nowhere_counts_as_outside() {
    let through = |features, window| {
        let mut device = virtio(8, 0);
        device.kind = Kind::Virtio(features, window, Cell::new(0));
        reasons(vec![device])
    };
    // What it was told last.
    assert_eq!(through(PLATFORM, Window::Dead), [Reason::Bypass]);
    // Bits 0 and 1 are others.
    assert_eq!(through(3, Window::Stuck), [Reason::Unreadable]);
    // Neither version 1 nor all ones is an answer.
    for features in [2 << 32, u64::MAX] {
        assert_eq!(reasons(vec![virtio(8, features)]), [Reason::Unreadable]);
    }
    // One that answers in another BAR than the capability says.
    assert_eq!(
        reasons(vec![virtio(8, PLATFORM).with(0x54, 2)]),
        [Reason::Bypass]
    );
}

#[test]
fn a63_functions_that_come_later_count_as_outside() {
    let aer = |next: u32| virtio(8, PLATFORM).with(0x100, next << 20 | 0x1_0001);
    assert_eq!(reasons(vec![aer(0)]), []);
    assert_eq!(reasons(vec![aer(0x140).with(0x140, 0x1_000e)]), []);
    assert_eq!(
        reasons(vec![aer(0x140).with(0x140, 0x1_0010)]),
        [Reason::MoreFunctions]
    );
}

#[test]
fn a63_another_root_counts_as_outside() {
    let host_bridge = |devfn| plain(devfn).with(CLASS, 0x0600_0000);
    assert_eq!(reasons(vec![host_bridge(0)]), []);
    assert_eq!(
        reasons(vec![host_bridge(0), host_bridge(0x28)]),
        [Reason::OtherRoot]
    );
    assert_eq!(
        reasons(vec![bridge(8, 0, vec![host_bridge(0)])]),
        [Reason::OtherRoot]
    );
}

#[test]
fn a63_what_cannot_be_looked_at_counts_as_outside() {
    let deaf = |mut device: Device| {
        if let Kind::Bridge { takes_numbers, .. } = &mut device.kind {
            *takes_numbers = false;
        }
        device
    };
    for (what, device) in [
        ("takes no numbers", deaf(bridge(8, 0, vec![]))),
        ("in reset", bridge(8, 0, vec![]).with(CONTROL, BUS_RESET)),
        ("CardBus", plain(8).with(HEADER, 0x0002_0000)),
    ] {
        assert_eq!(reasons(vec![device]), [Reason::Closed], "{what}");
    }
    // As many in a row as there may be, with a device at the end, and one more.
    let row = |count| (0..count).fold(virtio(0, NO_PLATFORM), |d, _| bridge(0, 0, vec![d]));
    assert_eq!(reasons(vec![row(DEPTH_MAX - 1)]), [Reason::Bypass]);
    assert_eq!(reasons(vec![row(DEPTH_MAX)]), [Reason::Closed]);
    // More buses than the root has numbers for.
    assert_eq!(
        Segment(0x10, vec![row(1)]).scan().first().unwrap().1,
        Reason::Closed
    );
}

/// Noise, with so many bridges at the start of each bus if they are given: its state, the reads so far.
struct Noise(Cell<u64>, Cell<u64>, Option<u8>);

impl Config for Noise {
    fn read(&self, at: Function, offset: u16) -> u32 {
        assert!(offset < 4096 && offset.is_multiple_of(4) && at.bus <= 9);
        self.1.set(self.1.get() + 1);
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        let bridges = self.2.is_some();
        match offset {
            0 if self.2.is_some_and(|count| at.devfn >= count) => u32::MAX,
            0 => 0x1042_1af4,
            HEADER if bridges => 0x0001_0000,
            NUMBERS if bridges => u32::from_le_bytes([at.bus, at.bus + 1, 9, 0]),
            CONTROL if bridges => 0,
            // Links that often lead on.
            _ if x & 0x300 == 0 => 0x0510_4009,
            _ => (x >> 32) as u32,
        }
    }

    fn write(&self, _: Function, offset: u16, _: u32) {
        assert!(offset < 4096 && offset.is_multiple_of(4));
    }
}

#[test]
fn a02_configuration_space_full_of_noise_ends_and_does_not_panic() {
    for seed in 1..20u64 {
        let noise = Noise(
            Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            Cell::new(0),
            None,
        );
        let mut found = 0;
        scan(&noise, 0..=9, |_| found += 1);
        assert!(found >= 256);
    }
    for count in [4, u8::MAX] {
        let bridges = Noise(Cell::new(1), Cell::new(0), Some(count));
        scan(&bridges, 0..=9, |_| ());
        let most = BUSES_MAX as u64 * (256 + u64::from(count) * 600);
        assert!(bridges.1.get() <= most, "{} reads", bridges.1.get());
    }
}

#[test]
fn the_registers_of_a_bus_are_4_kib_a_function_and_nothing_beyond_is_touched() {
    let mut memory = vec![0u32; Ecam::BUS_BYTES as usize / 4];
    memory[0x0f * 1024 + 3] = 0x1234;
    let base = porthole_core::addr::PhysAddr::new(memory.as_mut_ptr() as u64);
    // SAFETY: the memory of one bus, which is used through this value only while it lives.
    let ecam = unsafe { Ecam::new(base, 5..=5) }.unwrap();
    let at = |bus| Function { bus, devfn: 0x0f };
    assert_eq!(ecam.read(at(5), 12), 0x1234);
    ecam.write(at(5), 16, 77);
    for (bus, offset) in [(4, 12), (6, 12), (5, 4096), (5, 13)] {
        assert_eq!(ecam.read(at(bus), offset), u32::MAX);
        ecam.write(at(bus), offset, 99);
    }
    assert_eq!(memory[0x0f * 1024 + 4], 77);
    assert_eq!(memory.iter().filter(|word| **word != 0).count(), 2);
}
