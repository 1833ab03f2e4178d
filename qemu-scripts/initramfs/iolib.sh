# shellcheck shell=dash
# For scripts on the host with real devices (run.sh --io): drivers, checks of disks and cards, the stress test.
# Source it as /lib/io/iolib.sh; /lib/porthole/guestlib.sh comes along where there is a hypervisor.
. /lib/porthole/guestlib.sh

FAR_SIDE='' FAR=10.77.0.2 NEAR=10.77.0.1

# A virtual CPU runs when the build machine lets it. What Linux says of CPUs and devices that are late for longer than its
# usual 20 or 30 seconds is a complaint here when they are late for minutes.
be_patient() {
    echo 300 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout && echo 60 >/proc/sys/kernel/watchdog_thresh
}

# load_drivers: all of them, in the order in which they are numbered; true once the three disks are there.
load_drivers() {
    be_patient || return 1
    for module in /lib/io/modules/*.ko; do
        case "$module" in
            *-nvme-core.ko) insmod "$module" io_timeout=300 admin_timeout=300 || return 1 ;;
            *) insmod "$module" || return 1 ;;
        esac
    done
    for disk in vda nvme0n1 sda; do
        wait_until [ -b /dev/$disk ] || { echo "$disk is missing:"; ls /dev; return 1; }
    done
    echo 300 >/sys/block/sda/device/timeout
}

# nic DRIVER: the interface that this driver made.
nic() {
    for interface in /sys/class/net/*; do
        [ "$(basename "$(readlink "$interface/device/driver")" 2>/dev/null)" = "$1" ] && basename "$interface"
    done
}

# wire_up: the e1000 here, the virtio card in a network name space of its own, both on one wire.
wire_up() {
    ip link set lo up
    near=$(nic e1000) far=$(nic virtio_net)
    unshare -n sleep 100000 &
    FAR_SIDE=$!
    # The name space is there once it is another one than ours.
    while [ "$(readlink /proc/$FAR_SIDE/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
    ip link set dev "$far" netns "$FAR_SIDE" || return 1
    ip addr add $NEAR/24 dev "$near" && ip link set "$near" up || return 1
    on_far_side sh -c "ip link set lo up; ip addr add $FAR/24 dev $far && ip link set $far up" || return 1
    wait_until ping -c 1 -W 1 $FAR
}

# on_far_side COMMAND...
on_far_side() { nsenter -t "$FAR_SIDE" -n "$@"; }

# listens_far_away PORT: whether somebody takes TCP connections there.
listens_far_away() { on_far_side netstat -ltn | grep -q ":$1 "; }

# messages WORD: MSIs that devices of this name have had (lines of ITS-... in /proc/interrupts).
messages() {
    awk -v word="$1" '/ITS-/ && $0 ~ word { for (i = 2; $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' \
        /proc/interrupts
}

# disk_sum DEVICE FROM-MIB MIB: checksum of a part of a disk, read from the disk.
disk_sum() { dd if="$1" bs=1M skip="$2" count="$3" iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }

# disk_write DEVICE AT-MIB MIB: writes random data there; prints its checksum.
disk_write() {
    dd if=/dev/urandom of=/tmp/noise bs=1M count="$3" 2>/dev/null
    dd if=/tmp/noise of="$1" bs=1M seek="$2" oflag=direct conv=fsync 2>/dev/null || return 1
    sha256sum </tmp/noise | cut -d' ' -f1
    rm /tmp/noise
}

# complaints: what the kernel says that it would not if every device did its work; false if there is anything.
complaints() {
    ! dmesg | grep -v 'CPU features: ' | grep -iE 'I/O error|timed? ?out|tx hang|reset(ting)? (controller|high|super)|arm-smmu.*(fault|event)|BUG|Oops|lockup|rcu.*stall|lost'
}

# faults: DMA faults that the hypervisor has logged.
faults() { porthole log 2>/dev/null | grep -c 'DMA refused'; }

# worker NAME COMMAND...: in the background until /tmp/stop is there; the name of one that failed goes to /tmp/failed.
worker() {
    name=$1
    shift
    (
        rounds=0
        until [ -e /tmp/stop ]; do
            "$@" >"/tmp/worker.$name" 2>&1 || { echo "$name: $(tail -n 5 "/tmp/worker.$name")" >>/tmp/failed; break; }
            rounds=$((rounds + 1))
        done
        echo "$name: $rounds rounds" >>/tmp/rounds
    ) &
    WORKERS="$WORKERS $!"
}

# Each of these is one round of a worker.
disk_round() {
    fio --name=stress --filename="$1" --offset=128M --size=16M --rw=randwrite --bs="$2" --direct=1 --ioengine=libaio \
        --iodepth=8 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --allow_mounted_write=1 --minimal
}

net_round() {
    iperf3 -c $FAR -n 4M && iperf3 -c $FAR -n 4M -R
}

hotplug_round() {
    for cpu in $HOTPLUG_CPUS; do
        echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || return 1
    done
    sleep 0.3
    for cpu in $HOTPLUG_CPUS; do
        online "$cpu" || return 1
    done
    sleep 0.3
}

guest_round() {
    porthole run --kernel "$GUEST_IMAGE" --mem 16M --cpus 2 --console echo --cmdline "mode=ping count=50 size=300" \
        </dev/null >/tmp/guest.out 2>&1
    status=$?
    cat /tmp/guest.out
    [ $status -eq 0 ] && grep -q "50 messages ok" /tmp/guest.out
}

# stress SECONDS: all of it at once. Prints the rounds of each; false if anything failed.
stress() {
    WORKERS='' HOTPLUG_CPUS=''
    for cpu in /sys/devices/system/cpu/cpu[2-9]; do HOTPLUG_CPUS="$HOTPLUG_CPUS ${cpu##*cpu}"; done
    rm -f /tmp/stop /tmp/failed /tmp/rounds
    on_far_side iperf3 -s >/dev/null &
    server=$!
    wait_until listens_far_away 5201 || return 1
    worker virtio-blk disk_round /dev/vda 4k
    worker nvme disk_round /dev/nvme0n1 64k
    worker net net_round
    worker hotplug hotplug_round
    worker guests guest_round
    end=$(($(date +%s) + $1))
    while [ "$(date +%s)" -lt "$end" ] && [ ! -e /tmp/failed ]; do sleep 1; done
    touch /tmp/stop
    # shellcheck disable=SC2086 # one word each
    wait $WORKERS
    kill $server
    cat /tmp/rounds
    [ ! -e /tmp/failed ] || { cat /tmp/failed; return 1; }
    # All five did something.
    [ "$(grep -cE ': [1-9][0-9]* rounds' /tmp/rounds)" -eq 5 ]
}
