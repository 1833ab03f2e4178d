# shellcheck shell=bash
# The emulated machine: what QEMU is told, and where things lie in its memory.
# run.sh, test.sh and bench.sh build their command lines from these pieces; nothing is started here.

# RAM begins at 1 GiB (hw/arm/virt.c). The hypervisor and its pool take up to 32 MiB from there, QEMU puts the device
# tree at 128 MiB. Kernel and initrd follow it, low enough for 512 MiB of RAM.
KERNEL_ADDRESS=0x4c000000
INITRD_ADDRESS=0x50000000
MEM_MIN_MIB=512
MEM_MAX_MIB=16384

# mem_mib SIZE: 512M, 2G or a number of MiB, in MiB; false if it is not a size.
mem_mib() {
    case "$1" in
        *[!0-9]*[!0-9MmGg]* | '' | [!0-9]*) return 1 ;;
        *[Gg]) printf '%d\n' $((10#${1%?} * 1024)) ;;
        *[Mm]) printf '%d\n' $((10#${1%?})) ;;
        *[!0-9]*) return 1 ;;
        *) printf '%d\n' $((10#$1)) ;;
    esac
}

check_mem() {
    local mib
    mib=$(mem_mib "$1") || die "--mem $1 is not a size; write it like 512M or 2G" 2
    [ "$mib" -ge "$MEM_MIN_MIB" ] || die "--mem $1 is too little; the host needs at least ${MEM_MIN_MIB}M" 2
    [ "$mib" -le "$MEM_MAX_MIB" ] || die "--mem $1 is more than the ${MEM_MAX_MIB}M that Porthole is tried with" 2
}

check_smp() {
    case "$1" in
        [1-8]) ;;
        *) die "--smp $1: the number of CPUs is 1 to 8" 2 ;;
    esac
}

check_cpu() {
    local model=${1%%,*}
    qemu-system-aarch64 -M virt -cpu help 2>/dev/null | grep -qw -- "$model" ||
        die "--cpu $model: QEMU knows no such model; try cortex-a72, neoverse-n1 or max" 2
}

# doubled TEXT: commas as QEMU's option parser wants them.
doubled() { printf '%s\n' "${1//,/,,}"; }

# machine_args MACHINE-OPTIONS CPU SMP MEM: sets MACHINE_ARGS, the part that every run has.
machine_args() {
    # shellcheck disable=SC2034 # the caller reads it
    MACHINE_ARGS=(-M "virt,$1" -cpu "$2" -smp "$3" -m "$4" -display none -nic none)
}

# guest_modules KERNEL BOOTARGS [INITRD]: sets MODULE_ARGS, the host's kernel and initrd as multiboot modules.
guest_modules() {
    local file
    for file in "$1" "${3:-$1}"; do
        [ -r "$file" ] || die "missing module $file; run qemu-scripts/setup.sh and build again"
    done
    MODULE_ARGS=(-device "guest-loader,addr=$KERNEL_ADDRESS,kernel=$(doubled "$1"),bootargs=$(doubled "$2")")
    if [ -n "${3:-}" ]; then
        MODULE_ARGS+=(-device "guest-loader,addr=$INITRD_ADDRESS,initrd=$(doubled "$3")")
    fi
}
