//! The header of the driver is compiled and asked; every size, offset and number has to agree.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::number;
use crate::values::{DmaObstacle, IrqFlags, RunReason};

/// Compiles a program against the header that prints what the C side thinks, and compares line by line.
#[test]
fn structures_and_numbers_equal_the_drivers_header() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../driver/porthole_uapi.h");
    let (mut c, mut rust) = (String::new(), String::new());
    for (name, size, fields) in shapes() {
        if name.is_empty() {
            continue;
        }
        writeln!(c, "P(\"{name}\", sizeof(struct {name}));").unwrap();
        writeln!(rust, "{name} {size}").unwrap();
        for (field, offset) in fields {
            writeln!(
                c,
                "P(\"{name}.{field}\", __builtin_offsetof(struct {name}, {field}));"
            )
            .unwrap();
            writeln!(rust, "{name}.{field} {offset}").unwrap();
        }
    }
    for (field, offset) in [
        ("ipa", core::mem::offset_of!(RunMmio, ipa)),
        ("data", core::mem::offset_of!(RunMmio, data)),
        ("width", core::mem::offset_of!(RunMmio, width)),
    ] {
        let offset = core::mem::offset_of!(Run, mmio) + offset;
        writeln!(
            c,
            "P(\"mmio.{field}\", __builtin_offsetof(struct porthole_run, mmio.{field}));"
        )
        .unwrap();
        writeln!(rust, "mmio.{field} {offset}").unwrap();
    }
    for (name, number) in number::all() {
        writeln!(c, "P(\"{name}\", PORTHOLE_{name});").unwrap();
        writeln!(rust, "{name} {number}").unwrap();
    }
    for (name, value) in [
        ("PORTHOLE_UAPI_VERSION", u64::from(UAPI_VERSION)),
        ("PORTHOLE_UAPI_REGIONS_MAX", REGIONS_MAX as u64),
        ("PORTHOLE_WINDOW_UNMAPPED", WINDOW_UNMAPPED),
        ("PORTHOLE_RUN_SIZE", RUN_SIZE as u64),
        ("PORTHOLE_RUN_EXITS", RUN_EXITS as u64),
        ("PORTHOLE_RUN_NONE", RunReason::None as u64),
        ("PORTHOLE_RUN_MMIO_READ", RunReason::MmioRead as u64),
        ("PORTHOLE_RUN_MMIO_WRITE", RunReason::MmioWrite as u64),
        ("PORTHOLE_RUN_SYSTEM_OFF", RunReason::SystemOff as u64),
        ("PORTHOLE_RUN_SYSTEM_RESET", RunReason::SystemReset as u64),
        ("PORTHOLE_RUN_CRASH", RunReason::Crash as u64),
        ("PORTHOLE_RUN_INTR", RunReason::Interrupted as u64),
        ("PORTHOLE_RUN_STOPPED", RunReason::Stopped as u64),
        ("PORTHOLE_DMA_OBSTACLE_BRIDGE", DmaObstacle::Bridge as u64),
        ("PORTHOLE_DMA_OBSTACLE_ALIAS", DmaObstacle::Alias as u64),
        ("PORTHOLE_DMA_OBSTACLE_IOMMU", DmaObstacle::Iommu as u64),
        ("PORTHOLE_DMA_OBSTACLE_ADDRESS", DmaObstacle::Address as u64),
        ("PORTHOLE_DMA_OBSTACLE_KERNEL", DmaObstacle::Kernel as u64),
        ("PORTHOLE_DMA_OBSTACLE_SIZE", DmaObstacle::Size as u64),
        ("PORTHOLE_IRQFD_DEASSIGN", IrqFlags::DEASSIGN.into()),
        ("PORTHOLE_IOEVENTFD_DEASSIGN", IrqFlags::DEASSIGN.into()),
        ("PORTHOLE_IOEVENTFD_DATAMATCH", IrqFlags::DATAMATCH.into()),
    ] {
        writeln!(c, "P(\"{name}\", {name});").unwrap();
        writeln!(rust, "{name} {value}").unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("uapi.c"), dir.path().join("uapi"));
    let text = format!(
        "#include <stdio.h>\n#include \"{}\"\n\
         #define P(n, v) printf(\"%s %llu\\n\", n, (unsigned long long)(v))\n\
         int main(void) {{\n{c}return 0;\n}}\n",
        header.display()
    );
    std::fs::write(&source, text).unwrap();
    let cc = Command::new("cc")
        .args(["-Wall", "-Werror", "-o"])
        .args([&program, &source])
        .output()
        .expect("a C compiler (cc) is needed for this test");
    assert!(
        cc.status.success(),
        "{}",
        String::from_utf8_lossy(&cc.stderr)
    );
    let said = Command::new(&program).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    for (c, rust) in said.lines().zip(rust.lines()) {
        assert_eq!(c, rust, "left: the header; right: this crate");
    }
    assert_eq!(said.lines().count(), rust.lines().count());
}

#[test]
fn obstacles_are_found_by_number() {
    for obstacle in DmaObstacle::ALL {
        assert_eq!(DmaObstacle::from_number(obstacle as u32), Some(obstacle));
    }
    assert_eq!(DmaObstacle::from_number(0), None);
}

#[test]
fn run_reasons_are_found_by_number() {
    for reason in RunReason::ALL {
        assert_eq!(RunReason::from_number(reason as u32), Some(reason));
    }
    assert_eq!(RunReason::from_number(3), None);
}
