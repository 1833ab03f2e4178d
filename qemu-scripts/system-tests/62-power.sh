# shellcheck shell=bash
# The host's power: CPUs off and on under load, suspend, a second kernel, and every way down with guests alive (a82).
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# What a guest's private page holds twice in a row, and its image in the host's initramfs only once.
SECRET_TWICE='PORTHOLE PRIVATEPORTHOLE PRIVATE'

# The words on the host with which these tests start: three guests that live.
WITH_GUESTS='. /lib/porthole/guestlib.sh || exit 90
for n in 1 2 3; do
    mkfifo /tmp/in.$n
    porthole run --kernel "$GUEST_IMAGE" --mem 16M --cpus 2 </tmp/in.$n >/tmp/out.$n 2>&1 &
    eval "exec $((n + 5))>/tmp/in.$n"
done
for n in 1 2 3; do wait_for "echo: ready" /tmp/out.$n || { cat /tmp/out.$n; exit 91; }; done
'

# monitored COMMAND: one command of QEMU's protocol (docs/interop/qmp-spec.rst) on its pair of pipes, and the answer.
monitored() {
    local line
    printf '%s\n' "$1" >&7
    while IFS= read -r -t 600 line <&8; do
        case "$line" in
            *'"return"'*) printf '%s\n' "$line"; return 0 ;;
            *'"error"'*) printf '%s\n' "$line" >&2; return 1 ;;
        esac
    done
    echo "the monitor does not answer $1" >&2
    return 1
}

# secrets DIRECTORY MIB: how often a guest's page is in the machine's memory, all of it read by QEMU.
secrets() {
    local where="\"val\": $((0x40000000)), \"size\": $(($2 * 1024 * 1024)), \"filename\": \"$1/memory\""
    monitored "{\"execute\": \"pmemsave\", \"arguments\": {$where}}" >&2
    { grep -aoF "$SECRET_TWICE" "$1/memory" || true; } | wc -l
    rm "$1/memory"
}

# goes_down WAY COMMAND: a host with guests takes COMMAND; the machine stops where it would start again, and its
# memory holds nothing of them.
goes_down() {
    local work
    work=$(mktemp -d "$PORTHOLE_OUT/power.XXXXXX")
    strictly watch_it_go "$work" "$@"
    [ ! -e "$work/pid" ] || kill "$(cat "$work/pid")" 2>/dev/null || true
    rm -rf "$work"
    return "$STRICT_STATUS"
}

watch_it_go() {
    local work=$1 way=$2 command=$3 left before after
    mkfifo "$work/monitor.in" "$work/monitor.out" "$work/console.in"
    exec 7<>"$work/monitor.in" 8<>"$work/monitor.out" 9<>"$work/console.in"
    add_batch "$PORTHOLE_OUT/initramfs.cpio" "$work/initrd" \
        "$WITH_GUESTS"'echo "guests are up"; read -r go </dev/ttyAMA0; '"$command"'; sleep 1000' none
    machine_args virtualization=on,gic-version=3,iommu=smmuv3 cortex-a72 4 1G
    guest_modules "$KERNEL_DIR/Image" "console=ttyAMA0 loglevel=4 panic=1" "$work/initrd"
    timeout "$HANG_SECONDS" qemu-system-aarch64 "${MACHINE_ARGS[@]}" -kernel "$PORTHOLE_OUT/release/hyp/porthole-hyp.bin" \
        "${MODULE_ARGS[@]}" -action reboot=shutdown,shutdown=pause \
        -chardev "pipe,id=monitor,path=$work/monitor" -mon chardev=monitor,mode=control \
        -serial stdio -serial "file:$TEST_LOGS/$ST_NAME.hyp" <&9 >"$work/console" 2>&1 &
    echo "$!" >"$work/pid"
    left=$HANG_SECONDS
    until grep -q 'guests are up' "$work/console"; do
        left=$((left - 1))
        { [ "$left" -gt 0 ] && kill -0 "$(cat "$work/pid")"; } || { cat "$work/console"; return 1; }
        sleep 1
    done
    monitored '{"execute": "qmp_capabilities"}'
    before=$(secrets "$work" 1024)
    echo "before $way: $before copies of a guest's secret"
    echo go >&9
    left=$HANG_SECONDS
    until [[ "$(monitored '{"execute": "query-status"}')" = *'"shutdown"'* ]]; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { tail -n 40 "$work/console"; return 2; }
        sleep 1
    done
    after=$(secrets "$work" 1024)
    tail -n 5 "$work/console"
    echo "after $way: $after copies"
    # A page holds it 127 times; there are three guests.
    [ "$before" -ge 380 ] && [ "$after" -eq 0 ]
}

