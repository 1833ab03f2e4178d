//! The device tree that the guest gets in x0: what `layout` says, in the bindings that Linux reads.
//! Every node describes something that hypervisor or VMM really emulates; the tree is part of the measurement.
//! Sources: Linux, Documentation/devicetree/bindings (arm,gic-v3; arm,armv8-timer; pci-host-ecam-generic; ...).

use vm_fdt::{FdtWriter, FdtWriterNode};

use crate::layout::{
    self, GIC_V2M, GICD, GICR_BASE, GICR_STRIDE, PCI_ECAM, PCI_REGISTERS, PCI_WINDOWS, POOL_BASE,
    RAM_BASE, RTC, Range, UART,
};

const GIC_PHANDLE: u32 = 1;
const V2M_PHANDLE: u32 = 2;
const CLOCK_PHANDLE: u32 = 3;
const POOL_PHANDLE: u32 = 4;

/// First cell of a GIC interrupt: a shared one.
const GIC_SPI: u32 = 0;
/// First cell of a GIC interrupt: a private one.
const GIC_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The virtual timer's PPI (INTID 27; Arm BSA).
const VIRTUAL_TIMER_PPI: u32 = 11;
/// Clock of UART and PL031, as the 16550 divides it.
const CLOCK_HZ: u32 = 1_843_200;
/// `ranges` of a PCI host: 32-bit memory space (PCI bus binding, IEEE 1275).
const PCI_MEMORY_32: u32 = 0x0200_0000;
/// The same, prefetchable: what windows may lie in.
const PCI_MEMORY_32_PREFETCHABLE: u32 = 0x4200_0000;

/// What the tree has to say beside the fixed map.
#[derive(Clone, Debug, Default)]
pub struct TreeConfig<'a> {
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Bytes of the pool that all DMA goes through; 0 without one.
    pub pool: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Where the initrd is.
    pub initrd: Option<Range>,
    /// Bytes for the kernel's random pool; the host knows them.
    pub seed: Option<[u8; 64]>,
}

fn cells(range: Range) -> [u64; 2] {
    [range.base, range.size]
}

/// Builds the tree.
pub fn build(config: &TreeConfig) -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "porthole,guest")?;
    fdt.property_string("model", "Porthole protected guest")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
    chosen(&mut fdt, config)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, config.ram_size])?;
    fdt.end_node(memory)?;
    if config.pool > 0 {
        pool(&mut fdt, config.pool)?;
    }
    cpus(&mut fdt, config.vcpus)?;
    interrupts(&mut fdt, config.vcpus)?;
    serial_and_clock(&mut fdt)?;
    pci(&mut fdt, config.pool > 0)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, config: &TreeConfig) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", config.cmdline)?;
    fdt.property_string("stdout-path", &format!("/serial@{:x}", UART.base))?;
    if let Some(initrd) = config.initrd {
        fdt.property_u64("linux,initrd-start", initrd.base)?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    if let Some(seed) = config.seed {
        let (kaslr, rng) = seed.split_at(8);
        fdt.property("kaslr-seed", kaslr)?;
        fdt.property("rng-seed", rng)?;
    }
    fdt.end_node(node)
}

