# shellcheck shell=bash
# A device of the host confined to one region (`porthole dma`): stock drivers work through it, a bad device reaches
# nothing else, and everything is as it was afterwards. Needs the host of the I/O tests.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Words on the host: devices by name, drivers off and on, what `dma list` says of a device.
CONFINE_WORDS='
pci=/sys/bus/pci
# function_of VENDOR+DEVICE
function_of() {
    for device in $pci/devices/*; do
        [ "$(cat "$device/vendor")$(cat "$device/device")" = "$1" ] && basename "$device"
    done
}
unbind() { echo "$1" >"$pci/devices/$1/driver/unbind"; }
bind() { echo "$1" >"$pci/drivers/$2/bind"; }
# line FUNCTION COLUMN: a word of its line in the list
line() { porthole dma list | awk -v f="$1" -v c="$2" "\$1 == f { print \$c }"; }
# refused WORD COMMAND...: it fails, and the message has the word.
refused() {
    word=$1
    shift
    if said=$("$@" 2>&1); then echo "not refused: $*"; return 1; fi
    echo "$said"
    echo "$said" | grep -qF -- "$word"
}
# as_boot_but PAGES: as same_as_boot, but for so many pages of interrupt translation tables, of which small ones share a page:
# how many lie together after a driver was bound again is not what it was.
as_boot_but() {
    now=$(owner_totals)
    of() { echo "$1" | awk -v owner="$2" "\$1 == owner { print \$2 }"; }
    more=$(($(of "$now" pinned) - $(of "$boot" pinned)))
    [ ${more#-} -le "$1" ] && [ $(($(of "$now" host) + more)) -eq "$(of "$boot" host)" ] &&
        [ "$(echo "$now" | grep -vE "^(host|pinned)")" = "$(echo "$boot" | grep -vE "^(host|pinned)")" ] ||
        { printf "at boot:\n%s\nnow:\n%s\n" "$boot" "$now"; return 1; }
}
# disk_write_some DEVICE AT-MIB: 4 MiB of noise in requests of 1 MiB; its checksum if all was reported written.
disk_write_some() {
    dd if=/dev/urandom of="/tmp/noise.${1##*/}.$2" bs=1M count=4 2>/dev/null
    dd if="/tmp/noise.${1##*/}.$2" of="$1" bs=1M seek="$2" oflag=direct conv=fsync 2>/dev/null || return 1
    sha256sum <"/tmp/noise.${1##*/}.$2" | cut -d" " -f1
}
# disk_batches DEVICE: eight requests of 1 MiB at once, which read back as they were written. The eight of a batch reach the
# driver together, before the device hears of the first (without merging, the block layer holds large ones back as well):
# however fast the device is, they meet in the region.
disk_batches() {
    echo 2 >"/sys/block/${1##*/}/queue/nomerges"
    fio --name=batches --filename="$1" --offset=128M --size=16M --rw=write --bs=1M --direct=1 --ioengine=libaio --iodepth=8 \
        --iodepth_batch=8 --iodepth_batch_complete_min=8 --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal >/dev/null
}
# disk_is_there: waits for the NVMe disk.
disk_is_there() { wait_until [ -b /dev/nvme0n1 ]; }
nvme=$(function_of 0x1b360x0010)
edu=$(function_of 0x12340x11e8)
disk=$(function_of 0x1af40x1042)
card=$(function_of 0x1af40x1041)
e1000=$(function_of 0x80860x100e)
bridge=$(function_of 0x1b360x0008)
'

