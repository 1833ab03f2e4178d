//! The driver's C header against this crate: every constant and every struct, in both directions.
//! The header is compiled by the machine's C compiler (a Rust toolchain links with it) and prints what it
//! means; names in the header that this test does not know fail it too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use porthole_abi::*;

/// Not values: the include guard.
const GUARD: &str = "PORTHOLE_ABI_H";
/// The one flag of `VM_DONATE`, which `HostFunction::VmDonate` describes as bit 0.
const DONATE_CONTENT: u64 = 1;

/// `VmCreate` as `VM_CREATE`.
fn shout(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i != 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

fn debug_name(value: impl std::fmt::Debug) -> String {
    shout(&format!("{value:?}"))
}

/// Every number of the ABI under its C name, as the 64 bits that a C `unsigned long long` cast gives.
fn constants() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut put = |name: String, value: u64| {
        let name = format!("PORTHOLE_{name}");
        assert!(
            all.insert(name.clone(), value).is_none(),
            "{name} stands twice"
        );
    };
    for f in HostFunction::ALL {
        put(format!("FN_{}", shout(f.name())), f.id().into());
    }
    for f in GuestFunction::ALL {
        put(format!("FN_{}", shout(f.name())), f.id().into());
    }
    for e in Error::ALL {
        put(format!("E_{}", shout(e.name())), e.code() as u64);
    }
    for k in ExitKind::ALL {
        put(format!("EXIT_{}", debug_name(k)), *k as u64);
    }
    for s in VmState::ALL {
        put(format!("VM_{}", shout(s.name())), *s as u64);
    }
    for o in PageOwner::ALL {
        put(format!("OWNER_{}", shout(o.name())), *o as u64);
    }
    for s in StatKind::ALL {
        put(format!("STAT_{}", shout(s.name())), *s as u64);
    }
    for r in DmaRecord::ALL {
        put(format!("DMA_{}", shout(r.name())), *r as u64);
    }
    for kind in (0..=u16::MAX).filter_map(|n| RegionKind::from_number(n.into())) {
        // "GICv2m" is one word and a version.
        let name = match kind {
            RegionKind::GicV2m => "GIC_V2M".to_owned(),
            _ => debug_name(kind),
        };
        put(format!("REGION_{name}"), kind as u64);
    }
    for (name, bit) in Features::all().iter_names() {
        put(format!("FEATURE_{name}"), bit.bits());
    }
    for (name, bit) in WindowFlags::all().iter_names() {
        put(format!("WINDOW_{name}"), bit.bits().into());
    }
    for (name, bit) in VmFlags::all().iter_names() {
        put(format!("VM_FLAG_{name}"), bit.bits());
    }
    for (i, word) in UID.iter().enumerate() {
        put(format!("UID_{i}"), (*word).into());
    }
    for (name, value) in [
        ("ABI_VERSION", ABI_VERSION.into()),
        ("HVC_IMMEDIATE", HVC_IMMEDIATE.into()),
        ("RANGE_FAST64", RANGE_FAST64.into()),
        ("RANGE_FAST32", RANGE_FAST32.into()),
        ("RANGE_MASK", RANGE_MASK.into()),
        ("CALL_COUNT", CALL_COUNT.into()),
        ("CALL_UID", CALL_UID.into()),
        ("CALL_REVISION", CALL_REVISION.into()),
        ("DONATE_CONTENT", DONATE_CONTENT),
        ("PAGE_SIZE", PAGE_SIZE),
        ("PAGE_SHIFT", PAGE_SHIFT.into()),
        ("DONATE_PAGES_MAX", DONATE_PAGES_MAX),
        ("WINDOW_PAGES_MAX", WINDOW_PAGES_MAX),
        ("OPEN_WINDOW_PAGES_MAX", OPEN_WINDOW_PAGES_MAX),
        ("PAGE_RUN_MAX", PAGE_RUN_MAX),
        ("WINDOWS_MAX", WINDOWS_MAX as u64),
        ("VMS_MAX", VMS_MAX as u64),
        ("VCPUS_MAX", VCPUS_MAX as u64),
        ("GUEST_IPA_BITS", GUEST_IPA_BITS.into()),
        ("SPI_BASE", SPI_BASE.into()),
        ("SPIS_MAX", SPIS_MAX.into()),
        ("VCPU_META_PAGES", VCPU_META_PAGES),
        ("DMA_PAGES_MAX", DMA_PAGES_MAX),
        ("DMA_CONFINED_MAX", DMA_CONFINED_MAX as u64),
        ("DMA_SOURCES_MAX", DMA_SOURCES_MAX as u64),
        ("LOG_CHUNK", LOG_CHUNK as u64),
        ("VM_REGIONS_MAX", VM_REGIONS_MAX as u64),
        ("WINDOW_EXTENTS_MAX", WINDOW_EXTENTS_MAX as u64),
        ("NO_ADDRESS", NO_ADDRESS),
    ] {
        put(name.to_owned(), value);
    }
    all
}

