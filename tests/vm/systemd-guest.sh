# Runs in both virtual machines (ROLE a or b on the kernel's command line) as a service of systemd; each result is a line
#   RESULT WHAT VERDICT      with VERDICT = ok or FAILED
ROLE=$(sed 's/.*role=\(.\).*/\1/' /proc/cmdline)
case $ROLE in
a) me=10.9.8.1 peer=10.9.8.2 ;;
b) me=10.9.8.2 peer=10.9.8.1 ;;
esac
export PATH=/work:$PATH HOME=/root
log=/work/log
interface=$(ls /sys/class/net | grep -v lo | head -1)
ip addr add $me/24 dev "$interface"
ip link set "$interface" up
ip link set lo up

result() {
    echo "RESULT $*"
}

is() { # WHAT COMMAND...
    what=$1
    shift
    if "$@" >$log 2>&1; then
        result "$what ok"
    else
        result "$what FAILED"
        echo "exit: $*"
        sed 's/^/  | /' $log | tail -n 30
    fi
}

# What one machine has for the other, a file at a time over a port of its own; bash has no listener, so perl has one.
offer() { # NAME: standard input, until it was fetched
    perl -MIO::Socket::INET -e '
        my $body = join "", <STDIN>;
        my $port = 9000 + unpack("%8C*", $ARGV[0]);
        my $s = IO::Socket::INET->new(LocalAddr => $ARGV[1], LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "$!";
        my $c = $s->accept; print $c $body; close $c' "$1" $me
}

fetch() { # NAME: to standard output
    perl -MIO::Socket::INET -e '
        my $port = 9000 + unpack("%8C*", $ARGV[0]);
        for (1 .. 3000) {
            my $c = IO::Socket::INET->new(PeerAddr => $ARGV[1], PeerPort => $port);
            if ($c) { print while <$c>; exit 0 }
            select undef, undef, undef, 0.2;
        }
        exit 1' "$1" $peer
}

copies() { # How many redis servers run here that are alive.
    pgrep -c -x redis-server || true
}

echo "VM-BEGIN $(uname -r) role $ROLE, $(systemctl --version | head -1)"
migrate keygen >$log 2>&1
fingerprint=$(grep -o 'SHA256:[^ ]*' $log | head -1)
if [ $ROLE = a ]; then
    echo "$fingerprint there" | offer key-a
    fetch key-b >/etc/migrate/peers
    is started systemctl start redis-server.service
    sleep 2
    redis-cli eval 'for n = 1, 20000 do redis.call("set", "key" .. n, n) end' 0 >/dev/null
    redis-cli set moved yes >/dev/null
    systemctl show redis-server.service --property=MainPID,Restart,ActiveState | sed 's/^/before: /'
    is restarts-by-itself sh -c 'systemctl show redis-server.service --property=Restart | grep -q always'
    fetch agent-b >/dev/null
    is refused-without-hold sh -c "! migrate move \$(systemctl show redis-server.service --property=MainPID --value) tcp://$peer:7413 --supervisor refuse --dry-run >/work/refused 2>&1 && grep -q M1101 /work/refused"
    sed 's/^/refused: /' /work/refused
    is moved migrate move unit:redis-server.service tcp://$peer:7413
    sed 's/^/move: /' $log
    echo moved | offer moved
    sleep 60
    systemctl show redis-server.service --property=MainPID,Restart,ActiveState,NRestarts | sed 's/^/after: /'
    is no-copy-here-a-minute-later [ "$(copies)" = 0 ]
    is nothing-held-any-more sh -c '! ls /run/systemd/system/redis-server.service.d/50-migrate-* 2>/dev/null'
    fetch end >/dev/null
else
    fetch key-a >/etc/migrate/peers
    echo "$fingerprint here" | offer key-b
    systemd-run --unit=migrate-agent /work/migrate agent --listen "tcp://$me:7413" >/dev/null 2>&1
    sleep 3
    echo listens | offer agent-b
    fetch moved >/dev/null
    is answers sh -c '[ "$(redis-cli get moved)" = yes ]'
    is has-its-keys sh -c '[ "$(redis-cli dbsize)" = 20001 ]'
    pid=$(pgrep -x redis-server | head -1)
    sed 's/^/cgroup: /' "/proc/$pid/cgroup"
    is lives-in-a-scope-of-its-own grep -q '/migrate-.*\.scope$' "/proc/$pid/cgroup"
    is the-scope-is-active sh -c 'systemctl list-units --type=scope --no-legend | grep -q "migrate-.*running"'
    is nothing-left-of-the-first-place sh -c '! ls -d /sys/fs/cgroup/migrate/*/ 2>/dev/null | grep -v /sessions/'
    systemctl stop migrate-agent.service
    sleep 65
    is one-copy-a-minute-later [ "$(copies)" = 1 ]
    is goes-on-without-the-agent sh -c '[ "$(redis-cli dbsize)" = 20001 ]'
    journalctl -u migrate-agent --no-pager | tail -n 20 | sed 's/^/agent: /'
    echo end | offer end
fi
echo "VM-END $(uname -r)"
sync
sleep 2
systemctl poweroff --force --force
