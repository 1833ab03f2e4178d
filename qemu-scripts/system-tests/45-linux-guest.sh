# shellcheck shell=bash
# Linux as a protected guest with its devices: our kernel with the series of guest/linux, which knows windows, and the
# same kernel without it. Each device in each mode, with checksums, and pools that are empty afterwards.
# shellcheck disable=SC2016 # the shells of host and guest expand what stands in single quotes

# Words on the host. guest KIND COMMAND OPTIONS...: a guest of that kind (Image or Image.stock) runs COMMAND, with its
# console in /tmp/linux.log; the status is the command's, or 99 if the guest did not come so far.
WITH_LINUX_GUEST='. /lib/porthole/guestlib.sh
insmod /lib/porthole/porthole_peek.ko || exit 91
boot=$(owner_totals)
guest() {
    kind=$1
    mkdir -p /tmp/add/guest
    printf "%s\n" ". /lib/guestlib.sh" "$2" >/tmp/add/guest/command
    shift 2
    (cd /tmp/add && find . -mindepth 1 | cpio -o -H newc 2>/dev/null) | cat /lib/porthole/guest.cpio - >/tmp/guest.cpio
    porthole run --kernel /lib/porthole/$kind --initrd /tmp/guest.cpio --mem 256M \
        --cmdline "console=ttyS0 loglevel=${LOGLEVEL:-5} $APPEND" "$@" </dev/null >/tmp/linux.log 2>&1
    vmm=$?
    cat /tmp/linux.log
    end=$(sed -n "s/^guest: end \([0-9]*\).*/\1/p" /tmp/linux.log | tail -n 1)
    [ -n "$end" ] && [ "$vmm" -eq "${WANT_VMM:-0}" ] || { echo "host: porthole ended with $vmm"; return 99; }
    return "$end"
}
nothing_lost() {
    porthole audit || exit 93
    now=$(owner_totals)
    [ "$now" = "$boot" ] && return 0
    printf "at boot:\n%s\nnow:\n%s\n" "$boot" "$now"
    exit 94
}
'

