# shellcheck shell=bash
# Stock Debian as the host: CPU models, numbers of CPUs, sizes of memory.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# boots OPTIONS...: the host comes up, sees the CPUs it was given, and the hypervisor answers it.
boots() {
    local smp=$1 out
    shift
    out=$(on_host --smp "$smp" "$@" --batch 'uname -r; echo cpus=$(nproc); porthole info')
    printf '%s\n' "$out"
    # A release has a plus sign, which is no repetition.
    expect "$out" "^${KERNEL_RELEASE//+/[+]}\$"
    expect "$out" "^cpus=$smp\$"
    expect "$out" "ABI"
}

st_debian_boots_on_1_cpu() { boots 1; }
st_debian_boots_on_2_cpus() { boots 2; }
st_debian_boots_on_4_cpus() { boots 4; }
st_debian_boots_on_8_cpus() { boots 8; }
st_debian_boots_on_neoverse_n1() { boots 2 --cpu neoverse-n1; }
st_debian_boots_on_max() { boots 2 --cpu max,pauth-impdef=on; }
st_debian_boots_with_512_mib() { boots 2 --mem 512M; }
st_debian_boots_with_16_gib() { boots 2 --mem 16G; }
