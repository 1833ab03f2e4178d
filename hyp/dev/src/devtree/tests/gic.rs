//! The interrupt controller: which frames are its own, and what of its kind counts as a DMA master that nobody guards.

use porthole_core::addr::PhysAddr;
use vm_fdt::FdtWriter;

use super::masters::{SMMU, device_with, smmu};
use super::{Machine, QEMU, blob_with};
use crate::devtree::{Tree, TreeError, Why};

const FRAMES: [u64; 4] = [0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000];
const ITS: [u64; 2] = [0x808_0000, 0x2_0000];

/// A GICv3 with `reg`, with ITSs of these registers, and more properties.
fn gic(
    fdt: &mut FdtWriter,
    name: &str,
    reg: &[u64],
    its: &[&[u64]],
    more: impl FnOnce(&mut FdtWriter),
) {
    device_with(fdt, name, "arm,gic-v3", reg, |fdt| {
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        more(fdt);
        for (number, reg) in its.iter().enumerate() {
            let name = format!("its@{number}");
            device_with(fdt, &name, "arm,gic-v3-its", reg, |_| {});
        }
    });
}

fn identity(fdt: &mut FdtWriter) {
    fdt.property_null("ranges").unwrap();
}

fn disabled(fdt: &mut FdtWriter) {
    fdt.property_string("status", "disabled").unwrap();
    identity(fdt);
}

/// The machine with an SMMU and these nodes, and no other GIC.
fn with<T>(nodes: impl FnOnce(&mut FdtWriter), check: impl FnOnce(&Tree<'_>) -> T) -> T {
    let blob = blob_with(&Machine { gic: false, ..QEMU }, |fdt| {
        smmu(fdt, SMMU, 5);
        nodes(fdt);
    });
    check(&Tree::new(&blob).unwrap())
}

/// What stands outside.
fn outside(nodes: impl FnOnce(&mut FdtWriter)) -> Vec<String> {
    with(nodes, |tree| {
        let masters = tree.masters(|_| 0);
        let all = masters.outside.iter();
        all.map(|(name, why)| {
            assert_eq!(*why, Why::Unknown);
            (*name).to_string()
        })
        .collect()
    })
}

#[test]
fn a_second_gic_and_its_itss_count_as_outside() {
    let first = |fdt: &mut FdtWriter| gic(fdt, "intc@1", &FRAMES, &[&ITS], identity);
    assert!(outside(first).is_empty());
    let second = |more: fn(&mut FdtWriter)| {
        outside(|fdt| {
            first(fdt);
            gic(fdt, "intc@2", &FRAMES, &[], more);
        })
    };
    // Disabled or not.
    assert_eq!(second(identity), ["intc@2"]);
    assert_eq!(second(disabled), ["intc@2"]);
    let with_its = outside(|fdt| {
        first(fdt);
        gic(fdt, "intc@2", &FRAMES, &[&ITS], identity);
    });
    assert_eq!(with_its, ["intc@2", "its@0"]);
    // The first that is enabled is the one that is used.
    let (found, base) = with(
        |fdt| {
            gic(
                fdt,
                "intc@1",
                &[0x1000, 0x1000, 0x2000, 0x1000],
                &[],
                disabled,
            );
            gic(fdt, "intc@2", &FRAMES, &[&ITS], identity);
        },
        |tree| {
            let outside = tree.masters(|_| 0).outside;
            (
                outside[..] == [("intc@1", Why::Unknown)],
                tree.gic().unwrap().distributor,
            )
        },
    );
    assert_eq!((found, base), (true, PhysAddr::new(FRAMES[0])));
}

#[test]
fn an_its_whose_one_frame_cannot_be_told_counts_as_outside() {
    let its = |reg: &[u64], more: fn(&mut FdtWriter)| {
        outside(|fdt| gic(fdt, "intc@1", &FRAMES, &[reg], more))
    };
    assert!(its(&ITS, identity).is_empty());
    assert_eq!(its(&[ITS, ITS].concat(), identity), ["its@0"]);
    assert_eq!(its(&ITS[..1], identity), ["its@0"]);
    // Addresses that are not the CPU's, or nobody's.
    let elsewhere: fn(&mut FdtWriter) = |fdt| {
        fdt.property_array_u64("ranges", &[0, 1 << 32, 1 << 32])
            .unwrap()
    };
    assert_eq!(its(&ITS, elsewhere), ["its@0"]);
    assert_eq!(its(&ITS, |_| {}), ["its@0"]);
}

#[test]
fn more_regions_or_itss_than_are_kept_and_no_redistributor_end_the_boot() {
    let error = |reg: &[u64], itss: usize, regions: u32| {
        with(
            |fdt| {
                gic(fdt, "intc@1", reg, &vec![&ITS[..]; itss], |fdt| {
                    identity(fdt);
                    fdt.property_u32("#redistributor-regions", regions).unwrap();
                });
            },
            |tree| tree.gic().err(),
        )
    };
    let reg: Vec<u64> = (0..6).flat_map(|i| [i << 20, 0x2_0000]).collect();
    assert_eq!(error(&reg, 4, 4), None);
    let regions = TreeError::TooMany(4, "redistributor regions");
    assert_eq!(error(&reg, 4, 5), Some(regions));
    assert_eq!(error(&reg, 5, 4), Some(TreeError::TooMany(4, "ITSs")));
    assert_eq!(error(&FRAMES[..2], 0, 1), Some(TreeError::NoGic));
}
