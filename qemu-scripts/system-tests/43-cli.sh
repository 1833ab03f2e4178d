# shellcheck shell=bash
# The command line on a real host: status, list and map of a running guest, and the two kinds of guests without
# windows of their own: unprotected, and with a pool in the device tree.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Writes to its virtio console, says what it knows of its memory, waits for a line, and switches itself off.
CLI_GUEST='#!/bin/sh
/bin/busybox --install -s /bin
dmesg -n 1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for word in $(cat /sys/bus/virtio/devices/*/features 2>/dev/null); do
    echo "guest: features $word"
done
for node in /proc/device-tree/reserved-memory/*/compatible; do
    [ -e "$node" ] && echo "guest: reserved $(tr "\0" " " <"$node")"
done
grep -i reserved /proc/iomem | head -n 3
# A driver whose device is broken waits for it for ever.
if grep -q talk /proc/cmdline; then
    (i=0; while [ $i -lt 200 ]; do echo "through the console: line $i"; i=$((i + 1)); done >/dev/hvc0) &
    sleep 2
fi
echo "guest: waiting"
read -r line
echo "guest: read <$line>"
wait
poweroff -f'

# Words on the host: start OPTIONS... starts the guest and waits until it waits; finish lets it end, returns its status.
WITH_CLI='. /lib/porthole/guestlib.sh
TALK=
start() {
    rm -f /tmp/cli.in /tmp/hvc.log
    mkfifo /tmp/cli.in
    porthole run --kernel /lib/porthole/Image --initrd /lib/porthole/guest.cpio --mem 256M --name web \
        --cmdline "console=ttyS0 rdinit=/init loglevel=4 $TALK" --console file=/tmp/hvc.log "$@" </tmp/cli.in >/tmp/cli.log 2>/tmp/cli.said &
    guest=$!
    exec 4>/tmp/cli.in
    wait_for "guest: waiting" /tmp/cli.log || { cat /tmp/cli.log /tmp/cli.said; exit 7; }
}
finish() {
    echo over >&4
    wait $guest
    status=$?
    exec 4>&-
    cat /tmp/cli.log /tmp/cli.said
    echo "console lines: $(grep -c "^through the console: line" /tmp/hvc.log)"
    echo "status $status"
}
'

with_cli() { with_stock_guest "$CLI_GUEST" "$WITH_CLI$1"; }

# All RAM is windows that host and guest share, and the guest's devices use all of it.
st_cli_an_unprotected_guest_has_its_devices_in_all_of_its_ram() {
    local out
    out=$(with_cli 'TALK=talk; start --unprotected --cpus 2; porthole list; porthole audit; porthole status web; finish; porthole list; porthole audit')
    printf '%s\n' "$out"
    expect "$out" ' web .* NO$'
    expect "$out" 'window 0  0000:00:00.0 BAR 0 0x80000000 64.0 MiB'
    expect "$out" 'window 3  0000:00:00.0 BAR 0 0x8c000000 64.0 MiB'
    expect "$out" 'shared.* 65536'
    expect "$out" 'Final, UNPROTECTED'
    expect "$out" '^console +running +shared +0x80000000 +256.0 MiB'
    expect "$out" '^console lines: 200$'
    expect "$out" '^status 0$'
    expect "$out" '^no VMs$'
}

# A stock kernel without CONFIG_DMA_RESTRICTED_POOL: the node is there, the pool a window, the rest of memory private,
# and what such a kernel does with the device is told.
st_cli_a_pool_stands_in_the_tree_and_is_the_only_memory_of_the_devices() {
    local out
    out=$(with_cli 'start --dt-pool 32M; porthole list; porthole audit; porthole status --json web; finish')
    printf '%s\n' "$out"
    expect "$out" ' web .* yes$'
    expect "$out" 'window 0  0000:00:00.0 BAR 0 0x40000000 16.0 MiB'
    expect "$out" 'window 1  0000:00:00.0 BAR 0 0x41000000 16.0 MiB'
    expect "$out" 'guest: reserved restricted-dma-pool'
    expect "$out" '"window_ipa": 1073741824'
    expect "$out" 'console: device needs reset: queue 0: .* is outside the window'
    expect "$out" '^status 0$'
}

# status by name, handle and pid, as text and JSON, while the guest runs; then the VM is gone, and so is its socket.
st_cli_status_and_map_show_a_running_guest() {
    local out
    out=$(with_cli 'start
        ls /run/porthole
        porthole status web
        porthole status --json $(ls /run/porthole | sed "s/\.sock//")
        porthole status --watch --json $guest >/tmp/watch &
        porthole map
        porthole map --svg /tmp/map.svg; head -c 4 /tmp/map.svg; echo; grep -c "<rect" /tmp/map.svg
        porthole map --json | grep -c "VmMemory"
        wait_for "MmioWrite" /tmp/watch || exit 7
        finish
        ls /run/porthole | wc -l
        porthole status web; true')
    printf '%s\n' "$out"
    expect "$out" '^0x[0-9a-f]+\.sock$'
    expect "$out" 'VM 0x[0-9a-f]+ web, pid [0-9]+: Final, protected'
    expect "$out" 'VCPU .*MmioRead'
    expect "$out" '"MmioWrite": [1-9]'
    expect "$out" '^console .* BAR 4 +0x1[0-9a-f]{7} '
    expect "$out" 'H .* the hypervisor'
    expect "$out" 'a .* MiB  private memory of web'
    expect "$out" '# .* window of web'
    expect "$out" '^<svg$'
    expect "$out" '^status 0$'
    expect "$out" "no VM is called 'web'"
}

# Two guests at once, told apart by name; a configuration gives both their options.
st_cli_two_guests_share_a_configuration() {
    local out
    out=$(with_cli 'cat >/tmp/vm.toml <<TOML
kernel = "/lib/porthole/Image"
initrd = "/lib/porthole/guest.cpio"
mem = "192M"
cmdline = "console=ttyS0 rdinit=/init loglevel=4"
console = "off"
TOML
        for vm in one two; do
            mkfifo /tmp/$vm.in
            porthole run --config /tmp/vm.toml --name $vm --measurement </tmp/$vm.in >/tmp/$vm.log 2>&1 &
        done
        exec 5>/tmp/one.in 6>/tmp/two.in
        for vm in one two; do wait_for "guest: waiting" /tmp/$vm.log || { cat /tmp/$vm.log; exit 7; }; done
        porthole list
        porthole status one | head -n 1; porthole status two | head -n 1
        echo over >&5; echo over >&6; wait
        grep -h ^measurement /tmp/one.log /tmp/two.log | sort -u | wc -l
        echo "mem = lots" >>/tmp/vm.toml; porthole run --config /tmp/vm.toml; true')
    printf '%s\n' "$out"
    expect "$out" '^VM 0x[0-9a-f]+ one,'
    expect "$out" '^VM 0x[0-9a-f]+ two,'
    expect "$out" '^1$'
    expect "$out" '/tmp/vm.toml:6: `mem = lots`'
}
