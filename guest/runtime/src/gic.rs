//! A minimal GICv3 driver (Arm IHI 0069): group 1, affinity routing, one priority.

use crate::{mmio, read_reg, reg, write_reg};

/// Priority that every interrupt gets.
pub const PRIORITY: u8 = 0xa0;

/// Distributor and redistributor bases.
#[derive(Clone, Copy, Debug)]
pub struct Gic {
    /// Distributor.
    pub dist: u64,
    /// First redistributor; 128 KiB for each CPU.
    pub redist: u64,
}

fn read32(at: u64) -> u32 {
    // SAFETY: the program named this as its GIC; registers are 32 bits wide.
    unsafe { mmio::read32(at) }
}

fn write32(at: u64, value: u32) {
    // SAFETY: as in `read32`.
    unsafe { mmio::write32(at, value) };
}

impl Gic {
    /// A 32-bit distributor register.
    pub fn read_dist(&self, offset: u64) -> u32 {
        read32(self.dist + offset)
    }

    /// Writes a 32-bit distributor register.
    pub fn write_dist(&self, offset: u64, value: u32) {
        write32(self.dist + offset, value);
    }

    /// A 32-bit redistributor register of CPU `index`; the SGI frame starts at 0x10000.
    pub fn read_redist(&self, index: usize, offset: u64) -> u32 {
        read32(self.redist + index as u64 * 0x20000 + offset)
    }

    /// Writes a 32-bit redistributor register of CPU `index`.
    pub fn write_redist(&self, index: usize, offset: u64, value: u32) {
        write32(self.redist + index as u64 * 0x20000 + offset, value);
    }

    /// Enables group 1 with affinity routing in the distributor.
    pub fn init(&self) {
        self.write_dist(0, 0x12);
        while self.read_dist(0) & (1 << 31) != 0 {}
    }

    /// Wakes this CPU's redistributor, prepares all SGIs and PPIs (disabled) and the CPU interface.
    pub fn init_cpu(&self, index: usize) {
        let waker = self.read_redist(index, 0x14);
        self.write_redist(index, 0x14, waker & !2);
        while self.read_redist(index, 0x14) & 4 != 0 {}
        self.write_redist(index, 0x1_0080, u32::MAX);
        self.write_redist(index, 0x1_0180, u32::MAX);
        for n in 0..8 {
            self.write_redist(index, 0x1_0400 + n * 4, u32::from_ne_bytes([PRIORITY; 4]));
        }
        write_reg!("S3_0_C12_C12_5", 7); // ICC_SRE_EL1
        write_reg!("S3_0_C4_C6_0", 0xf0); // ICC_PMR_EL1
        write_reg!("S3_0_C12_C12_4", 0); // ICC_CTLR_EL1
        write_reg!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    }

    /// Enables an SGI or PPI of CPU `index`.
    pub fn enable_private(&self, index: usize, intid: u32) {
        self.write_redist(index, 0x1_0100, 1 << (intid & 31));
    }

    /// Enables an SPI, group 1, routed to the CPU with affinity `route`; `edge` or level.
    pub fn enable_spi(&self, intid: u32, route: u64, edge: bool) {
        let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
        self.write_dist(0x80 + word, self.read_dist(0x80 + word) | bit);
        let at = self.dist + 0x400 + u64::from(intid);
        // SAFETY: priority registers are byte-accessible.
        unsafe { mmio::write8(at, PRIORITY) };
        let cfg = 0xc00 + u64::from(intid / 16) * 4;
        let shift = (intid % 16) * 2 + 1;
        let old = self.read_dist(cfg) & !(1 << shift);
        self.write_dist(cfg, old | u32::from(edge) << shift);
        // SAFETY: routing registers are 64 bits wide.
        unsafe { mmio::write64(self.dist + 0x6000 + u64::from(intid) * 8, route) };
        self.write_dist(0x100 + word, bit);
    }
}

/// Acknowledges the highest pending interrupt of group 1: its INTID, 1020 and above for none.
pub fn acknowledge() -> u32 {
    let id = read_reg!("S3_0_C12_C12_0") as u32;
    reg::barrier();
    id & 0xff_ffff
}

/// Ends an interrupt.
pub fn end(intid: u32) {
    write_reg!("S3_0_C12_C12_1", u64::from(intid));
}

/// Sends SGI `intid` to CPUs in `targets` (bit n: Aff0 = n) of the cluster with Aff1 to Aff3 zero.
pub fn send_sgi(intid: u32, targets: u16) {
    reg::barrier();
    write_reg!(
        "S3_0_C12_C11_5",
        u64::from(intid & 15) << 24 | u64::from(targets)
    );
}
