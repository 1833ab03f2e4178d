//! Which PCI roots EL2 can look through.

use super::masters::{SMMU, device_with, masters, smmu};
use super::*;

#[test]
fn a63_a_pci_root_that_cannot_be_looked_through_is_outside() {
    let roots = |compatible: &str, reg: &[u64], more: fn(&mut FdtWriter)| {
        let mut roots = Vec::new();
        let mut outside = Vec::new();
        let nodes = |fdt: &mut FdtWriter| {
            smmu(fdt, SMMU, 5);
            device_with(fdt, "pcie@0", compatible, reg, |fdt| {
                fdt.property_string("device_type", "pci").unwrap();
                fdt.property_array_u32("iommu-map", &[0, 5, 0, 0x1_0000])
                    .unwrap();
                more(fdt);
            });
        };
        masters(nodes, |m| {
            roots = m.roots.iter().map(|r| (r.pages, r.buses.clone())).collect();
            outside = m.outside.iter().map(|(_, why)| *why).collect();
        });
        (roots, outside)
    };
    const ECAM: &str = "pci-host-ecam-generic";
    let range = |fdt: &mut FdtWriter| fdt.property_array_u32("bus-range", &[2, 17]).unwrap();
    let pages =
        |base: u64, bytes: u64| PhysPages::new(PhysAddr::new(base), bytes / 0x1000).unwrap();
    let (found, outside) = roots(ECAM, &[1 << 38, 1 << 28], |_| ());
    assert_eq!(found, [(pages(1 << 38, 1 << 28), 0..=255)]);
    assert_eq!(outside, []);
    let (found, _) = roots(ECAM, &[1 << 30, 1 << 28], range);
    assert_eq!(found, [(pages(1 << 30, 16 << 20), 2..=17)]);
    let off = |fdt: &mut FdtWriter| fdt.property_string("status", "disabled").unwrap();
    let wide = |fdt: &mut FdtWriter| fdt.property_array_u32("bus-range", &[0, 256]).unwrap();
    let back = |fdt: &mut FdtWriter| fdt.property_array_u32("bus-range", &[3, 2]).unwrap();
    let odd = |fdt: &mut FdtWriter| fdt.property_array_u32("bus-range", &[3]).unwrap();
    let (big, small) = ([1 << 38, 1 << 28], [1 << 38, 255 << 20]);
    for (compatible, reg, more) in [
        ("pci-host-cam-generic", &big, (|_| ()) as fn(&mut FdtWriter)),
        (ECAM, &small, |_| ()),
        (ECAM, &[0x800, 1 << 28], |_| ()),
        (ECAM, &[u64::MAX - 0xfff, 1 << 28], |_| ()),
        (ECAM, &big, off),
        (ECAM, &big, wide),
        (ECAM, &big, back),
        (ECAM, &big, odd),
    ] {
        assert_eq!(roots(compatible, reg, more), (vec![], vec![Why::NoEcam]));
    }
}
