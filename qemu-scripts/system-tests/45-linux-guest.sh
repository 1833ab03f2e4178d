# shellcheck shell=bash
# Linux as a protected guest with its devices: our kernel with the series of guest/linux, which knows windows, and the
# same kernel without it. Each device in each mode, with checksums, and pools that are empty afterwards.
# shellcheck disable=SC2016 # the shells of host and guest expand what stands in single quotes

# Words on the host. guest KIND COMMAND OPTIONS...: a guest of that kind (Image or Image.stock) runs COMMAND, with its
# console in $NAME.log and in the end, so that it breaks no line of the guest, what porthole said; the status is the command's, or 99 if the guest did not come so far or porthole's status is not
# $WANT_VMM.
# Memory is not cleared when the guest's kernel allocates it, as it is by default: what a driver shows of it must be seen.
WITH_LINUX_GUEST='. /lib/porthole/guestlib.sh
insmod /lib/porthole/porthole_peek.ko || exit 91
boot=$(owner_totals)
NAME=/tmp/linux
guest() {
    kind=$1
    mkdir -p $NAME.add/guest
    printf "%s\n" ". /lib/guestlib.sh" "MIB=$MIB" "$2" >$NAME.add/guest/command
    shift 2
    (cd $NAME.add && find . -mindepth 1 | cpio -o -H newc 2>/dev/null) | cat /lib/porthole/guest.cpio - >$NAME.cpio
    porthole run --kernel /lib/porthole/$kind --initrd $NAME.cpio --mem $GUEST_MEM \
        --cmdline "console=ttyS0 init_on_alloc=0 loglevel=${LOGLEVEL:-5} $APPEND" "$@" </dev/null >$NAME.log 2>$NAME.said
    vmm=$?
    cat $NAME.said >>$NAME.log
    cat $NAME.log
    end=$(sed -n "s/^guest: end \([0-9]*\).*/\1/p" $NAME.log | tail -n 1)
    [ -n "$end" ] && [ "$vmm" -eq "${WANT_VMM:-0}" ] || { echo "host: porthole ended with $vmm"; return 99; }
    return "$end"
}
sum_of() { sha256sum <"$1" | cut -d" " -f1; }
# said WORD [NAME]: the checksum behind `guest: WORD` in a guest'"'"'s log.
said() { sed -n "s/.*guest: $1 \([0-9a-f]\{64\}\).*/\1/p" ${2:-$NAME}.log; }
nothing_lost() {
    porthole audit || exit 93
    now=$(owner_totals)
    [ "$now" = "$boot" ] && return 0
    printf "at boot:\n%s\nnow:\n%s\n" "$boot" "$now"
    exit 94
}
'

# with_linux_guest COMMAND OPTIONS...: a host that has both kernels, the guest's initramfs and an empty ext4 disk.
# PORTHOLE_GUEST_MIB: what each device moves in each direction (by hand up to 64).
with_linux_guest() {
    local command=$1 mib=${PORTHOLE_GUEST_MIB:-4} mem=256M
    shift
    # What is sent and what comes back lie in a tmpfs, which may have half of the memory.
    [ "$mib" -le 16 ] || mem=512M
    ST_SECONDS=$((HANG_SECONDS + 50 * mib)) on_host --smp 2 --mem 3G --initrd "$PORTHOLE_OUT/initramfs-guest.cpio" "$@" \
        --batch "MIB=$mib GUEST_MEM=$mem
$WITH_LINUX_GUEST$command"
}

# What a guest does with its console: 256 KiB to the host.
CONSOLE_TEST='
[ -e /dev/hvc0 ] || fail "no console"
exec 3<>/dev/hvc0
stty raw -echo <&3
random_file /tmp/noise 1
head -c 262144 /tmp/noise >/tmp/sent
echo "guest: console sent $(sum_of /tmp/sent)"
cat /tmp/sent >&3
exec 3>&-
'

