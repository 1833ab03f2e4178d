# shellcheck shell=bash
# The guest's I/O benchmark: instructions that the whole machine executes (guest, EL2, host, VMM) for one request or one
# MiB of a Linux guest with one vCPU: protected with windows, and unprotected, one after the other on one host.
# bench/count_plugin.c counts, a program in the guest (bench/mark.S) says when; loads are guest/linux/tools/ioload.c.

GIO_SECONDS=2400
# name|unit|operations short|long|aim, 0 for none|peer, 0 for none|command, which gets the number and the port. As in
# bench-host-io.sh the difference of both runs counts. The peer's figures are those of an ordinary VM under kvmtool.
# shellcheck disable=SC2016 # for the guest's shell
GIO_BENCHES=(
    'disk, 4 KiB random read|request|100|1700|40000|80000|ioload read /dev/vda 4096 $N random'
    'disk, 1 MiB sequential read|MiB|8|104|600000|860000|ioload read /dev/vda 1048576 $N seq'
    'disk, 1 MiB sequential write|MiB|8|104|0|1600000|ioload write /dev/vda 1048576 $N seq'
    'TCP, to the host|MiB|4|36|0|0|sleep 0.3; ioload send $HOST 5000 $N'
    'TCP, from the host|MiB|4|36|0|0|sleep 0.3; ioload take $HOST $((5000 + N))'
    'TCP, round trip of 1 byte|round trip|100|1100|0|0|sleep 0.3; ioload ping $HOST 5001 $N'
)

# gio_guest: what runs in the guest, every load between two marks.
gio_guest() {
    local i entry short long command n
    # shellcheck disable=SC2016 # for the guest's shell
    echo 'HOST=192.168.77.1; ifconfig eth0 192.168.77.2 up || exit 1; ping -c 3 $HOST >/dev/null || exit 2'
    # All of one load before the next: the network's leave memory in pieces, and a long request is cheaper from one.
    for entry in "${GIO_BENCHES[@]}"; do
        IFS='|' read -r _ _ short long _ _ command <<<"$entry"
        for ((i = 0; i < IO_REPEAT; i++)); do
            for n in "$short" "$long"; do
                # shellcheck disable=SC2016 # for the guest's shell
                printf 'N=%d; /usr/bin/mark; { %s; } || exit 3\n' "$n" "$command"
            done
            echo /usr/bin/mark
        done
    done
}

# gio_host: what runs on the host. Ports 5004 and 5036 send as much as the loads of 4 and 36 MiB take.
gio_host() {
    # shellcheck disable=SC2016 # for the host's shell
    echo 'insmod /lib/porthole/tun.ko
tunctl -t vmtap0 >/dev/null && ifconfig vmtap0 192.168.77.1 up || exit 1
zcat /lib/porthole/disk.gz >/tmp/disk
serve() { while :; do ioload "$@" || sleep 1; done; }
serve take - 5000 &
serve pong - 5001 &
serve send - 5004 4 &
serve send - 5036 36 &
guest() {
    echo "guest: $*"
    porthole run --kernel /lib/porthole/Image --initrd /lib/porthole/bench.cpio --mem 192M --cpus 1 \
        --cmdline "console=hvc0 loglevel=4" --serial off --disk /tmp/disk --net tap=vmtap0 "$@" </dev/null >/tmp/guest.log 2>&1
    status=$?
    cat /tmp/guest.log
    [ $status -eq 0 ] && grep -q "guest: end 0" /tmp/guest.log || exit 4
}
guest
guest --unprotected'
}

