# shellcheck shell=bash
# All five devices of a protected Linux guest at work for some time, disk and network under Debian's fio and iperf3: no
# error, no full pool, no leaked slot. PORTHOLE_LOAD_SECONDS is how long (20; the issue's figure is 600).
# shellcheck disable=SC2016 # the shells of host and guest expand what stands in single quotes

# In the guest: all loads until the time is over, then what the kernel and the pools say.
LOAD_IN_GUEST='
. /lib/guestlib.sh
# A build machine that does other things too may keep a guest from running for longer than RCU thinks right (21 s).
echo 300 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout || fail "no patience"
parameter() { sed -n "s/.*$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
seconds=$(parameter load_seconds) theirs=$(parameter peer_sum)
ifconfig eth0 192.168.77.2 up || fail "no network device"
tries=0
until ping -c 1 192.168.77.1 >/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || fail "no way to the host"
done
disk=$(virtio_of virtio_blk)
random_file /tmp/noise 4 && head -c 65536 /tmp/noise >/tmp/piece
exec 3<>/dev/hvc0 && stty raw -echo <&3 || fail "no console"
echo "guest: vsock sends $(sum_of /tmp/noise)"
echo "guest: console sends $(sum_of /tmp/piece)"
before=$(pool_value "$disk" used)

# vsock_load PORT: one stream after another, 4 MiB each way at once.
vsock_load() {
    did=0 tries=0
    while [ "$did" -eq 0 ] || [ ! -e /tmp/over ]; do
        if ! sockcat vsock 2 "$1" </tmp/noise >/tmp/back.$1 2>/tmp/error.$1; then
            # The next listener may not be there yet.
            tries=$((tries + 1))
            [ "$tries" -lt 1000 ] || { cat /tmp/error.$1 >>/tmp/bad; return; }
            sleep 0.2
            continue
        fi
        [ "$(sum_of /tmp/back.$1)" = "$theirs" ] || echo "port $1, stream $did: other data than was sent" >>/tmp/bad
        did=$((did + 1)) tries=0
    done
    echo "guest: port $1 did $did streams"
}
entropy_load() {
    while [ ! -e /tmp/over ]; do
        [ "$(head -c 65536 /dev/hwrng | wc -c)" -eq 65536 ] || echo "entropy ends" >>/tmp/bad
        sleep 0.5
    done
}
for port in 5001 5002 5003; do
    vsock_load $port &
    streams="$streams $!"
done
entropy_load &
streams="$streams $!"
iperf3 -c 192.168.77.1 -t "$seconds" --bidir >/tmp/iperf 2>&1 &
iperf=$!
rounds=0 end=$(($(date +%s) + seconds))
while [ "$rounds" -eq 0 ] || [ "$(date +%s)" -lt "$end" ]; do
    for size in 4k 128k; do
        fio --name=load --filename=/dev/vda --size=8M --rw=randwrite --bs=$size --direct=1 --ioengine=libaio \
            --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --minimal >/tmp/fio 2>&1 ||
            { cat /tmp/fio; fail "fio, round $rounds"; }
    done
    cat /tmp/piece >&3 || fail "console, round $rounds"
    rounds=$((rounds + 1))
done
touch /tmp/over
wait $iperf || { cat /tmp/iperf; fail "iperf3"; }
wait $streams
[ ! -e /tmp/bad ] || { cat /tmp/bad; fail "a stream"; }
grep -E "sender|receiver" /tmp/iperf
echo "guest: fio did $rounds rounds"
pools
dmesg | grep -iE "I/O error|timed? ?out|tx hang|BUG|Oops|lockup|detected stall" && fail "the kernel complains"

# Without requests in flight the disk has its rings in the window and nothing else, as before.
[ "$(pool_value "$disk" used)" -eq "$before" ] || fail "$disk: $(pool_value "$disk" used) slots in use, before $before"
exec 3>&-
# A driver that goes gives every slot back; the kernel says so if not, and keeps the pool.
for pool in /sys/bus/pci/drivers/virtio-pci/0000:*; do
    function=$(basename "$pool")
    [ "$(pool_value "$function" full)" -eq 0 ] || fail "$function: its window was full"
    echo "$function" >/sys/bus/pci/drivers/virtio-pci/unbind
    [ ! -e "$POOLS/$function" ] || fail "$function: slots left in use: $(pool_value "$function" used)"
done
dmesg | grep "is lost" && fail "slots in use"
echo "guest: no slot leaked"
'

# load_tools OUTPUT: fio and iperf3 with their libraries, out of what the host of the I/O tests carries.
load_tools() {
    local root
    load_io_state || { echo "fio and iperf3 are not in the cache; run qemu-scripts/setup.sh --io" >&2; return 1; }
    root=$(mktemp -d "$PORTHOLE_OUT/load-tools.XXXXXX")
    (cd "$root" && cpio --quiet -idm --no-absolute-filenames <"$IO_FILES" && rm -rf lib/io usr/sbin)
    pack "$root" "$1"
    rm -rf "$root"
}

st_linux_guest_devices_under_fio_and_iperf3() {
    local out work seconds=${PORTHOLE_LOAD_SECONDS:-20}
    work=$(mktemp -d "$PORTHOLE_OUT/guest-load.XXXXXX")
    mkdir -p "$work/host/lib/porthole" "$work/guest/guest"
    load_tools "$work/tools.cpio"
    printf '%s\n' "$LOAD_IN_GUEST" >"$work/guest/guest/command"
    pack "$work/guest" "$work/command.cpio"
    make_guest_initramfs "$work/guest.cpio"
    cat "$work/guest.cpio" "$work/tools.cpio" "$work/command.cpio" >"$work/host/lib/porthole/load.cpio"
    pack "$work/host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs-guest.cpio" "$work/tools.cpio" "$work/host.cpio" >"$work/initrd"
    out=$(ST_SECONDS=$((HANG_SECONDS + 2 * seconds)) on_host --smp 2 --initrd "$work/initrd" --batch '. /lib/porthole/guestlib.sh
insmod /lib/porthole/porthole_peek.ko && insmod /lib/porthole/tun.ko || exit 1
tunctl -t vmtap0 >/dev/null && ifconfig vmtap0 192.168.77.1 up && ifconfig lo up || exit 2
truncate -s 32M /tmp/disk
iperf3 -s >/tmp/server 2>&1 &
wait_until listens_at_port 5201 || exit 4
dd if=/dev/urandom of=/tmp/peer bs=1M count=4 2>/dev/null
for port in 5001 5002 5003; do
    while :; do sockcat unix-listen /tmp/v.sock_$port </tmp/peer | sha256sum >>/tmp/vsock.sums; done &
done
before=$(owner_totals)
porthole run --kernel /lib/porthole/Image --initrd /lib/porthole/load.cpio --mem 320M --cpus 2 \
    --cmdline "console=ttyS0 loglevel=4 load_seconds='"$seconds"' peer_sum=$(sha256sum </tmp/peer | cut -d" " -f1)" \
    --disk /tmp/disk --net tap=vmtap0 --vsock cid=3,path=/tmp/v.sock --rng --console file=/tmp/hvc \
    </dev/null >/tmp/guest.log 2>/tmp/guest.said
echo "status $?"
cat /tmp/guest.log /tmp/guest.said
said() { sed -n "s/.*guest: $1 \([0-9a-f]*\).*/\1/p" /tmp/guest.log; }
streams=0
for did in $(said "port 500[123] did"); do streams=$((streams + did)); done
# The guest is done when all was sent; what took it on this side may still be summing it up.
all_summed() { [ "$(wc -l </tmp/vsock.sums)" -ge "$streams" ]; }
wait_until all_summed || echo "streams are missing"
[ "$(sort -u /tmp/vsock.sums)" = "$(said "vsock sends")  -" ] && [ "$(wc -l </tmp/vsock.sums)" -eq "$streams" ] &&
    echo "$streams streams came as they were sent"
rounds=$(said "fio did") i=0
[ "$(wc -c </tmp/hvc)" -eq $((rounds * 65536)) ] && while [ $i -lt "$rounds" ]; do
    dd if=/tmp/hvc bs=65536 skip=$i count=1 2>/dev/null | sha256sum
    i=$((i + 1))
done | sort -u >/tmp/hvc.sums
[ "$(cat /tmp/hvc.sums)" = "$(said "console sends")  -" ] && echo "the console wrote what it was told"
porthole audit || exit 3
[ "$before" = "$(owner_totals)" ] && echo "every page is back"') || { printf '%s\n' "$out" >&2; return 1; }
    rm -rf "$work"
    printf '%s\n' "$out"
    expect "$out" '^guest: fio did [1-9][0-9]* rounds'
    expect "$out" '^guest: no slot leaked'
    expect "$out" '^[1-9][0-9]* streams came as they were sent$'
    expect "$out" '^the console wrote what it was told$'
    expect "$out" '^guest: end 0'
    expect "$out" '^status 0$'
    expect "$out" '^every page is back$'
    ! grep -E 'needs reset|is full' <<<"$out"
}