# Windows of the devices: in use while they work, empty and gone when their driver goes, and there again with it. A
# disk's may fill up: its queue holds more large requests than its window, and those that find no room are tried again
# when others have left.
POOL_TEST='
pools
disk=$(virtio_of virtio_blk)
for pool in /sys/bus/pci/drivers/virtio-pci/0000:*; do
    name=$(basename "$pool")
    [ "$(pool_value "$name" used)" -gt 0 ] || fail "$name: no ring in its window"
    [ "$(pool_value "$name" full)" -eq 0 ] || [ "$name" = "$disk" ] || fail "$name: its window was full"
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
disk_works $MIB
'
RNG_TEST='
grep -q virtio /sys/class/misc/hw_random/rng_current || fail "no entropy device"
one=$(head -c 65536 /dev/hwrng | sha256sum) && two=$(head -c 65536 /dev/hwrng | sha256sum)
[ "$one" != "$two" ] || fail "the same entropy twice"
echo "guest: entropy ok"
'
TCP_TEST='
ifconfig eth0 192.168.77.2 up || fail "no network device"
random_file /tmp/noise $MIB
echo "guest: tcp sent $(sum_of /tmp/noise)"
tries=0
until sockcat tcp 192.168.77.1 5000 </tmp/noise >/tmp/back; do
    tries=$((tries + 1))
    [ "$tries" -lt 1000 ] || fail "tcp"
    sleep 0.2
done
echo "guest: tcp received $(sum_of /tmp/back)"
'
VSOCK_TEST='
random_file /tmp/noise $MIB
echo "guest: vsock sent $(sum_of /tmp/noise)"
sockcat vsock 2 5001 </tmp/noise >/tmp/back || fail "vsock"
echo "guest: vsock received $(sum_of /tmp/back)"
# Somebody listens there once the host has all of it: what porthole still holds for a slow reader would go with the guest.
tries=0
until sockcat vsock 2 5002 </dev/null >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 1000 ] || fail "the host does not take what was sent"
    sleep 0.2
done
'

