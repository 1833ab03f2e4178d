# shellcheck shell=bash
# Disks and the entropy device, driven by virtio-drivers in a bare-metal guest: a client that was not written for
# these devices. The images are looked at from the host.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Words on the host: image PATH MIB makes an image with random content; devices OPTIONS... runs the guest.
WITH_IMAGES='. /lib/porthole/guestlib.sh
image() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2>/dev/null; }
devices() {
    porthole run --kernel /lib/porthole/devices.bin --mem 16M --console off "$@" >/tmp/devices.log 2>/tmp/devices.said </dev/null
    status=$?
    # What porthole says breaks no line of the guest.
    cat /tmp/devices.log /tmp/devices.said
    echo "status $status"
    porthole audit || exit 9
}
# same PATH A B: whether MiB A and MiB B of the image are the same.
same() {
    dd if="$1" of=/tmp/a bs=1M skip="$2" count=1 2>/dev/null
    dd if="$1" of=/tmp/b bs=1M skip="$3" count=1 2>/dev/null
    cmp /tmp/a /tmp/b && echo "MiB $2 is MiB $3"
}
'

with_images() { on_host --smp 2 --batch "$WITH_IMAGES$1"; }

st_a_disk_is_read_written_and_flushed() {
    local out
    out=$(with_images 'image /tmp/disk 8
        dd if=/tmp/disk of=/tmp/before bs=1M count=1 2>/dev/null
        devices --disk /tmp/disk --rng
        dd if=/tmp/disk bs=1M count=1 2>/dev/null | cmp - /tmp/before && same /tmp/disk 0 1')
    printf '%s\n' "$out"
    expect "$out" 'disk: 16384 sectors, writable, id disk0'
    expect "$out" 'VIRTIO_F_SWIOTLB negotiated, MSI-X'
    expect "$out" 'disk: 1048576 bytes copied'
    expect "$out" 'devices: 1 disks, 1 entropy devices, [1-9][0-9]* interrupts: done'
    expect "$out" '^status 0$'
    expect "$out" '^MiB 0 is MiB 1$'
}

st_disks_share_a_host_with_their_own_options() {
    local out
    out=$(with_images 'image /tmp/a 4; image /tmp/b 4; sum=$(sha256sum </tmp/b)
        devices --disk /tmp/a,queues=4,queue-size=64,id=data --disk /tmp/b,ro,window=256K
        [ "$sum" = "$(sha256sum </tmp/b)" ] && echo "the read-only disk is as it was"')
    printf '%s\n' "$out"
    expect "$out" 'disk: 8192 sectors, writable, id data'
    expect "$out" 'disk: 8192 sectors, read-only, id disk1'
    expect "$out" '00:02.0: 262144 bytes of pool'
    expect "$out" '^status 0$'
    expect "$out" '^the read-only disk is as it was$'
}

st_devices_of_a_group_share_a_window_without_an_operating_system() {
    local out
    out=$(with_images 'image /tmp/a 4; image /tmp/b 4
        devices --disk /tmp/a,group=g --disk /tmp/b,group=g --rng=group=g')
    printf '%s\n' "$out"
    expect "$out" 'window 0: .* 0000:00:01.0 BAR 4 offset 0x0, functions 0x07: as config space has it'
    expect "$out" 'disk 0000:00:01.0: [0-9]* bytes of pool at 0x10000000, VIRTIO_F_SWIOTLB negotiated'
    expect "$out" 'disk 0000:00:01.1: [0-9]* bytes of pool at 0x10[1-9a-f][0-9a-f]*, VIRTIO_F_SWIOTLB negotiated'
    expect "$out" 'devices: 2 disks, 1 entropy devices, [1-9][0-9]* interrupts: done'
    expect "$out" '^status 0$'
    [ "$(grep -c '^window [0-9]*: ' <<<"$out")" = 1 ]
}

st_a_full_host_is_an_io_error_in_the_guest() {
    local out
    out=$(with_images 'mkdir -p /tmp/small; mount -t tmpfs -o size=2M tmpfs /tmp/small
        truncate -s 16M /tmp/small/disk
        devices --disk /tmp/small/disk --cmdline mode=fill')
    printf '%s\n' "$out"
    expect "$out" 'disk0: a write failed: No space left on device'
    expect "$out" 'disk: writes fail from sector [0-9]* on'
    expect "$out" 'disk: it still reads'
    expect "$out" '^status 0$'
}

st_images_that_cannot_be_used_are_named_before_there_is_a_vm() {
    local out
    out=$(with_images 'printf "QFI\373" >/tmp/q; truncate -s 1M /tmp/q; image /tmp/disk 4
        devices --disk /nonexistent
        devices --disk /tmp/q
        devices --disk /tmp/disk,window=64K,queues=2
        : >/tmp/empty; devices --disk /tmp/empty
        porthole run --kernel /lib/porthole/echo.bin --mem 16M --disk /tmp/disk >/tmp/held.log 2>&1 </dev/null &
        wait_for "echo: ready" /tmp/held.log || { cat /tmp/held.log; exit 7; }
        porthole run --kernel /lib/porthole/echo.bin --mem 16M --disk /tmp/disk
        kill $!; wait')
    printf '%s\n' "$out"
    expect "$out" 'disk0: cannot open disk image /nonexistent: No such file'
    expect "$out" 'disk0: disk image /tmp/q is a qcow2 image; add format=qcow2'
    expect "$out" 'a window of 64K is too small for disk0, which needs 72K .*; give it 128K or more'
    expect "$out" 'disk image /tmp/empty has 0 bytes'
    expect "$out" 'disk image /tmp/disk is in use by another process'
}

st_a26_a_vmm_killed_in_the_middle_of_requests_leaves_nothing_behind() {
    local out
    out=$(with_images 'image /tmp/disk 32
        for n in 1 2 3; do
            porthole run --kernel /lib/porthole/devices.bin --mem 16M --console off --disk /tmp/disk \
                --cmdline "mode=bench reps=1000000" >/tmp/devices.log 2>&1 </dev/null &
            wait_for "disk: " /tmp/devices.log || { cat /tmp/devices.log; exit 7; }
            sleep 0.$n
            kill -9 $!
            wait $! 2>/dev/null
            porthole audit && nothing_left && echo "nothing left $n"
        done
        devices --disk /tmp/disk')
    printf '%s\n' "$out"
    expect "$out" '^nothing left 1$'
    expect "$out" '^nothing left 3$'
    expect "$out" 'devices: disk0 ok'
    expect "$out" '^status 0$'
}
