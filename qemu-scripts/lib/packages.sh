# shellcheck shell=bash
# What the build machine must have installed: one line per tool, with the Debian package and the reason.
# A tool is looked for by its effect (a command, a file), so tools installed by other means count as well.

QEMU_MIN=10

# probe|package|why. A probe with a slash is a file, else a command.
required_tools() {
    cat <<'EOF'
qemu-system-aarch64|qemu-system-arm|emulates the arm64 machine with EL2 and an SMMU
cc|gcc|links Rust build scripts and host-side tests
/usr/include/stdio.h|libc6-dev|C library headers of the build machine
aarch64-linux-gnu-gcc|gcc-aarch64-linux-gnu|compiles the Linux driver, links the arm64 command
/usr/aarch64-linux-gnu/lib/libc.a|libc6-dev-arm64-cross|arm64 C library for the static porthole command
pahole|pahole|type information of the Linux driver
make|make|Kbuild
flex|flex|the guest kernel's build tools
bison|bison|the guest kernel's build tools
bc|bc|the guest kernel's build
perl|perl|the guest kernel's build
patch|patch|applies guest/linux/patches
mke2fs|e2fsprogs|disks of guests and of the tests of the host's devices
cpio|cpio|packs the initramfs
gzip|gzip|packs the initramfs, unpacks kernels
xz|xz-utils|unpacks kernels
zstd|zstd|unpacks kernels
modinfo|kmod|checks the driver against the kernel; depmod for hosts with modules
flock|util-linux|keeps two runs of set-up apart
shellcheck|shellcheck|test.sh checks the scripts with it
EOF
}

tool_present() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        modinfo | mke2fs) have "$1" || [ -x "/sbin/$1" ] ;;
        *) have "$1" ;;
    esac
}

# Major version of the installed QEMU, 0 if there is none.
qemu_major() {
    local version
    version=$(qemu-system-aarch64 --version 2>/dev/null | sed -n '1s/^QEMU emulator version \([0-9]*\).*/\1/p')
    printf '%s\n' "${version:-0}"
}

# missing_tools: package|why of everything that is absent.
missing_tools() {
    local probe package why
    while IFS='|' read -r probe package why; do
        if [ "$package" = qemu-system-arm ] && have "$probe" && [ "$(qemu_major)" -lt "$QEMU_MIN" ]; then
            printf '%s|%s\n' "$package" "$why; QEMU $QEMU_MIN or later, found $(qemu_major)"
        elif ! tool_present "$probe"; then
            printf '%s|%s\n' "$package" "$why"
        fi
    done < <(required_tools)
}

setup_packages() {
    local missing package why
    local -a packages=()
    missing=$(missing_tools)
    [ -n "$missing" ] || return 0
    have apt-get || die "this is not a Debian machine; install by hand: $(cut -d'|' -f1 <<<"$missing" | tr '\n' ' ')"
    say "packages to install on this machine:"
    while IFS='|' read -r package why; do
        printf '      %-26s %s\n' "$package" "$why" >&2
        packages+=("$package")
    done <<<"$missing"
    apt_install "${packages[@]}"
    hash -r
    missing=$(missing_tools)
    [ -z "$missing" ] || die "still missing after installation: $(tr '\n' ';' <<<"$missing")"
}
