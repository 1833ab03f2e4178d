# shellcheck shell=bash
# Environment for cargo, and the two ways to call it: cargo_bare for EL2 and guest code, cargo_linux for arm64 Linux.
# Source it after set-up has run: `. qemu-scripts/lib/env.sh`; it installs nothing.

# shellcheck source=qemu-scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=qemu-scripts/lib/rust.sh
. "$PORTHOLE_ROOT/qemu-scripts/lib/rust.sh"
# shellcheck source=qemu-scripts/lib/kernel.sh
. "$PORTHOLE_ROOT/qemu-scripts/lib/kernel.sh"

load_state || true

# The command in the initramfs stands alone, so it carries its C library.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"

# Without compiled libraries for a target, cargo builds them from Debian's rust-src. The variable that shows cargo
# the folder keeps us out of the user's toolchain; RUSTC_BOOTSTRAP opens -Zbuild-std on a stable compiler.
RUST_BARE_STD=() RUST_LINUX_STD=()
rust_has "$RUST_BARE" || RUST_BARE_STD=("-Zbuild-std=core,alloc" -Zbuild-std-features=compiler-builtins-mem)
rust_has "$RUST_LINUX" || RUST_LINUX_STD=("-Zbuild-std=std,panic_abort")

# cargo_std SUBCOMMAND ARGUMENTS...: cargo, shown the source of the standard library.
cargo_std() {
    RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$(rust_src_library)" cargo "$@"
}

# cargo_bare SUBCOMMAND ARGUMENTS...
cargo_bare() {
    local sub=$1
    shift
    if [ "${#RUST_BARE_STD[@]}" -gt 0 ]; then
        cargo_std "$sub" --target "$RUST_BARE" "${RUST_BARE_STD[@]}" "$@"
    else
        cargo "$sub" --target "$RUST_BARE" "$@"
    fi
}

# cargo_linux SUBCOMMAND ARGUMENTS...
cargo_linux() {
    local sub=$1
    shift
    if [ "${#RUST_LINUX_STD[@]}" -gt 0 ]; then
        cargo_std "$sub" --target "$RUST_LINUX" "${RUST_LINUX_STD[@]}" "$@"
    else
        cargo "$sub" --target "$RUST_LINUX" "$@"
    fi
}
