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
# disk_is_there: waits for the NVMe disk, at most ten seconds.
disk_is_there() {
    left=50
    until [ -b /dev/nvme0n1 ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 0.2
    done
}
nvme=$(function_of 0x1b360x0010)
edu=$(function_of 0x12340x11e8)
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

st_confined_nvme_works_in_its_region() {
    local dir
    dir=$(mktemp -d "$PORTHOLE_OUT/confine-disks.XXXXXX")
    strictly confined_nvme_works "$dir"
    rm -rf "$dir"
    return "$STRICT_STATUS"
}

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
