# shellcheck shell=bash
# Debian's stock arm64 kernel for the host, its headers for the driver, and busybox for the initramfs.
# Unpacked in the cache under their versions; $PORTHOLE_CACHE/state.env records which ones are in use.

KERNEL_SERIES=6.12
# Changes when what set-up puts in the cache changes; an older state is then made again.
STATE_FORMAT=1
STATE_FILE="$PORTHOLE_CACHE/state.env"

# load_state: sets KERNEL_VERSION, KERNEL_RELEASE, KERNEL_DIR, BUSYBOX_VERSION, BUSYBOX; false if absent or stale.
load_state() {
    [ -r "$STATE_FILE" ] || return 1
    # shellcheck disable=SC1090
    . "$STATE_FILE"
    [ "${STATE_IS:-}" = "$STATE_FORMAT-$KERNEL_SERIES" ] || return 1
    KERNEL_DIR="$PORTHOLE_CACHE/kernel/$KERNEL_VERSION"
    BUSYBOX="$PORTHOLE_CACHE/busybox/${BUSYBOX_VERSION#*:}/busybox"
    export KERNEL_DIR BUSYBOX KERNEL_RELEASE
    [ -e "$KERNEL_DIR/Image" ] && [ -e "$KERNEL_DIR/headers/Makefile" ] && [ -x "$BUSYBOX" ]
}

setup_kernel() {
    load_state && return 0
    local config meta version release busybox
    config=$(fetch_config)
    say "reading Debian's package lists (private copy, the system's are not touched)"
    apt_update "$config" "$PORTHOLE_CACHE/log/apt-update.log"
    for meta in "linux-image-$KERNEL_SERIES-cloud-arm64" linux-image-cloud-arm64; do
        version=$(candidate "$config" "$meta:arm64")
        case "$version" in "$KERNEL_SERIES".*) break ;; *) version='' ;; esac
    done
    [ -n "$version" ] || die "Debian offers no arm64 cloud kernel of the $KERNEL_SERIES series any more; set KERNEL_SERIES in qemu-scripts/lib/kernel.sh"
    release=$(APT_CONFIG=$config apt-cache show "$meta:arm64=$version" |
        sed -n 's/^Depends:.*linux-image-\([^ ]*-cloud-arm64\).*/\1/p' | head -n1)
    busybox=$(candidate "$config" busybox-static:arm64)
    if [ -z "$release" ] || [ -z "$busybox" ]; then
        die "the metapackage $meta $version names no kernel, or busybox is missing; try again later"
    fi
    make_kernel "$config" "$version" "$release" "$version"
    make_busybox "$config" "$busybox"
    cat >"$STATE_FILE.new" <<EOF
STATE_IS=$STATE_FORMAT-$KERNEL_SERIES
KERNEL_VERSION='$version'
KERNEL_RELEASE='$release'
BUSYBOX_VERSION='$busybox'
EOF
    mv "$STATE_FILE.new" "$STATE_FILE"
    load_state || die "the cache $PORTHOLE_CACHE is damaged; remove it and run qemu-scripts/setup.sh again"
}

# make_kernel CONFIG VERSION RELEASE DIRECTORY: below kernel/, a raw Image, its modules, and a tree that Kbuild accepts.
make_kernel() {
    local config=$1 version=$2 release=$3 base dir new
    dir="$PORTHOLE_CACHE/kernel/$4" new="$PORTHOLE_CACHE/kernel/.new"
    [ -e "$dir/Image" ] && return 0
    base=${release%-arm64}
    base=${base%-cloud}
    say "Debian kernel $release: the host's kernel, and headers for the driver"
    rm -rf "$new"
    fetch_deb "$config" "$new" "linux-image-$release:arm64=$version" "linux-headers-$release:arm64=$version" \
        "linux-headers-$base-common=$version" "linux-kbuild-$base:$DPKG_ARCH=$version"
    raw_image "$new/boot/vmlinuz-$release" "$new/Image"
    # Debian's headers name their common part by an absolute path, and the compiler by Debian's own version of it.
    # shellcheck disable=SC2016 # make expands it, not the shell
    printf 'include $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-%s-common/Makefile\n' "$base" \
        >"$new/usr/src/linux-headers-$release/Makefile"
    sed -i 's/gcc-[0-9]*$/gcc/' "$new/usr/src/linux-headers-$release/.kernelvariables"
    ln -s "usr/src/linux-headers-$release" "$new/headers"
    publish "$new" "$dir"
}

make_busybox() {
    local config=$1 version=$2 new="$PORTHOLE_CACHE/busybox/.new"
    [ -x "$PORTHOLE_CACHE/busybox/${version#*:}/busybox" ] && return 0
    say "busybox $version: the host's userland"
    rm -rf "$new"
    fetch_deb "$config" "$new" "busybox-static:arm64=$version"
    mv "$(find "$new" -path '*/bin/busybox' -type f -print -quit)" "$new/busybox"
    publish "$new" "$PORTHOLE_CACHE/busybox/${version#*:}"
}

# raw_image FROM TO: an uncompressed arm64 Image out of a raw, gzipped or EFI-zboot kernel
# (Documentation/arch/arm64/booting.rst for the magic, drivers/firmware/efi/libstub/zboot-header.S for zboot).
raw_image() {
    local from=$1 to=$2 offset size kind
    if [ "$(peek "$from" 4 4)" = zimg ]; then
        offset=$(od -A n -t u4 -j 8 -N 4 "$from" | tr -d ' ')
        size=$(od -A n -t u4 -j 12 -N 4 "$from" | tr -d ' ')
        kind=$(peek "$from" 24 8)
        tail -c "+$((offset + 1))" "$from" | head -c "$size" | case "$kind" in
            gzip*) gzip -dc ;;
            zstd*) zstd -dcq ;;
            xz* | lzma*) xz -dc ;;
            *) die "the kernel $from is compressed with $kind, which is not known here" ;;
        esac >"$to"
    elif [ "$(od -A n -t x1 -N 2 "$from" | tr -d ' ')" = 1f8b ]; then
        gzip -dc <"$from" >"$to"
    else
        cp "$from" "$to"
    fi
    [ "$(peek "$to" 56 4)" = ARMd ] || die "$from holds no arm64 Image"
}

# peek FILE OFFSET LENGTH: bytes as text, without the zeroes.
peek() { tail -c "+$(($2 + 1))" "$1" | head -c "$3" | tr -d '\0'; }
