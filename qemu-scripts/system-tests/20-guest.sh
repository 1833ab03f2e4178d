# shellcheck shell=bash
# Protected guests on stock Debian: one life, many lives, violent deaths, and the attacks of the demo.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# The words on the host with which each test starts.
WITH_GUESTLIB='. /lib/porthole/guestlib.sh || exit 90
insmod /lib/porthole/porthole_peek.ko || exit 91
boot=$(owner_totals)
same_as_boot() {
    now=$(owner_totals)
    [ "$now" = "$boot" ] && return 0
    printf "at boot:\n%s\nnow:\n%s\n" "$boot" "$now"
    return 1
}
'

st_guest_echoes_through_its_window() {
    on_host --batch "$WITH_GUESTLIB"'
start_guest
tell_guest "over and out" || { cat "$GUEST_LOG"; exit 1; }
porthole audit || exit 2
end_guest || { cat "$GUEST_LOG"; exit 3; }
same_as_boot || exit 4'
}

st_demo_holds() { on_host --demo; }

st_vmm_killed_at_ten_random_points() {
    on_host --smp 4 --batch "$WITH_GUESTLIB"'
i=0
while [ $i -lt 10 ]; do
    start_guest
    point=$((RANDOM % 1500))
    echo "kill after $point ms"
    usleep $((point * 1000))
    stop_guest KILL
    porthole audit || exit 2
    i=$((i + 1))
done
same_as_boot'
}

st_fifty_guests_one_after_another() {
    ST_SECONDS=400 on_host --smp 2 --batch "$WITH_GUESTLIB"'
i=0
while [ $i -lt 50 ]; do
    start_guest
    wait_for "echo: ready" "$GUEST_LOG" 30 && end_guest || { cat "$GUEST_LOG"; echo "guest $i"; exit 1; }
    i=$((i + 1))
done
porthole audit || exit 2
same_as_boot'
}