/// Linux takes a pool from memory that it has in its linear map: the region is memory, and reserved without `no-map`
/// (Documentation/devicetree/bindings/reserved-memory/shared-dma-pool.yaml; kernel/dma/swiotlb.c).
fn pool(fdt: &mut FdtWriter, size: u64) -> Result<(), vm_fdt::Error> {
    let memory = fdt.begin_node(&format!("memory@{POOL_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[POOL_BASE, size])?;
    fdt.end_node(memory)?;
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node(&format!("dma-pool@{POOL_BASE:x}"))?;
    fdt.property_string("compatible", "restricted-dma-pool")?;
    fdt.property_array_u64("reg", &[POOL_BASE, size])?;
    fdt.property_phandle(POOL_PHANDLE)?;
    fdt.end_node(node)?;
    fdt.end_node(reserved)
}

fn cpus(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..vcpus {
        let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", index)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;
    let psci = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"];
    fdt.property_string_list("compatible", compatible.map(String::from).to_vec())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)
}

fn interrupts(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), vm_fdt::Error> {
    let redistributors = Range::new(GICR_BASE, GICR_STRIDE * u64::from(vcpus));
    let gic = fdt.begin_node(&format!("intc@{:x}", GICD.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_array_u64("reg", &[cells(GICD), cells(redistributors)].concat())?;
    fdt.property_phandle(GIC_PHANDLE)?;
    let frame = fdt.begin_node(&format!("v2m@{:x}", GIC_V2M.base))?;
    fdt.property_string("compatible", "arm,gic-v2m-frame")?;
    fdt.property_null("msi-controller")?;
    fdt.property_array_u64("reg", &cells(GIC_V2M))?;
    fdt.property_u32("arm,msi-base-spi", layout::MSI_BASE)?;
    fdt.property_u32("arm,msi-num-spis", layout::MSI_COUNT)?;
    fdt.property_phandle(V2M_PHANDLE)?;
    fdt.end_node(frame)?;
    fdt.end_node(gic)?;
    // The guest has the virtual timer and no other; Linux takes the one that has this name.
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_array_u32("interrupts", &[GIC_PPI, VIRTUAL_TIMER_PPI, LEVEL_HIGH])?;
    fdt.property_string("interrupt-names", "virt")?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)
}

fn serial_and_clock(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(clock)?;
    let uart = fdt.begin_node(&format!("serial@{:x}", UART.base))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &cells(UART))?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, layout::UART_SPI, EDGE_RISING])?;
    fdt.end_node(uart)?;
    let rtc = fdt.begin_node(&format!("rtc@{:x}", RTC.base))?;
    let compatible = ["arm,pl031", "arm,primecell"];
    fdt.property_string_list("compatible", compatible.map(String::from).to_vec())?;
    fdt.property_array_u64("reg", &cells(RTC))?;
    fdt.property_u32("clocks", CLOCK_PHANDLE)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(rtc)
}

