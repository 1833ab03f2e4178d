# shellcheck shell=bash
# The host's I/O benchmark: instructions that the machine executes for disks and network, under Porthole with its SMMU
# and by the same kernel bare at EL1, the SMMU in the machine and passed through; and what the SMMU adds to a donation.
# bench/count_plugin.c counts; a program of one known address (bench/mark.S) says when.

IO_MARK=0x70000000
IO_BENCH_SECONDS=3000
# The same machine for both, one CPU, as in bench-boot.sh.
IO_MACHINE=gic-version=3,iommu=smmuv3,dtb-randomness=off
IO_BOOTARGS="console=ttyAMA0 panic=-1 loglevel=4 iommu.passthrough=1"
# Each load runs short and long; their difference over the difference of the operations is what one takes, start-up and
# end of the program gone. Of the repetitions the median counts.
IO_REPEAT=${PORTHOLE_BENCH_REPEAT:-3}
# name|unit|operations short|long|command, which gets the number.
# shellcheck disable=SC2016 # for the host's shell
IO_BENCHES=(
    'virtio-blk 4 KiB random|operation|256|16640|load /dev/vda randread 4k $((N * 4))k'
    'virtio-blk 1 MiB sequential read|MiB|8|2056|load /dev/vda read 1M ${N}M'
    'virtio-blk 1 MiB sequential write|MiB|8|2056|load /dev/vda write 1M ${N}M'
    'NVMe 4 KiB random|operation|256|16640|load /dev/nvme0n1 randread 4k $((N * 4))k'
    'NVMe 1 MiB sequential read|MiB|8|2056|load /dev/nvme0n1 read 1M ${N}M'
    'NVMe 1 MiB sequential write|MiB|8|2056|load /dev/nvme0n1 write 1M ${N}M'
    'TCP, e1000 to virtio-net|MiB|4|36|stream'
)
# Guests of two sizes, all memory donated before they start: MiB.
IO_DONATE_SHORT=64 IO_DONATE_LONG=192

# io_script: what runs on the host, every load between two marks.
io_script() {
    local i entry name unit short long command n
    # shellcheck disable=SC2016 # for the host's shell
    echo '. /lib/io/iolib.sh
load_drivers && wire_up || exit 1
mkfifo /tmp/quiet
# A listener whose own input ends would hang up.
stream() {
    on_far_side nc -l -p 5000 <>/tmp/quiet >/dev/null &
    listener=$!
    sleep 1
    dd if=/dev/zero bs=64k count=$((N * 16)) | nc $FAR 5000 && wait $listener
}
load() {
    fio --name=load --filename="$1" --rw="$2" --bs="$3" --io_size="$4" --size=64M --direct=1 --ioengine=libaio \
        --iodepth=8 --gtod_reduce=1 --thread
}
mark() { /lib/io/mark; }'
    for ((i = 0; i < IO_REPEAT; i++)); do
        for entry in "${IO_BENCHES[@]}"; do
            IFS='|' read -r name unit short long command <<<"$entry"
            for n in "$short" "$long"; do
                printf 'N=%d; mark; %s >/tmp/load 2>&1 || { cat /tmp/load; exit 2; }\n' "$n" "$command"
            done
            echo mark
        done
    done
}

# io_donations: guests that own all their memory before they start, between marks.
io_donations() {
    local i n
    # shellcheck disable=SC2016 # for the host's shell
    echo '. /lib/porthole/guestlib.sh
mark() { /lib/io/mark; }
guest() {
    porthole run --kernel "$GUEST_IMAGE" --mem "$1" --prefault --cpus 1 --console echo \
        --cmdline "mode=ping count=1 size=16" </dev/null
}'
    for ((i = 0; i < IO_REPEAT; i++)); do
        for n in "$IO_DONATE_SHORT" "$IO_DONATE_LONG"; do
            printf 'mark; guest %dM >/tmp/load 2>&1 || { cat /tmp/load; exit 3; }\n' "$n"
        done
        echo mark
    done
}

bench_io() {
    local bare porthole
    load_io_state || die "the host of the I/O tests is not set up; run qemu-scripts/setup.sh --io"
    if [ -n "$BUILD" ]; then
        build_all release
        make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
        build_io_host
    fi
    build_counter
    mkdir -p "$RUN_DIR/root/lib/io"
    aarch64-linux-gnu-gcc -nostdlib -static -Wl,--build-id=none "-Wl,-Ttext=$IO_MARK" -o "$RUN_DIR/root/lib/io/mark" \
        "$PORTHOLE_ROOT/qemu-scripts/bench/mark.S"
    pack "$RUN_DIR/root" "$RUN_DIR/mark.cpio"
    say "counting disks and network, bare at EL1, then under Porthole; some minutes each"
    bare=$(io_counts bare yes) porthole=$(io_counts porthole '')
    io_table "$bare" "$porthole"
    say "counting donations, with the SMMU and without"
    io_donation_table "$(donation_counts smmu ,iommu=smmuv3)" "$(donation_counts none '')"
}