bench_guest_io() {
    local mark output status=0 root="$RUN_DIR/root" guest="$RUN_DIR/guest"
    load_guest || die "the guest kernels are not in the cache; run qemu-scripts/setup.sh --guest"
    if [ -n "$BUILD" ]; then
        build_all release
        make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
        build_guest_tools
        make_guest_host "$PORTHOLE_OUT/initramfs-guest.cpio"
    fi
    build_counter
    make_guest_initramfs "$RUN_DIR/guest.cpio"
    mkdir -p "$guest/guest" "$guest/usr/bin" "$root/lib/porthole"
    gio_guest >"$guest/guest/command"
    aarch64-linux-gnu-gcc -nostdlib -static -Wl,--build-id=none "-Wl,-Ttext=$IO_MARK" -o "$guest/usr/bin/mark" \
        "$PORTHOLE_ROOT/qemu-scripts/bench/mark.S"
    pack "$guest" "$RUN_DIR/command.cpio"
    cat "$RUN_DIR/guest.cpio" "$RUN_DIR/command.cpio" >"$root/lib/porthole/bench.cpio"
    pack "$root" "$RUN_DIR/bench.cpio"
    cat "$PORTHOLE_OUT/initramfs-guest.cpio" "$RUN_DIR/bench.cpio" >"$RUN_DIR/base"
    mark=$(new_mark)
    add_batch "$RUN_DIR/base" "$RUN_DIR/initrd" "$(gio_host)" "$mark"
    machine_args "virtualization=on,$IO_MACHINE" "$BENCH_CPU" "$BENCH_SMP" "$BENCH_MEM"
    guest_modules "$KERNEL_DIR/Image" "console=ttyAMA0 panic=-1 loglevel=4" "$RUN_DIR/initrd"
    say "counting disk and network of a Linux guest with windows, then unprotected; some minutes"
    output=$(run_batch "$mark" "$BENCH_OUT/guest-io.console" command "$GIO_SECONDS" "${MACHINE_ARGS[@]}" \
        "${BENCH_COUNT[@]}" "${BOOT_CLOCK[@]}" -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" \
        "${MODULE_ARGS[@]}" -no-reboot -serial stdio -serial "file:$BENCH_OUT/guest-io.hyp" \
        -d plugin -D "$BENCH_OUT/guest-io.count" \
        -plugin "$(doubled "$RUN_DIR/count.so"),kernel=$KERNEL_ADDRESS,mark=$IO_MARK,shares=1") || status=$?
    [ "$status" -eq 0 ] || die "the run ended with status $status: $output (console in $BENCH_OUT/guest-io.console)"
    gio_table "$BENCH_OUT/guest-io.count"
}

# gio_table COUNTS: on standard output, and as JSON in guest-io.json.
gio_table() {
    local marks=$((3 * ${#GIO_BENCHES[@]} * IO_REPEAT)) entry name unit short long aim peer window open i=0 c json='' shares
    sed -n 's/^mark //p' "$1" >"$RUN_DIR/counts"
    [ "$(wc -l <"$RUN_DIR/counts")" -eq $((2 * marks)) ] ||
        die "$1 has $(wc -l <"$RUN_DIR/counts") marks instead of $((2 * marks)); were QEMU's plugins of another version?"
    head -n "$marks" "$RUN_DIR/counts" >"$RUN_DIR/window"
    tail -n "$marks" "$RUN_DIR/counts" >"$RUN_DIR/open"
    printf '%-29s %-10s %10s %10s %6s %9s %9s   %s\n' load one window unprotect. ratio aim peer \
        'EL2, guest kernel, host kernel, VMM: window / unprotected'
    for entry in "${GIO_BENCHES[@]}"; do
        IFS='|' read -r name unit short long aim peer _ <<<"$entry"
        shares=''
        for c in 2 3 4 5; do
            shares+=" $(gio_one "$RUN_DIR/window" "$c" "$i")/$(gio_one "$RUN_DIR/open" "$c" "$i")"
        done
        window=$(gio_one "$RUN_DIR/window" 1 "$i") open=$(gio_one "$RUN_DIR/open" 1 "$i")
        # As throughput: 1 is that of the unprotected guest, above is better.
        printf '%-29s %-10s %10s %10s %6s %9s %9s  %s\n' "$name" "$unit" "$window" "$open" "$(ratio "$open" "$window")" \
            "${aim/#0/-}" "${peer/#0/-}" "$shares"
        json+="${json:+,}"$'\n'"  \"$name\": {\"unit\": \"$unit\", \"window\": $window, \"unprotected\": $open, \"ratio\": $(ratio "$open" "$window"), \"aim\": $aim, \"peer\": $peer, \"shares\": \"${shares# }\"}"
        i=$((i + 1))
    done
    printf '{%s\n}\n' "$json" >"$BENCH_OUT/guest-io.json"
    say "written to $BENCH_OUT/guest-io.json"
}

# gio_one COUNTS COLUMN INDEX: what one operation takes, the median of the repetitions; `short` and `long` of the caller.
gio_one() {
    awk -v column="$2" -v first=$((3 * IO_REPEAT * $3)) -v repeat="$IO_REPEAT" -v operations=$((long - short)) '
        { count[NR - 1] = $column }
        END {
            for (at = first; at < first + 3 * repeat; at += 3)
                printf "%.0f\n", (count[at + 2] - 2 * count[at + 1] + count[at]) / operations
        }' "$1" | sort -n | sed -n "$(((IO_REPEAT + 1) / 2))p"
}
