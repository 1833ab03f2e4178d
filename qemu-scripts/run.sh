#!/usr/bin/env bash
# Builds Porthole and boots it under QEMU with Debian as its untrusted host: a shell, a batch command or the demo.
set -euo pipefail
# shellcheck source=qemu-scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
    cat <<'EOF'
usage: qemu-scripts/run.sh [OPTIONS]

Boots the hypervisor at EL2 and Debian's stock arm64 kernel as its host, and ends in a root shell on that host.
The first serial port is the host's console; the hypervisor's own log goes to a file.

  --batch COMMAND   run COMMAND as root on the host, print what it prints, exit with its status
  --demo            start a protected Linux, move data through its five devices, attack it from the host, report;
                    status 0 only if all held. Wants 1G; PORTHOLE_DEMO_MIB: how much each device moves (default 64)
  --guest           a host that has Linux for guests in /lib/porthole: Image, Image.stock, guest.cpio, disk.gz, tun.ko
                    (--demo has it too); the kernels are compiled once, which takes minutes
  --cpu MODEL       CPU model for QEMU (default cortex-a72; neoverse-n1 and max are tried too)
  --smp N           CPUs, 1 to 8 (default 2)
  --mem SIZE        memory, 512M to 16G (default 2G)
  --debug           hypervisor built with debug assertions
  --append ARGS     more words for the host kernel's command line
  --hyp-args ARGS   the hypervisor's command line
  --hyp-log FILE    where the hypervisor's log goes; `-` is standard error (default target/porthole/hyp.log)
  --bare            no hypervisor: the same kernel and userland straight at EL1
  --initrd FILE     another userland for the host
  --io[=DIR]        Debian's generic kernel, fio and iperf3, and a disk or card of every kind that QEMU has a model of;
                    the disks stay in DIR (without it they go with the run)
  --no-smmu         a machine without an IOMMU; Porthole then creates protected guests only when its command line has
                    porthole.allow_unsafe_dma
  --qemu ARGUMENT   one more argument for QEMU; may be given again. Virtio devices need iommu_platform=on,disable-legacy=on,
                    or their DMA goes past the SMMU and Porthole refuses protected guests
  --gdb             wait for a debugger on port 1234
  --trace[=FLAGS]   QEMU's trace (-d FLAGS, default int,guest_errors) into target/porthole/trace.log
  --timeout S       end a batch run after S seconds with status 124 (default 600)
  --verbose         a batch run shows the whole console
  --no-build        boot what was built last
  --help            this text
EOF
}

CPU=cortex-a72 SMP=2 MEM=2G PROFILE=release APPEND='' HYP_ARGS='' HYP_LOG='' BATCH='' MODE=shell BARE=''
SHOW=command SECONDS_MAX=600 BUILD=yes INITRD='' GUEST='' IO='' IO_DIR='' IOMMU=,iommu=smmuv3 IO_ARGS=() EXTRA=()

need() { [ "$#" -ge 2 ] || die "$1 wants a value; see --help" 2; }

while [ "$#" -gt 0 ]; do
    case "$1" in
        --batch) need "$@"; MODE=batch BATCH=$2; shift ;;
        --demo) MODE=batch BATCH="PORTHOLE_DEMO_MIB=${PORTHOLE_DEMO_MIB:-64} exec porthole-demo" SHOW=all GUEST=yes DEMO=yes ;;
        --guest) GUEST=yes ;;
        --cpu) need "$@"; CPU=$2; shift ;;
        --smp) need "$@"; SMP=$2; shift ;;
        --mem) need "$@"; MEM=$2; shift ;;
        --debug) PROFILE=debug ;;
        --append) need "$@"; APPEND=$2; shift ;;
        --hyp-args) need "$@"; HYP_ARGS=$2; shift ;;
        --hyp-log) need "$@"; HYP_LOG=$2; shift ;;
        --bare) BARE=yes ;;
        --initrd) need "$@"; INITRD=$2; shift ;;
        --io) IO=yes ;;
        --io=*) IO=yes IO_DIR=${1#*=} ;;
        --no-smmu) IOMMU='' ;;
        --qemu) need "$@"; EXTRA+=("$2"); shift ;;
        --gdb) EXTRA+=(-s -S); GDB=yes ;;
        --trace) TRACE=int,guest_errors ;;
        --trace=*) TRACE=${1#*=} ;;
        --timeout) need "$@"; SECONDS_MAX=$2; shift ;;
        --verbose) SHOW=all ;;
        --no-build) BUILD='' ;;
        -h | --help) usage; exit 0 ;;
        *) die "unknown option '$1'; see --help" 2 ;;
    esac
    shift
done
case "${PORTHOLE_DEMO_MIB:-64}" in
    [1-9] | [1-5][0-9] | 6[0-4]) ;;
    *) die "PORTHOLE_DEMO_MIB=$PORTHOLE_DEMO_MIB is not a number of MiB from 1 to 64" 2 ;;
esac
[ -z "$GUEST" ] || [ -z "$BARE$IO" ] || die "--guest and --demo go neither with --bare nor with --io" 2
case "$SECONDS_MAX" in '' | *[!0-9]*) die "--timeout $SECONDS_MAX is not a number of seconds" 2 ;; esac

