//! DMA masters: which SMMU stands in front of which, and what counts as a master without one.

use fdt::Fdt;
use porthole_abi::FunctionId;
use porthole_core::addr::PhysAddr;
use vm_fdt::FdtWriter;

use super::{QEMU, blob, blob_with, value};
use crate::devtree::{HostTree, Masters, Tree, Why, write_host_tree};
use crate::smmuv3::Route;

pub(super) const SMMU: u64 = 0x905_0000;

/// A device with registers.
fn device(fdt: &mut FdtWriter, name: &str, compatible: &str, reg: &[u64]) {
    device_with(fdt, name, compatible, reg, |_| {});
}

pub(super) fn device_with(
    fdt: &mut FdtWriter,
    name: &str,
    compatible: &str,
    reg: &[u64],
    more: impl FnOnce(&mut FdtWriter),
) {
    let node = fdt.begin_node(name).unwrap();
    fdt.property_string("compatible", compatible).unwrap();
    fdt.property_array_u64("reg", reg).unwrap();
    more(fdt);
    fdt.end_node(node).unwrap();
}

pub(super) fn smmu(fdt: &mut FdtWriter, base: u64, phandle: u32) {
    let name = format!("smmuv3@{base:x}");
    device_with(fdt, &name, "arm,smmu-v3", &[base, 0x2_0000], |fdt| {
        fdt.property_phandle(phandle).unwrap();
    });
}

fn pci(fdt: &mut FdtWriter, segment: u32, map: Option<&[u32]>) {
    let name = format!("pcie@{segment}");
    device_with(
        fdt,
        &name,
        "pci-host-ecam-generic",
        &[1 << 38, 1 << 28],
        |fdt| {
            fdt.property_string("device_type", "pci").unwrap();
            fdt.property_u32("linux,pci-domain", segment).unwrap();
            if let Some(map) = map {
                fdt.property_array_u32("iommu-map", map).unwrap();
            }
        },
    );
}

fn fw_cfg(fdt: &mut FdtWriter) {
    device(
        fdt,
        "fw-cfg@9020000",
        "qemu,fw-cfg-mmio",
        &[0x902_0000, 0x18],
    );
}

fn virtio(fdt: &mut FdtWriter) {
    for base in (0xa00_0000..0xa00_4000).step_by(0x200) {
        let name = format!("virtio_mmio@{base:x}");
        device(fdt, &name, "virtio,mmio", &[base, 0x200]);
    }
}

/// All that QEMU's machine has.
fn whole(fdt: &mut FdtWriter) {
    virtio(fdt);
    fw_cfg(fdt);
    smmu(fdt, SMMU, 5);
    pci(fdt, 0, Some(&[0, 5, 0, 0x1_0000]));
    device(fdt, "flash@0", "cfi-flash", &[0, 1 << 26, 1 << 26, 1 << 26]);
    device(fdt, "pl061@9030000", "arm,pl061", &[0x903_0000, 0x1000]);
}

