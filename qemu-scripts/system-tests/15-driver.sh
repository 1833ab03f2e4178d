# shellcheck shell=bash
# The driver's interface, promise by promise: host-shim/driver/tests. Two devices that no driver wants are there to be
# confined, and the kernel does not zero what it allocates, so what has to be zero is zeroed by whoever says so.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

# driver_tests OPTIONS...: all of them; afterwards the kernel has complained about a driver's wrong DMA addresses, which
# a test names on purpose, and nothing else. Then the module goes, a device after it, and both come back.
driver_tests() {
    local device=edu,dma_mask=0xffffffffffffffff
    on_host --mem 512M --qemu -device --qemu $device --qemu -device --qemu $device --append init_on_alloc=0 "$@" --batch '
/lib/porthole/driver_test || exit 1
dmesg | grep -E "WARNING|BUG|Oops|Unable to handle" | grep -v "WARNING: .*/driver/pool.c:" && exit 2
edu=$(grep -l 0x11e8 /sys/bus/pci/devices/*/device | head -n 1)
rmmod porthole && echo 1 >"${edu%/device}/remove" && echo 1 >/sys/bus/pci/rescan || exit 3
insmod /lib/porthole/porthole.ko && /lib/porthole/driver_test a_device_is_confined_once_and_released_once'
}

st_driver_keeps_its_promises() { driver_tests --smp 2; }
st_driver_keeps_its_promises_on_max() { driver_tests --smp 4 --cpu max,pauth-impdef=on; }

# Bridges to conventional PCI put their own id on what comes from behind them.
st_devices_behind_old_bridges_are_not_confined() {
    local out
    out=$(on_host --mem 512M --qemu -device --qemu pcie-pci-bridge,id=old --qemu -device --qemu edu,bus=old,addr=1 --batch '
for device in $(grep -lE "0x000e|0x11e8" /sys/bus/pci/devices/*/device); do
    porthole dma confine "$(basename "${device%/device}")" 64K && exit 1
done
porthole dma list' 2>&1) || { printf '%s\n' "$out"; return 1; }
    expect "$out" '00:01.0 cannot be confined: it is a bridge'
    expect "$out" "01:01.0 cannot be confined: its accesses carry another function's id"
    expect "$out" 'no device is confined'
}
