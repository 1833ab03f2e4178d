//! Layout of a virtio-pci function: what is where in its BARs, and the capabilities that say so.
//! Source: VIRTIO 1.2, 4.1.4 (virtio structure PCI capabilities); MSI-X: PCI 3.0, 6.8.2.

use crate::pci::config::{ConfigError, ConfigSpace, Identity};
use crate::pci::msix::ENTRY_SIZE;
use crate::virtio::VirtioDevice;

use super::common::{self, Swiotlb};
use crate::cli::SwiotlbMode;

/// BAR with the registers: 32 bits, not prefetchable.
pub const REGISTERS_BAR: usize = 0;
/// Its bytes.
pub const REGISTERS_SIZE: u64 = 0x8000;
/// BAR with the window: 64 bits, prefetchable.
pub const WINDOW_BAR: usize = 4;

/// Common configuration.
pub const COMMON: usize = 0x0000;
/// ISR status.
pub const ISR: usize = 0x1000;
/// Device configuration.
pub const DEVICE: usize = 0x2000;
/// Notifications: [`NOTIFY_STRIDE`] bytes for each queue.
pub const NOTIFY: usize = 0x3000;
/// MSI-X table.
pub const MSIX_TABLE: usize = 0x4000;
/// MSI-X pending bits.
pub const MSIX_PENDING: usize = 0x5000;
/// Bytes of each of these parts.
pub const PART: usize = 0x1000;
/// notify_off_multiplier.
pub const NOTIFY_STRIDE: usize = 4;

/// PCI vendor of virtio devices.
const VENDOR: u16 = 0x1af4;
/// PCI device id of virtio device id 0, for modern devices.
const DEVICE_BASE: u16 = 0x1040;
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Where the capabilities ended up that the transport has to watch.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// MSI-X message control.
    pub msix_control: usize,
    /// VIRTIO_PCI_CAP_PCI_CFG.
    pub pci_access: usize,
}

/// Where a function's memory is.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    /// Address of BAR 0.
    pub registers: u64,
    /// Address of the window's BAR.
    pub window: u64,
    /// Bytes of it.
    pub window_size: u64,
    /// The function that has this BAR, if another.
    pub window_in_function: Option<u8>,
    /// The device has other functions.
    pub multi_function: bool,
}

/// Byte of the SWIOTLB capability that names another function of the device, with [`OTHER_FUNCTION`], whose BAR it
/// means: the first of the two that `struct virtio_pci_cap` reserves. Zero: a BAR of its own function. The proposal
/// says nothing of functions that share; this is ours.
const CAP_FUNCTION: usize = 4;
/// Set in that byte beside the number of the function.
const OTHER_FUNCTION: u8 = 0x80;

/// `struct virtio_pci_cap` without id and link; `extra` follows it.
fn capability(cfg_type: u8, bar: usize, offset: usize, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, cfg_type, bar as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// Builds the configuration space of a device.
pub fn build(
    device: &dyn VirtioDevice,
    swiotlb: Swiotlb,
    bars: Bars,
) -> Result<(ConfigSpace, Places), ConfigError> {
    let queues = device.queue_sizes().len();
    let mut space = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device.id(),
        revision: 1,
        class: device.class(),
        subsystem: [VENDOR, DEVICE_BASE + device.id()],
    });
    if bars.multi_function {
        space.set_multi_function();
    }
    space.add_bar_32(REGISTERS_BAR, REGISTERS_SIZE, bars.registers)?;
    let has_window = swiotlb.mode != SwiotlbMode::Off;
    if has_window && bars.window_in_function.is_none() {
        space.add_bar_64(WINDOW_BAR, bars.window_size, bars.window)?;
    }
    let part = |cfg_type, offset, length: usize, extra: &[u8]| {
        capability(cfg_type, REGISTERS_BAR, offset, length as u64, extra)
    };
    let add = |space: &mut ConfigSpace, body: &[u8], writable: &[u8]| {
        space.add_capability(CAP_VENDOR, body, writable)
    };
    add(
        &mut space,
        &part(CFG_COMMON, COMMON, common::SIZE, &[]),
        &[],
    )?;
    let multiplier = (NOTIFY_STRIDE as u32).to_le_bytes();
    let length = queues * NOTIFY_STRIDE;
    add(
        &mut space,
        &part(CFG_NOTIFY, NOTIFY, length, &multiplier),
        &[],
    )?;
    add(&mut space, &part(CFG_ISR, ISR, 1, &[]), &[])?;
    let length = device.config_len();
    if length > 0 {
        add(&mut space, &part(CFG_DEVICE, DEVICE, length, &[]), &[])?;
    }
    // BAR, offset, length and data are the driver's to write.
    let writable: Vec<u8> = (0..18)
        .map(|i| if i == 2 || i >= 6 { 0xff } else { 0 })
        .collect();
    let pci_access = add(
        &mut space,
        &capability(CFG_PCI, 0, 0, 0, &[0; 4]),
        &writable,
    )?;
    let mut pool = capability(swiotlb.cfg_type, WINDOW_BAR, 0, bars.window_size, &[]);
    if let Some(function) = bars.window_in_function {
        pool[CAP_FUNCTION] = OTHER_FUNCTION | function;
    }
    if has_window {
        add(&mut space, &pool, &[])?;
    }
    // One vector for each queue, and one for the configuration.
    let mut msix = (queues as u16).to_le_bytes().to_vec();
    msix.extend((MSIX_TABLE as u32 | REGISTERS_BAR as u32).to_le_bytes());
    msix.extend((MSIX_PENDING as u32 | REGISTERS_BAR as u32).to_le_bytes());
    let msix_capability = space.add_capability(CAP_MSIX, &msix, &[0, 0xc0])?;
    let places = Places {
        msix_control: msix_capability + 2,
        pci_access,
    };
    Ok((space, places))
}

/// MSI-X vectors of a device with so many queues.
pub const fn vectors(queues: usize) -> usize {
    let wanted = queues + 1;
    let room = PART / ENTRY_SIZE;
    if wanted < room { wanted } else { room }
}
