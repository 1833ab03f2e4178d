# shellcheck shell=bash
# The el2 tier: the hostile host in place of Linux, driving the real hypervisor under QEMU; and the world switch alone.
# It reports on the first serial port, resets the machine once and switches it off; no last line means the run failed.

EL2_CPUS=(cortex-a72 "max,pauth-impdef=on")
EL2_SMP=4
EL2_MEM=1G
# So long without a new line of its report, a machine hangs. A slow one reports slowly.
EL2_SECONDS=${PORTHOLE_EL2_SECONDS:-600}

# while_it_reports FILE COMMAND...: its status; 124 if FILE stood still for EL2_SECONDS, after which it is ended.
while_it_reports() {
    local file=$1 pid status=0 still=0 size last=-1
    shift
    "$@" </dev/null &
    pid=$!
    # shellcheck disable=SC2064 # the id of this run, now
    trap "kill $pid 2>/dev/null || true" EXIT
    trap 'exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        size=$(stat -c %s "$file")
        [ "$size" = "$last" ] || still=0
        last=$size
        if [ "$still" -ge "$EL2_SECONDS" ]; then
            kill "$pid" 2>/dev/null || true
            wait "$pid" || true
            trap - EXIT INT TERM
            return 124
        fi
        still=$((still + 1))
        sleep 1
    done
    wait "$pid" || status=$?
    trap - EXIT INT TERM
    return "$status"
}

# hostile_run PROFILE CPU: one boot; result lines with the suffix [PROFILE,MODEL] on standard output.
hostile_run() {
    local profile=$1 cpu=$2 label="$1,${2%%,*}" status=0 line last='' bad=''
    local base="$TEST_LOGS/el2-$1-${2%%,*}"
    machine_args virtualization=on,gic-version=3,iommu=smmuv3 "$cpu" "$EL2_SMP" "$EL2_MEM"
    guest_modules "$PORTHOLE_OUT/$profile/tests/hostile-host.bin" "hostile" 
    : >"$base.console"
    while_it_reports "$base.console" qemu-system-aarch64 "${MACHINE_ARGS[@]}" \
        -kernel "$PORTHOLE_OUT/$profile/hyp/porthole-hyp.bin" "${MODULE_ARGS[@]}" \
        -device edu,dma_mask=0xffffffffffffffff -serial "file:$base.console" -serial "file:$base.hyp" || status=$?
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        case "$line" in
            'test '*' ... ok') printf '%s[%s] ... ok\n' "${line% ... ok}" "$label" ;;
            'test '*' ... FAILED'*)
                printf '%s[%s] ... FAILED%s\n' "${line%% ... FAILED*}" "$label" "${line#* ... FAILED}"
                bad=yes
                ;;
            'done: '*) last=$line ;;
        esac
    done <"$base.console"
    if [ -z "$last" ]; then
        fail "hostile_host_ran_to_its_end[$label]" "$([ "$status" -eq 124 ] && echo "no new line for $EL2_SECONDS s" || echo "QEMU status $status"), see $base.console and $base.hyp"
    elif [ -z "$bad" ] && [[ "$last" != *' 0 failed' ]]; then
        fail "hostile_host_ran_to_its_end[$label]" "$last"
    else
        pass "hostile_host_ran_to_its_end[$label]"
    fi
}

# selftest_run PROFILE CPU: the world switch alone at EL2, with small guests of its own.
selftest_run() {
    local profile=$1 cpu=$2 label="$1,${2%%,*}" status=0 line
    local base="$TEST_LOGS/switch-$1-${2%%,*}"
    machine_args virtualization=on,gic-version=3 "$cpu" 1 512M
    : >"$base.console"
    # Under -icount the counter counts instructions, which one of the tests limits.
    while_it_reports "$base.console" qemu-system-aarch64 "${MACHINE_ARGS[@]}" -icount shift=0 -no-reboot \
        -serial "file:$base.console" -kernel "$PORTHOLE_OUT/$profile/tests/switch-selftest.elf" || status=$?
    while IFS= read -r line || [ -n "$line" ]; do
        case "$line" in
            'test '*' ... ok') printf 'test switch_%s[%s] ... ok\n' "$(cut -d' ' -f2 <<<"$line")" "$label" ;;
            'test '*' ... FAILED'*)
                printf 'test switch_%s[%s] ... FAILED%s\n' "$(cut -d' ' -f2 <<<"$line")" "$label" \
                    "${line#* ... FAILED}"
                ;;
        esac
    done <"$base.console"
    if grep -q '^selftest: PASS' "$base.console"; then
        pass "switch_selftest_passed[$label]"
    else
        fail "switch_selftest_passed[$label]" "QEMU status $status, see $base.console"
    fi
}

tier_el2() {
    local profile cpu
    for profile in debug release; do
        [[ "${EL2_ONLY:-$profile}" = *"$profile"* ]] || continue
        check "hypervisor_builds[$profile]" build_hyp "$profile"
        check "hostile_host_builds[$profile]" build_hostile "$profile"
        check "switch_selftest_builds[$profile]" build_selftest "$profile"
    done
    for profile in debug release; do
        for cpu in "${EL2_CPUS[@]}"; do
            [[ "$profile,$cpu" = "${EL2_ONLY:-}"* ]] || continue
            say "el2: world switch and hostile host, $profile build, $cpu"
            start_job "switch-$profile-${cpu%%,*}" selftest_run "$profile" "$cpu"
            start_job "el2-$profile-${cpu%%,*}" hostile_run "$profile" "$cpu"
        done
    done
    finish_jobs
}
