# shellcheck shell=bash
# Ground of all scripts: where the tree and the cache are, and how we talk to the user.
# Sourced, never run. Nothing here installs, builds or boots anything.

PORTHOLE_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
PORTHOLE_CACHE="${PORTHOLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/porthole}"
PORTHOLE_TARGET="${CARGO_TARGET_DIR:-$PORTHOLE_ROOT/target}"
PORTHOLE_OUT="$PORTHOLE_TARGET/porthole"
export PORTHOLE_ROOT PORTHOLE_CACHE PORTHOLE_TARGET PORTHOLE_OUT

# say TEXT: one line of progress, on stderr so that it never mixes with output that is read.
say() { printf '==> %s\n' "$*" >&2; }

# die TEXT [STATUS]: the one line that says what is wrong and how to mend it.
die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit "${2:-1}"
}

have() { command -v "$1" >/dev/null 2>&1; }

# quietly LOG COMMAND...: runs the command with its output in LOG, nowhere else; the caller's `die` names the log.
quietly() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    "$@" >"$log" 2>&1
}

# publish TEMP FINAL: moves a finished directory into place; a second runner that lost the race is fine.
publish() {
    mkdir -p "$(dirname "$2")"
    rm -rf "$2"
    mv -T "$1" "$2"
}
