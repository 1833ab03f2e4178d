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
wait_for "echo: ready" "$GUEST_LOG" && tell_guest "over and out" || { cat "$GUEST_LOG"; exit 1; }
porthole audit || exit 2
end_guest || { cat "$GUEST_LOG"; exit 3; }
same_as_boot || exit 4'
}

# pings VCPUS: messages through the window and back, compared byte by byte by the guest.
pings() {
    on_host --smp 2 --batch "$WITH_GUESTLIB"'
porthole run --kernel "$GUEST_IMAGE" --mem 32M --cpus '"$1"' --console echo --cmdline "mode=ping count=300 size=700" \
    </dev/null | tee "$GUEST_LOG"
grep -q "300 messages ok" "$GUEST_LOG" && same_as_boot'
}

st_guest_pings_through_its_window() { pings 1; }
st_guest_with_4_vcpus_pings_through_its_window() { pings 4; }

# exercises CPU-MODEL: what a guest relies on, checked by the guest on 4 vCPUs; two host CPUs share the work.
exercises() {
    on_host --smp 2 --cpu "$1" --batch "$WITH_GUESTLIB"'
porthole run --kernel /lib/porthole/exercise.bin --mem 32M --cpus 4 </dev/null | tee "$GUEST_LOG"
grep -q "^exercise: [0-9]* checks ok" "$GUEST_LOG" && same_as_boot'
}

st_guest_keeps_its_state_on_cortex_a72() { exercises cortex-a72; }
st_guest_keeps_its_state_on_max() { exercises max,pauth-impdef=on; }

st_guest_refuses_what_config_space_and_hypervisor_differ_in() {
    on_host --batch "$WITH_GUESTLIB"'
porthole run --kernel "$GUEST_IMAGE" --mem 16M --swiotlb-cfg-type 11 </dev/null >"$GUEST_LOG" 2>&1
[ $? -eq 3 ] && grep -q "^FAILED: windows: .* that config space does not claim" "$GUEST_LOG" ||
    { cat "$GUEST_LOG"; exit 1; }
porthole run --kernel "$GUEST_IMAGE" --mem 16M --swiotlb-feature-bit 45 </dev/null >"$GUEST_LOG" 2>&1
[ $? -eq 3 ] && grep -q "^FAILED: .* the device refuses the features" "$GUEST_LOG" || { cat "$GUEST_LOG"; exit 2; }
same_as_boot'
}

st_two_guests_at_once_keep_apart() {
    on_host --smp 4 --batch "$WITH_GUESTLIB"'
for n in 1 2; do
    porthole run --kernel "$GUEST_IMAGE" --mem 16M --cpus 2 --console echo \
        --cmdline "mode=ping count=200 size=300" </dev/null >/tmp/guest.$n 2>&1 &
    eval "guest_$n=\$!"
done
wait "$guest_1" && wait "$guest_2" || { cat /tmp/guest.1 /tmp/guest.2; exit 1; }
porthole audit || exit 2
same_as_boot'
}

st_demo_holds() { PORTHOLE_DEMO_MIB=8 on_host --demo; }

st_vmm_killed_at_ten_random_points() {
    on_host --smp 4 --batch "$WITH_GUESTLIB"'
i=0
while [ $i -lt 10 ]; do
    start_guest
    point=$((RANDOM % 3000))
    echo "kill after $point ms"
    usleep $((point * 1000))
    stop_guest KILL
    porthole audit || exit 2
    i=$((i + 1))
done
same_as_boot'
}

st_fifty_guests_one_after_another() {
    on_host --smp 2 --batch "$WITH_GUESTLIB"'
i=0
while [ $i -lt 50 ]; do
    start_guest
    wait_for "echo: ready" "$GUEST_LOG" && end_guest || { cat "$GUEST_LOG"; echo "guest $i"; exit 1; }
    i=$((i + 1))
done
porthole audit || exit 2
same_as_boot'
}
