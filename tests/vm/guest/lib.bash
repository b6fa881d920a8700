# What the guest's own tests have in common. Each is a function whose name begins with test_; it fails by `fail WHY` or by
# any command that fails. It works in a directory of its own, $dir, with a lock of its own, $PERFLOCK_LOCK.
# shellcheck shell=bash

alice=$(id -u alice)
patience=${PERFLOCK_TEST_PATIENCE:-1}
mapfile -t filter < <(grep . /payload/filter)

fail() {
    printf '%s\n' "$*" >"$dir/why"
    exit 1
}

# A pause that needs no process: what tests measure meanwhile is not to be measured with them.
exec {never}<> <(:)
pause() { read -rt "$1" -u "$never" || true; }

# Waits until a shell command succeeds: soon "what is waited for" COMMAND...
soon() {
    local what=$1 end=$((SECONDS + 15 * patience))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "did not come true: $what"
        pause 0.1
    done
}

# Logs a user in and runs a shell script in the session, in $dir; `out`, `err` and, at its end, `status` have what became of it.
# With words before the script, these are properties of the unit: login alice Delegate=yes 'perflock true'.
login() {
    local user=$1 properties=() script
    shift
    while (($# > 1)); do properties+=(-p "$1"); shift; done
    rm -f "$dir/status"
    # A file of its own: it is read when the session is there, which nobody waits for.
    script=$(mktemp "$dir/script.XXXXXX")
    chmod 644 "$script"
    printf '%s\n' "$1" >"$script"
    systemd-run --quiet --collect -p PAMName=login "${properties[@]}" -p User="$user" -p WorkingDirectory="$dir" \
        -p StandardOutput="append:$dir/out" -p StandardError="append:$dir/err" -E PERFLOCK_LOCK -E TERM=linux \
        /payload/guest/run-script "$script"
}

# Waits until the script of `login` came to its end with this status.
ends() {
    soon "the session's script ends" test -s "$dir/status"
    [[ $(cat "$dir/status") == "$1" ]] || fail "ended with $(cat "$dir/status") instead of $1"
}

# The user manager's systemctl.
alices() {
    setpriv --reuid alice --regid alice --init-groups env XDG_RUNTIME_DIR="/run/user/$alice" systemctl --user "$@"
}

# A job that writes its pids to `pids` (its own, and one that shuns every signal and session), then waits for the file `go`
# and ends with 7.
# shellcheck disable=SC2034 # Tests use it.
job='sh -c "trap : HUP TERM; setsid sh -c \"trap : HUP TERM INT; while :; do sleep 0.5; done\" & echo \$\$ \$! >pids.new; mv pids.new pids; until [ -e go ]; do sleep 0.2; done; exit 7"'

started() { soon 'the job runs' test -s "$dir/pids"; }
pids() { cat "$dir/pids"; }
alive() { [[ -d /proc/$1 && $(awk '/^State/ { print $2 }' "/proc/$1/status" 2>/dev/null) != [ZX] ]]; }
all_alive() { local pid; for pid in $(pids); do alive "$pid" || return 1; done; }
none_alive() { local pid; for pid in $(pids); do ! alive "$pid" || return 1; done; }
lock_is_free() { flock --nonblock "$PERFLOCK_LOCK" true; }
queue_is_empty() { [[ -z $(ls -A "$PERFLOCK_LOCK.d") ]]; }
no_scope() { ! compgen -G "/sys/fs/cgroup/*.slice/perflock-*.scope" && [[ -z $(find /sys/fs/cgroup -name 'perflock-*.scope' | head -n 1) ]]; }
# A process of the job's by its name: the only one in the machine, as tests run one after the other.
process() { pgrep -x "$1" | head -n 1; }
guard() { pgrep -x perflock-guard; }
supervisor() { pgrep -xo "${1:-perflock}"; }

# The job and what belongs to it is there, and the lock is held.
goes_on() {
    all_alive || fail 'a process of the job is gone'
    ! lock_is_free || fail 'the lock is free though the job lives'
}

# Nothing of a job is left. The lock must not be free before: `watch` says so.
gone() {
    soon 'the job is gone' none_alive
    soon 'the lock is free' lock_is_free
    soon 'the queue is empty' queue_is_empty
    soon 'systemd collected the scope' no_scope
}

# Waits until the lock is free and says whether a process of the job was alive at that very moment.
watch() {
    # shellcheck disable=SC2046 # Pids are words.
    /payload/guest/watch "$((30 * patience))" "$PERFLOCK_LOCK" $(pids) >"$dir/watched" 2>&1 &
    watcher=$!
}

watched() {
    wait "$watcher" || fail "$(cat "$dir/watched")"
}

says() { grep -qF -- "$2" "$dir/$1" || fail "$1 does not say: $2"; }
silent() { [[ ! -s $dir/err ]] || fail 'something was said'; }

# What a file's tests need before each of them: files that need something say so.
before_each() { :; }

# Runs every test of this file that the filter names, with a row for each: tests_of USER.
tests_of() {
    local user=$1 name tests=() word start number=0
    for name in $(compgen -A function test_); do
        name=$user::${name#test_}
        for word in "${filter[@]}"; do
            [[ $name != *"$word"* ]] || break
            word=
        done
        [[ ${word-all} ]] && tests+=("${name#*::}") && echo "EXPECT $user $name"
    done
    for name in "${tests[@]}"; do
        start=$EPOCHSECONDS
        number=$((number + 1))
        dir=$(mktemp -d /tmp/vm.XXXXXX)
        chmod 755 "$dir"
        chown alice: "$dir"
        export PERFLOCK_LOCK=$dir/lock
        install -m 0666 /dev/null "$PERFLOCK_LOCK"
        install -d -m 1777 "$PERFLOCK_LOCK.d"
        if (set -eE; trap 'echo "line $LINENO: $BASH_COMMAND" >>"$dir/trace"' ERR; before_each; "test_$name") >"$dir/log" 2>&1; then
            grep '^numbers:' "$dir/log"
            echo "ROW $user $user::$name ok"
        else
            echo "ROW $user $user::$name FAILED"
            echo "---- $user::$name: $(cat "$dir/why" 2>/dev/null)"
            tail -n 20 "$dir"/{trace,log,out,err,status,watched} 2>/dev/null
            find /sys/fs/cgroup -name '*perflock*' -type d -printf 'left: %p\n'
            systemctl --failed --no-legend | head -n 5
            # The next test finds nobody here.
            loginctl terminate-user alice bob 2>/dev/null
            pkill -KILL -f '^(perflock|pls|wholock|sleep)' ; sleep 1
        fi
        echo "$user::$name: $((EPOCHSECONDS - start)) s"
    done
}
