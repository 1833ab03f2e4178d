//! The guest's address map and interrupt numbers, in one place: what the device tree says, what the VM is created
//! with and where the bus dispatches. No behaviour lives here.
//! The guest sees the addresses that Linux VMMs for arm64 usually show, with RAM at 2 GiB.

use porthole_abi::{PAGE_SIZE, RegionDesc, RegionKind, SPI_BASE};

/// A range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Range {
    /// Builds a range; both numbers are constants of this module or were checked by the caller.
    pub const fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    /// First address after the range.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }

    /// Whether `size` bytes from `base` lie inside; false if they wrap around.
    pub fn covers(&self, base: u64, size: u64) -> bool {
        base >= self.base && base.checked_add(size).is_some_and(|end| end <= self.end())
    }
}

/// GICv3 distributor, emulated by the hypervisor.
pub const GICD: Range = Range::new(0x0800_0000, 0x1_0000);
/// GICv2m frame, emulated by the hypervisor: MSIs become SPIs.
pub const GIC_V2M: Range = Range::new(0x0802_0000, PAGE_SIZE);
/// First redistributor; one of [`GICR_STRIDE`] bytes for each vCPU.
pub const GICR_BASE: u64 = 0x080A_0000;
/// Bytes of one vCPU's redistributor: RD_base and SGI_base frames (Arm IHI 0069, 12.10).
pub const GICR_STRIDE: u64 = 0x2_0000;
/// 16550A.
pub const UART: Range = Range::new(0x0900_0000, PAGE_SIZE);
/// PL031.
pub const RTC: Range = Range::new(0x0901_0000, PAGE_SIZE);
/// PCI memory for windows: a `Window` region, prefetchable in the device tree.
pub const PCI_WINDOWS: Range = Range::new(0x1000_0000, 0x1f00_0000);
/// PCI memory for registers: traps to the VMM.
pub const PCI_REGISTERS: Range = Range::new(0x2f00_0000, 0x0100_0000);
/// PCI configuration space of bus 0: 4 KiB for each of 256 functions.
pub const PCI_ECAM: Range = Range::new(0x3000_0000, 0x10_0000);
/// Pool for DMA of a guest that finds it in the device tree: a `Window` region as large as the pool.
pub const POOL_BASE: u64 = 0x4000_0000;
/// Most bytes of it: half of the VM's windows.
pub const POOL_MAX: u64 = 256 << 20;
/// First address of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Most bytes of RAM: what is left of the guest's 36-bit address space.
pub const RAM_MAX: u64 = (1 << porthole_abi::GUEST_IPA_BITS) - RAM_BASE;
/// Fewest bytes of RAM: an image and a device tree in 2 MiB blocks.
pub const RAM_MIN: u64 = 2 << 20;
/// Most bytes of RAM of an unprotected VM: as much as its windows can be.
pub const OPEN_RAM_MAX: u64 =
    porthole_abi::WINDOWS_MAX as u64 * porthole_abi::OPEN_WINDOW_PAGES_MAX * PAGE_SIZE;

/// Where a device writes an MSI: GICv2m `SETSPI_NS`.
pub const MSI_DOORBELL: u64 = GIC_V2M.base + 0x40;

/// The UART's interrupt as an SPI number (INTID less 32).
pub const UART_SPI: u32 = 0;
/// SPIs kept for devices with a wire.
const WIRED_SPIS: u32 = 32;
/// First INTID of the MSIs.
pub const MSI_BASE: u32 = SPI_BASE + WIRED_SPIS;
/// MSIs of one VM.
pub const MSI_COUNT: u32 = 64;
/// SPIs declared when the VM is created.
pub const SPI_COUNT: u32 = WIRED_SPIS + MSI_COUNT;

/// The typed regions a VM is created with: RAM that is private or open to the host, and a pool unless it has none.
pub fn regions(ram_size: u64, open: bool, vcpus: u32, pool: u64) -> Vec<RegionDesc> {
    let region = |kind: RegionKind, base, size| RegionDesc {
        base,
        size,
        kind: kind as u32,
        reserved: 0,
    };
    let ram = if open {
        RegionKind::OpenRam
    } else {
        RegionKind::Ram
    };
    let mut all = vec![
        region(RegionKind::GicDistributor, GICD.base, GICD.size),
        region(RegionKind::GicV2m, GIC_V2M.base, GIC_V2M.size),
        region(
            RegionKind::GicRedistributors,
            GICR_BASE,
            GICR_STRIDE * u64::from(vcpus),
        ),
        region(RegionKind::Window, PCI_WINDOWS.base, PCI_WINDOWS.size),
        region(ram, RAM_BASE, ram_size),
    ];
    if pool > 0 {
        all.push(region(RegionKind::Window, POOL_BASE, pool));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_each_other_or_the_trapped_ranges() {
        let mut all: Vec<_> = regions(RAM_MAX, false, 8, POOL_MAX)
            .iter()
            .map(|r| Range::new(r.base, r.size))
            .collect();
        all.extend([UART, RTC, PCI_REGISTERS, PCI_ECAM]);
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.base % PAGE_SIZE, 0);
            for b in &all[i + 1..] {
                assert!(a.end() <= b.base || b.end() <= a.base, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_range_covers_nothing_that_wraps_around() {
        assert!(GICD.covers(GICD.base, 4));
        assert!(!GICD.covers(u64::MAX, 2));
        assert!(!GICD.covers(GICD.end() - 2, 4));
    }
}
