#!/usr/bin/env bash
# Measures Porthole in instructions, on the machine and with the counting of the peer's figures (docs/benchmarks.md).
# shellcheck disable=SC2034 # the parts of lib/bench-*.sh read these variables
set -euo pipefail
# shellcheck source=qemu-scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
    cat <<'EOF'
usage: qemu-scripts/bench.sh [guest | block | guest-io | boot | io] [--no-build]

  guest   what operations of a bare-metal guest with 2 vCPUs cost (the default); target/bench/latest.json
  block   what reads of a disk cost a bare-metal guest, with all that host and VMM do; target/bench/block.json
  guest-io
          what a Linux guest with a window for each device takes for disk and network, against the same guest
          unprotected, by whose instructions they are; target/bench/guest-io.json
  boot    host instructions from kernel entry to the first process, against the same kernel bare at EL1;
          target/bench/boot.json
  io      instructions of the host's disks and network, against the same kernel bare at EL1, and what the SMMU adds
          to a donation; target/bench/host-io.json, target/bench/donation.json

QEMU counts one nanosecond per instruction (-icount shift=0), so the figures repeat on any machine. guest-io and io
take the median of PORTHOLE_BENCH_REPEAT rounds (3).
EOF
}

WHAT=guest BUILD=yes
while [ "$#" -gt 0 ]; do
    case "$1" in
        guest | block | guest-io | boot | io) WHAT=$1 ;;
        --no-build) BUILD='' ;;
        -h | --help) usage; exit 0 ;;
        *) die "unknown argument '$1'; see --help" 2 ;;
    esac
    shift
done

NEEDS=''
[ "$WHAT" != io ] || NEEDS=--io
[ "$WHAT" != guest-io ] || NEEDS=--guest
"$PORTHOLE_ROOT/qemu-scripts/setup.sh" $NEEDS
for part in build machine initramfs io-host guest-linux batch bench-guest bench-boot bench-host-io bench-guest-io; do
    # shellcheck disable=SC1090
    . "$PORTHOLE_ROOT/qemu-scripts/lib/$part.sh"
done

# The peer's machine, counted.
BENCH_CPU=cortex-a72 BENCH_SMP=2 BENCH_MEM=2G BENCH_SECONDS=900
BENCH_COUNT=(-icount "shift=0,sleep=off")
BENCH_OUT="$PORTHOLE_TARGET/bench"
mkdir -p "$BENCH_OUT" "$PORTHOLE_OUT"
RUN_DIR=$(mktemp -d "$PORTHOLE_OUT/run.XXXXXX")
"bench_${WHAT//-/_}"
rm -rf "$RUN_DIR"