/// The masters of QEMU's machine with these nodes; virtio-mmio transports are empty.
pub(super) fn masters(nodes: impl FnOnce(&mut FdtWriter), check: impl FnOnce(&Masters<'_>)) {
    let blob = blob_with(&QEMU, nodes);
    check(&Tree::new(&blob).unwrap().masters(|_| 0));
}

/// What stands outside on a machine that has an SMMU with phandle 5, and nothing else but these nodes.
fn outside(nodes: impl FnOnce(&mut FdtWriter)) -> Vec<(String, Why)> {
    let mut found = Vec::new();
    let all = |fdt: &mut FdtWriter| {
        smmu(fdt, SMMU, 5);
        nodes(fdt);
    };
    masters(all, |m| {
        assert_eq!(m.outside_count, m.outside.len());
        found = m.outside.iter().map(|(n, w)| (n.to_string(), *w)).collect();
    });
    found
}

fn route(smmu: u8, stream: u32, count: u32, function: u32) -> Route {
    Route {
        smmu,
        stream,
        count,
        function: Some(FunctionId(function)),
    }
}

#[test]
fn every_master_of_qemus_machine_is_behind_its_smmu_or_hidden() {
    masters(whole, |m| {
        assert_eq!((m.outside_count, &m.outside[..]), (0, &[][..]));
        assert_eq!(m.smmus.len(), 1);
        assert_eq!(m.smmus[0].base, PhysAddr::new(SMMU));
        assert_eq!(m.routes[..], [route(0, 0, 0x1_0000, 0)]);
        let hidden: Vec<(u64, u64)> = m
            .hidden_pages()
            .unwrap()
            .iter()
            .map(|p| (p.start().raw(), p.count()))
            .collect();
        // fw_cfg, the SMMU, all virtio-mmio transports.
        assert_eq!(hidden, [(0x902_0000, 1), (SMMU, 32), (0xa00_0000, 4)]);
    });
}

#[test]
fn the_host_sees_neither_smmu_nor_what_leads_to_it() {
    let blob = blob_with(&QEMU, |fdt| {
        whole(fdt);
        device_with(fdt, "dma@1", "acme,dma", &[0x1000, 0x1000], |fdt| {
            fdt.property_array_u32("iommus", &[5, 0x77]).unwrap();
        });
        device_with(fdt, "dma@2", "acme,dma", &[0x2000, 0x1000], |fdt| {
            fdt.property_array_u32("iommus", &[99, 0]).unwrap();
        });
    });
    let tree = Tree::new(&blob).unwrap();
    let used = PhysAddr::new(0xa00_3e00);
    let masters = tree.masters(|base| if base == used { 2 } else { 0 });
    let host = HostTree {
        kernel: tree.kernel().unwrap(),
        initrd: None,
        reserved: porthole_core::addr::PhysPages::new(PhysAddr::new(0x4020_0000), 1).unwrap(),
        masters: &masters,
    };
    let mut buffer = vec![0; 64 * 1024];
    let bytes = write_host_tree(&tree, &host, &mut buffer).unwrap();
    let fdt = Fdt::new(&buffer[..bytes]).unwrap();
    for gone in ["/smmuv3@9050000", "/fw-cfg@9020000", "/virtio_mmio@a000000"] {
        assert!(tree.fdt.find_node(gone).is_some() && fdt.find_node(gone).is_none());
    }
    assert!(value(&fdt, "/pcie@0", "reg").is_some());
    assert!(value(&fdt, "/pcie@0", "iommu-map").is_none());
    assert!(value(&fdt, "/dma@1", "iommus").is_none());
    // What leads elsewhere stays, and so does a transport with a device, with its page.
    assert!(value(&fdt, "/dma@2", "iommus").is_some());
    assert!(fdt.find_node("/virtio_mmio@a003e00").is_some());
    assert_eq!(
        masters.outside[..],
        [
            ("virtio_mmio@a003e00", Why::VirtioMmio(2)),
            ("dma@2", Why::Foreign(99))
        ]
    );
    let hidden = masters.hidden_pages().unwrap();
    assert!(hidden.iter().all(|pages| !pages.contains(used)));
}

#[test]
fn an_iommu_map_must_cover_every_function_once() {
    let of = |map: Option<&[u32]>| {
        let found = outside(|fdt| pci(fdt, 0, map));
        assert!(found.len() <= 1);
        found.first().map(|(_, why)| *why)
    };
    assert_eq!(of(None), Some(Why::NoMap));
    assert_eq!(of(Some(&[0, 5, 0, 0x1_0000])), None);
    // In two pieces, in any order.
    assert_eq!(of(Some(&[0x100, 5, 0x100, 0xff00, 0, 5, 0, 0x100])), None);
    for (map, why) in [
        (&[0, 5, 0, 0xff00][..], Why::Uncovered(0xff00)),
        (&[1, 5, 0, 0xffff], Why::Uncovered(0)),
        (
            &[0, 5, 0, 0x100, 0x101, 5, 0, 0xfeff],
            Why::Uncovered(0x100),
        ),
        (&[0, 5, 0, 0x1_0001], Why::BrokenMap),
        (&[0, 5, 0, 0], Why::BrokenMap),
        (&[0, 5, u32::MAX, 0x1_0000], Why::BrokenMap),
        (&[0, 5, 0, 0x1_0000, 0x100, 5, 0, 0x100], Why::BrokenMap),
        (&[0, 5, 0], Why::BrokenMap),
        (&[], Why::BrokenMap),
        (&[0, 6, 0, 0x1_0000], Why::Foreign(6)),
    ] {
        assert_eq!(of(Some(map)), Some(why), "{map:x?}");
    }
}

#[test]
fn segments_and_several_smmus_keep_their_streams_apart() {
    masters(
        |fdt| {
            smmu(fdt, SMMU, 5);
            pci(fdt, 7, Some(&[0, 6, 0x2_0000, 0x1_0000]));
            smmu(fdt, SMMU + 0x2_0000, 6);
            pci(fdt, 0, Some(&[0, 5, 0, 0x8000, 0x8000, 6, 0x8000, 0x8000]));
            device_with(fdt, "dma@1", "acme,dma", &[0x1000, 0x1000], |fdt| {
                fdt.property_array_u32("iommus", &[6, 3, 5, 0x1_0000])
                    .unwrap();
            });
        },
        |m| {
            assert_eq!(m.outside_count, 0);
            let platform = |smmu, stream| Route {
                function: None,
                ..route(smmu, stream, 1, 0)
            };
            assert_eq!(
                m.routes[..],
                [
                    route(1, 0x2_0000, 0x1_0000, 7 << 16),
                    route(0, 0, 0x8000, 0),
                    route(1, 0x8000, 0x8000, 0x8000),
                    platform(1, 3),
                    platform(0, 0x1_0000),
                ]
            );
        },
    );
}

#[test]
fn what_may_write_to_memory_counts_as_outside() {
    let one = |nodes: fn(&mut FdtWriter)| {
        let found = outside(nodes);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].1
    };
    let unknown: fn(&mut FdtWriter) = |fdt| device(fdt, "dma@1000", "acme,dma", &[0x1000, 0x1000]);
    assert_eq!(one(unknown), Why::Unknown);
    // A device that the firmware says is disabled is still there.
    let disabled: fn(&mut FdtWriter) = |fdt| {
        device_with(fdt, "dma@1000", "acme,dma", &[0x1000, 0x1000], |fdt| {
            fdt.property_string("status", "disabled").unwrap();
        });
    };
    assert_eq!(one(disabled), Why::Unknown);
    // An ITS that is no part of the GIC is guarded by nobody.
    let stray: fn(&mut FdtWriter) =
        |fdt| device(fdt, "its@1000", "arm,gic-v3-its", &[0x1000, 0x1000]);
    assert_eq!(one(stray), Why::Unknown);
    let broken_streams: fn(&mut FdtWriter) = |fdt| {
        device_with(fdt, "dma@1000", "acme,dma", &[0x1000, 0x1000], |fdt| {
            fdt.property_array_u32("iommus", &[5]).unwrap();
        });
    };
    assert_eq!(one(broken_streams), Why::BrokenMap);
    // Its registers cannot be read.
    let no_reg: fn(&mut FdtWriter) = |fdt| {
        let node = fdt.begin_node("fw-cfg@1").unwrap();
        fdt.property_string("compatible", "qemu,fw-cfg-mmio")
            .unwrap();
        fdt.property_array_u32("reg", &[1, 2, 3]).unwrap();
        fdt.end_node(node).unwrap();
    };
    assert_eq!(one(no_reg), Why::NoRegisters);
    // Its page is the UART's too.
    let shared: fn(&mut FdtWriter) = |fdt| {
        device(
            fdt,
            "fw-cfg@1",
            "qemu,fw-cfg-mmio",
            &[super::CONSOLE + 0x800, 0x18],
        )
    };
    assert_eq!(one(shared), Why::SharedPage);
}

