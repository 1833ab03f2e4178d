# shellcheck shell=bash
# Linux for protected guests: two kernels from one tree of Debian's source, without and with guest/linux/patches, and
# the guest's initramfs. Kernels are kept in the cache under a key of all that made them; building them takes minutes.

GUEST_LINUX="$PORTHOLE_ROOT/guest/linux"
# Changes when the way of building changes; kernels are then built again.
GUEST_FORMAT=1
# About so many files are compiled for a kernel, for the progress line.
GUEST_FILES=860
# Not needed for any arm64 kernel of ours, and a third of the tree.
GUEST_LEFT_OUT=(drivers/gpu/drm/amd/include drivers/gpu/drm/nouveau/include Documentation/translations tools/testing)

# guest_key: what the kernels depend on, as a short hash: source, patches, configuration, compiler, this recipe.
guest_key() {
    {
        printf '%s\n' "$GUEST_FORMAT" "$KERNEL_VERSION" "$(aarch64-linux-gnu-gcc -dumpfullversion)"
        cat "$GUEST_LINUX/porthole.config" "$GUEST_LINUX"/patches/*.patch
    } | sha256sum | cut -c1-16
}

# load_guest: sets GUEST_DIR, which has Image (patched) and Image.stock (not); false if they are not built.
load_guest() {
    GUEST_DIR="$PORTHOLE_CACHE/guest-linux/$(guest_key)"
    [ -e "$GUEST_DIR/Image" ] && [ -e "$GUEST_DIR/Image.stock" ]
}

# guest_fetch: Debian's source of the version that the host runs, into the cache of packages.
guest_fetch() {
    local config package="linux-source-$KERNEL_SERIES"
    config=$(fetch_config)
    [ -z "$(guest_package)" ] || return 0
    if ! APT_CONFIG=$config apt-cache show "$package=$KERNEL_VERSION" >/dev/null 2>&1; then
        say "reading Debian's package lists for the kernel's source"
        apt_update "$config" "$PORTHOLE_CACHE/log/apt-update.log"
    fi
    fetch_deb "$config" "$PORTHOLE_CACHE/guest-linux/.deb" "$package=$KERNEL_VERSION"
    rm -rf "$PORTHOLE_CACHE/guest-linux/.deb"
}

# guest_package: the package's file in the cache, or nothing.
guest_package() {
    find "$PORTHOLE_CACHE/debs" -name "linux-source-${KERNEL_SERIES}_${KERNEL_VERSION//:/%3a}_*.deb" -print -quit
}

# setup_guest: builds both kernels unless the cache has them. Takes minutes, so it keeps a lock of its own.
setup_guest() {
    load_guest && return 0
    local base="$PORTHOLE_CACHE/guest-linux" work tree new
    work="$base/.work" tree="$base/.work/linux" new="$base/.new"
    mkdir -p "$base"
    exec 7>"$base/lock"
    flock 7
    load_guest && { exec 7>&-; return 0; }
    rm -rf "$work" "$new"
    mkdir -p "$tree" "$new"
    guest_source "$tree"
    guest_image "$tree" "$new/Image.stock" "the guest kernel without patches"
    guest_patches "$tree"
    guest_image "$tree" "$new/Image" "the guest kernel with the series of guest/linux/patches"
    cp "$tree/.config" "$new/config"
    publish "$new" "$GUEST_DIR"
    rm -rf "$work"
    exec 7>&-
}

# guest_source TREE: unpacks the source.
guest_source() {
    local left=() part top="linux-source-$KERNEL_SERIES"
    for part in "${GUEST_LEFT_OUT[@]}"; do
        left+=(--exclude="$top/$part")
    done
    say "unpacking Linux $KERNEL_VERSION"
    dpkg-deb --fsys-tarfile "$(guest_package)" | tar -xO "./usr/src/$top.tar.xz" |
        tar -xJ -C "$1" --strip-components=1 "${left[@]}" ||
        die "cannot unpack Linux; remove $PORTHOLE_CACHE/debs/${top}_* and run qemu-scripts/setup.sh --guest again"
}

# guest_patches TREE: applies the series, exactly.
guest_patches() {
    local patch log="$PORTHOLE_CACHE/log/guest-patch.log"
    for patch in "$GUEST_LINUX"/patches/*.patch; do
        quietly "$log" patch -d "$1" -p1 --batch --forward --fuzz=0 -i "$patch" || {
            cat "$log" >&2
            die "$(basename "$patch") does not fit Linux $KERNEL_VERSION; refresh the series as guest/linux/README.md says"
        }
    done
}

guest_make() {
    local tree=$1
    shift
    nice -n 10 make -C "$tree" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- LOCALVERSION= KBUILD_BUILD_TIMESTAMP=@0 \
        KBUILD_BUILD_USER=porthole KBUILD_BUILD_HOST=porthole "$@"
}

# guest_image TREE OUTPUT WHAT: configures and compiles, saying from time to time how far it is.
guest_image() {
    local tree=$1 output=$2 what=$3 log started=$SECONDS option
    log="$PORTHOLE_CACHE/log/guest-$(basename "$output").log"
    say "building $what (log: $log)"
    quietly "$log" guest_make "$tree" KCONFIG_ALLCONFIG="$GUEST_LINUX/porthole.config" allnoconfig ||
        { tail -n 20 "$log" >&2; die "the guest kernel cannot be configured (whole output: $log)"; }
    # An option that Kconfig dropped would be missed late, so look now. The patches bring one.
    while IFS= read -r option; do
        grep -qx "$option" "$tree/.config" || [ "$option" = CONFIG_VIRTIO_SWIOTLB=y ] ||
            die "Linux $KERNEL_VERSION does not take $option of guest/linux/porthole.config; see its dependencies"
    done < <(grep '^CONFIG_.*=y' "$GUEST_LINUX/porthole.config")
    guest_make "$tree" -j"$(nproc)" Image >"$log" 2>&1 &
    guest_progress "$!" "$log" ||
        { grep -E 'error|Error' "$log" | head -n 20 >&2; die "the guest kernel does not build (whole output: $log)"; }
    cp "$tree/arch/arm64/boot/Image" "$output"
    say "built in $((SECONDS - started)) s, $(($(stat -c %s "$output") >> 10)) KiB"
}

# guest_progress PID LOG: a line each 30 seconds until the process ends; its status.
guest_progress() {
    local seconds=0 files
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 30)) -eq 0 ]; then
            files=$(grep -cE '^  (CC|AS) ' "$2" || true)
            say "  $files files compiled, a whole kernel has about $GUEST_FILES"
        fi
    done
    wait "$1"
}

# build_guest_tools: release/guest/*, programs for guests and for hosts that talk to them.
build_guest_tools() {
    local source out="$PORTHOLE_OUT/release/guest"
    mkdir -p "$out"
    for source in "$GUEST_LINUX"/tools/*.c; do
        aarch64-linux-gnu-gcc -O2 -Wall -Wextra -Werror -static -o "$out/$(basename "${source%.c}")" "$source" ||
            die "$source does not build"
    done
}

# make_guest_initramfs OUTPUT: the guest's userland: busybox, our tools, and what test commands share.
make_guest_initramfs() {
    local output=$1 root
    root=$(mktemp -d "$PORTHOLE_OUT/guest-initramfs.XXXXXX")
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,tmp,run,root,etc,lib,mnt}
    cp "$BUSYBOX" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp "$GUEST_LINUX/initramfs/init" "$root/init"
    cp "$GUEST_LINUX"/initramfs/{guestlib.sh,demo,lies} "$root/lib/"
    cp "$PORTHOLE_OUT"/release/guest/* "$root/usr/bin/"
    chmod -R u+rwX,go+rX "$root"
    chmod +x "$root/init"
    pack "$root" "$output"
    rm -rf "$root"
}

# make_guest_host OUTPUT: the host's initramfs with what it wants for Linux guests: both kernels, their userland, an
# empty ext4 disk, TUN and our tools. load_guest, build_guest_tools and make_initramfs come before.
make_guest_host() {
    local output=$1 work host
    work=$(mktemp -d "$PORTHOLE_OUT/guest-host.XXXXXX")
    host="$work/host"
    mkdir -p "$host/lib/porthole" "$host/usr/bin"
    cp "$GUEST_DIR/Image" "$GUEST_DIR/Image.stock" "$host/lib/porthole/"
    cp "$PORTHOLE_OUT"/release/guest/* "$host/usr/bin/"
    make_guest_initramfs "$host/lib/porthole/guest.cpio"
    truncate -s 128M "$work/disk"
    PATH="$PATH:/sbin:/usr/sbin" mke2fs -q -t ext4 -L porthole "$work/disk"
    gzip -1 <"$work/disk" >"$host/lib/porthole/disk.gz"
    xz -dc "$(find "$KERNEL_DIR" -name tun.ko.xz -print -quit)" >"$host/lib/porthole/tun.ko"
    pack "$host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs.cpio" "$work/host.cpio" >"$output.new"
    mv "$output.new" "$output"
    rm -rf "$work"
}