fn pci(fdt: &mut FdtWriter, pool: bool) -> Result<(), vm_fdt::Error> {
    let node: FdtWriterNode = fdt.begin_node(&format!("pcie@{:x}", PCI_ECAM.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u64("reg", &cells(PCI_ECAM))?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    let mut ranges = Vec::new();
    for (space, range) in [
        (PCI_MEMORY_32_PREFETCHABLE, PCI_WINDOWS),
        (PCI_MEMORY_32, PCI_REGISTERS),
    ] {
        ranges.push(space);
        // PCI address, CPU address and size, two cells each; bus and CPU addresses are equal.
        for value in [range.base, range.base, range.size] {
            ranges.extend([(value >> 32) as u32, value as u32]);
        }
    }
    fdt.property_array_u32("ranges", &ranges)?;
    fdt.property_u32("msi-parent", V2M_PHANDLE)?;
    fdt.property_null("dma-coherent")?;
    if pool {
        // Functions without a node of their own take their host bridge's (Linux, of_dma_set_restricted_buffer).
        fdt.property_u32("memory-region", POOL_PHANDLE)?;
    }
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(config: &TreeConfig) -> Vec<u8> {
        build(config).unwrap()
    }

    fn property<'a>(fdt: &'a fdt::Fdt<'a>, path: &str, name: &str) -> &'a [u8] {
        let node = fdt
            .find_node(path)
            .unwrap_or_else(|| panic!("no node {path}"));
        let value = node.property(name);
        value.unwrap_or_else(|| panic!("no {name} in {path}")).value
    }

    fn be64(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_be_bytes()).collect()
    }

    #[test]
    fn a_pool_is_memory_reserved_and_the_bridges() {
        let blob = tree(&TreeConfig {
            vcpus: 1,
            pool: 16 << 20,
            ..TreeConfig::default()
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        let place = be64(&[POOL_BASE, 16 << 20]);
        assert_eq!(property(&fdt, "/memory@40000000", "reg"), place);
        let pool = "/reserved-memory/dma-pool@40000000";
        assert_eq!(property(&fdt, pool, "reg"), place);
        assert_eq!(property(&fdt, pool, "compatible"), b"restricted-dma-pool\0");
        let node = fdt.find_node(pool).unwrap();
        assert!(node.property("no-map").is_none());
        assert_eq!(
            property(&fdt, "/pcie@30000000", "memory-region"),
            property(&fdt, pool, "phandle")
        );
        let blob = tree(&TreeConfig {
            vcpus: 1,
            ..TreeConfig::default()
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        assert!(fdt.find_node("/reserved-memory").is_none());
        let bridge = fdt.find_node("/pcie@30000000").unwrap();
        assert!(bridge.property("memory-region").is_none());
    }

    #[test]
    fn the_tree_names_memory_command_line_and_initrd() {
        let blob = tree(&TreeConfig {
            vcpus: 1,
            ram_size: 64 << 20,
            pool: 0,
            cmdline: "console=ttyS0 quiet",
            initrd: Some(Range::new(0x8100_0000, 12345)),
            seed: None,
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        assert_eq!(fdt.chosen().bootargs(), Some("console=ttyS0 quiet"));
        assert_eq!(
            property(&fdt, "/memory@80000000", "reg"),
            be64(&[RAM_BASE, 64 << 20])
        );
        assert_eq!(
            property(&fdt, "/chosen", "linux,initrd-start"),
            be64(&[0x8100_0000])
        );
        assert_eq!(
            property(&fdt, "/chosen", "linux,initrd-end"),
            be64(&[0x8100_0000 + 12345])
        );
        let chosen = fdt.find_node("/chosen").unwrap();
        assert!(chosen.property("rng-seed").is_none());
    }

    #[test]
    fn each_vcpu_has_a_node_and_a_redistributor() {
        for vcpus in [1, 2, 8] {
            let blob = tree(&TreeConfig {
                vcpus,
                ram_size: 16 << 20,
                ..TreeConfig::default()
            });
            let fdt = fdt::Fdt::new(&blob).unwrap();
            let ids: Vec<_> = fdt.cpus().map(|c| c.ids().first()).collect();
            assert_eq!(ids, (0..vcpus as usize).collect::<Vec<_>>());
            assert_eq!(
                property(&fdt, "/intc@8000000", "reg")[16..],
                be64(&[GICR_BASE, GICR_STRIDE * u64::from(vcpus)])
            );
        }
    }

    #[test]
    fn only_the_virtual_timer_is_shown() {
        let blob = tree(&TreeConfig {
            vcpus: 1,
            ..TreeConfig::default()
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        assert_eq!(property(&fdt, "/timer", "interrupt-names"), b"virt\0");
        assert_eq!(property(&fdt, "/timer", "interrupts").len(), 12);
    }

    #[test]
    fn pci_ranges_keep_windows_prefetchable_and_registers_not() {
        let blob = tree(&TreeConfig {
            vcpus: 1,
            ..TreeConfig::default()
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        let ranges = property(&fdt, "/pcie@30000000", "ranges");
        assert_eq!(ranges.len(), 2 * 7 * 4);
        assert_eq!(ranges[..4], PCI_MEMORY_32_PREFETCHABLE.to_be_bytes());
        assert_eq!(ranges[4..12], be64(&[PCI_WINDOWS.base]));
        assert_eq!(ranges[28..32], PCI_MEMORY_32.to_be_bytes());
        assert_eq!(ranges[48..56], be64(&[PCI_REGISTERS.size]));
        assert_eq!(
            property(&fdt, "/pcie@30000000", "msi-parent"),
            V2M_PHANDLE.to_be_bytes()
        );
    }

    #[test]
    fn seeds_appear_only_when_asked_for() {
        let blob = tree(&TreeConfig {
            vcpus: 1,
            seed: Some([0xa5; 64]),
            ..TreeConfig::default()
        });
        let fdt = fdt::Fdt::new(&blob).unwrap();
        assert_eq!(property(&fdt, "/chosen", "kaslr-seed"), [0xa5; 8]);
        assert_eq!(property(&fdt, "/chosen", "rng-seed"), [0xa5; 56]);
    }

    #[test]
    fn the_tree_fits_its_place_with_the_longest_command_line() {
        let cmdline = "x".repeat(crate::cli::CMDLINE_MAX);
        let blob = tree(&TreeConfig {
            vcpus: 8,
            cmdline: &cmdline,
            seed: Some([0; 64]),
            ..TreeConfig::default()
        });
        assert!(blob.len() as u64 <= super::super::plan::DTB_MAX);
    }
}
