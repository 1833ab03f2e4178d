# shellcheck shell=bash
# Results of tests: one line each on standard output, counted for the last line, and jobs that run side by side.
# A line is `test NAME ... ok` or `test NAME ... FAILED: why`; anything else a job prints goes to its log.

PASSED=0 FAILED=0 STRICT_STATUS=0
TEST_LOGS="$PORTHOLE_TARGET/test-logs"
JOB_PIDS=() JOB_NAMES=()
# The build machines have two cores.
JOBS_AT_ONCE=2

pass() { printf 'test %s ... ok\n' "$1"; }
fail() { printf 'test %s ... FAILED%s\n' "$1" "${2:+: $2}"; }

# tally FILE: prints the result lines of a file and counts them.
tally() {
    local line
    while IFS= read -r line; do
        case "$line" in
            'test '*' ... ok') PASSED=$((PASSED + 1)) ;;
            'test '*' ... FAILED'*) FAILED=$((FAILED + 1)) ;;
            'test '*' ... ignored'*) ;;
            *) continue ;;
        esac
        printf '%s\n' "$line"
    done <"$1"
}

# strictly COMMAND...: in a shell of its own that ends at the first failure; leaves its status in STRICT_STATUS. It stands alone:
# in a condition or before `||` bash forgets `set -e`, in shells that are started from there too.
strictly() {
    set +e
    (set -euo pipefail; "$@")
    STRICT_STATUS=$?
    set -e
}

# first_failure_ends: whether it does what all tests rely on.
first_failure_ends() {
    # shellcheck disable=SC2317 # reached through strictly
    fails_and_goes_on() {
        false
        true
    }
    strictly fails_and_goes_on
    [ "$STRICT_STATUS" -ne 0 ]
}

# check NAME COMMAND...: one test that is one command; its output is the log.
check() {
    local name=$1 log="$TEST_LOGS/$1.log"
    shift
    strictly "$@" >"$log" 2>&1 </dev/null
    if [ "$STRICT_STATUS" -eq 0 ]; then
        pass "$name"
    else
        fail "$name" "status $STRICT_STATUS, see $log"
    fi >"$log.result"
    tally "$log.result"
}

# start_job NAME COMMAND...: runs COMMAND in the background, at most JOBS_AT_ONCE at a time. The command's standard
# output is its result lines.
start_job() {
    local name=$1
    shift
    while [ "${#JOB_PIDS[@]}" -ge "$JOBS_AT_ONCE" ]; do
        finish_job
    done
    (set -euo pipefail; "$@") >"$TEST_LOGS/$name.result" 2>"$TEST_LOGS/$name.log" </dev/null &
    JOB_PIDS+=("$!") JOB_NAMES+=("$name")
}

# finish_job: waits for whichever job ends first and reports it.
finish_job() {
    local done_pid='' i status=0
    local -a pids=() names=()
    wait -n -p done_pid "${JOB_PIDS[@]}" || status=$?
    for i in "${!JOB_PIDS[@]}"; do
        if [ "${JOB_PIDS[i]}" = "$done_pid" ]; then
            if [ "$status" -ne 0 ]; then
                fail "${JOB_NAMES[i]}" "ended with status $status, see $TEST_LOGS/${JOB_NAMES[i]}.log" \
                    >>"$TEST_LOGS/${JOB_NAMES[i]}.result"
            fi
            tally "$TEST_LOGS/${JOB_NAMES[i]}.result"
        else
            pids+=("${JOB_PIDS[i]}") names+=("${JOB_NAMES[i]}")
        fi
    done
    JOB_PIDS=("${pids[@]}") JOB_NAMES=("${names[@]}")
}

finish_jobs() {
    while [ "${#JOB_PIDS[@]}" -gt 0 ]; do
        finish_job
    done
}

# stop_jobs: what an interrupted run leaves to us.
stop_jobs() {
    [ "${#JOB_PIDS[@]}" -eq 0 ] || kill "${JOB_PIDS[@]}" 2>/dev/null || true
}
