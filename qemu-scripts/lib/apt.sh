# shellcheck shell=bash
# Debian packages: the ones the build machine needs installed, and the arm64 ones that are only unpacked.
# Both go through a private apt configuration in the cache; the system's sources and lists stay as they are.

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
APT_DIR="$PORTHOLE_CACHE/apt"
DPKG_ARCH="$(dpkg --print-architecture 2>/dev/null || true)"

# archive_uri ARCHIVE: where this machine gets `debian` or `debian-security` from, or nothing. The mirror is the one in
# the system's own sources, unless PORTHOLE_DEBIAN_MIRROR names the folder that holds both archives.
archive_uri() {
    if [ -n "${PORTHOLE_DEBIAN_MIRROR:-}" ]; then
        printf '%s/%s\n' "${PORTHOLE_DEBIAN_MIRROR%/}" "$1"
    else
        # shellcheck disable=SC2016 # apt's own variable
        apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | sed 's,/*$,,' | grep -m 1 "/$1\$" || true
    fi
}

# apt_source SUITE... : one deb822 stanza per suite; a machine without the security archive does without its suites.
apt_source() {
    local suite archive uri
    for suite in "$@"; do
        archive=debian
        case "$suite" in *-security) archive=debian-security ;; esac
        uri=$(archive_uri "$archive")
        if [ -n "$uri" ]; then
            printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
                "$uri" "$suite" "$DEBIAN_KEYRING"
        elif [ "$archive" = debian ]; then
            die "this machine's apt sources name no Debian archive; set PORTHOLE_DEBIAN_MIRROR to the address that has debian/ below it"
        fi
    done
}

# apt_config NAME SUITE...: writes the private configuration NAME and prints the path of it.
apt_config() {
    local name=$1 dir="$APT_DIR/$1"
    shift
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    apt_source "$@" >"$dir/debian.sources"
    {
        printf 'Dir::Etc::sourcelist "%s/debian.sources";\n' "$dir"
        printf 'Dir::Etc::sourceparts "-";\nDir::State::lists "%s/lists";\nDir::Cache "%s";\n' "$dir" "$dir"
        printf 'Acquire::Languages "none";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
        printf 'Acquire::Retries "2";\nAcquire::http::Timeout "20";\n'
        printf 'Acquire::AllowReleaseInfoChange "true";\n'
        if [ "$name" = fetch ]; then
            : >"$dir/status"
            printf 'Dir::State::status "%s/status";\nAPT::Architectures {"%s";"arm64";};\n' "$dir" "$DPKG_ARCH"
        fi
        if [ "$(id -u)" -eq 0 ]; then
            printf 'APT::Sandbox::User "root";\n'
        fi
    } >"$dir/apt.conf"
    printf '%s/apt.conf\n' "$dir"
}

# apt_update CONFIG LOG: refreshes the lists of a private configuration.
apt_update() {
    quietly "$2" env APT_CONFIG="$1" apt-get update -q -o APT::Update::Error-Mode=any ||
        die "the Debian archive cannot be reached ($(archive_uri debian)); connect to the network or set PORTHOLE_DEBIAN_MIRROR, then run qemu-scripts/setup.sh again (details: $2)"
}

# as_root COMMAND...: as it is for root, through sudo where that asks nothing.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "Debian packages are missing and this user is not root; run: sudo $PORTHOLE_ROOT/qemu-scripts/setup.sh --packages"
    fi
}

# apt_install PACKAGE...: installs on the build machine, QEMU from the backports where the release has an older one.
apt_install() {
    local codename config='' log="$PORTHOLE_CACHE/log/apt-install.log"
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    case "$codename" in
        bookworm | trixie)
            [ -r "$DEBIAN_KEYRING" ] || die "$DEBIAN_KEYRING is missing; install the package debian-archive-keyring"
            config=$(apt_config install "$codename" "$codename-updates" "$codename-security" "$codename-backports")
            ;;
    esac
    as_root true
    say "updating package lists for $codename"
    quietly "$log" as_root env ${config:+APT_CONFIG="$config"} apt-get update -q ||
        die "the Debian archive cannot be reached; connect to the network and run qemu-scripts/setup.sh again (details: $log)"
    local -a apt=(env ${config:+APT_CONFIG="$config"} DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends)
    local package
    local -a plain=() backports=()
    for package in "$@"; do
        if [ "$codename" = bookworm ] && [ "$package" = qemu-system-arm ]; then
            backports+=("$package")
        else
            plain+=("$package")
        fi
    done
    if [ "${#plain[@]}" -gt 0 ]; then
        say "installing ${plain[*]}"
        quietly "$log" as_root "${apt[@]}" "${plain[@]}" || die "apt could not install: ${plain[*]} (see $log)"
    fi
    if [ "${#backports[@]}" -gt 0 ]; then
        say "installing ${backports[*]} from bookworm-backports"
        quietly "$log" as_root "${apt[@]}" -t bookworm-backports "${backports[@]}" ||
            die "apt could not install ${backports[*]} from bookworm-backports (see $log)"
    fi
    if [ -n "$config" ]; then
        as_root rm -rf "$APT_DIR/install/archives" "$APT_DIR/install/lists"
    fi
}

# fetch_config: the configuration from which arm64 and architecture-independent packages are downloaded.
# It names releases, not the machine's own, so that every machine gets the same kernel.
fetch_config() {
    [ -r "$DEBIAN_KEYRING" ] || die "$DEBIAN_KEYRING is missing; install the package debian-archive-keyring"
    apt_config fetch bookworm bookworm-updates bookworm-security bookworm-backports \
        trixie trixie-updates trixie-security trixie-backports
}

# candidate CONFIG PACKAGE: the version that apt would take, or nothing.
candidate() {
    APT_CONFIG=$1 apt-cache policy "$2" | sed -n 's/^  Candidate: //p' | grep -v '(none)' || true
}

# fetch_deb CONFIG DIRECTORY PACKAGE=VERSION...: downloads (or finds in the cache) and unpacks into DIRECTORY.
fetch_deb() {
    local config=$1 into=$2 spec name version file
    shift 2
    local debs="$PORTHOLE_CACHE/debs"
    mkdir -p "$debs" "$into"
    for spec in "$@"; do
        name=${spec%%=*} version=${spec#*=}
        file=$(find "$debs" -name "${name%%:*}_${version//:/%3a}_*.deb" -print -quit)
        if [ -z "$file" ]; then
            say "downloading ${name%%:*} $version"
            (cd "$debs" && APT_CONFIG=$config quietly "$PORTHOLE_CACHE/log/download.log" apt-get download -q "$spec") ||
                die "cannot download $spec from $(archive_uri debian) (details: $PORTHOLE_CACHE/log/download.log)"
            file=$(find "$debs" -name "${name%%:*}_${version//:/%3a}_*.deb" -print -quit)
        fi
        dpkg-deb -x "$file" "$into" || die "cannot unpack $file; remove it and run qemu-scripts/setup.sh again"
    done
}
