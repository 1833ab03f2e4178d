#!/usr/bin/env bash
# Installs and fetches everything that building and running Porthole needs. Safe to run again; fast when done.
set -euo pipefail
# shellcheck source=qemu-scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
for part in apt packages rust kernel initramfs io-host guest-linux; do
    # shellcheck disable=SC1090
    . "$PORTHOLE_ROOT/qemu-scripts/lib/$part.sh"
done

usage() {
    cat <<EOF
usage: qemu-scripts/setup.sh [--io | --guest | --packages | --versions | --help]

Installs QEMU and cross tools (Debian packages), adds the Rust targets, and fetches Debian's arm64 kernel, its
headers and busybox into $PORTHOLE_CACHE (PORTHOLE_CACHE moves it).

  --io         also Debian's generic kernel, fio, iperf3 and kexec, for a host with real devices (run.sh --io, test.sh)
  --guest      also Linux for protected guests: compiles two kernels, once for some minutes (test.sh)
  --packages   only the Debian packages (the one part that needs root)
  --versions   print what is in use

PORTHOLE_DEBIAN_MIRROR: the address that has debian/ below it, for machines whose apt sources name no Debian archive.
EOF
}

first_line() { "$@" 2>/dev/null | sed -n 1p || true; }

versions() {
    load_state || die "nothing is set up yet; run qemu-scripts/setup.sh"
    local std="rustup's"
    rust_has "$RUST_BARE" && rust_has "$RUST_LINUX" ||
        std="Debian rust-src $(cat "$(dirname "$(rust_src_library)")/version" 2>/dev/null || echo missing)"
    printf '%-18s %s\n' \
        "host kernel" "$KERNEL_RELEASE (Debian $KERNEL_VERSION)" \
        "busybox" "$BUSYBOX_VERSION" \
        "rustc" "$(rustc --version)" \
        "arm64 core/std" "$std" \
        "qemu" "$(first_line qemu-system-aarch64 --version)" \
        "arm64 gcc" "$(first_line aarch64-linux-gnu-gcc --version)" \
        "pahole" "$(first_line pahole --version)" \
        "guest kernels" "$(load_guest && echo "$GUEST_DIR" || echo "not built, see --guest")" \
        "cache" "$PORTHOLE_CACHE"
}

setup() {
    mkdir -p "$PORTHOLE_CACHE/log" 2>/dev/null || die "cannot write to the cache $PORTHOLE_CACHE; set PORTHOLE_CACHE to a folder of yours"
    setup_packages
    exec 8>"$PORTHOLE_CACHE/lock"
    flock 8
    setup_rust
    setup_crates
    setup_kernel
    case "${1:-}" in
        io) setup_io_host ;;
        guest) load_guest || guest_fetch ;;
    esac
    exec 8>&-
    [ "${1:-}" != guest ] || setup_guest
}

case "${1:-}" in
    '') setup ;;
    --io) setup io ;;
    --guest) setup guest ;;
    --packages)
        mkdir -p "$PORTHOLE_CACHE/log"
        setup_packages
        ;;
    --versions) versions ;;
    -h | --help) usage ;;
    *) die "unknown argument '$1'; see --help" 2 ;;
esac
