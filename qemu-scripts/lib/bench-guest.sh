# shellcheck shell=bash
# The guest benchmark: boots the Linux host, runs the bare-metal guest, reads its lines, prints the table.
# A line of the guest is `bench NAME reps=N instructions=M`, M the mean of one operation.

# Each vCPU stays on a CPU of its own: where the scheduler puts both on one for a while, the waste of the spinning one
# (some 400 million instructions, once) would be counted as the operation's.

# What upstream pKVM takes for a protected VM: QEMU 10.0.2, the machine line of bench.sh, Debian's Linux 7.3.4 with
# kvm-arm.mode=protected, kvmtool, mean of 65,536 repetitions.
BENCH_PEER=(hyp_call=3814 mmio_read_user=9758 mmio_read_vgic=4706 ipi=10697 eoi=21)

bench_guest() {
    local mark status=0 console="$BENCH_OUT/guest.console" output
    if [ -n "$BUILD" ]; then
        build_all release
        make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
    fi
    mark=$(new_mark)
    add_batch "$PORTHOLE_OUT/initramfs.cpio" "$RUN_DIR/initrd" \
        'exec porthole run --kernel /lib/porthole/bench.bin --mem 64M --cpus 2 --cpu-affinity 0=0:1=1' "$mark"
    machine_args virtualization=on,gic-version=3 "$BENCH_CPU" "$BENCH_SMP" "$BENCH_MEM"
    guest_modules "$KERNEL_DIR/Image" "console=ttyAMA0 panic=-1 loglevel=4" "$RUN_DIR/initrd"
    say "counting instructions; the host boots first, which takes a while"
    output=$(run_batch "$mark" "$console" command "$BENCH_SECONDS" "${MACHINE_ARGS[@]}" "${BENCH_COUNT[@]}" \
        -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" "${MODULE_ARGS[@]}" -no-reboot \
        -serial stdio -serial "file:$BENCH_OUT/guest.hyp") || status=$?
    printf '%s\n' "$output" >"$BENCH_OUT/guest.txt"
    if [ "$status" -ne 0 ]; then
        printf '%s\n' "$output" >&2
        die "the bench guest ended with status $status; console in $console"
    fi
    bench_table "$output"
}

# bench_table OUTPUT: the table on standard output, the same as JSON in latest.json.
bench_table() {
    local entry name peer line reps count json='' missing=''
    printf '%-16s %12s %14s %10s %8s\n' operation repetitions instructions peer ratio
    for entry in "${BENCH_PEER[@]}"; do
        name=${entry%%=*} peer=${entry#*=}
        line=$(sed -n "s/^.*bench $name reps=\([0-9]*\) instructions=\([0-9.]*\).*/\1 \2/p" <<<"$1" | tail -n 1)
        if [ -z "$line" ]; then
            missing+=" $name"
            continue
        fi
        read -r reps count <<<"$line"
        printf '%-16s %12s %14s %10s %8s\n' "$name" "$reps" "$count" "$peer" "$(ratio "$count" "$peer")"
        json+="${json:+,}"$'\n'"  \"$name\": {\"instructions\": $count, \"repetitions\": $reps, \"peer\": $peer}"
    done
    [ -z "$missing" ] || die "the bench guest did not report:$missing (its output is in $BENCH_OUT/guest.txt)"
    printf '{%s\n}\n' "$json" >"$BENCH_OUT/latest.json"
    say "written to $BENCH_OUT/latest.json"
}

# ratio A B: A over B with three digits.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f\n", a / b }'; }