# Whether each device negotiated VIRTIO_F_SWIOTLB (bit 27; the first is character 1): 1 or 0.
feature_is() {
    echo '
for features in /sys/bus/virtio/devices/*/features; do
    [ "$(cut -c 28 $features)" = '"$1"' ] || fail "$features: VIRTIO_F_SWIOTLB is not '"$1"'"
done
'
}

# Words on the host for streams: `devices` is the options of all five; peers answers each stream once, and sends what
# it has at once, so that both directions are full together; all_devices KIND COMMAND OPTIONS... runs a guest with them
# and compares what each side says.
WITH_PEERS='
insmod /lib/porthole/tun.ko || exit 95
peers() {
    rm -f /tmp/v.sock_500[12]
    zcat /lib/porthole/disk.gz >/tmp/disk
    tunctl -t vmtap0 >/dev/null && ifconfig vmtap0 192.168.77.1 up || exit 95
    dd if=/dev/urandom of=/tmp/peer bs=1M count=$MIB 2>/dev/null
    sockcat tcp-listen 5000 </tmp/peer >/tmp/tcp.got &
    tcp=$!
    { sockcat unix-listen /tmp/v.sock_5001 </tmp/peer >/tmp/vsock.got && sockcat unix-listen /tmp/v.sock_5002 </dev/null; } &
    vsock=$!
    wait_until listens_at_port 5000 && wait_until listens_at /tmp/v.sock_5001 || exit 95
}
# devices [KEY]: the options, each with one more key.
devices() {
    echo --disk /tmp/disk$1 --rng=src=/dev/urandom$1 --net tap=vmtap0$1 --vsock cid=3,path=/tmp/v.sock$1 \
        --console file=/tmp/hvc$1
}
all_devices() {
    rm -f /tmp/hvc
    peers
    guest "$@" || exit 1
    wait $tcp && wait $vsock || exit 2
    for stream in tcp vsock; do
        [ "$(said "$stream sent")" = "$(sum_of /tmp/$stream.got)" ] || { ls -l /tmp/$stream.got; exit 96; }
        [ "$(said "$stream received")" = "$(sum_of /tmp/peer)" ] || exit 97
    done
    [ "$(said "console sent")" = "$(head -c 262144 /tmp/hvc | sha256sum | cut -d" " -f1)" ] || { ls -l /tmp/hvc; exit 98; }
    grep -q "guest: disk ok" $NAME.log && grep -q "guest: entropy ok" $NAME.log || exit 3
    ! grep -q "needs reset" $NAME.log || exit 4
    tunctl -d vmtap0 >/dev/null
    nothing_lost
}
'
FIVE=$CONSOLE_TEST$DISK_TEST$RNG_TEST$TCP_TEST$VSOCK_TEST

# in_windows MODE CPUS FEATURE: all five devices at once, each in its own window.
in_windows() {
    with_linux_guest "$WITH_PEERS"'
all_devices Image '"'$(feature_is "$3")$FIVE$POOL_TEST'"' $(devices) --swiotlb '"$1"' --cpus '"$2"'
grep -q "guest: windows ok" $NAME.log || exit 5'
}

st_linux_guest_all_devices_with_window_required() { in_windows require 2 1; }
st_linux_guest_all_devices_with_window_offered() { in_windows offer 1 1; }
st_linux_guest_all_devices_with_window_hinted() { in_windows hint 4 0; }

# Five functions of one PCI device in the window of its first, which stays as long as one of them uses it.
st_linux_guest_functions_of_a_device_share_a_window() {
    with_linux_guest "$WITH_PEERS"'
all_devices Image '"'$(feature_is 1)$FIVE"'
pools
[ "$(grep -l . $POOLS/0*/io_tlb_used)" = $POOLS/0000:00:01.0/io_tlb_used ] || fail "not one window: $(ls $POOLS)"
[ "$(dmesg | grep -c "0000:00:01.[0-4]: .* of BAR 4 of 0000:00:01.0 and nowhere else")" -eq 5 ] || fail "not all in it"
cd /sys/bus/pci/drivers/virtio-pci
for number in 0 1 2 3 4; do
    [ "$(pool_value 0000:00:01.0 used)" -gt 0 ] || fail "no rings in the window of $number"
    echo 0000:00:01.$number >unbind
done
[ ! -e $POOLS/0000:00:01.0 ] || fail "the window stays"
dmesg | grep "is lost" && fail "slots in use"
# The first to come back is not the one that has the BAR.
for number in 4 3 2 1 0; do
    echo 0000:00:01.$number >bind
done
disk_works 1
echo "guest: shared ok"'"'"' $(devices ,group=all) --cpus 2
grep -q "guest: shared ok" $NAME.log || exit 5'
}

# Guests without windows: a stock kernel with a pool in its device tree, and one whose memory is all shared.
st_linux_guest_all_devices_without_the_series_in_a_pool_of_the_tree() {
    with_linux_guest "$WITH_PEERS"'
all_devices Image.stock '"'$(feature_is 0)$FIVE"'
used=$(cat $(find /sys/kernel/debug -name io_tlb_used) | sort -n | tail -n 1)
[ "$used" -gt 0 ] || fail "no ring in the pool"
echo "guest: pool ok, $used slots"'"'"' $(devices) --dt-pool 32M --cpus 4
grep -q "guest: pool ok" $NAME.log || exit 5'
}

st_linux_guest_all_devices_without_protection() {
    with_linux_guest "$WITH_PEERS"'
for kind in Image Image.stock; do
    all_devices $kind '"'$(feature_is 0)$FIVE"'
cat $(find /sys/kernel/debug -name "io_tlb_used*") /dev/null | grep -qv "^0\$" && fail "bounce buffers"
echo "guest: no buffers"'"'"' $(devices) --unprotected --cpus 2
    grep -q "guest: no buffers" $NAME.log || exit 5
done'
}