st_a82_panic_leaves_nothing_of_a_guest() { goes_down 'a panic' 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'; }
st_a82_sysrq_reboot_leaves_nothing_of_a_guest() { goes_down 'a reboot by SysRq' 'echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger'; }
st_a82_reboot_leaves_nothing_of_a_guest() { goes_down 'a reboot' 'reboot -f'; }
st_a82_poweroff_leaves_nothing_of_a_guest() { goes_down 'a power-off' 'poweroff -f'; }

# Suspend to idle with a guest alive, woken by the clock. PSCI's SYSTEM_SUSPEND is refused, so Linux offers no deeper
# sleep: it would come back at EL1 without stage 2.
st_host_sleeps_and_wakes_with_a_guest() {
    on_host --smp 2 --batch '
. /lib/porthole/guestlib.sh
[ "$(cat /sys/power/mem_sleep)" = "[s2idle]" ] || exit 1
start_guest
wait_for "echo: ready" "$GUEST_LOG" || exit 2
for state in freeze mem; do
    seconds=4
    while :; do
        before=$(date +%s)
        # An alarm that rings before the sleep ends the way into it, so that nothing sleeps for ever.
        wakeups=$(cat /sys/power/wakeup_count)
        echo +$seconds >/sys/class/rtc/rtc0/wakealarm || exit 3
        echo "$wakeups" >/sys/power/wakeup_count && echo $state >/sys/power/state && break
        # A slow machine wants a later alarm. Before the alarm nothing may keep it from its sleep.
        [ $(($(date +%s) - before)) -ge $((seconds - 1)) ] && [ $seconds -lt 256 ] || exit 4
        echo 0 >/sys/class/rtc/rtc0/wakealarm
        seconds=$((seconds * 2))
    done
    [ $(($(date +%s) - before)) -ge $((seconds - 1)) ] || exit 5
    echo "slept and woke: $state"
done
dmesg | grep -c "PM: suspend exit"
tell_guest "awake" && porthole audit && end_guest && nothing_left'
}

# Linux starts another Linux in its own place. The guests of the first end before, by the driver; the second finds a
# hypervisor that is as at boot, and runs guests of its own.
st_a_second_kernel_takes_over_by_kexec() {
    local root status=0
    load_io_state || return 1
    root=$(mktemp -d "$PORTHOLE_OUT/kexec.XXXXXX")
    mkdir -p "$root/root/lib/io"
    cp "$IO_KERNEL_DIR/Image" "$root/root/lib/io/"
    # The second needs no drivers of its own, only the modules for this kernel.
    mkdir -p "$root/modules/lib/porthole"
    cp "$PORTHOLE_OUT"/io/release/*.ko "$root/modules/lib/porthole/"
    pack "$root/modules" "$root/modules.cpio"
    cat "$PORTHOLE_OUT/initramfs.cpio" "$root/modules.cpio" | gzip -1 >"$root/root/lib/io/initramfs.gz"
    pack "$root/root" "$root/cpio"
    cat "$PORTHOLE_OUT/initramfs-io.cpio" "$root/cpio" >"$root/initrd"
    on_host --smp 4 --io --initrd "$root/initrd" --batch '
. /lib/io/iolib.sh
load_drivers || exit 1
start_guest
wait_for "echo: ready" "$GUEST_LOG" || exit 2
# A disk that works in a region of its own to the last.
nvme=$(basename $(readlink /sys/class/nvme/nvme0/device))
echo $nvme >/sys/bus/pci/drivers/nvme/unbind
porthole dma confine $nvme 2M || exit 6
echo $nvme >/sys/bus/pci/drivers/nvme/bind
wait_until [ -b /dev/nvme0n1 ] || exit 7
mkdir -p /tmp/second/batch /tmp/second/lib/first
echo "nvme=$nvme sum=$(disk_write /dev/nvme0n1 64 4)" >/tmp/second/lib/first/disk
for module in /lib/io/modules/*.ko; do
    cp $module /tmp/second/lib/first/
    case $module in *-nvme.ko) break ;; esac
done
cp /batch/mark /tmp/second/batch/
cat >/tmp/second/batch/command <<"SECOND"
. /lib/porthole/guestlib.sh
echo "second kernel, up for $(cut -d. -f1 /proc/uptime) s, $(nproc) CPUs"
nothing_left || exit 12
start_guest
wait_for "echo: ready" "$GUEST_LOG" && tell_guest "echo of the second" && end_guest || { cat "$GUEST_LOG"; exit 13; }
[ "$(nproc)" -eq 4 ] && porthole audit && nothing_left || exit 14
# The region of the first kernel is ordinary memory of this one, and the disk reaches nothing else until it is released.
. /lib/first/disk
dmesg | grep "$nvme is confined by an earlier kernel" || exit 15
porthole dma list | grep "$nvme.*2.0 MiB.*release it" || exit 16
porthole dma release $nvme && ! porthole dma list | grep MiB || exit 17
for module in /lib/first/*.ko; do insmod $module || exit 18; done
wait_until [ -b /dev/nvme0n1 ] || exit 19
[ "$(dd if=/dev/nvme0n1 bs=1M skip=64 count=4 iflag=direct 2>/dev/null | sha256sum | cut -d" " -f1)" = "$sum" ] || exit 20
porthole audit && [ "$(porthole log | grep -c "DMA refused")" -eq 0 ]
SECOND
(cd /tmp/second && find . | cpio -o -H newc | gzip -1) >/tmp/second.gz || exit 3
cat /lib/io/initramfs.gz /tmp/second.gz >/tmp/initrd
# High in memory: the first kernel'"'"'s LPI tables lie at the bottom, where kexec would put the second.
kexec -l /lib/io/Image --mem-min=0x60000000 --initrd=/tmp/initrd --append="console=ttyAMA0 panic=-1 loglevel=4" || exit 4
kexec -e
exit 5' >"$root/out" 2>&1 || status=$?
    cat "$root/out"
    [ "$status" -ne 0 ] || expect "$(cat "$root/out")" '^second kernel' || status=50
    rm -rf "$root"
    return "$status"
}