#[test]
fn simple_buses_are_searched() {
    let bus = |ranges: &[u32], compatible: &str, child: &str| {
        let found = outside(|fdt| {
            let node = fdt.begin_node("bus").unwrap();
            fdt.property_string("compatible", "simple-bus").unwrap();
            fdt.property_u32("#address-cells", 2).unwrap();
            fdt.property_u32("#size-cells", 2).unwrap();
            fdt.property_array_u32("ranges", ranges).unwrap();
            device(fdt, child, compatible, &[0x2000_0000, 0x2_0000]);
            fdt.end_node(node).unwrap();
        });
        found.first().map(|(_, why)| *why)
    };
    assert_eq!(bus(&[], "acme,dma", "dma@1"), Some(Why::Unknown));
    assert_eq!(bus(&[], "arm,pl011", "uart@1"), None);
    assert_eq!(bus(&[], "qemu,fw-cfg-mmio", "fw@1"), None);
    // Behind a translation nothing can be hidden, nor an SMMU found.
    let elsewhere = [0, 0, 0x3000_0000, 0x1000];
    assert_eq!(
        bus(&elsewhere, "qemu,fw-cfg-mmio", "fw@1"),
        Some(Why::NoRegisters)
    );
    assert_eq!(bus(&elsewhere, "arm,smmu-v3", "smmu@1"), Some(Why::Unknown));
    masters(
        |fdt| {
            let node = fdt.begin_node("bus").unwrap();
            fdt.property_string("compatible", "simple-bus").unwrap();
            fdt.property_u32("#address-cells", 2).unwrap();
            fdt.property_u32("#size-cells", 2).unwrap();
            fdt.property_null("ranges").unwrap();
            smmu(fdt, SMMU, 5);
            fdt.end_node(node).unwrap();
        },
        |m| assert_eq!((m.smmus.len(), m.outside_count), (1, 0)),
    );
}