# A guest that resets itself is told from one that is switched off; the next run finds what the disk has.
st_linux_guest_starts_again_after_a_reset() {
    with_linux_guest '
zcat /lib/porthole/disk.gz >/tmp/disk
WANT_VMM=3
guest Image '"'disk_works \$MIB
echo \"guest: disk has \$(sum_of /tmp/noise)\"
sync
touch /run/reboot'"' --disk /tmp/disk --cpus 2 || exit 1
nothing_lost
before=$(said "disk has")
WANT_VMM=0
guest Image "mount -t ext4 /dev/vda /mnt || fail mount
echo \"guest: disk has \$(sum_of /mnt/noise)\"" --disk /tmp/disk || exit 2
[ -n "$before" ] && [ "$before" = "$(said "disk has")" ] || exit 3
nothing_lost'
}

# Two guests on a network of their own: each sends the other a stream at the same time.
st_linux_guests_talk_to_each_other() {
    with_linux_guest '
LOGLEVEL=4
(NAME=/tmp/one; guest Image "random_file /tmp/noise $MIB; ifconfig eth0 192.168.78.1 up || fail \"no network\"
echo \"guest: sent \$(sum_of /tmp/noise)\"
sockcat tcp-listen 5000 </tmp/noise >/tmp/back || fail tcp
echo \"guest: received \$(sum_of /tmp/back)\"" --net socket=/tmp/net.sock,listen --cpus 2) &
one=$!
until listens_at /tmp/net.sock; do
    [ -e /proc/$one ] || exit 1
    sleep 0.2
done
(NAME=/tmp/two; guest Image "random_file /tmp/noise $MIB; ifconfig eth0 192.168.78.2 up || fail \"no network\"
echo \"guest: sent \$(sum_of /tmp/noise)\"
tries=0
until sockcat tcp 192.168.78.1 5000 </tmp/noise >/tmp/back; do
    tries=\$((tries + 1))
    [ \$tries -lt 1000 ] || fail tcp
    sleep 0.3
done
echo \"guest: received \$(sum_of /tmp/back)\"" --net socket=/tmp/net.sock) || exit 2
wait $one || exit 3
[ -n "$(said sent /tmp/one)" ] && [ "$(said sent /tmp/one)" = "$(said received /tmp/two)" ] || exit 4
[ -n "$(said sent /tmp/two)" ] && [ "$(said sent /tmp/two)" = "$(said received /tmp/one)" ] || exit 5
nothing_lost'
}