# shellcheck source=qemu-scripts/lib/machine.sh
. "$PORTHOLE_ROOT/qemu-scripts/lib/machine.sh"
check_mem "$MEM"
check_smp "$SMP"
[ -z "${DEMO:-}" ] || [ "$(mem_mib "$MEM")" -ge 1024 ] ||
    die "--mem $MEM is too little for the demo, whose guest, disk and data want 1G" 2
"$PORTHOLE_ROOT/qemu-scripts/setup.sh" ${IO:+--io} ${GUEST:+--guest}
check_cpu "$CPU"
for part in build initramfs batch io-host guest-linux; do
    # shellcheck disable=SC1090
    . "$PORTHOLE_ROOT/qemu-scripts/lib/$part.sh"
done

mkdir -p "$PORTHOLE_OUT"
RUN_DIR=$(mktemp -d "$PORTHOLE_OUT/run.XXXXXX")
if [ -n "$BUILD" ]; then
    # The userland with real devices has all of Porthole in it, wherever it is booted.
    if [ -z "$BARE" ] || [ -n "$IO" ]; then
        build_all "$PROFILE"
    fi
    make_initramfs "$PORTHOLE_OUT/initramfs${BARE:+-bare}.cpio" "${BARE:+bare}"
    if [ -n "$IO" ]; then
        [ -z "$BARE" ] || make_initramfs "$PORTHOLE_OUT/initramfs.cpio"
        build_io_host
    fi
    if [ -n "$GUEST" ]; then
        load_guest || die "the guest kernels are not in the cache; run qemu-scripts/setup.sh --guest"
        build_guest_tools
        make_guest_host "$PORTHOLE_OUT/initramfs-guest.cpio"
    fi
fi
[ -z "$GUEST" ] || INITRD=${INITRD:-$PORTHOLE_OUT/initramfs-guest.cpio}
if [ -n "$IO" ]; then
    load_io_state || die "the host of the I/O tests is not set up; run qemu-scripts/setup.sh --io"
    KERNEL_DIR=$IO_KERNEL_DIR
    INITRD=${INITRD:-$PORTHOLE_OUT/initramfs-io.cpio}
    io_devices "${IO_DIR:-$RUN_DIR}"
    EXTRA+=("${IO_ARGS[@]}")
fi
INITRD=${INITRD:-$PORTHOLE_OUT/initramfs${BARE:+-bare}.cpio}
[ -r "$INITRD" ] || die "missing initramfs $INITRD; run without --no-build"

# The console's level keeps a batch run's output its own; `dmesg` on the host still has everything.
BOOTARGS="console=ttyAMA0 panic=-1"
if [ "$MODE" = batch ]; then
    [ "$SHOW" = all ] || BOOTARGS+=" loglevel=4"
    MARK=$(new_mark)
    add_batch "$INITRD" "$RUN_DIR/initrd" "$BATCH" "$MARK"
    INITRD="$RUN_DIR/initrd"
fi
BOOTARGS+="${APPEND:+ $APPEND}"

HYP_LOG=${HYP_LOG:-$PORTHOLE_OUT/hyp.log}
if [ -n "$BARE" ]; then
    machine_args gic-version=3 "$CPU" "$SMP" "$MEM"
    QEMU_ARGS=("${MACHINE_ARGS[@]}" -kernel "$KERNEL_DIR/Image" -initrd "$INITRD" -append "$BOOTARGS")
else
    machine_args "virtualization=on,gic-version=3$IOMMU" "$CPU" "$SMP" "$MEM"
    guest_modules "$KERNEL_DIR/Image" "$BOOTARGS" "$INITRD"
    HYP_IMAGE="$PORTHOLE_OUT/$PROFILE/hyp/porthole-hyp.bin"
    [ -r "$HYP_IMAGE" ] || die "missing $HYP_IMAGE; run without --no-build"
    QEMU_ARGS=("${MACHINE_ARGS[@]}" -kernel "$HYP_IMAGE" -append "$HYP_ARGS" "${MODULE_ARGS[@]}")
fi
if [ -n "${TRACE:-}" ]; then
    EXTRA+=(-d "$TRACE" -D "$PORTHOLE_OUT/trace.log")
    say "trace ($TRACE) in $PORTHOLE_OUT/trace.log"
fi
[ -z "${GDB:-}" ] || say "waiting for a debugger: gdb-multiarch $PORTHOLE_TARGET/$RUST_BARE/$PROFILE/porthole-hyp -ex 'target remote :1234'"
if [ -n "$BARE" ]; then
    LOG_ARGS=()
elif [ "$HYP_LOG" = - ]; then
    LOG_ARGS=(-chardev "file,id=hyplog,path=/dev/stderr" -serial chardev:hyplog)
else
    LOG_ARGS=(-serial "file:$HYP_LOG")
fi

if [ "$MODE" = batch ]; then
    status=0
    run_batch "$MARK" "$RUN_DIR/console.log" "$SHOW" "$SECONDS_MAX" \
        "${QEMU_ARGS[@]}" -no-reboot -serial stdio "${LOG_ARGS[@]}" "${EXTRA[@]}" || status=$?
    case "$status" in 124 | 125) ;; *) rm -rf "$RUN_DIR" ;; esac
    exit "$status"
fi
trap 'rm -rf "$RUN_DIR"' EXIT
say "booting; Ctrl-a x leaves QEMU${BARE:+ (bare, no hypervisor)}"
qemu-system-aarch64 "${QEMU_ARGS[@]}" -serial mon:stdio "${LOG_ARGS[@]}" "${EXTRA[@]}"
