# shellcheck shell=bash
# A VMM that lies to a protected Linux guest: devices that break every rule of virtio towards the drivers of the series
# in guest/linux. The guest asks for the lies one by one (guest/linux/initramfs/lies) and looks what came of each.
# shellcheck disable=SC2016 # the shells of host and guest expand what stands in single quotes

# lies ABOUT...: one guest hears all lies about these things. $PORTHOLE_LIES_KERNEL is another kernel of the guest, by
# hand: what this tier is worth shows in kernels that lack a patch.
lies() {
    local work status=0
    work=$(mktemp -d "$PORTHOLE_OUT/lies.XXXXXX")
    mkdir -p "$work/host/usr/bin" "$work/host/lib/porthole"
    cp "$PORTHOLE_OUT/release/lying-vmm" "$work/host/usr/bin/"
    [ -z "${PORTHOLE_LIES_KERNEL:-}" ] || cp "$PORTHOLE_LIES_KERNEL" "$work/host/lib/porthole/Image"
    pack "$work/host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs-guest.cpio" "$work/host.cpio" >"$work/initrd"
    ST_SECONDS=400 on_host --smp 2 --mem 3G --initrd "$work/initrd" --batch "MIB=4 GUEST_MEM=256M LIES_SECONDS=${PORTHOLE_LIES_SECONDS:-300}
$WITH_LINUX_GUEST"'
porthole() {
    case $1 in
        run)
            shift
            # A guest that a lie makes wait for ever leaves its log.
            timeout "$LIES_SECONDS" lying-vmm --console off "$@"
            ;;
        *) command porthole "$@" ;;
    esac
}
zcat /lib/porthole/disk.gz >/tmp/disk
guest Image ". /lib/lies
hear '"$*"'
echo \"guest: has heard all\"" --disk /tmp/disk --cpus 2 || exit 1
grep -q "^guest: has heard all" $NAME.log || exit 2
unset -f porthole
nothing_lost' || status=$?
    rm -rf "$work"
    return "$status"
}

st_linux_guest_takes_no_disk_for_what_it_is_not() { lies disks geometry; }
