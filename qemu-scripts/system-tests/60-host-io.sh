# shellcheck shell=bash
# The host's devices under Porthole: each at full function, all at once under load.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# The words on the host with which each test starts.
WITH_IO='. /lib/io/iolib.sh || exit 90
load_drivers || exit 91
boot=$(owner_totals)
isolated=$(porthole info | grep -c dma-isolated)
same_as_boot() {
    now=$(owner_totals)
    [ "$now" = "$boot" ] || { printf "at boot:\n%s\nnow:\n%s\n" "$boot" "$now"; return 1; }
}
no_faults() { [ "$isolated" -eq 0 ] || [ "$(faults)" -eq 0 ] || { porthole log; return 1; }; }
'

# part_sum FILE FROM-MIB MIB
part_sum() { dd if="$1" bs=1M skip="$2" count="$3" status=none | sha256sum | cut -d' ' -f1; }

# devices_work DIR: the test below, with its disks in DIR: noise on two, a file system with noise on the third.
devices_work() {
    local dir=$1 out disk
    local -A sums
    for disk in virtio nvme; do
        head -c 32M /dev/urandom >"$dir/$disk.img"
        truncate -s 256M "$dir/$disk.img"
    done
    truncate -s 256M "$dir/usb.img"
    mkdir "$dir/files"
    head -c 16M /dev/urandom >"$dir/files/noise"
    /sbin/mke2fs -q -t ext4 -d "$dir/files" "$dir/usb.img"
    for disk in virtio nvme usb; do
        sums[$disk]=$(part_sum "$dir/$disk.img" 0 32)
    done
    out=$(on_host --smp 4 --io="$dir" --batch "$WITH_IO"'
wire_up || exit 1
for disk in virtio:/dev/vda:virtio0-req nvme:/dev/nvme0n1:nvme usb:/dev/sda:xhci; do
    name=${disk%%:*} node=${disk#*:} word=${disk##*:}
    node=${node%%:*}
    before=$(messages "$word")
    echo "read $name $(disk_sum "$node" 0 32)"
    [ "$name" = usb ] || echo "wrote $name $(disk_write "$node" 64 16)"
    echo "messages $name $(($(messages "$word") - before))"
done
mount -t ext4 /dev/sda /root || exit 2
echo "read file $(sha256sum </root/noise | cut -c1-64)"
cp /usr/bin/fio /root/fio && umount /root && mount -t ext4 /dev/sda /root && cmp /usr/bin/fio /root/fio && umount /root ||
    exit 3
before=$(messages virtio1-input)
# A listener whose own input ends would hang up.
mkfifo /tmp/quiet
on_far_side sh -c "nc -l -p 5000 >/tmp/there <>/tmp/quiet" &
there=$!
wait_until listens_far_away 5000 || exit 8
nc $FAR 5000 </usr/bin/fio
wait $there
cmp /usr/bin/fio /tmp/there || exit 4
nc -l -p 5001 >/tmp/here <>/tmp/quiet &
here=$!
wait_until listens_at_port 5001 || exit 9
on_far_side nc $NEAR 5001 </usr/bin/fio
wait $here
cmp /usr/bin/fio /tmp/here || exit 5
echo "messages net $(($(messages virtio1-input) - before))"
complaints || exit 6
no_faults || exit 7
porthole audit && same_as_boot' 2>&1) || { printf '%s\n' "$out"; return 1; }
    printf '%s\n' "$out"
    for disk in virtio nvme usb; do
        expect "$out" "^read $disk ${sums[$disk]}\$"
    done
    for disk in virtio nvme; do
        expect "$out" "^wrote $disk $(part_sum "$dir/$disk.img" 64 16)\$"
    done
    expect "$out" "^read file $(sha256sum <"$dir/files/noise" | cut -c1-64)\$"
    for disk in virtio nvme usb net; do
        expect "$out" "^messages $disk [1-9]"
    done
}

st_host_devices_work() {
    local dir
    dir=$(mktemp -d "$PORTHOLE_OUT/io-disks.XXXXXX")
    strictly devices_work "$dir"
    rm -rf "$dir"
    return "$STRICT_STATUS"
}

# PORTHOLE_STRESS_SECONDS: 30 in test.sh; ten minutes by hand (docs/testing.md).
st_host_io_stress() {
    local seconds=${PORTHOLE_STRESS_SECONDS:-30}
    ST_SECONDS=$((seconds * 2 + HANG_SECONDS)) on_host --smp 4 --io --batch "$WITH_IO"'
wire_up && stress '"$seconds"' || exit 1
complaints || exit 2
no_faults || exit 3
porthole audit || exit 4
same_as_boot || exit 5
[ "$(nproc)" -eq 4 ]'
}
