# shellcheck shell=bash
# The boot benchmark: instructions executed from kernel entry to the first process, with the hypervisor and bare at
# EL1. A QEMU plugin counts them (bench/count_plugin.c), EL2's own included, idle time not.

# The same machine for both, without the random seeds and the wall clock that would make each boot another one.
BOOT_MACHINE=gic-version=3,iommu=smmuv3,dtb-randomness=off
BOOT_CLOCK=(-rtc "base=2026-01-01,clock=vm")
BOOT_ARGS="console=ttyAMA0 panic=-1 quiet"
# Where QEMU puts a kernel that it boots itself: 2 MiB into RAM (hw/arm/boot.c).
BARE_KERNEL_ADDRESS=0x40200000

# Linux does other background work in each boot, so each side boots several times, with a word on the command line that
# moves things a little, and the median counts. One CPU: with two, that work runs beside the boot and swamps the rest.
BOOT_RUNS=5 BOOT_SMP=1

bench_boot() {
    local i run='' bare total start el2
    local -a bares=() totals=()
    [ -z "$BUILD" ] || build_hyp release
    build_counter
    make_init "$RUN_DIR/initrd"
    for ((i = 1; i <= BOOT_RUNS; i++)); do
        say "boot $i of $BOOT_RUNS, bare at EL1 and under the hypervisor"
        run=$(boot_bare "run=$i")
        bares+=("${run%% *}")
        run=$(boot_porthole "run=$i")
        totals+=("${run%% *}")
    done
    bare=$(median "${bares[@]}") total=$(median "${totals[@]}")
    read -r _ start el2 <<<"$run"
    printf '%-44s %14s\n' "kernel entry to first init, bare at EL1" "$bare" \
        "kernel entry to first init, under Porthole" "$total" \
        "  of these at EL2" "$el2" "the hypervisor's own start before that" "$start" ratio "$(ratio "$total" "$bare")"
    printf '{"bare": %d, "porthole": %d, "el2": %d, "hypervisor_start": %d, "boots": %d, "ratio": %s}\n' \
        "$bare" "$total" "$el2" "$start" "$BOOT_RUNS" "$(ratio "$total" "$bare")" >"$BENCH_OUT/boot.json"
    say "written to $BENCH_OUT/boot.json"
}

build_counter() {
    cc -O2 -Wall -Wextra -shared -fPIC -o "$RUN_DIR/count.so" "$PORTHOLE_ROOT/qemu-scripts/bench/count_plugin.c" ||
        die "the counting plugin does not build"
}

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

# boot_bare WORD, boot_porthole WORD: one boot, with a word for the kernel's command line; see kernel_to_init.
boot_bare() {
    machine_args "$BOOT_MACHINE" "$BENCH_CPU" "$BOOT_SMP" "$BENCH_MEM"
    kernel_to_init bare "$BARE_KERNEL_ADDRESS" "${MACHINE_ARGS[@]}" -kernel "$KERNEL_DIR/Image" \
        -initrd "$RUN_DIR/initrd" -append "$BOOT_ARGS $1" -serial "file:$BENCH_OUT/boot-bare.console"
}

boot_porthole() {
    machine_args "virtualization=on,$BOOT_MACHINE" "$BENCH_CPU" "$BOOT_SMP" "$BENCH_MEM"
    guest_modules "$KERNEL_DIR/Image" "$BOOT_ARGS $1" "$RUN_DIR/initrd"
    kernel_to_init porthole "$KERNEL_ADDRESS" "${MACHINE_ARGS[@]}" \
        -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" "${MODULE_ARGS[@]}" \
        -serial "file:$BENCH_OUT/boot-porthole.console" -serial "file:$BENCH_OUT/boot-porthole.hyp"
}

# make_init OUTPUT: an initramfs with nothing but a first process. Sets INIT_ADDRESS, where that one begins.
make_init() {
    local root="$RUN_DIR/root"
    mkdir -p "$root"
    aarch64-linux-gnu-gcc -nostdlib -static -Wl,--build-id=none -o "$root/init" "$PORTHOLE_ROOT/qemu-scripts/bench/init.S"
    INIT_ADDRESS=$(aarch64-linux-gnu-readelf -h "$root/init" | awk '/Entry point/ { print $4 }')
    pack "$root" "$1"
}

# kernel_to_init NAME KERNEL-ADDRESS QEMU-ARGUMENTS...: instructions from the kernel's entry to the first process, and
# those before the kernel, and how many of the first were at EL2.
kernel_to_init() {
    local name=$1 address=$2 log="$BENCH_OUT/boot-$1.count" before after before_el2 after_el2
    shift 2
    timeout "$BENCH_SECONDS" qemu-system-aarch64 "$@" "${BENCH_COUNT[@]}" "${BOOT_CLOCK[@]}" -no-reboot \
        -plugin "$(doubled "$RUN_DIR/count.so"),kernel=$address,init=$INIT_ADDRESS" -d plugin -D "$log" </dev/null >&2 ||
        die "the $name boot did not end; console in $BENCH_OUT/boot-$name.console"
    read -r before before_el2 < <(sed -n 's/^kernel //p' "$log")
    read -r after after_el2 < <(sed -n 's/^init //p' "$log") ||
        die "the $name boot reached no first process; console in $BENCH_OUT/boot-$name.console"
    printf '%d %d %d\n' $((after - before)) "$before" $((after_el2 - before_el2))
}
