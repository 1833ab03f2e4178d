# shellcheck shell=bash
# The boot benchmark: the virtual counter at the first process of the host, with the hypervisor and bare at EL1.
# The counter starts with the machine and takes a step every 16 instructions (62.5 MHz, one instruction a nanosecond).

TICK=16

bench_boot() {
    local bare entry total host
    [ -z "$BUILD" ] || build_hyp release
    make_counter_initramfs "$RUN_DIR/initrd"
    say "booting the kernel bare at EL1"
    machine_args gic-version=3 "$BENCH_CPU" "$BENCH_SMP" "$BENCH_MEM"
    bare=$(first_init bare "${MACHINE_ARGS[@]}" -kernel "$KERNEL_DIR/Image" -initrd "$RUN_DIR/initrd" \
        -append "$(boot_args)" -serial "file:$BENCH_OUT/boot-bare.console")
    say "booting it under the hypervisor"
    machine_args virtualization=on,gic-version=3,iommu=smmuv3 "$BENCH_CPU" "$BENCH_SMP" "$BENCH_MEM"
    guest_modules "$KERNEL_DIR/Image" "$(boot_args)" "$RUN_DIR/initrd"
    total=$(first_init porthole "${MACHINE_ARGS[@]}" -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" \
        "${MODULE_ARGS[@]}" -serial "file:$BENCH_OUT/boot-porthole.console" -serial "file:$BENCH_OUT/boot-porthole.hyp")
    entry=$(host_entry "$BENCH_OUT/boot-porthole.hyp")
    [ -n "$entry" ] || die "the hypervisor's log names no host entry; see $BENCH_OUT/boot-porthole.hyp"
    bare=$((bare * TICK)) host=$((total * TICK - entry))
    printf '%-44s %14s\n' "kernel entry to first init, bare at EL1" "$bare" \
        "kernel entry to first init, under Porthole" "$host" \
        "hypervisor's own start before that" "$entry" ratio "$(ratio "$host" "$bare")"
    printf '{"bare": %d, "porthole": %d, "hypervisor_start": %d, "ratio": %s}\n' \
        "$bare" "$host" "$entry" "$(ratio "$host" "$bare")" >"$BENCH_OUT/boot.json"
    say "written to $BENCH_OUT/boot.json"
}

# host_entry LOG: nanoseconds on the counter when the hypervisor was about to enter the kernel. The lines of its log
# begin with seconds and microseconds of the same counter, and the last one before the host names the kernel.
host_entry() {
    sed -n 's/^\[ *\([0-9]*\)\.\([0-9]*\)\] porthole: host: kernel at .*/\1\2/p' "$1" | head -n 1 |
        sed 's/^0*\([0-9]\)/\1/; s/$/000/'
}

boot_args() { printf 'console=ttyAMA0 panic=-1 quiet\n'; }

# make_counter_initramfs OUTPUT: nothing but the program that reads the counter.
make_counter_initramfs() {
    local root="$RUN_DIR/counter"
    mkdir -p "$root"
    aarch64-linux-gnu-gcc -nostdlib -static -o "$root/init" "$PORTHOLE_ROOT/qemu-scripts/bench/counter.S"
    pack "$root" "$1"
}

# first_init NAME QEMU-ARGUMENTS...: counter value at the first process, read from boot-NAME.console.
first_init() {
    local name=$1 console="$BENCH_OUT/boot-$1.console" counter
    shift
    timeout "$BENCH_SECONDS" qemu-system-aarch64 "$@" "${BENCH_COUNT[@]}" -no-reboot </dev/null >&2 ||
        die "the $name boot did not end; console in $console"
    counter=$(tr -d '\r' <"$console" | sed -n 's/^first init at counter \([0-9]*\)$/\1/p')
    [ -n "$counter" ] || die "the $name boot reached no first process; console in $console"
    printf '%s\n' "$counter"
}
