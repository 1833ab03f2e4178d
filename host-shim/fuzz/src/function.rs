//! A whole PCI function, its workers running, driven by a script: configuration space, registers, BARs, window.

use std::io;
use std::sync::Arc;

use porthole_vmm::cli::SwiotlbMode;
use porthole_vmm::pci::bus::PciFunction;
use porthole_vmm::pci::msix::MsiLines;
use porthole_vmm::virtio::VirtioDevice;
use porthole_vmm::virtio::transport::common::Swiotlb;
use porthole_vmm::virtio::transport::{NotifyPort, Parts, VirtioPci};
use porthole_vmm::virtio::window::{Window, WindowPort, WindowUse};
use vm_memory::mmap::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::queues::{BASE, Guest, SIZE};
use crate::refused;
use crate::script::{Op, decode};

const REGISTERS: u64 = 0x2f00_0000;
/// Notifications (see `virtio::transport::registers`).
const NOTIFY: u64 = 0x3000;

/// Takes places below 3 GiB.
struct Port;

impl WindowPort for Port {
    fn place(&self, ipa: Option<u64>) -> io::Result<()> {
        match ipa {
            Some(0xc000_0000..) => Err(refused()),
            _ => Ok(()),
        }
    }
}

/// Binds no doorbell: they work through the registers.
struct NoDoorbells;

impl NotifyPort for NoDoorbells {
    fn set(&self, _: u64, _: &EventFd, assign: bool) -> io::Result<()> {
        if assign { Err(refused()) } else { Ok(()) }
    }
}

/// Does what a driver does first, so that a script can begin with a running device.
fn begin(function: &VirtioPci, guest: &Guest) {
    let write = |at: u64, data: &[u8]| function.memory_write(REGISTERS + at, data);
    for (at, value) in [(0x14, 1u8), (0x14, 3)] {
        write(at, &[value]);
    }
    for (select, half) in [(0u32, 1u32 << 27 | 1 << 9 | 1 << 13 | 1 << 14), (1, 1)] {
        write(8, &select.to_le_bytes());
        write(12, &half.to_le_bytes());
    }
    write(0x14, &[0xb]);
    for (index, entries) in guest.entries.iter().enumerate() {
        write(0x16, &(index as u16).to_le_bytes());
        write(0x18, &entries.to_le_bytes());
        for (at, ring) in [0x20, 0x28, 0x30].into_iter().zip(Guest::rings(index)) {
            write(at, &ring.to_le_bytes());
        }
        write(0x1c, &1u16.to_le_bytes());
    }
    write(0x14, &[0xf]);
}

/// Plays a script against a function with `device` behind it. An odd first byte starts the device before.
pub fn drive(device: Box<dyn VirtioDevice>, data: &[u8]) {
    let sizes = device.queue_sizes().to_vec();
    let Ok(pages) = MmapRegion::new(SIZE as usize) else {
        return;
    };
    let window = Window::new("fuzz", pages, Box::new(Port), Some(BASE));
    let Some(memory) = window.memory() else {
        return;
    };
    let mut guest = Guest::new(memory, &sizes);
    let function = VirtioPci::new(Parts {
        name: "fuzz".to_owned(),
        device,
        window: WindowUse::own(window),
        multi_function: false,
        registers: REGISTERS,
        swiotlb: Swiotlb {
            mode: SwiotlbMode::Require,
            bit: 27,
            cfg_type: 10,
            pool: false,
        },
        lines: Arc::new(MsiLines::new(64, Vec::new())),
        notify: Box::new(NoDoorbells),
    })
    .expect("a function can be built");
    let (start, data) = data.split_first().map_or((0, data), |(s, rest)| (*s, rest));
    if start % 2 == 1 {
        begin(&function, &guest);
        assert!(function.status().running, "an orderly driver can start it");
    }
    for op in decode(data) {
        let access = |how: u8, value: u32| {
            let width = 1 << (how >> 1 & 3);
            let bytes = (u64::from(value) << 32 | u64::from(value)).to_le_bytes();
            (how & 1 == 1, bytes, width)
        };
        match op {
            Op::Config { how, at, value } => {
                let (writes, mut bytes, width) = access(how, value);
                let at = usize::from(at) % 0x1000;
                if writes {
                    function.config_write(at, &bytes[..width]);
                } else {
                    function.config_read(at, &mut bytes[..width]);
                }
            }
            Op::Register { how, at, value } => {
                let (writes, mut bytes, width) = access(how, value);
                let at = REGISTERS + u64::from(at);
                if writes {
                    function.memory_write(at, &bytes[..width]);
                } else {
                    function.memory_read(at, &mut bytes[..width]);
                }
            }
            Op::Ring { queue } => {
                let queue = u64::from(queue) % sizes.len() as u64;
                function.memory_write(REGISTERS + NOTIFY + 4 * queue, &[0; 2]);
            }
            op => guest.act(op),
        }
        let status = function.status();
        let placed = status.window_ipa;
        assert!(placed.is_none_or(|ipa| ipa.is_multiple_of(SIZE) && ipa < 0xc000_0000));
        assert!(!status.running || status.needs_reset || placed.is_some());
    }
    // A reset ends whatever was under way, and the function can be used again.
    function.config_write(0x10, &(REGISTERS as u32).to_le_bytes());
    function.config_write(0x24, &0u32.to_le_bytes());
    function.config_write(0x20, &(BASE as u32).to_le_bytes());
    function.config_write(4, &6u16.to_le_bytes());
    function.memory_write(REGISTERS + 0x14, &[0]);
    let status = function.status();
    assert!(!status.running && !status.needs_reset);
    assert_eq!(
        (status.window_ipa, status.stats.slots_in_flight),
        (Some(BASE), 0)
    );
    // With empty rings: in those of the script there is anything.
    let guest = Guest::new(guest.memory(), &sizes);
    guest.clear();
    begin(&function, &guest);
    assert!(function.status().running, "it starts again after a reset");
}
