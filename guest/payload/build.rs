//! Links the binaries as position-independent arm64 Images.

fn main() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    println!("cargo:rerun-if-changed={root}/linker/payload.ld");
    for arg in [
        "-pie",
        "--no-dynamic-linker",
        "-Bsymbolic",
        "-znotext",
        "-znorelro",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{root}/linker/payload.ld");
}
