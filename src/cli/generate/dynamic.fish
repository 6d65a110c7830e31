
# What changes while you work: process ids with their names, hosts of ssh, codes of blockers.

function __fish_migrate_targets
    for dir in /proc/[0-9]*
        # Threads of the kernel have no command line.
        test -n "$(head -c 1 $dir/cmdline 2>/dev/null | tr -d '\0')"; or continue
        printf '%s\t%s\n' (string replace /proc/ '' $dir) (cat $dir/comm 2>/dev/null)
    end
    printf '%s\t%s\n' pidfile: 'process id in a file' unit: 'systemd unit' cgroup: 'every process of a cgroup'
end

function __fish_migrate_dests
    __fish_print_hostnames
    printf '%s\t%s\n' local 'this host' tcp:// 'agent over TLS' unix: 'socket of an agent'
end

function __fish_migrate_codes
    printf '%s\t%s\n' @CODES@
end

