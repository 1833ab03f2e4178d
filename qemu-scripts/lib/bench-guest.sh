# shellcheck shell=bash
# The guest benchmark: boots the Linux host, runs the bare-metal guest, reads its lines, prints the table.
# A line of the guest is `bench NAME reps=N instructions=M`, M the mean of one operation.

# Each vCPU stays on a CPU of its own: where the scheduler puts both on one for a while, the waste of the spinning one
# (some 400 million instructions, once) would be counted as the operation's.

# What upstream pKVM takes for a protected VM: QEMU 10.0.2, the machine line of bench.sh, Debian's Linux 7.3.4 with
# kvm-arm.mode=protected, kvmtool, mean of 65,536 repetitions.
BENCH_PEER=(hyp_call=3814 mmio_read_user=9758 mmio_read_vgic=4706 ipi=10697 eoi=21)

# The same for a disk through virtio: peer-figures' guest with a window, direct reads.
BLOCK_PEER=(blk_read_4k=80000 blk_read_1m=860000)

bench_guest() {
    count_guest guest 'exec porthole run --kernel /lib/porthole/bench.bin --mem 64M --cpus 2 --cpu-affinity 0=0:1=1'
    bench_table latest.json "${BENCH_PEER[@]}"
}

# Reads of a disk whose image is in the host's memory, one at a time.
bench_block() {
    count_guest block 'dd if=/dev/zero of=/tmp/disk bs=1M count=64 2>/dev/null
        exec porthole run --kernel /lib/porthole/devices.bin --mem 64M --cmdline "mode=bench reps=1024" \
            --console off --disk /tmp/disk --cpu-affinity 0=0'
    bench_table block.json "${BLOCK_PEER[@]}"
}

# count_guest NAME COMMAND: runs a command on the counted host; what it printed is in NAME.txt and OUTPUT.
count_guest() {
    local mark status=0 console="$BENCH_OUT/$1.console"
    if [ -n "$BUILD" ]; then
        build_all release
        make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
    fi
    mark=$(new_mark)
    add_batch "$PORTHOLE_OUT/initramfs.cpio" "$RUN_DIR/initrd" "$2" "$mark"
    machine_args virtualization=on,gic-version=3,iommu=smmuv3 "$BENCH_CPU" "$BENCH_SMP" "$BENCH_MEM"
    guest_modules "$KERNEL_DIR/Image" "console=ttyAMA0 panic=-1 loglevel=4" "$RUN_DIR/initrd"
    say "counting instructions; the host boots first, which takes a while"
    OUTPUT=$(run_batch "$mark" "$console" command "$BENCH_SECONDS" "${MACHINE_ARGS[@]}" "${BENCH_COUNT[@]}" \
        -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" "${MODULE_ARGS[@]}" -no-reboot \
        -serial stdio -serial "file:$BENCH_OUT/$1.hyp") || status=$?
    printf '%s\n' "$OUTPUT" >"$BENCH_OUT/$1.txt"
    if [ "$status" -ne 0 ]; then
        printf '%s\n' "$OUTPUT" >&2
        die "the $1 bench ended with status $status; console in $console"
    fi
}

# bench_table FILE NAME=PEER...: the table of what OUTPUT has on standard output, the same as JSON in FILE.
bench_table() {
    local file=$1 entry name peer line reps count json='' missing=''
    shift
    printf '%-16s %12s %14s %10s %8s\n' operation repetitions instructions peer ratio
    for entry in "$@"; do
        name=${entry%%=*} peer=${entry#*=}
        line=$(sed -n "s/^.*bench $name reps=\([0-9]*\) instructions=\([0-9.]*\).*/\1 \2/p" <<<"$OUTPUT" | tail -n 1)
        if [ -z "$line" ]; then
            missing+=" $name"
            continue
        fi
        read -r reps count <<<"$line"
        printf '%-16s %12s %14s %10s %8s\n' "$name" "$reps" "$count" "$peer" "$(ratio "$count" "$peer")"
        json+="${json:+,}"$'\n'"  \"$name\": {\"instructions\": $count, \"repetitions\": $reps, \"peer\": $peer}"
    done
    [ -z "$missing" ] || die "the bench guest did not report:$missing (its output is in $BENCH_OUT)"
    printf '{%s\n}\n' "$json" >"$BENCH_OUT/$file"
    say "written to $BENCH_OUT/$file"
}

# ratio A B: A over B with three digits.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f\n", a / b }'; }
