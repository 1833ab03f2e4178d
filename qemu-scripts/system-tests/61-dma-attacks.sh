# shellcheck shell=bash
# Root on the host turns devices against protected memory (a60): one whose DMA it aims from user space, and honest
# disks that the kernel is made to aim. Where DMA is not isolated the same attacks must succeed, or they test nothing.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

WITH_EDU="${WITH_IO:-}"'
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor")$(cat "$device/device")" = 0x12340x11e8 ] && edu=${device##*/}
done
# Linux leaves a device without a driver behind its SMMU, if it has one; this one makes it user space'"'"'s.
echo "1234 11e8" >/sys/bus/pci/drivers/uio_pci_generic/new_id
[ -e /sys/bus/pci/devices/$edu/uio ] || exit 92
# samples OWNER COUNT: addresses of pages of an owner, evenly over all its ranges.
samples() {
    while read -r owner start pages; do
        [ "$owner" = "$1" ] || continue
        i=0
        while [ $i -lt "$2" ] && [ $i -lt "$pages" ]; do
            echo $((start + pages * i / $2 * 4096))
            i=$((i + 1))
        done
    done <"$OWNER_MAP"
}
# fetched ADDRESS...: what DMA brings from these pages, but for the words that an aborted one leaves in the device.
fetched() { edu_dma "$edu" fetch "$@" | tee -a /tmp/fetched | grep -vE " (0{16}|(ed){8}) whole"; }
# The word with which a guest fills its private page.
SECRET=454c4f4854524f50
guest_lives() { tell_guest "$1" && porthole audit >/dev/null; }
'

# A host that gives its devices the addresses that it sees itself, so that the attack needs no help of Linux.
edu_host() { on_host --smp 4 --io --append "iommu.passthrough=1" "$@"; }

st_a60_dma_of_a_device_reaches_what_the_host_reaches_and_no_more() {
    edu_host --batch "$WITH_EDU"'
# Before anything is donated, every page of RAM but the hypervisor is within reach.
edu_dma $edu fetch 0x80000000 0x90000000 | grep -v " edededededededed whole" || exit 1
start_guest
wait_for "echo: ready" "$GUEST_LOG" || { cat "$GUEST_LOG"; exit 2; }
read_owners
cat "$OWNER_MAP"
window=$(samples window 1 | tail -n 1)
edu_dma $edu store 0x1122334455667788 $((window + 4096)) || exit 3
[ "$(fetched $((window + 4096)) | cut -d" " -f2-)" = "1122334455667788 whole" ] || exit 4
protected="$(samples vm-memory 8) $(samples vm-metadata 8) $(samples hyp 6)"
if [ "$isolated" -eq 0 ]; then
    # The attack is real: code of the guest and of the hypervisor is read, and a page of the guest replaced.
    fetched $(samples vm-memory 8) | grep -q mixed && fetched $(samples hyp 6) | grep -q mixed || exit 5
    edu_dma $edu store 0xbadc0debadc0de $(samples vm-memory 1)
    fetched $(samples vm-memory 1) | grep -q "00badc0debadc0de whole"
    exit
fi
fetched $protected && exit 6
edu_dma $edu store 0xbadc0debadc0de $protected || exit 7
fetched $protected && exit 8
guest_lives "after the attack" || exit 9
porthole log | tail -n 20
porthole log | grep "DMA refused" | grep -q "${edu#0000:}" || exit 10
# While another guest comes and goes.
(
    for i in 1 2 3 4 5; do
        porthole run --kernel "$GUEST_IMAGE" --mem 16M --cpus 2 --console echo --cmdline "mode=ping count=20 size=300" \
            </dev/null >/tmp/other.$i 2>&1 && grep -q "20 messages ok" /tmp/other.$i || touch /tmp/other-failed
    done
    touch /tmp/other-done
) &
while [ ! -e /tmp/other-done ]; do
    edu_dma $edu store 0xbadc0debadc0de $(samples vm-memory 4) || exit 11
    fetched $(samples vm-memory 4) && exit 12
done
[ ! -e /tmp/other-failed ] || { cat /tmp/other.*; exit 13; }
end_guest || { cat "$GUEST_LOG"; exit 14; }
# The pages are the host'"'"'s again: within reach, and nothing of the guest is in them.
rm -f /tmp/fetched
fetched $(samples vm-memory 24)
grep -q "$SECRET" /tmp/fetched && exit 15
grep -q "edededededededed whole" /tmp/fetched && exit 16
porthole audit && same_as_boot'
}

# disk_writes_onto_a_guest DEVICE: a disk is told to put its content onto all pages of a guest.
disk_writes_onto_a_guest() {
    edu_host --batch "$WITH_EDU"'
insmod /lib/porthole/porthole_bio.ko || exit 1
dd if=/dev/urandom of='"$1"' bs=1M count=4 oflag=direct 2>/dev/null || exit 2
start_guest
wait_for "echo: ready" "$GUEST_LOG" || { cat "$GUEST_LOG"; exit 3; }
read_owners
cat "$OWNER_MAP"
while read -r owner start pages; do
    # Without isolation the guest'"'"'s memory is enough; its metadata would take the hypervisor with it.
    [ "$owner" = vm-memory ] || { [ "$owner" = vm-metadata ] && [ "$isolated" -ne 0 ]; } || continue
    # What each part comes to is the disk'"'"'s business; a disk that gave up has not written either.
    echo "$owner $start: $(echo "'"$1"' $start $pages" 2>&1 >/proc/porthole-bio)"
done <"$OWNER_MAP"
if [ "$isolated" -eq 0 ]; then
    # The attack is real.
    tell_guest "still here" && exit 4
    exit 0
fi
guest_lives "still here" || { cat "$GUEST_LOG"; exit 5; }
porthole log | tail -n 5
# A disk that is late was given up, and may come to it yet.
refusals() { porthole log | grep "DMA refused"; }
wait_until refusals || exit 6
end_guest || { cat "$GUEST_LOG"; exit 7; }
same_as_boot'
}

st_a60_nvme_told_to_write_onto_a_guest_does_not() { disk_writes_onto_a_guest /dev/nvme0n1; }
st_a60_virtio_disk_told_to_write_onto_a_guest_does_not() { disk_writes_onto_a_guest /dev/vda; }
