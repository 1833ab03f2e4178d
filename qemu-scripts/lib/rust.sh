# shellcheck shell=bash
# Rust for the targets: from rustup where it answers, else the standard library's source from Debian's rust-src.
# Nothing is written into the toolchain but what `rustup target add` writes.

RUST_BARE=aarch64-unknown-none-softfloat
RUST_LINUX=aarch64-unknown-linux-gnu
RUST_SYSROOT="$(cd "$PORTHOLE_ROOT" && { rustc --print sysroot 2>/dev/null || true; })"

# rust_has TARGET: whether the toolchain carries a compiled standard library for it. PORTHOLE_NO_RUSTUP=1 says no,
# which is how the way without rustup is tried on a machine that has it.
rust_has() { [ -z "${PORTHOLE_NO_RUSTUP:-}" ] && [ -n "$(find "$RUST_SYSROOT/lib/rustlib/$1/lib" -name 'libcore-*.rlib' -print -quit 2>/dev/null)" ]; }

rust_version() { rustc --version | cut -d' ' -f2; }

# The unpacked source for this compiler; the folder that build-std is shown.
rust_src_library() { printf '%s/rust-src/%s/library\n' "$PORTHOLE_CACHE" "$(rust_version)"; }

setup_rust() {
    local target
    if [ -z "$RUST_SYSROOT" ] || ! have cargo; then
        die "no Rust toolchain found; install one from https://rustup.rs (rustc and cargo must be in PATH)"
    fi
    for target in "$RUST_BARE" "$RUST_LINUX"; do
        rust_has "$target" && continue
        if [ -z "${PORTHOLE_NO_RUSTUP:-}" ] && have rustup && [ ! -e "$(rust_src_library)" ]; then
            say "asking rustup for the target $target"
            (cd "$PORTHOLE_ROOT" && timeout 60 rustup target add "$target") \
                >"$PORTHOLE_CACHE/log/rustup.log" 2>&1 || true
            rust_has "$target" && continue
            say "rustup cannot provide it; taking Debian's rust-src instead"
        fi
        setup_rust_src
    done
}

# setup_crates: what Cargo.lock names, and what std is built from where we build it, in cargo's own cache.
setup_crates() {
    fetch_crates "$PORTHOLE_ROOT/Cargo.toml" "the crates that Cargo.lock names"
    if ! rust_has "$RUST_BARE" || ! rust_has "$RUST_LINUX"; then
        fetch_crates "$(rust_src_library)/Cargo.toml" "the crates that the standard library is built from"
    fi
}

# fetch_crates MANIFEST WHAT
fetch_crates() {
    local log="$PORTHOLE_CACHE/log/cargo-fetch.log"
    RUSTC_BOOTSTRAP=1 quietly "$log" cargo fetch --offline --manifest-path "$1" && return 0
    say "fetching $2"
    RUSTC_BOOTSTRAP=1 quietly "$log" cargo fetch --manifest-path "$1" ||
        die "cannot fetch $2 from cargo's registry; connect to the network and run qemu-scripts/setup.sh again (details: $log)"
}

# Debian's rust-src of the compiler's version, for -Zbuild-std.
setup_rust_src() {
    local library version config spec
    library=$(rust_src_library)
    [ -e "$library/vendor" ] && return 0
    version=$(rust_version)
    config=$(fetch_config)
    say "looking for Debian's rust-src $version (source of core, alloc and std)"
    apt_update "$config" "$PORTHOLE_CACHE/log/apt-update.log"
    spec=$(APT_CONFIG=$config apt-cache madison rust-src | tr -d ' ' | cut -d'|' -f2 |
        grep -m1 "^${version//./\\.}[+~-]" || true)
    [ -n "$spec" ] || die "Debian has no rust-src $version; use a network that rustup reaches, or the compiler of Debian's rust-src: $(
        APT_CONFIG=$config apt-cache madison rust-src | cut -d'|' -f2 | sort -uV | tr '\n' ' ')"
    rm -rf "$library.new"
    fetch_deb "$config" "$library.new" "rust-src=$spec"
    publish "$library.new/usr/src/rustc-$version/library" "$library"
    rm -rf "$library.new"
    printf '%s\n' "$spec" >"${library%/library}/version"
}