# with_linux_guest COMMAND OPTIONS...: a host that has both kernels, the guest's initramfs and an empty ext4 disk.
with_linux_guest() {
    local command=$1 work host status=0
    shift
    work=$(mktemp -d "$PORTHOLE_OUT/guest-linux.XXXXXX")
    host="$work/host"
    mkdir -p "$host/lib/porthole" "$host/usr/bin"
    cp "$GUEST_DIR/Image" "$GUEST_DIR/Image.stock" "$host/lib/porthole/"
    cp "$PORTHOLE_OUT"/release/guest/* "$host/usr/bin/"
    make_guest_initramfs "$host/lib/porthole/guest.cpio"
    truncate -s 128M "$work/disk"
    PATH="$PATH:/sbin:/usr/sbin" mke2fs -q -t ext4 -L porthole "$work/disk"
    gzip -1 <"$work/disk" >"$host/lib/porthole/disk.gz"
    xz -dc "$(find "$KERNEL_DIR" -name tun.ko.xz -print -quit)" >"$host/lib/porthole/tun.ko"
    pack "$host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs.cpio" "$work/host.cpio" >"$work/initrd"
    ST_SECONDS=${ST_SECONDS:-400} on_host --smp 2 --initrd "$work/initrd" "$@" --batch "$WITH_LINUX_GUEST$command" ||
        status=$?
    rm -rf "$work"
    return "$status"
}

# What a guest does with its console: 256 KiB to the host, and words that the host sends back.
CONSOLE_TEST='
[ -e /dev/hvc0 ] || fail "no console"
exec 3<>/dev/hvc0
stty raw -echo <&3
random_file /tmp/noise 1
head -c 262144 /tmp/noise >/tmp/sent
echo "guest: sent $(sum_of /tmp/sent)"
cat /tmp/sent >&3
exec 3>&-
'

# Windows of the devices: in use while they work, empty and gone when their driver goes, and there again with it.
POOL_TEST='
pools
for pool in /sys/bus/pci/drivers/virtio-pci/0000:*; do
    name=$(basename "$pool")
    [ "$(pool_value "$name" used)" -gt 0 ] || fail "$name: no ring in its window"
    [ "$(pool_value "$name" full)" -eq 0 ] || fail "$name: its window was full"
    echo "$name" >/sys/bus/pci/drivers/virtio-pci/unbind
    [ ! -e "$POOLS/$name" ] || fail "$name: its window stays"
    dmesg | grep "is lost" && fail "$name: slots in use"
    echo "$name" >/sys/bus/pci/drivers/virtio-pci/bind
    [ "$(pool_value "$name" used)" -gt 0 ] || fail "$name: no ring in its window after a new start"
done
echo "guest: windows ok"
'

# The disk that the host has made, the entropy device, and both streams in both directions, all with checksums.
DISK_TEST='
disk_works ${MIB:-4}
'
RNG_TEST='
grep -q virtio /sys/class/misc/hw_random/rng_current || fail "no entropy device"
one=$(head -c 65536 /dev/hwrng | sha256sum) && two=$(head -c 65536 /dev/hwrng | sha256sum)
[ "$one" != "$two" ] || fail "the same entropy twice"
echo "guest: entropy ok"
'
TCP_TEST='
ifconfig eth0 192.168.77.2 up || fail "no network device"
random_file /tmp/noise ${MIB:-4}
echo "guest: tcp sent $(sum_of /tmp/noise)"
tries=0
until sockcat tcp 192.168.77.1 5000 </tmp/noise >/tmp/back; do
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || fail "tcp"
    sleep 0.2
done
echo "guest: tcp received $(sum_of /tmp/back)"
'
VSOCK_TEST='
random_file /tmp/noise ${MIB:-4}
echo "guest: vsock sent $(sum_of /tmp/noise)"
sockcat vsock 2 5001 </tmp/noise >/tmp/back || fail "vsock"
echo "guest: vsock received $(sum_of /tmp/back)"
'

# Words on the host for streams: echoes a stream of each kind, once, and says what it was.
WITH_PEERS='
peers() {
    insmod /lib/porthole/tun.ko 2>/dev/null
    tunctl -t vmtap0 >/dev/null && ifconfig vmtap0 192.168.77.1 up || exit 95
    # The peer sends what it has first, so that both directions are full at once.
    dd if=/dev/urandom of=/tmp/peer bs=1M count=${MIB:-4} 2>/dev/null
    sockcat tcp-listen 5000 </tmp/peer >/tmp/tcp.got &
    tcp=$!
    sockcat unix-listen /tmp/v.sock_5001 </tmp/peer >/tmp/vsock.got &
    vsock=$!
}
sum_of() { sha256sum <"$1" | cut -d" " -f1; }
# streams_match KIND: what the guest said it sent and received is what the host received and sent.
streams_match() {
    grep -q "guest: $1 sent $(sum_of /tmp/$1.got)\$" /tmp/linux.log || { ls -l /tmp/$1.got; exit 96; }
    grep -q "guest: $1 received $(sum_of /tmp/peer)\$" /tmp/linux.log || exit 97
}
devices="--disk /tmp/disk --rng --net tap=vmtap0 --vsock cid=3,path=/tmp/v.sock --console file=/tmp/hvc"
'

# all_devices KIND MODE-OPTIONS CPUS: everything at once.
all_devices() {
    with_linux_guest "$WITH_PEERS"'
zcat /lib/porthole/disk.gz >/tmp/disk
peers
guest '"$1 '$CONSOLE_TEST$DISK_TEST$RNG_TEST$TCP_TEST$VSOCK_TEST${4:-}'"' $devices '"$2"' --cpus '"$3"' || exit 1
wait $tcp && wait $vsock || exit 2
streams_match tcp
streams_match vsock
grep -q "guest: disk ok" /tmp/linux.log && grep -q "guest: entropy ok" /tmp/linux.log || exit 3
! grep -q "needs reset" /tmp/linux.log || exit 4
ifconfig vmtap0 down
nothing_lost'
}

st_linux_guest_all_devices_with_window_required() { all_devices Image "--swiotlb require" 2 "$POOL_TEST"; }
st_linux_guest_all_devices_with_window_offered() { all_devices Image "--swiotlb offer" 1 "$POOL_TEST"; }
st_linux_guest_all_devices_with_window_hinted() { all_devices Image "--swiotlb hint" 4 "$POOL_TEST"; }

# consoles MODE CPUS
consoles() {
    with_linux_guest '
guest Image '"'$CONSOLE_TEST$POOL_TEST'"' --console file=/tmp/hvc --swiotlb '"$1"' --cpus '"$2"' || exit 1
sent=$(sed -n "s/.*guest: sent \([0-9a-f]*\).*/\1/p" /tmp/linux.log)
[ "$(head -c 262144 /tmp/hvc | sha256sum | cut -d" " -f1)" = "$sent" ] || { ls -l /tmp/hvc; exit 2; }
grep -q "guest: windows ok" /tmp/linux.log || exit 3
nothing_lost'
}

