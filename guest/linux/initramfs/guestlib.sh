# shellcheck shell=dash
# For commands in a Linux guest: what its devices are, what their pools count, and moving data with checksums.
# Test commands source it as /lib/guestlib.sh.

POOLS=/sys/kernel/debug/swiotlb

fail() {
    echo "guest: FAILED: $*"
    dmesg | tail -n 40
    exit 1
}

# pools: one line for each pool that belongs to devices: name, slots, in use, most in use, bounced, refused.
pools() {
    for pool in "$POOLS"/*/; do
        [ -e "$pool/io_tlb_used" ] || continue
        echo "guest: pool $(basename "$pool") slots=$(cat "$pool/io_tlb_nslabs") used=$(cat "$pool/io_tlb_used")" \
            "hiwater=$(cat "$pool/io_tlb_used_hiwater") bounced=$(cat "$pool/io_tlb_bounced" 2>/dev/null)" \
            "full=$(cat "$pool/io_tlb_full" 2>/dev/null)"
    done
}

# pool_value NAME FILE: a counter of one pool.
pool_value() { cat "$POOLS/$1/io_tlb_$2"; }

# virtio_of DRIVER: PCI names of the functions that this virtio driver runs, one a line.
virtio_of() {
    for device in "/sys/bus/virtio/drivers/$1"/virtio*; do
        [ -e "$device" ] || continue
        basename "$(dirname "$(readlink -f "$device")")"
    done
}

# random_file PATH MIB: a file of noise that compresses badly and is quickly made.
random_file() {
    dd if=/dev/urandom of="$1" bs=64K count=16 2>/dev/null || return 1
    i=1
    while [ "$i" -lt "$2" ]; do
        # Each MiB differs from the others in its first bytes.
        { echo "$i"; head -c 1048570 "$1"; } | head -c 1048576 >>"$1.more"
        i=$((i + 1))
    done
    [ ! -e "$1.more" ] || { cat "$1.more" >>"$1" && rm "$1.more"; }
}

sum_of() { sha256sum <"$1" | cut -d' ' -f1; }

# disk_works MIB: so much noise onto the ext4 file system on /dev/vda and back from the device, with checksums.
disk_works() {
    mkdir -p /mnt
    mount -t ext4 /dev/vda /mnt || fail "mount /dev/vda"
    random_file /tmp/noise "$1" || fail "no noise"
    cp /tmp/noise /mnt/noise || fail "copy to disk"
    umount /mnt || fail "umount"
    mount -t ext4 -o ro /dev/vda /mnt || fail "mount again"
    [ "$(sum_of /mnt/noise)" = "$(sum_of /tmp/noise)" ] || fail "what came back differs"
    umount /mnt || fail "umount again"
    echo "guest: disk ok, $1 MiB"
}
