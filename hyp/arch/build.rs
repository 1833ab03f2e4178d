//! Links the self-test with its own script. The crate itself needs none.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = format!("{root}/examples/switch_selftest/link.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-examples=-T{script}");
}
