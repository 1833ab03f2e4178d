# shellcheck shell=bash
# Bad input: one line that says what is wrong, a status that is not 0, and a host that goes on.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# one_line TEXT: whether it is a single line that is no backtrace.
one_line() {
    printf '%s\n' "$1"
    [ "$(wc -l <<<"$1")" -eq 1 ] && ! grep -qE 'panicked|RUST_BACKTRACE' <<<"$1"
}

# refused STATUS COMMAND...: the command fails with that status and one line.
refused() {
    local want=$1 out status=0
    shift
    out=$("$@" 2>&1) || status=$?
    one_line "$out"
    [ "$status" -eq "$want" ]
}

st_batch_returns_the_commands_status() {
    local status=0
    on_host --batch 'exit 42' || status=$?
    [ "$status" -eq 42 ]
}

st_run_refuses_bad_options() {
    local run="$PORTHOLE_ROOT/qemu-scripts/run.sh"
    refused 2 "$run" --mem 100M
    refused 2 "$run" --mem 64G
    refused 2 "$run" --mem lots
    refused 2 "$run" --smp 0
    refused 2 "$run" --cpu pentium
    refused 2 "$run" --what
    refused 2 "$run" --batch
}

st_missing_kernel_module_is_named() {
    on_host --batch '
rmmod porthole
out=$(porthole info 2>&1) && exit 1
echo "$out"
[ "$(echo "$out" | wc -l)" -eq 1 ]'
}

st_host_without_hypervisor_is_told() {
    on_host --bare --initrd "$PORTHOLE_OUT/initramfs.cpio" --batch '
out=$(porthole info 2>&1) && exit 1
echo "$out"
[ "$(echo "$out" | wc -l)" -eq 1 ]'
}

st_bad_guest_arguments_are_refused() {
    on_host --batch '
. /lib/porthole/guestlib.sh
refused() {
    out=$(porthole run "$@" 2>&1 </dev/null)
    status=$?
    echo "$status: $out"
    [ "$status" -ne 0 ] && [ -n "$out" ] && ! echo "$out" | grep -q panicked || exit 1
}
echo "this is no kernel" >/tmp/text
: >/tmp/empty
refused --kernel /nonexistent --mem 16M --cpus 1
refused --kernel /tmp/empty --mem 16M --cpus 1
refused --kernel "$GUEST_IMAGE" --mem 0 --cpus 1
refused --kernel "$GUEST_IMAGE" --mem 1000G --cpus 1
refused --kernel "$GUEST_IMAGE" --mem 16M --cpus 0
refused --kernel "$GUEST_IMAGE" --mem 16M --cpus 99
nothing_left'
}

st_cpu_goes_off_and_on_again() {
    on_host --smp 4 --batch '
. /lib/porthole/guestlib.sh
for cpu in 1 2 3; do
    echo 0 >/sys/devices/system/cpu/cpu$cpu/online || exit 1
done
[ "$(nproc)" -eq 1 ] || exit 2
for cpu in 3 1 2; do
    online $cpu || exit 3
done
[ "$(nproc)" -eq 4 ] && porthole info'
}
