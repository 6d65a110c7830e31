
# What changes while you work: process ids with their names, hosts of ssh, codes of blockers.

_migrate_pids() {
    # Names are shown in a list only: completing inserts the number alone.
    local pid name names=
    case "${COMP_TYPE:-9}" in 33|63|64) names=1 ;; esac
    for pid in /proc/[0-9]*; do
        # Threads of the kernel have no command line.
        { IFS= read -r -n 1 name <"$pid/cmdline" && IFS= read -r name <"$pid/comm"; } 2>/dev/null || continue
        printf '%s%s\n' "${pid#/proc/}" "${names:+  ($name)}"
    done
}

_migrate_hosts() {
    local key rest host
    [[ -r $HOME/.ssh/config ]] && while read -r key rest; do
        [[ ${key,,} == host ]] || continue
        for host in $rest; do
            [[ $host == *[*?!]* ]] || printf '%s\n' "$host"
        done
    done <"$HOME/.ssh/config"
    [[ -r $HOME/.ssh/known_hosts ]] && while read -r key rest; do
        [[ $key == @* ]] && key=${rest%% *}
        [[ $key == '|'* || $key == '#'* ]] && continue
        for host in ${key//,/ }; do
            [[ $host == *[*?!]* || $host == '['* ]] || printf '%s\n' "$host"
        done
    done <"$HOME/.ssh/known_hosts"
    printf '%s\n' local tcp:// unix:
}

_migrate_dynamic() {
    _migrate "$@"
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= at positional=0 word kind candidates
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        case "$word" in
            @VALUE_OPTIONS@) ((at++)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=$word; else ((positional++)); fi ;;
        esac
    done
    [[ -n $verb && $cur != -* ]] || return 0
    case "$prev" in
        --to) kind=host ;;
        @VALUE_OPTIONS@) return 0 ;;
        *)
            case "$verb:$positional" in
                @POSITIONALS@
                *) return 0 ;;
            esac
            ;;
    esac
    case "$kind" in
        target) candidates=$(_migrate_pids; printf '%s\n' pidfile: unit: cgroup:) ;;
        host) candidates=$(_migrate_hosts) ;;
        code) candidates='@CODES@' ;;
    esac
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$candidates" -- "$cur"))
}

complete -F _migrate_dynamic -o bashdefault -o default migrate
