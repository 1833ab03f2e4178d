# shellcheck shell=dash
# For scripts on the host: start a guest in the background, talk to it, ask the hypervisor who owns what.
# The demo and the system tests source it as /lib/porthole/guestlib.sh.

GUEST_IMAGE=/lib/porthole/echo.bin
GUEST_LOG=/tmp/guest.log
OWNER_MAP=/tmp/owner-map

# wait_until COMMAND...: until it is true; false if it is not after ten minutes, which is no measure but a guard against hanging.
wait_until() {
    left=3000
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 0.2
    done
}

# wait_for TEXT FILE: until it has turned up there.
wait_for() { wait_until grep -qF -- "$1" "$2"; }

# listens_at PATH: whether somebody takes connections at this Unix socket, whose name is there a moment earlier.
listens_at() { awk -v path="$1" '$4 == "00010000" && $NF == path { found = 1 } END { exit !found }' /proc/net/unix; }

# listens_at_port PORT: the same for TCP.
listens_at_port() { netstat -ltn | grep -q ":$1 "; }

# online CPU: switches it on. Linux looks for 100 ms whether a CPU that it switches off is off, says so if not, and goes on;
# until the CPU, which may not be let run meanwhile, is, it cannot be switched on. Any other refusal is one.
online() {
    left=3000
    until echo 1 >"/sys/devices/system/cpu/cpu$1/online"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] && dmesg | grep -q "CPU$1 may not have shut down cleanly" || return 1
        sleep 0.2
    done
}

# start_guest OPTIONS...: runs the echo guest; its console input is file descriptor 3. Sets GUEST.
start_guest() {
    rm -f /tmp/guest.in
    mkfifo /tmp/guest.in
    porthole run --kernel "$GUEST_IMAGE" --mem 16M --cpus 1 "$@" </tmp/guest.in >"$GUEST_LOG" 2>&1 3>&- &
    GUEST=$!
    exec 3>/tmp/guest.in
}

# tell_guest TEXT: one line on its console; true once it came back.
tell_guest() {
    echo "$1" >&3
    wait_for "$1" "$GUEST_LOG"
}

# end_guest: asks it to leave; true if it and porthole end well.
end_guest() {
    echo quit >&3
    wait "$GUEST"
    status=$?
    exec 3>&-
    [ "$status" -eq 0 ] && grep -q "echo: done" "$GUEST_LOG"
}

# stop_guest [SIGNAL]
stop_guest() {
    exec 3>&-
    kill "-${1:-TERM}" "$GUEST" 2>/dev/null
    wait "$GUEST" 2>/dev/null
    return 0
}

# read_owners: asks the hypervisor about every page of RAM; lines of owner, address, pages.
read_owners() {
    [ -e /proc/porthole-map ] || insmod /lib/porthole/porthole_peek.ko || return 1
    cat /proc/porthole-map >"$OWNER_MAP"
}

# first_page OWNER: address of the first page in the map just read.
first_page() { awk -v owner="$1" '$1 == owner { print $2; exit }' "$OWNER_MAP"; }

# owner_totals: pages by owner, for comparing two moments.
owner_totals() {
    read_owners || return 1
    awk '{ sum[$1] += $3 } END { for (owner in sum) print owner, sum[owner] }' "$OWNER_MAP" | sort
}

# nothing_left: whether no page belongs to a guest or is shared with one.
nothing_left() {
    read_owners && ! grep -qE '^(vm-memory|vm-metadata|window) ' "$OWNER_MAP"
}