# confined_nvme_works DIR: its disks are in DIR.
confined_nvme_works() {
    local dir=$1 out
    head -c 16M /dev/urandom >"$dir/nvme.img"
    truncate -s 256M "$dir/nvme.img"
    out=$(ST_SECONDS=300 on_host --smp 2 --io="$dir" --batch "$WITH_IO$CONFINE_WORDS"'
porthole dma list
refused "echo $nvme > /sys/bus/pci/drivers/nvme/unbind" porthole dma confine $nvme 2M || exit 1
refused "bridge" porthole dma confine $bridge 2M || exit 2
refused "no PCI function" porthole dma confine 00:1e.7 2M || exit 3
refused "no PCI function" porthole dma confine 00:1e.7 4K || exit 3
refused "not confined" porthole dma release $edu || exit 4
refused "up to 64M" porthole dma confine $edu 65M || exit 5
refused "up to 64M" porthole dma confine $edu 18446744073709551615b || exit 5
refused "is not a size; write a number with K, M or G" porthole dma confine $edu 18446744073709551615 || exit 5
refused "0000:00:02.0" porthole dma confine 18446744073709551615 2M || exit 5
refused "can be had" porthole dma confine $edu 64M || exit 6
same_as_boot || exit 7
unbind $nvme && porthole dma confine ${nvme#0000:} 2M || exit 8
refused "already" porthole dma confine $nvme 2M || exit 9
[ "$(line $nvme 2)" != "" ] && [ "$(line $nvme 3)" = 2.0 ] || exit 10
bind $nvme nvme || exit 11
disk_is_there || exit 12
refused "drivers/nvme/unbind" porthole dma release $nvme || exit 13
refused "" rmmod porthole || exit 14
before=$(messages nvme)
echo "read $(disk_sum /dev/nvme0n1 0 16)"
echo "wrote $(disk_write /dev/nvme0n1 64 16)"
echo "messages $(($(messages nvme) - before))"
porthole dma list
porthole dma list --json | grep -q "\"region\": \"0x" || exit 15
[ "$(line $nvme 5)" -gt 0 ] && [ "$(line $nvme 8)" -eq 0 ] || exit 16
complaints || exit 17
porthole audit || exit 18
unbind $nvme && porthole dma release $nvme || exit 19
refused "not confined" porthole dma release $nvme || exit 20
[ -z "$(line $nvme 2)" ] || exit 21
bind $nvme nvme || exit 22
disk_is_there || exit 23
# Its interrupt translation table is pinned again, as it was at boot.
same_as_boot || exit 24
echo "again $(disk_sum /dev/nvme0n1 64 16)"
complaints && no_faults && porthole audit' 2>&1) || { printf '%s\n' "$out"; return 1; }
    printf '%s\n' "$out"
    expect "$out" "^read $(part_sum "$dir/nvme.img" 0 16)\$"
    expect "$out" "^wrote $(part_sum "$dir/nvme.img" 64 16)\$"
    expect "$out" "^again $(part_sum "$dir/nvme.img" 64 16)\$"
    expect "$out" '^messages [1-9]'
}

# with_disks FUNCTION: calls it with a directory for disks, which goes afterwards.
with_disks() {
    local dir
    dir=$(mktemp -d "$PORTHOLE_OUT/confine-disks.XXXXXX")
    strictly "$1" "$dir"
    rm -rf "$dir"
    return "$STRICT_STATUS"
}

st_confined_nvme_works_in_its_region() { with_disks confined_nvme_works; }

# confined_cards_work DIR: both network cards, on one wire, and the virtio disk, each in a region of its own.
confined_cards_work() {
    local dir=$1 out
    head -c 16M /dev/urandom >"$dir/virtio.img"
    truncate -s 256M "$dir/virtio.img"
    out=$(ST_SECONDS=400 on_host --smp 2 --io="$dir" --batch "$WITH_IO$CONFINE_WORDS"'
for function in $e1000 $card $disk; do
    unbind $function && porthole dma confine $function 2M || exit 1
done
bind $e1000 e1000 && bind $card virtio-pci && bind $disk virtio-pci || exit 2
wire_up || exit 3
# Each way 2 MiB of noise with a checksum; what is dropped for want of room comes again.
dd if=/dev/urandom of=/tmp/noise bs=1M count=2 2>/dev/null
mkfifo /tmp/quiet
on_far_side sh -c "nc -l -p 5000 >/tmp/there <>/tmp/quiet" &
there=$!
wait_until listens_far_away 5000 || exit 3
nc -w 5 $FAR 5000 </tmp/noise
wait $there
cmp /tmp/noise /tmp/there || exit 4
nc -l -p 5001 >/tmp/here <>/tmp/quiet &
here=$!
wait_until listens_at_port 5001 || exit 3
on_far_side nc -w 5 $NEAR 5001 </tmp/noise
wait $here
cmp /tmp/noise /tmp/here || exit 5
echo "read $(disk_sum /dev/vda 0 16)"
echo "wrote $(disk_write /dev/vda 64 16)"
disk_round /dev/vda 64k >/dev/null || exit 6
porthole dma list
for function in $e1000 $card $disk; do
    [ "$(line $function 5)" -gt 0 ] && [ "$(line $function 8)" -eq 0 ] || exit 7
done
complaints || exit 8
porthole audit || exit 9
kill $FAR_SIDE
for function in $e1000 $card $disk; do
    unbind $function && porthole dma release $function || exit 10
done
dmesg | grep "porthole:.*left" && exit 11
bind $e1000 e1000 && bind $card virtio-pci && bind $disk virtio-pci || exit 12
as_boot_but 2 || exit 13
echo "again $(disk_sum /dev/vda 64 16)"
complaints && no_faults && porthole audit' 2>&1) || { printf '%s\n' "$out"; return 1; }
    printf '%s\n' "$out"
    expect "$out" "^read $(part_sum "$dir/virtio.img" 0 16)\$"
    expect "$out" "^wrote $(part_sum "$dir/virtio.img" 64 16)\$"
    expect "$out" "^again $(part_sum "$dir/virtio.img" 64 16)\$"
}

st_confined_cards_and_disk_work_in_their_regions() { with_disks confined_cards_work; }

# full_regions DIR: too small for a driver, it says so and does not start; too small for all of its requests at once,
# nothing is lost that was reported written.
full_regions() {
    local dir=$1 out name at
    out=$(ST_SECONDS=400 on_host --smp 2 --io="$dir" --batch "$WITH_IO$CONFINE_WORDS"'
unbind $disk && unbind $nvme || exit 1
refused "give it at least 2M" porthole dma confine $disk 2044K || exit 2
[ -z "$(line $disk 2)" ] || exit 3
porthole dma confine $nvme 8K || exit 4
# NVMe keeps two pages for its first queues: with both of them, no command would ever find room.
bind $nvme nvme && exit 5
[ ! -e /dev/nvme0 ] && [ "$(line $nvme 7)" -eq 1 ] || exit 6
dmesg | grep "porthole: no room for 4096 bytes in its DMA region of 8 KiB" || exit 7
porthole dma release $nvme || exit 8
porthole dma confine $nvme 128K && porthole dma confine $disk 2M || exit 9
bind $nvme nvme && bind $disk virtio-pci && disk_is_there || exit 10
for at in 64 80 96 112; do
    echo "wrote nvme $at $(disk_write_some /dev/nvme0n1 $at)" &
    echo "wrote virtio $at $(disk_write_some /dev/vda $at)" &
done
wait
before=$(line $disk 7)
disk_batches /dev/vda || exit 19
echo "no room for $(($(line $disk 7) - before)) of the batches"
porthole dma list
[ "$(line $nvme 7)" -gt 20 ] && [ "$(line $disk 7)" -gt "$before" ] || exit 11
[ "$(line $nvme 8)" -eq 0 ] && [ "$(line $disk 8)" -eq 0 ] || exit 12
# Of all those, the log has a few.
[ "$(dmesg | grep -c "nvme.*porthole: no room")" -lt 40 ] || exit 13
complaints || exit 14
echo "read virtio 64 $(disk_sum /dev/vda 64 4)"
unbind $nvme && unbind $disk && porthole dma release $nvme && porthole dma release $disk || exit 15
dmesg | grep "porthole:.*left" && exit 16
bind $nvme nvme && bind $disk virtio-pci && disk_is_there || exit 17
as_boot_but 2 || exit 18
complaints && no_faults && porthole audit' 2>&1) || { printf '%s\n' "$out"; return 1; }
    printf '%s\n' "$out"
    for name in nvme virtio; do
        for at in 64 80 96 112; do
            expect "$out" "^wrote $name $at $(part_sum "$dir/$name.img" "$at" 4)\$"
        done
    done
    expect "$out" "^read virtio 64 $(part_sum "$dir/virtio.img" 64 4)\$"
}

st_a_full_region_loses_nothing() { with_disks full_regions; }

st_a60_confined_device_reaches_its_region_only() {
    ST_SECONDS=300 on_host --smp 2 --io --batch "$WITH_IO$CONFINE_WORDS"'
# A page of the host that stays what it is: of a file in memory, by way of the edu device itself.
porthole dma confine $edu 16K || exit 1
region=$(line $edu 2)
echo "1234 11e8" >/sys/bus/pci/drivers/uio_pci_generic/new_id
[ -e /sys/bus/pci/devices/$edu/uio ] || exit 2
refused "uio_pci_generic/unbind" porthole dma release $edu || exit 3
through() { edu_dma --through $region $edu "$@"; }
inside=$((region + 4096)) outside=$((region + 16384)) below=$((region - 4096))
through store 0x1122334455667788 $inside || exit 4
through fetch $inside | grep -q " 1122334455667788 whole" || exit 5
[ "$(line $edu 8)" -eq 0 ] || { porthole dma list; exit 6; }
peek() { dd if=/dev/porthole-peek bs=4096 skip=$(($1 / 4096)) count=1 2>/dev/null | sha256sum; }
for page in $outside $below 0x60000000; do
    through store 0xbadc0debadc0de $page || exit 7
    dd if=/dev/porthole-peek bs=4096 skip=$((page / 4096)) count=1 2>/dev/null | od -An -tx8 | grep -q 00badc0debadc0de && exit 8
    through fetch $page | grep -vE " (0{16}|(ed){8}|00badc0debadc0de) whole" && exit 9
done
porthole dma list
[ "$(line $edu 8)" -ge 6 ] || exit 10
porthole log | grep "DMA refused" | grep -q "${edu#0000:}" || exit 11
porthole audit || exit 12
# The device goes while it is confined; the next one in its place is not.
echo $edu >/sys/bus/pci/drivers/uio_pci_generic/unbind
echo 1 >/sys/bus/pci/devices/$edu/remove
[ "$(line $edu 2)" = all ] && same_as_boot || exit 13
echo 1 >/sys/bus/pci/rescan
# Its id is still in the list of uio_pci_generic, which takes it at once.
unbind $edu && porthole dma confine $edu 64K && porthole dma release $edu || exit 14
same_as_boot && porthole audit'
}
