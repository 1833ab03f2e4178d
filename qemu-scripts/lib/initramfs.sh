# shellcheck shell=bash
# The host's userland: busybox, the porthole command, its module and the guest images, packed as an initramfs.
# Uncompressed, because unpacking under emulation costs more than reading.

# make_initramfs OUTPUT [bare]: `bare` leaves Porthole's own parts out.
make_initramfs() {
    local output=$1 kind=${2:-full} root
    root=$(mktemp -d "$PORTHOLE_OUT/initramfs.XXXXXX")
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,tmp,run,root,etc,lib/porthole}
    cp "$BUSYBOX" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp "$PORTHOLE_ROOT/qemu-scripts/initramfs/init" "$root/init"
    cp "$PORTHOLE_ROOT/qemu-scripts/initramfs/banner" "$root/etc/banner"
    if [ "$kind" = full ]; then
        cp "$PORTHOLE_OUT/release/porthole" "$root/usr/bin/porthole"
        cp "$PORTHOLE_ROOT/qemu-scripts/initramfs/porthole-demo" "$PORTHOLE_OUT/release/touch_page" "$root/usr/bin/"
        cp "$PORTHOLE_ROOT/qemu-scripts/initramfs/guestlib.sh" "$PORTHOLE_OUT"/release/porthole{,_peek,_dma_test}.ko \
            "$PORTHOLE_OUT/release/driver_test" "$PORTHOLE_OUT"/release/payload/*.bin "$root/lib/porthole/"
    fi
    chmod -R u+rwX,go+rX "$root"
    pack "$root" "$output"
    rm -rf "$root"
}

# pack DIRECTORY OUTPUT: a newc archive owned by root, the same for the same content.
pack() {
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$2.new"
    mv "$2.new" "$2"
}

# add_batch INITRAMFS OUTPUT COMMAND MARK: appends a second archive with the command to run and the mark that
# frames its output. The kernel unpacks archives one after another.
add_batch() {
    local root
    root=$(mktemp -d "$PORTHOLE_OUT/batch.XXXXXX")
    mkdir "$root/batch"
    printf '%s\n' "$3" >"$root/batch/command"
    printf '%s\n' "$4" >"$root/batch/mark"
    pack "$root" "$root.cpio"
    cat "$1" "$root.cpio" >"$2"
    rm -rf "$root" "$root.cpio"
}