# Consoles with the numbers of the proposal changed on both sides.
st_linux_guest_follows_other_numbers() {
    with_linux_guest '
APPEND="virtio.swiotlb_feature_bit=31 virtio_pci.swiotlb_cfg_type=77"
guest Image '"'$CONSOLE_TEST$POOL_TEST"'
for features in /sys/bus/virtio/devices/*/features; do
    [ "$(cut -c 32 $features)" = 1 ] || fail "feature not negotiated: $(cat $features)"
done'"'"' --console file=/tmp/hvc --swiotlb-feature-bit 31 --swiotlb-cfg-type 77 || exit 1
grep -q "guest: windows ok" /tmp/linux.log || exit 3
# A guest that looks for others finds no window, and a device that insists is refused, with the reason.
APPEND=virtio_pci.swiotlb_cfg_type=77
guest Image "[ ! -e /dev/hvc0 ] && [ ! -e /sys/kernel/debug/swiotlb/0000:00:01.0 ]" --console file=/tmp/hvc || exit 4
grep -q "device refuses features" /tmp/linux.log || exit 5
grep -q "VIRTIO_F_SWIOTLB (bit 27) is offered but its region cannot be used" /tmp/linux.log || exit 6
nothing_lost'
}

# Without the series: told no in mode require; with the window as a mere hint, the device names the first address.
st_linux_guest_without_the_series_fails_clearly() {
    with_linux_guest '
guest Image.stock "[ ! -e /dev/hvc0 ]" --console file=/tmp/hvc || exit 1
grep -q "device refuses features" /tmp/linux.log || exit 2
grep -q "driver refused: features missing 0x8000000" /tmp/linux.log || exit 3
for mode in offer hint; do
    guest Image.stock true --console file=/tmp/hvc --swiotlb $mode || exit 4
    grep -q "device needs reset: queue 0: .* is outside the window" /tmp/linux.log || exit 5
done
# The series, told to leave windows alone, is in the same place.
LOGLEVEL=8 APPEND=virtio_pci.swiotlb=n guest Image "[ ! -e /dev/hvc0 ]" --console file=/tmp/hvc || exit 6
grep -q "SWIOTLB region not used" /tmp/linux.log || exit 7
grep -q "device refuses features" /tmp/linux.log || exit 8
nothing_lost'
}

st_linux_guest_console_with_window_required() { consoles require 1; }
st_linux_guest_console_with_window_offered() { consoles offer 2; }
st_linux_guest_console_with_window_hinted() { consoles hint 4; }