#[test]
fn an_smmu_that_cannot_be_used_confines_nothing() {
    let map: &[u32] = &[0, 8, 0, 0x1_0000];
    let disabled = outside(|fdt| {
        device_with(fdt, "smmu@1", "arm,smmu-v3", &[1 << 30, 0x2_0000], |fdt| {
            fdt.property_phandle(8).unwrap();
            fdt.property_string("status", "disabled").unwrap();
        });
        pci(fdt, 0, Some(map));
    });
    assert_eq!(disabled, [("pcie@0".into(), Why::Foreign(8))]);
    let short = outside(|fdt| {
        device_with(fdt, "smmu@1", "arm,smmu-v3", &[1 << 30, 0x1000], |fdt| {
            fdt.property_phandle(8).unwrap();
        });
        pci(fdt, 0, Some(map));
    });
    assert_eq!(
        short,
        [
            ("smmu@1".into(), Why::NoRegisters),
            ("pcie@0".into(), Why::Foreign(8))
        ]
    );
}

#[test]
fn more_than_there_is_room_for_is_outside_too() {
    let many = outside(|fdt| {
        for n in 1..5 {
            smmu(fdt, SMMU + n * 0x2_0000, 5 + n as u32);
        }
    });
    assert_eq!(many.len(), 1);
    assert!(matches!(many[0].1, Why::TooMany(_)));
    masters(
        |fdt| {
            for n in 0..40 {
                device(fdt, &format!("dma@{n}"), "acme,dma", &[n << 20, 0x1000]);
                let at = 1 << 31 | n << 20;
                device(fdt, &format!("fw@{n}"), "qemu,fw-cfg-mmio", &[at, 0x18]);
            }
        },
        |m| {
            assert!(m.outside_count > 40);
            assert_eq!(m.outside.len(), 8);
        },
    );
}

