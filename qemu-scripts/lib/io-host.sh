# shellcheck shell=bash
# A host with real I/O: Debian's generic kernel, which has drivers that the cloud flavour lacks (e1000, USB storage),
# its modules, and fio, iperf3, kexec and passt with their libraries, all from Debian's archive, kept in the cache.

IO_STATE_FORMAT=1
IO_STATE_FILE="$PORTHOLE_CACHE/io-state.env"
IO_TOOLS=(fio iperf3 kexec-tools passt)
# What the archive below carries of them.
IO_COMMANDS=(usr/bin/fio usr/bin/iperf3 usr/sbin/kexec usr/bin/passt)
IO_MODULES=(virtio_blk virtio_net nvme e1000 xhci-pci usb-storage sd_mod crc32c_generic ext4 rtc-pl031 uio_pci_generic vfio-pci)

# load_io_state: sets IO_KERNEL_RELEASE, IO_KERNEL_DIR and IO_FILES, an initramfs to be appended; false if absent.
load_io_state() {
    [ -r "$IO_STATE_FILE" ] || return 1
    # shellcheck disable=SC1090
    . "$IO_STATE_FILE"
    [ "${IO_STATE_IS:-}" = "$IO_STATE_FORMAT $KERNEL_SERIES ${IO_TOOLS[*]} ${IO_MODULES[*]}" ] || return 1
    IO_KERNEL_DIR="$PORTHOLE_CACHE/kernel/$IO_KERNEL_VERSION-generic"
    IO_FILES="$PORTHOLE_CACHE/io-host/$IO_KEY.cpio"
    [ -e "$IO_KERNEL_DIR/Image" ] && [ -e "$IO_FILES" ]
}

# setup_io_host: fetches all that; the lists of packages are those that setup_kernel reads.
setup_io_host() {
    load_io_state && return 0
    local config meta version='' release specs
    config=$(fetch_config)
    say "reading Debian's package lists for the host of the I/O tests"
    apt_update "$config" "$PORTHOLE_CACHE/log/apt-update.log"
    for meta in "linux-image-$KERNEL_SERIES-arm64" linux-image-arm64; do
        version=$(candidate "$config" "$meta:arm64")
        case "$version" in "$KERNEL_SERIES".*) break ;; *) version='' ;; esac
    done
    [ -n "$version" ] || die "Debian offers no arm64 kernel of the $KERNEL_SERIES series any more; set KERNEL_SERIES in qemu-scripts/lib/kernel.sh"
    release=$(APT_CONFIG=$config apt-cache show "$meta:arm64=$version" |
        sed -n 's/^Depends:.*linux-image-\([^ ]*-arm64\).*/\1/p' | head -n1)
    make_kernel "$config" "$version" "$release" "$version-generic"
    specs=$(io_packages "$config")
    [ -n "$specs" ] || die "Debian's archive has no ${IO_TOOLS[*]} for arm64; see apt-cache policy with $config"
    # One key for what went in: the packages, the kernel, the modules, this file.
    local key
    key=$(printf '%s\n' "$specs" "$version" "${IO_MODULES[@]}" "$IO_STATE_FORMAT" | sha256sum | cut -c1-16)
    make_io_files "$config" "$version" "$release" "$key" "$specs"
    cat >"$IO_STATE_FILE.new" <<EOF
IO_STATE_IS='$IO_STATE_FORMAT $KERNEL_SERIES ${IO_TOOLS[*]} ${IO_MODULES[*]}'
IO_KERNEL_VERSION='$version'
IO_KERNEL_RELEASE='$release'
IO_KEY='$key'
EOF
    mv "$IO_STATE_FILE.new" "$IO_STATE_FILE"
    load_io_state || die "the cache $PORTHOLE_CACHE is damaged; remove it and run qemu-scripts/setup.sh again"
}