# The entropy device never answers: its source is a FIFO into which nobody writes. A driver that goes leaves nothing of the
# request in the window. Nor would what it gave be credited: the host is not trusted.
st_linux_guest_leaves_no_request_to_an_entropy_device_that_is_silent() {
    with_linux_guest '
mkfifo /tmp/silence
guest Image "pools
name=\$(virtio_of virtio_rng)
used=\$(pool_value \$name used)
[ \"\$used\" -gt 0 ] || fail \"no request in the window\"
for round in 1 2 3; do
    echo \$name >/sys/bus/pci/drivers/virtio-pci/unbind
    [ ! -e \$POOLS/\$name ] || fail \"round \$round: the window stays\"
    dmesg | grep \"is lost\" && fail \"round \$round: slots in use\"
    echo \$name >/sys/bus/pci/drivers/virtio-pci/bind
    [ \"\$(pool_value \$name used)\" -eq \$used ] || fail \"round \$round: \$(pool_value \$name used) slots, not \$used\"
done
quality=\$(cat /sys/class/misc/hw_random/rng_quality)
[ \"\$quality\" -eq 0 ] || fail \"what it gives would be credited with \$quality\"
echo \"guest: silence ok\"" --rng=src=/tmp/silence || exit 1
grep -q "guest: silence ok" $NAME.log || exit 2
nothing_lost'
}

# A request of many small segments takes a slot for each: more than the window has, unless the driver knows.
st_linux_guest_reads_into_more_pieces_than_the_window_has_slots() {
    with_linux_guest '
for window in 128K 512K; do
    zcat /lib/porthole/disk.gz >/tmp/disk
    dd if=/dev/urandom of=/tmp/disk bs=512 count=254 conv=notrunc 2>/dev/null
    guest Image "ioload pieces /dev/vda 512 254 >/tmp/got || fail read
echo \"guest: pieces \$(sum_of /tmp/got)\"" --disk /tmp/disk,window=$window || exit 1
    [ "$(said pieces)" = "$(head -c 130048 /tmp/disk | sha256sum | cut -d" " -f1)" ] || exit 2
done
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
grep -q "guest: windows ok" $NAME.log || exit 3
# A guest that looks for others finds no window, and a device that insists is refused, with the reason.
APPEND=virtio_pci.swiotlb_cfg_type=77
guest Image "[ ! -e /dev/hvc0 ] && [ ! -e /sys/kernel/debug/swiotlb/0000:00:01.0 ]" --console file=/tmp/hvc || exit 4
grep -q "device refuses features" $NAME.log || exit 5
grep -q "VIRTIO_F_SWIOTLB (bit 27) is offered but its region cannot be used" $NAME.log || exit 6
nothing_lost'
}

# Without the series: told no in mode require; with the window as a mere hint, the device names the first address.
st_linux_guest_without_the_series_fails_clearly() {
    with_linux_guest '
guest Image.stock "[ ! -e /dev/hvc0 ]" --console file=/tmp/hvc || exit 1
grep -q "device refuses features" $NAME.log || exit 2
grep -q "driver refused: features missing 0x8000000" $NAME.log || exit 3
for mode in offer hint; do
    guest Image.stock true --console file=/tmp/hvc --swiotlb $mode || exit 4
    grep -q "device needs reset: queue 0: .* is outside the window" $NAME.log || exit 5
done
# The series, told to leave windows alone, is in the same place.
LOGLEVEL=8 APPEND=virtio_pci.swiotlb=n guest Image "[ ! -e /dev/hvc0 ]" --console file=/tmp/hvc || exit 6
grep -q "SWIOTLB region not used" $NAME.log || exit 7
grep -q "device refuses features" $NAME.log || exit 8
nothing_lost'
}

# What a buffer held before the guest read into it is private, and a read that fails leaves it where it is. The stock
# kernel, which fills each bounce buffer before the device writes it, shows that the test would see it.
st_linux_guest_shows_no_device_what_a_buffer_held_before() {
    with_linux_guest '
# seen_in_windows KIND OPTIONS...: ioload fills its buffer with the letter Z and reads into it, until the image is gone.
seen_in_windows() {
    zcat /lib/porthole/disk.gz >/tmp/disk
    guest "$1" "echo \"guest: reads\"
while ioload read /dev/vda 65536 1 seq; do sleep 0.1; done
echo \"guest: a read failed\"
sleep 10000" --disk /tmp/disk $2 $3 >/dev/null &
    guest=$!
    until grep -q "guest: reads" $NAME.log 2>/dev/null; do
        kill -0 $guest || return 98
        sleep 0.1
    done
    truncate -s 0 /tmp/disk
    until grep -q "guest: a read failed" $NAME.log; do
        kill -0 $guest || return 97
        sleep 0.1
    done
    look_for "Z\\{64\\}"
    seen=$?
    kill -9 "$(pidof porthole)"
    wait $guest
    rm $NAME.log
    return $seen
}
# look_for PATTERN: in all pages that a host shares with a guest.
look_for() {
    grep "^window" /proc/porthole-map >/tmp/windows || return 96
    while read -r owner page pages; do
        dd if=/dev/porthole-peek bs=4096 skip=$((page / 4096)) count=$pages 2>/dev/null | grep -q "$1" && return 0
    done </tmp/windows
    return 1
}
seen_in_windows Image.stock --dt-pool 32M || { echo "nothing seen of the stock kernel: $?"; exit 1; }
nothing_lost
seen_in_windows Image
seen=$?
[ $seen -eq 1 ] || { echo "seen of the series: $seen"; exit 2; }
nothing_lost'
}
