# shellcheck shell=bash
# A guest whose driver breaks every rule, against all five devices of the VMM at once (a23, a25, a26). The guest looks
# after each attack whether all devices work and nothing outside a window was touched; the host looks at the log, the
# counters, the disk's image and who owns what.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# Words on the host: hostile CPUS CMDLINE runs the guest with its devices up to the line `waiting`; goodbye ends it.
WITH_HOSTILE='insmod /lib/porthole/tun.ko
dd if=/dev/urandom of=/tmp/disk bs=1M count=8 2>/dev/null
untouched() { dd if=/tmp/disk bs=4096 skip=1 2>/dev/null | sha256sum; }
before=$(untouched)
owner_totals >/tmp/owners
ulimit -n 8192
sock_peer talk /tmp/vm.sock_6000 2>/dev/null &
talker=$!
wait_until listens_at /tmp/vm.sock_6000 || exit 7
hostile() {
    rm -f /tmp/keys
    mkfifo /tmp/keys
    porthole run --kernel /lib/porthole/hostile.bin --mem 16M --cpus "$1" --name hostile --console echo \
        --disk /tmp/disk --net tap=vmtap0,create --vsock cid=9,path=/tmp/vm.sock --rng \
        --cmdline "start=key hold=key $2" </tmp/keys >/tmp/log 2>/tmp/said &
    vmm=$!
    exec 5>/tmp/keys
    wait_for "hostile: ready" /tmp/log || { cat /tmp/log /tmp/said; exit 1; }
    ip addr add 10.0.0.1/24 dev vmtap0
    ip link set vmtap0 up
    echo >&5
}
waiting() {
    until grep -q "all devices work: waiting" /tmp/log; do
        kill -0 $vmm 2>/dev/null || { cat /tmp/log /tmp/said; exit 1; }
        sleep 1
    done
}
goodbye() {
    echo >&5
    exec 5>&-
    wait $vmm
    echo "status $?"
}
# What must hold when the guest has gone.
finish_hostile() {
    kill $talker
    [ "$(untouched)" = "$before" ] && echo "the disk is as it was"
    porthole audit || exit 9
    owner_totals >/tmp/owners.after
    cmp /tmp/owners /tmp/owners.after && nothing_left && echo "every page is back"
}
'

with_hostile() { with_sockets "$WITH_HOSTILE$1"; }

st_a25_a_hostile_driver_harms_its_own_devices_only() {
    local out device asked faults
    out=$(with_hostile 'hostile 2 ""
        waiting
        porthole status hostile
        porthole audit || exit 9
        goodbye
        cat /tmp/log /tmp/said
        finish_hostile')
    printf '%s\n' "$out"
    expect "$out" '^status 0$'
    expect "$out" '^the disk is as it was$'
    expect "$out" '^every page is back$'
    for device in console disk0 net0 vsock rng; do
        expect "$out" "$device: device needs reset: "
        # The VMM counted every reset that the guest saw asked for.
        asked=$(sed -n "s/.*hostile: $device: [0-9]* attacks, \([0-9]*\) resets asked for.*/\1/p" <<<"$out")
        faults=$(sed -n "s/^$device  *running .* \([0-9]*\)\$/\1/p" <<<"$out")
        echo "$device asked for a reset $asked times, $faults faults counted"
        [ "$asked" -ge 100 ] && [ "$faults" -ge "$asked" ]
    done
}

st_a26_a_vmm_killed_under_attack_leaves_nothing_behind() {
    local out
    out=$(with_hostile 'for n in 1 2 3; do
            hostile 2 "only=$(echo chains midway bars | cut -d" " -f$n)"
            wait_for "5 devices work" /tmp/log || { cat /tmp/log /tmp/said; exit 1; }
            sleep $n
            kill -9 $vmm
            wait $vmm 2>/dev/null
            exec 5>&-
            grep FAILED /tmp/log || echo "killed $n"
            porthole audit && nothing_left && echo "nothing left $n"
        done
        finish_hostile')
    printf '%s\n' "$out"
    expect "$out" '^killed 1$'
    expect "$out" '^killed 2$'
    expect "$out" '^killed 3$'
    expect "$out" '^nothing left 3$'
    expect "$out" '^every page is back$'
}