# io_packages CONFIG: PACKAGE=VERSION of the tools and of every library that they may want, as apt would install them
# on an empty arm64 machine.
io_packages() {
    APT_CONFIG=$1 apt-get install -s --no-install-recommends "${IO_TOOLS[@]/%/:arm64}" 2>/dev/null |
        awk -v native="$DPKG_ARCH" -v tools=" ${IO_TOOLS[*]} " '
            /^Inst / {
                name = $2
                if (native != "arm64" && sub(/:arm64$/, "", name) == 0) next
                if (index(tools, " " name " ") == 0 && name !~ /^z?lib/ || name ~ /^libpython/) next
                version = $3
                sub(/^\(/, "", version)
                print name ":arm64=" version
            }'
}

# make_io_files CONFIG VERSION RELEASE KEY SPECS: io-host/KEY.cpio with the tools, their libraries and the modules.
make_io_files() {
    local config=$1 version=$2 release=$3 key=$4 base="$PORTHOLE_CACHE/io-host"
    local all="$base/.all" root="$base/.root" modules specs
    [ -e "$base/$key.cpio" ] && return 0
    rm -rf "$all" "$root"
    mkdir -p "$root/lib/io/modules"
    mapfile -t specs <<<"$5"
    say "downloading ${IO_TOOLS[*]} with ${#specs[@]} packages of libraries"
    (cd "$PORTHOLE_CACHE/debs" && APT_CONFIG=$config quietly "$PORTHOLE_CACHE/log/download.log" \
        apt-get download -q "${specs[@]}") || die "cannot download the tools (details: $PORTHOLE_CACHE/log/download.log)"
    fetch_deb "$config" "$all" "${specs[@]}"
    local command
    for command in "${IO_COMMANDS[@]}"; do
        carry "$all" "$root" "$(find "$all" -path "*/${command#usr/}" -print -quit)" "$command"
    done
    modules="$PORTHOLE_CACHE/kernel/$version-generic"
    (PATH="$PATH:/sbin:/usr/sbin" depmod -b "$(module_root "$modules" "$release")" "$release") ||
        die "depmod cannot read the modules of $release"
    carry_modules "$modules" "$release" "$root/lib/io/modules"
    pack "$root" "$base/$key.cpio"
    rm -rf "$all" "$root"
}

# carry ALL ROOT FILE NAME: copies a program as NAME, with the libraries it names, theirs, and the loader.
carry() {
    local all=$1 root=$2 file=$3 name=$4 needed library
    [ -n "$file" ] || die "the package has no $name"
    mkdir -p "$root/$(dirname "$name")"
    cp -L "$file" "$root/$name"
    while IFS= read -r needed; do
        [ ! -e "$root/lib/$needed" ] || continue
        library=$(find "$all" -path '*/aarch64-linux-gnu/*' -name "$needed" -print -quit)
        [ -n "$library" ] || die "no package has $needed, which $name wants"
        # A link to a path of the machine that it is made for leads nowhere here.
        [ ! -L "$library" ] || library="$(dirname "$library")/$(basename "$(readlink "$library")")"
        carry "$all" "$root" "$library" "lib/$needed"
    done < <(aarch64-linux-gnu-readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
}

# module_root DIRECTORY RELEASE: the folder in which the kernel package has lib/modules.
module_root() {
    if [ -d "$1/usr/lib/modules/$2" ]; then printf '%s/usr\n' "$1"; else printf '%s\n' "$1"; fi
}

# carry_modules KERNEL-DIRECTORY RELEASE INTO: the modules and what they need, numbered in the order of loading.
carry_modules() {
    local from into=$3 module line file number=100
    local -A have=()
    from="$(module_root "$1" "$2")/lib/modules/$2"
    for module in "${IO_MODULES[@]}"; do
        grep -qE "/${module//[-_]/[-_]}\.ko" "$from/modules.builtin" && continue
        line=$(grep -E "^[^:]*/${module//[-_]/[-_]}\.ko[.a-z]*:" "$from/modules.dep") ||
            die "Debian's kernel $2 has no module $module"
        # What a module needs stands after it, the first to be loaded last.
        for file in $(tr -d ':' <<<"$line" | tr ' ' '\n' | tac); do
            [ -z "${have[$file]:-}" ] || continue
            have[$file]=yes
            number=$((number + 1))
            unpacked "$from/$file" "$into/$number-$(basename "${file%%.ko*}").ko"
        done
    done
}

# unpacked FROM TO: a kernel module without its compression.
unpacked() {
    case "$1" in
        *.xz) xz -dc "$1" >"$2" ;;
        *.zst) zstd -dcq "$1" >"$2" ;;
        *) cp "$1" "$2" ;;
    esac
}

# build_io_host: Porthole's and the attackers' modules for the generic kernel, and the initramfs of that host, which
# is the ordinary one with more; a later file of a name replaces the first.
build_io_host() {
    load_io_state || die "the host of the I/O tests is not set up; run qemu-scripts/setup.sh --io"
    local out=$PORTHOLE_OUT root
    KERNEL_DIR=$IO_KERNEL_DIR KERNEL_RELEASE=$IO_KERNEL_RELEASE PORTHOLE_OUT="$out/io" build_driver
    KERNEL_DIR=$IO_KERNEL_DIR KERNEL_RELEASE=$IO_KERNEL_RELEASE PORTHOLE_OUT="$out/io" build_attack
    root=$(mktemp -d "$out/initramfs.XXXXXX")
    mkdir -p "$root/lib/porthole" "$root/lib/io" "$root/usr/bin"
    cp "$out"/io/release/*.ko "$root/lib/porthole/"
    cp "$out/io/release/edu_dma" "$root/usr/bin/"
    cp "$(dirname "${BASH_SOURCE[0]}")/../initramfs/iolib.sh" "$root/lib/io/"
    pack "$root" "$root.cpio"
    cat "$out/initramfs.cpio" "$IO_FILES" "$root.cpio" >"$out/initramfs-io.cpio.new"
    mv "$out/initramfs-io.cpio.new" "$out/initramfs-io.cpio"
    rm -rf "$root" "$root.cpio"
}

# io_devices DIRECTORY: sets IO_ARGS, one device of each kind with its disk in DIRECTORY (made if it is not there).
# virtio devices use the machine's IOMMU only when told to; the two network cards see each other and nothing else.
io_devices() {
    local disk dir=$1
    IO_ARGS=()
    for disk in virtio nvme usb; do
        [ -e "$dir/$disk.img" ] || truncate -s 256M "$dir/$disk.img"
        IO_ARGS+=(-drive "if=none,id=$disk,format=raw,cache=unsafe,file=$(doubled "$dir/$disk.img")")
    done
    # shellcheck disable=SC2054 # QEMU's commas
    IO_ARGS+=(-device virtio-blk-pci,drive=virtio,iommu_platform=on,disable-legacy=on
        -device nvme,drive=nvme,serial=porthole
        -device qemu-xhci,id=xhci -device usb-storage,bus=xhci.0,drive=usb
        -netdev hubport,id=net0,hubid=0 -device virtio-net-pci,netdev=net0,iommu_platform=on,disable-legacy=on,romfile=
        -netdev hubport,id=net1,hubid=0 -device e1000,netdev=net1,romfile=
        -device edu,dma_mask=0xffffffffffffffff)
}
