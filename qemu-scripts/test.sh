#!/usr/bin/env bash
# Runs the tests: `unit` on the build machine, `el2` with the hostile host under QEMU, `system` with Debian as host.
set -euo pipefail
# shellcheck source=qemu-scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
    cat <<'EOF'
usage: qemu-scripts/test.sh [unit] [el2] [system]

Without a name all three tiers run. Each test's result is a line of its own; the last line counts them, and the exit
status is 0 only if none failed. Logs stay in target/test-logs.

Environment, to run a part of a tier:
  ST_ONLY=REGEX             system: tests whose function name matches
  EL2_ONLY=release,cortex   el2: this build profile, or this profile and CPU model
and to run more of it:
  PORTHOLE_GUEST_MIB=N      system: MiB that a Linux guest moves through each device (4)
  PORTHOLE_STRESS_SECONDS=N system: how long the host's disks and cards are under stress (30)
  PORTHOLE_LOAD_SECONDS=N   system: how long a guest's devices are under load (20)
  PORTHOLE_EL2_SECONDS=N    el2: without a new line for so long, a machine hangs (600)
EOF
}

TIERS=()
for arg in "$@"; do
    case "$arg" in
        unit | el2 | system) TIERS+=("$arg") ;;
        -h | --help) usage; exit 0 ;;
        *) die "unknown tier '$arg'; there are unit, el2 and system" 2 ;;
    esac
done
[ "${#TIERS[@]}" -gt 0 ] || TIERS=(unit el2 system)

IO=''
[[ " ${TIERS[*]} " != *" system "* ]] || IO=--io
"$PORTHOLE_ROOT/qemu-scripts/setup.sh" $IO
for part in build machine initramfs io-host guest-linux report tests-unit tests-el2 tests-system; do
    # shellcheck disable=SC1090
    . "$PORTHOLE_ROOT/qemu-scripts/lib/$part.sh"
done
cd "$PORTHOLE_ROOT"
mkdir -p "$TEST_LOGS" "$PORTHOLE_OUT"
trap stop_jobs EXIT
trap 'exit 130' INT TERM
STARTED=$SECONDS
check a_test_ends_at_its_first_failure first_failure_ends
for tier in "${TIERS[@]}"; do
    "tier_$tier"
done
say "took $((SECONDS - STARTED)) s; logs in $TEST_LOGS"
printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
[ "$FAILED" -eq 0 ] && [ "$PASSED" -gt 0 ]
