# shellcheck shell=bash
# Batch runs: QEMU in the background, its console split into what the command printed and the rest.
# The exit status comes over the console on a line with a mark that only this run knows.

# new_mark: a line nobody else prints.
new_mark() { printf '@porthole-%s@\n' "$(od -A n -t x8 -N 16 /dev/urandom | tr -d ' \n')"; }

# read_console MARK LOG STATUS-FILE all|command: copies the console to LOG, shows all of it or what stands between
# the marks, and writes the command's status.
read_console() {
    local mark=$1 log=$2 status_file=$3 show=$4 line inside='' blank=0
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        printf '%s\n' "$line" >&9
        case "$line" in
            "$mark begin") inside=yes ;;
            "$mark end "*)
                inside=''
                printf '%s\n' "${line##* }" >"$status_file"
                ;;
            *)
                if [ "$show" = all ]; then
                    printf '%s\n' "$line"
                elif [ -n "$inside" ]; then
                    # The blank line before the end mark is ours, so blank lines wait for what follows.
                    if [ -z "$line" ]; then
                        blank=$((blank + 1))
                    else
                        while [ "$blank" -gt 0 ]; do
                            echo
                            blank=$((blank - 1))
                        done
                        printf '%s\n' "$line"
                    fi
                fi
                ;;
        esac
    done 9>"$log"
}

# run_batch MARK LOG all|command SECONDS QEMU-ARGUMENTS...: returns the command's status; 124 after a time-out, 125 if
# the machine ended without one.
run_batch() {
    local mark=$1 log=$2 show=$3 seconds=$4 status_file="$2.status" status pid reader
    shift 4
    rm -f "$status_file"
    local fifo="$log.fifo"
    rm -f "$fifo"
    mkfifo "$fifo"
    read_console "$mark" "$log" "$status_file" "$show" <"$fifo" &
    reader=$!
    timeout --foreground "$seconds" qemu-system-aarch64 "$@" </dev/null >"$fifo" 2>"$log.qemu" &
    pid=$!
    # shellcheck disable=SC2064 # the id of this run, now
    trap "kill $pid 2>/dev/null || true" EXIT
    trap 'exit 130' INT TERM
    status=0
    wait "$pid" || status=$?
    wait "$reader" || true
    rm -f "$fifo"
    trap - EXIT INT TERM
    if [ -s "$status_file" ]; then
        return "$(cat "$status_file")"
    fi
    if [ "$status" -eq 124 ]; then
        printf '%s: no end after %s seconds; console in %s\n' "${0##*/}" "$seconds" "$log" >&2
        return 124
    fi
    cat "$log.qemu" >&2
    printf '%s: the machine stopped before the command ended; console in %s\n' "${0##*/}" "$log" >&2
    return 125
}
