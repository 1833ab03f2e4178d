# shellcheck shell=bash
# The VMM with guests that it was not written for: Debian's stock kernel, unpatched, as a protected guest.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# with_stock_guest INIT COMMAND: a host that has Debian's stock kernel as a guest, /lib/porthole/{Image,guest.cpio}, whose
# first process is the script INIT.
with_stock_guest() {
    local work guest host status=0
    work=$(mktemp -d "$PORTHOLE_OUT/stock-guest.XXXXXX")
    guest="$work/guest" host="$work/host"
    mkdir -p "$guest"/{bin,proc,sys,dev} "$host/lib/porthole"
    cp "$BUSYBOX" "$guest/bin/busybox"
    ln -s busybox "$guest/bin/sh"
    printf '%s\n' "$1" >"$guest/init"
    chmod +x "$guest/init"
    cp "$KERNEL_DIR/Image" "$host/lib/porthole/"
    pack "$guest" "$host/lib/porthole/guest.cpio"
    pack "$host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs.cpio" "$work/host.cpio" >"$work/initrd"
    on_host --smp 2 --initrd "$work/initrd" --batch "$2" || status=$?
    rm -rf "$work"
    return "$status"
}

# Says what it found, reads a line, and switches itself off, or reboots if the line is `reboot`.
STOCK_GUEST='#!/bin/sh
/bin/busybox --install -s /bin
dmesg -n 1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "guest: up, cpus=$(nproc)"
for device in /sys/bus/pci/devices/*; do
    echo "guest: pci ${device##*/} $(cat "$device/vendor")$(cat "$device/device")"
done
[ "$(date +%Y)" -ge 2024 ] && echo "guest: the clock goes"
sleep 1
grep -q arch_timer /proc/interrupts && echo "guest: the timer ticks"
echo "guest: waiting"
read -r line
echo "guest: read <$line>"
[ "$line" = reboot ] && reboot -f
poweroff -f'

# Words on the host: run_linux WORD OPTIONS... runs the guest, types WORD once it waits, returns its status.
WITH_LINUX='. /lib/porthole/guestlib.sh
run_linux() {
    word=$1
    shift
    rm -f /tmp/linux.in
    mkfifo /tmp/linux.in
    porthole run --kernel /lib/porthole/Image --initrd /lib/porthole/guest.cpio --mem 256M \
        --cmdline "console=ttyS0 rdinit=/init loglevel=4" "$@" </tmp/linux.in >/tmp/linux.log 2>/tmp/linux.said &
    linux=$!
    exec 4>/tmp/linux.in
    wait_for "guest: waiting" /tmp/linux.log || { cat /tmp/linux.log /tmp/linux.said; exit 7; }
    porthole audit || exit 9
    echo "$word" >&4
    wait $linux
    status=$?
    exec 4>&-
    cat /tmp/linux.log /tmp/linux.said
    grep -q "guest: read .$word." /tmp/linux.log || exit 8
    return $status
}
'

with_linux() { with_stock_guest "$STOCK_GUEST" "$WITH_LINUX$1"; }

st_stock_linux_runs_as_a_protected_guest() {
    local out
    out=$(with_linux 'run_linux over --cpus 2; echo "status $?"; porthole list')
    printf '%s\n' "$out"
    expect "$out" 'guest: up, cpus=2'
    expect "$out" 'guest: pci 0000:00:01.0 0x1af40x1043'
    expect "$out" 'guest: the clock goes'
    expect "$out" 'guest: the timer ticks'
    expect "$out" 'driver refused: features missing 0x8000000'
    expect "$out" '^status 0$'
    expect "$out" '^no VMs$'
}

# A driver that knows no SWIOTLB, let in: its first ring lies in guest memory, which the device cannot reach.
st_a_driver_that_ignores_the_window_stops_its_device() {
    local out
    out=$(with_linux 'run_linux reboot --swiotlb hint; echo "status $?"; porthole audit')
    printf '%s\n' "$out"
    expect "$out" 'device needs reset: queue 0: .* is outside the window'
    expect "$out" '^status 3$'
}
