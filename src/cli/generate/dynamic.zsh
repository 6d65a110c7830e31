
# What changes while you work: process ids with their names, hosts of ssh, codes of blockers.

(( $+functions[_migrate_targets] )) ||
_migrate_targets() {
    local -a pids
    local dir name
    for dir in /proc/[0-9]*(N); do
        # Threads of the kernel have no command line.
        [[ -n "$(head -c 1 $dir/cmdline 2>/dev/null | tr -d '\0')" ]] || continue
        name="$(<$dir/comm)" 2>/dev/null || continue
        pids+=("${dir#/proc/}:$name")
    done
    _describe -t processes 'process' pids
    compadd -S '' pidfile: unit: cgroup:
}

(( $+functions[_migrate_dests] )) ||
_migrate_dests() {
    _hosts
    compadd local
    compadd -S '' tcp:// unix:
}

(( $+functions[_migrate_codes] )) ||
_migrate_codes() {
    local -a codes
    codes=(
@CODES@
    )
    _describe -t codes 'code' codes
}