/// A struct of the ABI as C sees it: field, offset, size; the struct itself stands under "".
fn layouts() -> BTreeMap<(&'static str, &'static str), (u64, u64)> {
    let mut all = BTreeMap::new();
    macro_rules! layout {
        ($c:literal, $rust:ident { $($field:ident: $type:ty),* $(,)? }) => {
            // Naming every field without `..` makes a new field of the Rust type fail to compile here.
            let _ = |s: $rust| { let $rust { $($field: _),* } = s; };
            all.insert(($c, ""), (align_of::<$rust>() as u64, size_of::<$rust>() as u64));
            $(all.insert(($c, stringify!($field)),
                (offset_of!($rust, $field) as u64, size_of::<$type>() as u64));)*
        };
    }
    layout!(
        "porthole_region_desc",
        RegionDesc {
            base: u64,
            size: u64,
            kind: u32,
            reserved: u32,
        }
    );
    layout!(
        "porthole_vm_config",
        VmConfig {
            version: u32,
            vcpus: u32,
            flags: u64,
            spi_count: u32,
            msi_base: u32,
            msi_count: u32,
            region_count: u32,
            meta_pa: u64,
            meta_pages: u64,
            reserved: [u64; 2],
            regions: [RegionDesc; VM_REGIONS_MAX],
        }
    );
    layout!(
        "porthole_extent",
        Extent {
            pa: u64,
            pages: u64
        }
    );
    layout!(
        "porthole_window_config",
        WindowConfig {
            version: u32,
            flags: u32,
            vm: u64,
            function: u32,
            bar: u32,
            bar_size: u64,
            bar_offset: u64,
            length: u64,
            ipa: u64,
            extent_count: u32,
            reserved: u32,
            extents: [Extent; WINDOW_EXTENTS_MAX],
        }
    );
    all
}

fn header() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host-shim/driver/porthole_abi.h")
}

/// Compiles and runs a program whose `main` has this body, and returns its words line by line.
fn run_c(name: &str, body: &str) -> Vec<Vec<String>> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (dir.join(format!("{name}.c")), dir.join(name));
    let program = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"{}\"\nint main(void) {{\n{body}return 0;\n}}\n",
        header().display()
    );
    std::fs::write(&source, program).expect("write the C program");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(&compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-Wpadded", "-o"])
        .args([&binary, &source])
        .status()
        .unwrap_or_else(|e| panic!("cannot start the C compiler {compiler}: {e}"));
    assert!(status.success(), "{compiler} refused {}", source.display());
    let output = Command::new(&binary).output().expect("run the C program");
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .expect("plain text")
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

fn number(word: &str) -> u64 {
    word.parse().expect("a decimal number")
}

#[test]
fn every_constant_of_the_abi_has_its_value_in_the_header() {
    let expected = constants();
    let mut body = String::new();
    for name in expected.keys() {
        writeln!(
            body,
            "printf(\"%s %llu\\n\", \"{name}\", (unsigned long long){name});"
        )
        .expect("a string takes all");
    }
    let found: BTreeMap<String, u64> = run_c("constants", &body)
        .into_iter()
        .map(|line| (line[0].clone(), number(&line[1])))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_header_has_no_constant_that_the_abi_lacks() {
    let text = std::fs::read_to_string(header()).expect("the driver's header");
    let expected = constants();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("#define") {
            let name = words.next().expect("a name after #define");
            assert!(
                name == GUARD || expected.contains_key(name),
                "{name} is not in the ABI"
            );
        }
    }
}

#[test]
fn structs_have_the_same_layout() {
    let expected = layouts();
    let mut body = String::new();
    for (c, field) in expected.keys() {
        let (offset, size) = if field.is_empty() {
            (
                format!("_Alignof(struct {c})"),
                format!("sizeof(struct {c})"),
            )
        } else {
            (
                format!("offsetof(struct {c}, {field})"),
                format!("sizeof(((struct {c} *)0)->{field})"),
            )
        };
        writeln!(body, "printf(\"%zu %zu\\n\", {offset}, {size});").expect("a string takes all");
    }
    for (line, (name, layout)) in run_c("layouts", &body).iter().zip(&expected) {
        assert_eq!((number(&line[0]), number(&line[1])), *layout, "{name:?}");
    }
}

#[test]
fn the_header_has_no_struct_that_the_abi_lacks() {
    let text = std::fs::read_to_string(header()).expect("the driver's header");
    let expected = layouts();
    for line in text.lines().filter(|l| l.ends_with(" {")) {
        let name = line
            .strip_prefix("struct ")
            .and_then(|l| l.strip_suffix(" {"))
            .unwrap_or_else(|| panic!("not a struct: {line}"));
        assert!(
            expected.contains_key(&(name, "")),
            "struct {name} is not in the ABI"
        );
    }
}