#[test]
fn each_reason_is_a_sentence() {
    for why in [
        Why::VirtioMmio(2),
        Why::NoMap,
        Why::BrokenMap,
        Why::Uncovered(1),
        Why::Foreign(2),
        Why::Unknown,
        Why::NoRegisters,
        Why::SharedPage,
        Why::TooMany("devices"),
    ] {
        assert!(why.to_string().len() > 20, "{why}");
    }
}

#[test]
fn doorbells_are_those_of_the_its() {
    let blob = blob(&QEMU);
    let tree = Tree::new(&blob).unwrap();
    assert_eq!(tree.doorbells()[..], [PhysAddr::new(0x809_0000)]);
}

/// Reads everything that the boot reads.
fn read_all(blob: &[u8]) {
    let Ok(tree) = Tree::new(blob) else {
        return;
    };
    let _ = (tree.ram(), tree.cpus(), tree.gic(), tree.doorbells());
    let _ = (tree.console(), tree.log_uart(), tree.arguments());
    let _ = tree.firmware_is_hvc();
    let masters = tree.masters(|base| (base.raw() >> 9 & 1) as u32);
    let _ = masters.hidden_pages();
    let Some(kernel) = tree.kernel() else {
        return;
    };
    let host = HostTree {
        kernel,
        initrd: tree.initrd(),
        reserved: porthole_core::addr::PhysPages::new(PhysAddr::new(0x4020_0000), 1).unwrap(),
        masters: &masters,
    };
    let _ = write_host_tree(&tree, &host, &mut vec![0; 64 * 1024]);
}

#[test]
fn a_node_that_was_blotted_out_hides_no_other() {
    let good = blob_with(&QEMU, whole);
    let word = |text: &[u8]| {
        let at = good.windows(text.len()).position(|w| w == text);
        at.map(|at| at - 4).unwrap()
    };
    // From the first transport's node to the next one's.
    let (start, end) = (
        word(b"virtio_mmio@a000000\0"),
        word(b"virtio_mmio@a000200\0"),
    );
    let mut blotted = good.clone();
    for at in (start..end).step_by(4) {
        blotted[at..at + 4].copy_from_slice(&4u32.to_be_bytes());
    }
    {
        let tree = Tree::new(&blotted).unwrap();
        let masters = tree.masters(|_| 0);
        assert_eq!((masters.outside_count, masters.routes.len()), (0, 1));
        let names: Vec<&str> = tree.root().unwrap().children().map(|n| n.name).collect();
        assert!(!names.contains(&"virtio_mmio@a000000"));
        assert!(names.contains(&"virtio_mmio@a000200") && names.contains(&"pl061@9030000"));
    }
    // Inside a node's properties it would hide what follows: no tree.
    let compatible = word(b"virtio_mmio@a000000\0") + 24;
    let mut blotted = good.clone();
    blotted[compatible..compatible + 4].copy_from_slice(&4u32.to_be_bytes());
    assert!(Tree::new(&blotted).is_err());
}

#[test]
fn a_malformed_tree_is_an_error_and_never_a_panic() {
    let good = blob_with(&QEMU, whole);
    read_all(&good);
    // Every byte of header, structure and names in turn, with the values that matter most.
    for at in 0..good.len() {
        let mut bad = good.clone();
        for value in [
            0,
            1,
            2,
            3,
            4,
            9,
            0x7f,
            0x80,
            0xff,
            good[at] ^ 1,
            good[at].wrapping_add(4),
        ] {
            bad[at] = value;
            read_all(&bad);
        }
    }
    // And many at once.
    let mut random = 1u64;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % below
    };
    for _ in 0..3000 {
        let mut bad = good.clone();
        for _ in 0..1 + next(16) {
            let at = next(bad.len());
            bad[at] = next(256) as u8;
        }
        read_all(&bad);
    }
    let cut = &good[..good.len() - 100];
    assert!(Tree::new(cut).is_err());
}
