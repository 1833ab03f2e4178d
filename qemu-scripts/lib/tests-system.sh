# shellcheck shell=bash
# The system tier: stock Debian on the real hypervisor. Each test is a function st_NAME in system-tests/*.sh.
# A test passes if its function returns 0; what it prints is its log.

# Seconds after which a machine counts as hung: many times what the longest test takes, because machines differ and a build
# server does other things too. A test that is made longer sets ST_SECONDS; nothing is judged by its time.
HANG_SECONDS=1200

# on_host OPTIONS... : run.sh with what was built once for all tests. The hypervisor's log goes beside the test's, and so does
# what the last command said, which a test that fails may not come to print.
on_host() {
    local seconds=${ST_SECONDS:-0}
    [ "$seconds" -ge "$HANG_SECONDS" ] || seconds=$HANG_SECONDS
    "$PORTHOLE_ROOT/qemu-scripts/run.sh" --no-build --timeout "$seconds" \
        --hyp-log "$TEST_LOGS/${ST_NAME:-system}.hyp" "$@" | tee "$TEST_LOGS/${ST_NAME:-system}.out"
}

# expect TEXT PATTERN: fails, showing both, unless the extended regular expression is found.
expect() {
    grep -qE -- "$2" <<<"$1" && return 0
    printf 'expected /%s/ in:\n%s\n' "$2" "$1" >&2
    return 1
}

# one_system_test FUNCTION: result line for one function, as a job.
one_system_test() {
    local name=${1#st_} started=$SECONDS
    ST_NAME="system-$name"
    strictly "$1" >&2
    printf '%4d s %s\n' "$((SECONDS - started))" "$name" >>"$TEST_LOGS/system.seconds"
    if [ "$STRICT_STATUS" -eq 0 ]; then
        pass "$name"
    else
        fail "$name" "status $STRICT_STATUS, see $TEST_LOGS/system-$name.log"
    fi
}

# system_tests [PATTERN]: names of the functions, in the order of the files.
system_tests() {
    sed -n 's/^\(st_[a-z0-9_]*\)() *[({].*/\1/p' "$PORTHOLE_ROOT"/qemu-scripts/system-tests/*.sh
}

tier_system() {
    local file name
    check system_parts_build build_all release
    check initramfs_builds make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
    check bare_initramfs_builds make_initramfs "$PORTHOLE_OUT/initramfs-bare.cpio" bare
    check io_host_builds build_io_host
    for file in "$PORTHOLE_ROOT"/qemu-scripts/system-tests/*.sh; do
        # shellcheck disable=SC1090
        . "$file"
    done
    case "$(system_tests | grep -E -- "${ST_ONLY:-.}")" in
        *st_linux_guest* | *st_demo*)
            check guest_tools_build build_guest_tools
            check lying_vmm_builds build_liar
            say "kernels for guests, if the cache has none: some minutes"
            check guest_kernels_build "$PORTHOLE_ROOT/qemu-scripts/setup.sh" --guest
            load_guest || true
            check guest_host_builds make_guest_host "$PORTHOLE_OUT/initramfs-guest.cpio"
            ;;
    esac
    : >"$TEST_LOGS/system.seconds"
    # A Debian that boots or waits for its guest leaves much of a core to others.
    # shellcheck disable=SC2034 # start_job reads it
    JOBS_AT_ONCE=3
    while IFS= read -r name; do
        [[ "$name" =~ ${ST_ONLY:-.} ]] || continue
        say "system: ${name#st_}"
        start_job "system-${name#st_}" one_system_test "$name"
    done < <(system_tests)
    finish_jobs
    say "longest (all are in $TEST_LOGS/system.seconds): $(sort -rn "$TEST_LOGS/system.seconds" | head -n 5 |
        sed 's/^ *//' | paste -sd, | sed 's/,/, /g')"
}