# counted_boot NAME BARE KERNEL INITRD SCRIPT MACHINE ARGUMENTS...: boots, runs the script between the marks' file and
# prints its counts: lines of all instructions and of those at EL2.
counted_boot() {
    local name=$1 bare=$2 kernel=$3 initrd=$4 script=$5 machine=$6 mark address output status=0
    shift 6
    mark=$(new_mark)
    cat "$initrd" "$RUN_DIR/mark.cpio" >"$RUN_DIR/$name.base"
    add_batch "$RUN_DIR/$name.base" "$RUN_DIR/$name.initrd" "$script" "$mark"
    if [ -n "$bare" ]; then
        address=$BARE_KERNEL_ADDRESS
        machine_args "$machine" "$BENCH_CPU" 1 "$BENCH_MEM"
        MACHINE_ARGS+=(-kernel "$kernel" -initrd "$RUN_DIR/$name.initrd" -append "$IO_BOOTARGS")
    else
        address=$KERNEL_ADDRESS
        machine_args "virtualization=on,$machine" "$BENCH_CPU" 1 "$BENCH_MEM"
        guest_modules "$kernel" "$IO_BOOTARGS" "$RUN_DIR/$name.initrd"
        MACHINE_ARGS+=(-kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" "${MODULE_ARGS[@]}"
            -append "${IO_HYP_ARGS:-}" -serial stdio -serial "file:$BENCH_OUT/io-$name.hyp")
    fi
    [ -z "$bare" ] || MACHINE_ARGS+=(-serial stdio)
    output=$(run_batch "$mark" "$BENCH_OUT/io-$name.console" command "$IO_BENCH_SECONDS" "${MACHINE_ARGS[@]}" "$@" \
        "${BENCH_COUNT[@]}" "${BOOT_CLOCK[@]}" -no-reboot -d plugin -D "$BENCH_OUT/io-$name.count" \
        -plugin "$(doubled "$RUN_DIR/count.so"),kernel=$address,mark=$IO_MARK") || status=$?
    [ "$status" -eq 0 ] ||
        die "the $name run ended with status $status: $output (console in $BENCH_OUT/io-$name.console)"
    sed -n 's/^mark //p' "$BENCH_OUT/io-$name.count"
}

# io_counts NAME BARE: what every load took, per operation, one line each: the median of the repetitions.
io_counts() {
    io_devices "$RUN_DIR"
    counted_boot "$1" "$2" "$IO_KERNEL_DIR/Image" "$PORTHOLE_OUT/initramfs-io.cpio" "$(io_script)" "$IO_MACHINE" \
        "${IO_ARGS[@]}" >"$RUN_DIR/counts"
    local i entry short long
    i=0
    for entry in "${IO_BENCHES[@]}"; do
        IFS='|' read -r _ _ short long _ <<<"$entry"
        per_operation "$RUN_DIR/counts" 1 "$i" "${#IO_BENCHES[@]}" $((long - short))
        i=$((i + 1))
    done
}

# per_operation COUNTS COLUMN INDEX BENCHES OPERATIONS: three marks a load, BENCHES loads a repetition.
per_operation() {
    awk -v column="$2" -v index0="$3" -v benches="$4" -v operations="$5" '
        { count[NR - 1] = $column }
        END {
            for (r = 0; r < NR / (3 * benches); r++) {
                at = 3 * (r * benches + index0)
                printf "%.0f\n", (count[at + 2] - 2 * count[at + 1] + count[at]) / operations
            }
        }' "$1" | sort -n | sed -n "$(((IO_REPEAT + 1) / 2))p"
}

# io_table BARE PORTHOLE: on standard output, and as JSON in host-io.json.
io_table() {
    local entry name unit a b json=''
    exec 3<<<"$1" 4<<<"$2"
    printf '%-32s %-10s %12s %12s %8s\n' 'load' 'one' 'bare' 'Porthole' 'ratio'
    for entry in "${IO_BENCHES[@]}"; do
        IFS='|' read -r name unit _ <<<"$entry"
        read -r a <&3
        read -r b <&4
        # As throughput: above 1 is better than bare.
        printf '%-32s %-10s %12s %12s %8s\n' "$name" "$unit" "$a" "$b" "$(ratio "$a" "$b")"
        json+="${json:+,}"$'\n'"  \"$name\": {\"unit\": \"$unit\", \"bare\": $a, \"porthole\": $b, \"ratio\": $(ratio "$a" "$b")}"
    done
    printf '{%s\n}\n' "$json" >"$BENCH_OUT/host-io.json"
    say "written to $BENCH_OUT/host-io.json"
}

# donation_counts NAME IOMMU: instructions at EL2 for 2 MiB, given and taken back.
donation_counts() {
    IO_HYP_ARGS=''
    [ -n "$2" ] || IO_HYP_ARGS=porthole.allow_unsafe_dma
    counted_boot "$1" '' "$KERNEL_DIR/Image" "$PORTHOLE_OUT/initramfs.cpio" "$(io_donations)" \
        "gic-version=3,dtb-randomness=off$2" >"$RUN_DIR/counts"
    per_operation "$RUN_DIR/counts" 2 0 1 $(((IO_DONATE_LONG - IO_DONATE_SHORT) / 2))
}

io_donation_table() {
    printf '%-52s %12s\n' '2 MiB donated and reclaimed, at EL2, with the SMMU' "$1" \
        '  without an SMMU' "$2" '  added' $(($1 - $2))
    printf '{"smmu": %d, "none": %d, "added": %d}\n' "$1" "$2" $(($1 - $2)) >"$BENCH_OUT/donation.json"
}
