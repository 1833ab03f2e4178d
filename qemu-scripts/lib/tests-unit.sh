# shellcheck shell=bash
# The unit tier: cargo tests on the build machine, and the checks of the source itself.
# Everything here works without QEMU.

# Packages that build and test on the build machine; every other one of the workspace is for bare-metal arm64.
HOST_PACKAGES=(porthole-abi porthole-core porthole-bounce porthole-uapi porthole-vmm porthole-fuzz porthole-liar)
# Those of the bare-metal ones whose tests run on the build machine all the same.
TESTED_PACKAGES=("${HOST_PACKAGES[@]}" porthole-dev porthole-mem)

# Folders whose Rust may say `unsafe`: those that own hardware, raw memory or an entry point.
UNSAFE_ALLOWED='^(hyp/(arch|mem|dev|src|tests)/|guest/(payload|runtime)/|guest/bounce/src/raw\.rs|host-shim/uapi/src/ioctl\.rs)'

# packages NAME...: the -p arguments for cargo.
packages() { printf -- '-p\n%s\n' "$@"; }

# bare_packages: the -p arguments for the rest of the workspace.
bare_packages() {
    local name
    while IFS= read -r name; do
        [[ " ${HOST_PACKAGES[*]} " == *" $name "* ]] || packages "$name"
    done < <(cargo metadata --no-deps --format-version 1 | grep -o '"name":"[a-z0-9-]*","version"' | cut -d'"' -f4)
}

# cargo_tests: runs every cargo test and prefixes the names with the crate they belong to.
cargo_tests() {
    local log="$TEST_LOGS/cargo-test.log" status=0 line crate='' failed=''
    local -a args
    mapfile -t args < <(packages "${TESTED_PACKAGES[@]}")
    cargo test --no-fail-fast "${args[@]}" >"$log" 2>&1 </dev/null || status=$?
    while IFS= read -r line; do
        case "$line" in
            *Running*'('*deps/*')')
                crate=${line##*deps/}
                crate=${crate%-*}
                ;;
            *'Doc-tests '*) crate="${line##*Doc-tests }::doc" ;;
            'test '*' ... ok' | 'test '*' ... ignored'*) printf 'test %s::%s\n' "$crate" "${line#test }" ;;
            'test '*' ... FAILED'*)
                printf 'test %s::%s, see %s\n' "$crate" "${line#test }" "$log"
                failed=yes
                ;;
        esac
    done <"$log" >"$log.result"
    if [ "$status" -ne 0 ] && [ -z "$failed" ]; then
        fail cargo_test "status $status, see $log" >>"$log.result"
    fi
    tally "$log.result"
}

# One package at a time, as they are built: together they would share the features of their dependencies, and the
# guests' heap would make the hypervisor want an allocator.
clippy_bare() {
    local package
    while IFS= read -r package; do
        [ "$package" = -p ] || cargo_bare clippy -p "$package" -- -D warnings || return
    done < <(bare_packages)
}

docs() {
    local -a host bare
    mapfile -t host < <(packages "${HOST_PACKAGES[@]}")
    mapfile -t bare < <(bare_packages)
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items "${host[@]}"
    RUSTDOCFLAGS='-D warnings' cargo_bare doc --no-deps --document-private-items "${bare[@]}"
}

# unsafe_stays_home: the word as code, outside comments, only where it is allowed.
unsafe_stays_home() {
    local found
    found=$(git ls-files -co --exclude-standard '*.rs' |
        { grep -Ev "$UNSAFE_ALLOWED" || true; } |
        xargs -r grep -HnE '(^|[^_[:alnum:]"])unsafe([^_[:alnum:]"]|$)' |
        grep -Ev '^[^:]+:[0-9]+:[[:space:]]*//' || true)
    printf '%s\n' "$found"
    [ -z "$found" ]
}

# unsafe_is_forbidden: each crate root outside those folders says so itself.
unsafe_is_forbidden() {
    local file bad=0
    while IFS= read -r file; do
        [[ "$file" =~ $UNSAFE_ALLOWED ]] && continue
        grep -qE '#!\[(forbid|deny)\(unsafe_code\)\]' "$PORTHOLE_ROOT/$file" || {
            echo "$file does not forbid unsafe_code"
            bad=1
        }
    done < <(cd "$PORTHOLE_ROOT" && git ls-files -co --exclude-standard '*/src/lib.rs' '*/src/main.rs')
    return "$bad"
}

# files_are_short: none that two jobs may have grown into.
files_are_short() {
    local long
    long=$(git ls-files -co --exclude-standard '*.rs' '*.[chS]' '*.sh' | xargs -r wc -l |
        awk '$1 > 500 && $2 != "total" { print $2 " has " $1 " lines, of 500 at most: split it" }')
    printf '%s\n' "$long"
    [ -z "$long" ]
}

scripts_are_clean() {
    shellcheck -x -P . .ci/run qemu-scripts/*.sh qemu-scripts/lib/*.sh qemu-scripts/system-tests/*.sh
    shellcheck -s dash -e SC1091 qemu-scripts/initramfs/{init,porthole-demo,guestlib.sh} \
        guest/linux/initramfs/{init,guestlib.sh,demo,lies}
}

driver_builds_without_warnings() {
    PORTHOLE_KBUILD_W=1 build_driver
    ! grep -E 'warning:|WARNING:' "$PORTHOLE_OUT/kbuild/driver.log"
}

tier_unit() {
    say "unit: cargo tests of ${TESTED_PACKAGES[*]}"
    cargo_tests
    say "unit: checks of the source"
    local -a host
    mapfile -t host < <(packages "${HOST_PACKAGES[@]}")
    check formatted cargo fmt --all --check
    check clippy_build_machine cargo clippy --all-targets "${host[@]}" -- -D warnings
    check clippy_bare_metal clippy_bare
    check clippy_arm64_linux cargo_linux clippy -p porthole-vmm -- -D warnings
    check docs_build_without_warnings docs
    check unsafe_stays_in_its_crates unsafe_stays_home
    check unsafe_is_forbidden_elsewhere unsafe_is_forbidden
    check files_have_500_lines_at_most files_are_short
    check scripts_pass_shellcheck scripts_are_clean
    check driver_builds_without_warnings driver_builds_without_warnings
}
