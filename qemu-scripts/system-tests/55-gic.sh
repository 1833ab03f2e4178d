# shellcheck shell=bash
# The host's interrupt controller under Porthole: MSI-X through an ITS whose tables EL2 keeps.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Words on the host. on_cpu WORD CPU: MSIs of devices of this name that the CPU has taken.
WITH_GIC='. /lib/io/iolib.sh || exit 90
load_drivers || exit 91
on_cpu() {
    awk -v word="$1" -v column=$(($2 + 2)) "/ITS-/ && \$0 ~ word { sum += \$column } END { print sum + 0 }" /proc/interrupts
}
kept() { read_owners && awk -v owner="$1" "\$1 == owner { sum += \$3 } END { print sum + 0 }" "$OWNER_MAP"; }
# Each CPU in turn gets the MSIs of the network card, which the kernel lets us move, and those of its own disk queue.
each_cpu_has_its_messages() {
    for cpu in $(seq 0 $(($(nproc) - 1))); do
        for line in $(awk "/ITS-/ && /virtio1-/ { print \$1 + 0 }" /proc/interrupts); do
            echo "$cpu" >"/proc/irq/$line/smp_affinity_list" || return 1
        done
        card=$(on_cpu virtio1- "$cpu") disk=$(on_cpu nvme "$cpu") pings=0
        # One after another: requests that a late CPU finds together are one message.
        while [ $(($(on_cpu virtio1- "$cpu") - card)) -lt 5 ] && [ $pings -lt 100 ]; do
            wait_until ping -c 1 -W 10 $FAR || return 1
            pings=$((pings + 1))
        done
        taskset $(printf %x $((1 << cpu))) dd if=/dev/nvme0n1 of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null ||
            return 1
        card=$(($(on_cpu virtio1- "$cpu") - card)) disk=$(($(on_cpu nvme "$cpu") - disk))
        echo "CPU $cpu: $card messages of the card, $disk of the disk"
        [ "$card" -ge 5 ] && [ "$disk" -ge 32 ] || { cat /proc/interrupts; return 1; }
    done
}
# others on|off: all CPUs but the first.
others() {
    for cpu in $(seq 1 "$last"); do
        case $1 in
            on) online "$cpu" || return 1 ;;
            off) echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || return 1 ;;
        esac
    done
}
'

# msis SMP CPU: tables are out of the host's reach; interrupts arrive on every CPU, while others are off, and when they
# are back.
msis() {
    on_host --smp "$1" --cpu "$2" --io --batch "$WITH_GIC"'
last=$(($(nproc) - 1))
wire_up || exit 1
tables=$(kept hw-table) pinned=$(kept pinned)
echo "$tables pages are tables, $pinned are pinned"
[ "$tables" -gt 0 ] && [ "$pinned" -gt 0 ] || exit 2
dd if=/dev/porthole-peek bs=8 count=1 skip=$(($(first_page hw-table) / 8)) 2>/dev/null && exit 3
each_cpu_has_its_messages || exit 4
worker load dd if=/dev/vda of=/dev/null bs=64k count=256 iflag=direct
others off || exit 5
[ "$(nproc)" -eq 1 ] || exit 6
each_cpu_has_its_messages || exit 7
others on || exit 8
[ "$(nproc)" -eq $((last + 1)) ] || exit 9
each_cpu_has_its_messages || exit 10
touch /tmp/stop
wait $WORKERS
cat /tmp/rounds
[ ! -e /tmp/failed ] || exit 11
[ "$(kept hw-table) $(kept pinned)" = "$tables $pinned" ] || exit 12
dmesg | grep -iE "(ITS|GIC|LPI|MSI).*(fail|error|unable|time|stuck|bad|invalid|lost|unexpected|disabl|cannot)" && exit 13
complaints && porthole audit'
}

st_msis_reach_every_cpu_with_tables_out_of_reach() { msis 4 cortex-a72; }
