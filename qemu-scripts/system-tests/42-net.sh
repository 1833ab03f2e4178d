# shellcheck shell=bash
# Networks and sockets, driven by virtio-drivers in a bare-metal guest: a client that was not written for these
# devices. The host's side are its kernel (TAP), a second guest, and a small program (peer/sock_peer.c).
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Words on the host: sockets LOG OPTIONS... runs the guest. What porthole says comes last, where it breaks no line of the guest.
WITH_SOCKETS='. /lib/porthole/guestlib.sh
sockets() {
    log=$1
    shift
    porthole run --kernel /lib/porthole/sockets.bin --mem 16M --console off "$@" >"$log" 2>"$log.said" </dev/null
    status=$?
    cat "$log.said" >>"$log"
    echo "status $status" >>"$log"
    return $status
}
finish() {
    cat "$@"
    porthole audit || exit 9
    nothing_left || exit 8
}
'

# with_sockets COMMAND: a host with the TUN module and the peer.
with_sockets() {
    local work status=0
    work=$(mktemp -d "$PORTHOLE_OUT/sockets.XXXXXX")
    mkdir -p "$work/host/lib/porthole" "$work/host/usr/bin"
    xz -dc "$KERNEL_DIR"/lib/modules/*/kernel/drivers/net/tun.ko.xz >"$work/host/lib/porthole/tun.ko"
    aarch64-linux-gnu-gcc -O2 -Wall -Wextra -Werror -static -o "$work/host/usr/bin/sock_peer" \
        "$PORTHOLE_ROOT/qemu-scripts/peer/sock_peer.c"
    pack "$work/host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs.cpio" "$work/host.cpio" >"$work/initrd"
    on_host --smp 2 --initrd "$work/initrd" --batch "$WITH_SOCKETS$1" || status=$?
    rm -rf "$work"
    return "$status"
}

st_the_host_reaches_a_guest_over_tap() {
    local out
    out=$(with_sockets 'insmod /lib/porthole/tun.ko
        sockets /tmp/log --net tap=vmtap0,create,mac=52:54:00:12:34:56 --cmdline "net=echo ip=10.0.0.2" &
        wait_for "sockets: ready" /tmp/log || { cat /tmp/log; exit 1; }
        ip addr add 10.0.0.1/24 dev vmtap0
        # A guest that is not let run for some seconds is late, not gone.
        echo 300 >/proc/sys/net/ipv4/neigh/vmtap0/mcast_solicit
        ping -c 5 -W 300 -s 1400 10.0.0.2
        sock_peer udp 10.0.0.2 200
        wait
        [ -e /sys/class/net/vmtap0 ] || echo "the interface is gone"
        finish /tmp/log')
    printf '%s\n' "$out"
    expect "$out" 'net 0000:00:01.0: .* VIRTIO_F_SWIOTLB negotiated, MSI-X'
    expect "$out" 'net: address \[52, 54, 00, 12, 34, 56\]'
    expect "$out" '5 packets received, 0% packet loss'
    expect "$out" '^udp: 200 datagrams, .* came back as they went'
    expect "$out" '^net: 5 pings, 20[0-9] datagrams'
    expect "$out" '^status 0$'
    expect "$out" '^the interface is gone$'
}

st_two_guests_talk_over_a_socket() {
    local out
    out=$(with_sockets 'sockets /tmp/one --net socket=/tmp/net.sock,listen --cmdline "net=echo ip=10.0.0.2" &
        wait_for "sockets: ready" /tmp/one || { cat /tmp/one; exit 1; }
        sockets /tmp/two --net socket=/tmp/net.sock --cmdline "net=ping ip=10.0.0.3 peer=10.0.0.2 count=200"
        wait
        [ -e /tmp/net.sock ] || echo "the socket is gone"
        finish /tmp/one /tmp/two')
    printf '%s\n' "$out"
    expect "$out" '^net: 200 datagrams, .* came back as they went'
    expect "$out" '^net: 0 pings, 20[0-9] datagrams'
    expect "$out" '^the socket is gone$'
    [ "$(grep -c '^status 0$' <<<"$out")" = 2 ]
}

st_streams_go_through_vsock_both_ways() {
    local out
    out=$(with_sockets 'sock_peer echo /tmp/vm.sock_6000 &
        wait_until listens_at /tmp/vm.sock_6000 || exit 7
        sockets /tmp/log --vsock cid=7,path=/tmp/vm.sock &
        wait_for "sockets: ready" /tmp/log || { cat /tmp/log; exit 1; }
        sock_peer send /tmp/vm.sock 4999 1 || echo "a port without a server refuses the host"
        sock_peer send /tmp/vm.sock 5000 1048576
        wait
        [ -e /tmp/vm.sock ] || echo "the socket is gone"
        finish /tmp/log')
    printf '%s\n' "$out"
    expect "$out" '^vsock: context id 7'
    expect "$out" '^vsock: a port without a server refuses'
    expect "$out" '^vsock: 1048576 bytes to the host came back as they went'
    expect "$out" '^echo: 1048576 bytes$'
    expect "$out" '^a port without a server refuses the host$'
    expect "$out" '^send: 1048576 bytes to the guest came back as they went'
    expect "$out" '^vsock: 1048576 bytes of the host went back'
    expect "$out" '^status 0$'
    expect "$out" '^the socket is gone$'
}

st_networks_that_cannot_be_had_are_named_before_there_is_a_vm() {
    local out
    out=$(with_sockets 'for net in tap=vmtap0 tap=lo user socket=/tmp/nobody; do
            sockets /tmp/log --net "$net"
            cat /tmp/log
        done
        # Without the module.
        sockets /tmp/log --net tap=vmtap0,create
        cat /tmp/log
        sockets /tmp/log --vsock cid=3,path=/no/folder
        finish /tmp/log')
    printf '%s\n' "$out"
    expect "$out" 'net0: there is no TAP interface vmtap0; make it with `ip tuntap add vmtap0 mode tap`'
    expect "$out" 'net0: lo is no TAP interface'
    expect "$out" 'net0: --net user needs the program passt, .* install Debian.s package passt'
    expect "$out" 'net0: cannot connect the network to /tmp/nobody: .*; start the other side first'
    expect "$out" 'net0: cannot open /dev/net/tun: .*; load the tun module'
    expect "$out" 'vsock: cannot make the vsock socket /no/folder'
    [ "$(grep -c '^status 1$' <<<"$out")" = 6 ]
}

st_a26_a_vmm_killed_in_the_middle_of_traffic_leaves_nothing_behind() {
    local out
    out=$(with_sockets 'insmod /lib/porthole/tun.ko
        for n in 1 2 3; do
            porthole run --kernel /lib/porthole/sockets.bin --mem 16M --console off --net tap=vmtap0,create \
                --vsock cid=9,path=/tmp/vm.sock --cmdline "net=echo ip=10.0.0.2" >/tmp/log 2>&1 </dev/null &
            vmm=$!
            wait_for "sockets: ready" /tmp/log || { cat /tmp/log; exit 1; }
            ip addr add 10.0.0.1/24 dev vmtap0
            sock_peer udp 10.0.0.2 100000 2>/dev/null &
            peer=$!
            sleep 0.$n
            kill -9 $vmm
            wait $vmm 2>/dev/null
            kill $peer
            porthole audit && nothing_left && [ ! -e /sys/class/net/vmtap0 ] && echo "nothing left $n"
        done')
    printf '%s\n' "$out"
    expect "$out" '^nothing left 1$'
    expect "$out" '^nothing left 2$'
    expect "$out" '^nothing left 3$'
}
