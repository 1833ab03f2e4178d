# shellcheck shell=bash
# Machines on which not every DMA master of the host is behind an SMMU that Porthole can use (a63): protected guests are
# refused, the hypervisor's log names what is in the way, and porthole.allow_unsafe_dma is the one way around.
# shellcheck disable=SC2016 # the host's shell expands what stands in single quotes

TRY_GUEST='porthole info
porthole run --kernel /lib/porthole/echo.bin --mem 16M --cpus 1 --measurement --console echo \
    --cmdline "mode=ping count=5 size=100" </dev/null 2>&1
echo "status $?"'

# try_guest OPTIONS...: the features and what became of a guest, in $TRIED; what the hypervisor said, in $SAID.
try_guest() {
    TRIED=$(on_host "$@" --batch "$TRY_GUEST")
    SAID=$(tr -d '\r' <"$TEST_LOGS/$ST_NAME.hyp")
    printf '%s\n' "$TRIED"
    grep -F 'DMA' <<<"$SAID" || true
}

# unconfined REASON OPTIONS...: the machine refuses guests for this reason, and takes them where it is told to.
unconfined() {
    local reason=$1
    shift
    try_guest "$@"
    expect "$TRIED" '^status [1-9]'
    expect "$TRIED" 'DMA is not confined on this machine'
    expect "$SAID" "warning: DMA is not confined: $reason"
    expect "$SAID" 'warning: protected VMs are refused'
    ! grep -qE 'dma-isolated|unsafe-dma' <<<"$TRIED"
    try_guest "$@" --hyp-args porthole.allow_unsafe_dma
    expect "$TRIED" '^status 0$'
    expect "$TRIED" '^features .*unsafe-dma'
    ! grep -q dma-isolated <<<"$TRIED"
    expect "$SAID" "warning: DMA is not confined: $reason"
    expect "$SAID" 'warning: protected VMs are allowed all the same'
}

measurement() { sed -n 's/.*measurement[^0-9a-f]*\([0-9a-f]\{64\}\).*/\1/p' <<<"$TRIED"; }

st_a63_a_machine_without_smmu_is_refused_and_measured_otherwise() {
    local isolated
    # The option changes nothing where it is not needed.
    try_guest --hyp-args porthole.allow_unsafe_dma
    expect "$TRIED" '^status 0$'
    expect "$TRIED" '^features .*dma-isolated'
    ! grep -q unsafe-dma <<<"$TRIED"
    isolated=$(measurement)
    unconfined 'this machine: it has no SMMUv3' --no-smmu
    [ -n "$isolated" ] && [ -n "$(measurement)" ] && [ "$(measurement)" != "$isolated" ]
}

st_a63_a_virtio_mmio_device_is_outside_every_smmu() {
    unconfined 'virtio_mmio@[0-9a-f]*: a virtio-mmio device \(DeviceID 4\)' --qemu -device --qemu virtio-rng-device
}

# QEMU's default: these devices' DMA goes past the SMMU, and nothing in the device tree says so.
st_a63_virtio_pci_without_iommu_platform_is_outside_every_smmu() {
    unconfined 'pcie@[0-9a-f]*: PCI function 00:05.0 \(1af4:1005\) does its DMA past the SMMU.* iommu_platform=on' \
        --qemu -device --qemu virtio-rng-pci,addr=5
    unconfined 'pcie@[0-9a-f]*: PCI function 00:06.0/00.0 \(1af4:1042\) does its DMA past the SMMU' \
        --qemu -device --qemu pcie-root-port,id=rp,addr=6 --qemu -drive \
        --qemu if=none,id=disk,driver=null-co,size=1M --qemu -device --qemu virtio-blk-pci,bus=rp,drive=disk
}

st_a63_virtio_pci_with_iommu_platform_is_confined_also_behind_bridges() {
    # shellcheck disable=SC2054 # QEMU's commas
    local devices=(
        --qemu -drive --qemu if=none,id=one,driver=null-co,size=1M
        --qemu -device --qemu virtio-blk-pci,drive=one,iommu_platform=on,disable-legacy=on
        --qemu -drive --qemu if=none,id=two,driver=null-co,size=1M
        --qemu -device --qemu pcie-root-port,id=rp
        --qemu -device --qemu pcie-pci-bridge,id=old,bus=rp
        --qemu -device --qemu virtio-blk-pci,drive=two,bus=old,addr=3,iommu_platform=on,disable-legacy=on
    )
    TRY_GUEST="$TRY_GUEST"'
cat /sys/bus/pci/devices/*/device | tr "\n" " "' try_guest "${devices[@]}"
    expect "$TRIED" '^status 0$'
    expect "$TRIED" '^features .*dma-isolated'
    # What was opened to look behind it is as it was: the host finds both disks.
    expect "$TRIED" '0x1042 .*0x1042'
    ! grep -q 'not confined' <<<"$SAID"
}

st_a63_another_root_is_named() {
    unconfined 'pcie@[0-9a-f]*: PCI function 00:07.0 \(1b36:000b\) leads to buses that the device tree does not name' \
        --qemu -device --qemu pxb-pcie,bus_nr=8,bypass_iommu=on,addr=7
}

st_a63_another_kind_of_iommu_is_named() {
    unconfined 'pcie@[0-9a-f]*: its IOMMU .* is no arm,smmu-v3' --no-smmu --qemu -device --qemu virtio-iommu-pci
}

st_a63_an_smmu_without_stage_2_is_named() {
    unconfined 'smmuv3@[0-9a-f]*: it has no stage 2' --qemu -machine --qemu virt-9.1
}

# The machine's own device tree with an iommu-map (and msi-map) that ends at 0xfeff, in its place.
st_a63_an_iommu_map_that_leaves_functions_out_is_named() {
    local tree
    tree=$(mktemp "$PORTHOLE_OUT/tree.XXXXXX")
    on_host --qemu -machine --qemu "dumpdtb=$tree" --batch "$TRY_GUEST" || true
    # shellcheck disable=SC2016 # perl's variables
    perl -0777 -pi -e 's/(\0{4}\0\0\x80.\0{4})\0\x01\0\0/$1\0\0\xff\0/sg;
        $n = unpack("N", substr($_, 12, 4)) + unpack("N", substr($_, 32, 4));
        substr($_, 4, 4) = pack("N", $n);
        $_ = substr($_, 0, $n)' "$tree"
    unconfined 'pcie@[0-9a-f]*: its iommu-map leaves out requester id 0xff00' --qemu -dtb --qemu "$tree"
    rm -f "$tree"
}
