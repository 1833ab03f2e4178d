# shellcheck shell=bash
# Builds everything that runs on the arm64 machine. Each function leaves its result under $PORTHOLE_OUT/PROFILE.
# The tools come from setup.sh; how cargo is called from env.sh.

# shellcheck source=qemu-scripts/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OBJCOPY=aarch64-linux-gnu-objcopy
STRIP=aarch64-linux-gnu-strip

# profile_flag PROFILE: what cargo wants to hear for it.
profile_flag() {
    case "$1" in
        release) printf '%s\n' --release ;;
        debug) printf '%s\n' --profile=dev ;;
        *) die "unknown build profile '$1' (release or debug)" 2 ;;
    esac
}

# flat ELF IMAGE: a flat binary with the arm64 Image header (Documentation/arch/arm64/booting.rst).
flat() {
    "$OBJCOPY" -O binary "$1" "$2.new"
    [ "$(peek "$2.new" 56 4)" = ARMd ] || die "$1 has no arm64 Image header at its start; check its linker script"
    mv "$2.new" "$2"
}

# build_bare PROFILE PACKAGE OUTPUT-DIRECTORY: all binaries of a bare-metal package as flat images NAME.bin.
build_bare() {
    local profile=$1 package=$2 out=$3 elf messages
    mkdir -p "$out"
    messages=$(cargo_bare build --quiet -p "$package" --bins "$(profile_flag "$profile")" \
        --message-format=json-render-diagnostics) || die "$package does not build (see above)"
    while IFS= read -r elf; do
        flat "$elf" "$out/$(basename "$elf").bin"
    done < <(grep -o '"executable":"[^"]*"' <<<"$messages" | cut -d'"' -f4)
}

# build_hyp PROFILE: PROFILE/hyp/porthole-hyp.bin, what QEMU's -kernel takes.
build_hyp() {
    say "building the hypervisor ($1)"
    build_bare "$1" porthole-hyp "$PORTHOLE_OUT/$1/hyp"
}

# build_hostile PROFILE: PROFILE/tests/hostile-host.bin, booted in place of Linux.
build_hostile() {
    say "building the hostile host ($1)"
    build_bare "$1" porthole-tests "$PORTHOLE_OUT/$1/tests"
}

# build_selftest PROFILE: PROFILE/tests/switch-selftest.elf, which needs no hypervisor: it is the world switch alone.
build_selftest() {
    local elf
    say "building the self-test of the world switch ($1)"
    elf=$(cargo_bare build --quiet -p porthole-arch --example switch_selftest "$(profile_flag "$1")" \
        --message-format=json-render-diagnostics) || die "the self-test does not build (see above)"
    elf=$(grep -o '"executable":"[^"]*"' <<<"$elf" | cut -d'"' -f4)
    mkdir -p "$PORTHOLE_OUT/$1/tests"
    cp "$elf" "$PORTHOLE_OUT/$1/tests/switch-selftest.elf"
}

# build_payloads: release/payload/*.bin, the bare-metal guests.
build_payloads() {
    say "building the bare-metal guests"
    build_bare release porthole-payload "$PORTHOLE_OUT/release/payload"
}

# build_vmm: release/porthole, a static arm64 Linux command.
build_vmm() {
    local elf out="$PORTHOLE_OUT/release"
    say "building the porthole command"
    mkdir -p "$out"
    elf=$(cargo_linux build --quiet -p porthole-vmm --bin porthole --release \
        --message-format=json-render-diagnostics) || die "porthole-vmm does not build (see above)"
    elf=$(grep -o '"executable":"[^"]*"' <<<"$elf" | cut -d'"' -f4)
    "$STRIP" -o "$out/porthole" "$elf"
}

# build_liar: release/lying-vmm, for tests: the VMM with devices that break the rules. No part of the product.
build_liar() {
    local elf out="$PORTHOLE_OUT/release"
    say "building the VMM that lies"
    elf=$(cargo_linux build --quiet -p porthole-liar --bin lying-vmm --release \
        --message-format=json-render-diagnostics) || die "porthole-liar does not build (see above)"
    elf=$(grep -o '"executable":"[^"]*"' <<<"$elf" | cut -d'"' -f4)
    "$STRIP" -o "$out/lying-vmm" "$elf"
}

# build_module SOURCE-DIRECTORY: release/NAME.ko for every module of the folder, built out of the tree.
build_module() {
    local source=$1 work log module
    work="$PORTHOLE_OUT/kbuild/$(basename "$source")"
    log="$work.log"
    mkdir -p "$work" "$PORTHOLE_OUT/release"
    (cd "$source" && find . -name Kbuild -o -name Makefile -o -name '*.[chS]') |
        (cd "$source" && cpio --quiet -pdmu "$work" 2>/dev/null)
    quietly "$log" make -C "$KERNEL_DIR/headers" M="$work" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- \
        CC=aarch64-linux-gnu-gcc W="${PORTHOLE_KBUILD_W:-}" modules || {
        tail -n 25 "$log" >&2
        die "the Linux module in $source does not build (whole output: $log)"
    }
    grep -E 'warning:' "$log" >&2 || true
    # Debug information stays in the work folder: the host would unpack it at every boot.
    while IFS= read -r module; do
        "$STRIP" --strip-debug -o "$PORTHOLE_OUT/release/$(basename "$module")" "$module"
    done < <(find "$work" -name '*.ko')
}

build_driver() {
    say "building the Linux driver for $KERNEL_RELEASE"
    build_module "$PORTHOLE_ROOT/host-shim/driver"
}

# build_attack: the modules and the programs with which the demo and the tests play a hostile root.
build_attack() {
    local program
    build_module "$PORTHOLE_ROOT/qemu-scripts/attack"
    for program in touch_page edu_dma; do
        aarch64-linux-gnu-gcc -O2 -Wall -Wextra -Werror -static -o "$PORTHOLE_OUT/release/$program" \
            "$PORTHOLE_ROOT/qemu-scripts/attack/$program.c" || die "$program.c does not build"
    done
}

# build_driver_tests: release/driver_test, which runs on the host beside the driver, and a module that it loads.
build_driver_tests() {
    local source="$PORTHOLE_ROOT/host-shim/driver/tests"
    build_module "$source/module"
    aarch64-linux-gnu-gcc -O2 -Wall -Wextra -Werror -static -pthread -o "$PORTHOLE_OUT/release/driver_test" \
        "$source"/*.c "$source"/*.S || die "the driver's tests do not build"
}

# build_all PROFILE: what run.sh boots. PROFILE is the hypervisor's; the rest is always release.
build_all() {
    build_hyp "$1"
    build_payloads
    build_vmm
    build_driver
    build_driver_tests
    build_attack
}
