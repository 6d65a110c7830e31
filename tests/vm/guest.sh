# Runs in both virtual machines at once (ROLE a or b on the kernel's command line); each result is a line
#   RESULT WHAT VERDICT      with VERDICT = ok, refused (rightly, by name) or FAILED
# What the machines have for each other they put into /share, where the other fetches it.
ROLE=$(sed 's/.*role=\(.\).*/\1/' /proc/cmdline)
case $ROLE in
a) me=10.9.8.1 peer=10.9.8.2 ;;
b) me=10.9.8.2 peer=10.9.8.1 ;;
esac
# A file system without direct I/O under every kernel: tmpfs got it in Linux 6.6.
mkdir /work/plain
mount -t ramfs plain /work/plain
ip addr add $me/24 dev eth0
ip link set eth0 up
httpd -p $me:8080 -h /share
export PATH=/work:$PATH HOME=/ RUST_BACKTRACE=1
log=/work/log

result() {
    echo "RESULT $*"
}

# Runs a command; what it says is shown where it fails.
try() {
    timeout 240 "$@" >$log 2>&1 </dev/null
    code=$?
    [ $code = 0 ] && return 0
    echo "exit $code: $*"
    sed 's/^/  | /' $log | tail -n 25
    return $code
}

# Waits for a file, for so many seconds.
appears() {
    n=0
    while [ ! -s "$1" ]; do
        n=$((n + 1))
        [ $n -gt $(($2 * 5)) ] && return 1
        sleep 0.2
    done
}

offer() {
    mv "$1" "/share/.$2"
    mv "/share/.$2" "/share/$2"
}

# Gets what the other machine offers, into the current directory; it may take its time.
fetch() {
    n=0
    until wget -q -O "$1" "http://$peer:8080/$1" 2>/dev/null; do
        n=$((n + 1))
        [ $n -gt 600 ] && return 1
        sleep 0.5
    done
}

# Starts the fixture for memory under the name of a case.
start_torture() {
    rm -f "/work/$1.verdict" "/work/$1.ready"
    torture "$2" /work/plain/blocks "/work/$1.verdict" >"/work/$1.ready" 2>/dev/null </dev/null &
    pid=$!
    appears "/work/$1.ready" 30
}

# Has it go on for a moment, compare, and say so.
torture_is_right() {
    sleep 1
    # Its children come and go: one that is gone by now does not matter.
    # shellcheck disable=SC2046
    kill -USR2 $(pidof torture) 2>/dev/null
    appears "/work/$1.verdict" 120 || return 1
    [ "$(cat "/work/$1.verdict")" = 0 ]
}

# pre-dump three times, dump, restore.
chain() {
    track=$1
    start_torture chain 3 || return 1
    rm -rf /work/images
    mkdir /work/images
    parent=
    for n in 0 1 2; do
        # shellcheck disable=SC2086
        try migrate pre-dump $pid -D /work/images/$n $parent --track $track || { kill -9 $pid; return 1; }
        parent="--parent /work/images/$n"
        sleep 0.3
    done
    # shellcheck disable=SC2086
    try migrate dump $pid -D /work/images/3 $parent --track $track || { kill -9 $pid; return 1; }
    wait $pid
    [ -e /proc/$pid ] && return 1
    try migrate restore -D /work/images/3 --detach || return 1
    torture_is_right chain
}

# A fixture of the zoo: `ready` and `result` are files of its directory.
start_zoo() {
    rm -rf "/work/$1"
    mkdir "/work/$1"
    ZOO=/work/$1 processor "/work/$1" "$1" >/dev/null 2>&1 </dev/null &
    pid=$!
    n=0
    until [ -e "/work/$1/ready" ]; do
        n=$((n + 1))
        [ $n -gt 150 ] && return 1
        sleep 0.2
    done
}

zoo_is_right() {
    mkdir -p "/work/$1"
    : >"/work/$1/go"
    appears "/work/$1/result" 120
    cat "/work/$1/failures" 2>/dev/null
    [ ! -e "/work/$1/failures" ] && [ "$(cat "/work/$1/result")" = EXIT-SUCCESS ]
}

start() {
    case $1 in
    torture) start_torture away 5 ;;
    *) start_zoo "$1" ;;
    esac
}

is_right() {
    case $1 in
    torture) torture_is_right away ;;
    *) zoo_is_right "$1" ;;
    esac
}

# Saves what runs here under a name for the other machine, which need not wait for what has failed.
pack() {
    rm -rf /work/image
    if try migrate dump "$pid" -D /work/image; then
        tar cf /work/image.tar image && offer /work/image.tar "$1"
    else
        nothing "$1"
    fi
}

nothing() {
    echo nothing >/work/nothing
    offer /work/nothing "$1"
    return 1
}

unpack() {
    rm -rf /work/image
    fetch "$1" && tar xf "$1" && rm "$1" && try migrate restore -D /work/image --detach --files skip --pidfile /work/pid &&
        pid=$(cat /work/pid)
}

verdict() {
    if [ "$1" = 0 ]; then echo ok; else echo FAILED; fi
}

# The fixture runs on from where the other machine saved it (under its kernel), and from where this one saved it after that.
exchange() {
    what=$1
    if start "$what"; then pack "image-$what"; else nothing "image-$what"; fi
    result "image-saved:$what $(verdict $?)"
    unpack "image-$what"
    code=$?
    sleep 1
    if [ $code = 0 ]; then pack "image-back-$what"; else nothing "image-back-$what"; fi
    result "image-of-other-kernel:$what $(verdict $?)"
    unpack "image-back-$what" && is_right "$what"
    result "image-back-again:$what $(verdict $?)"
}

# What runs here goes to the other machine.
move() {
    migrate move "$pid" "$1" --files skip >$log 2>&1 </dev/null
    code=$?
    [ $code = 0 ] || sed 's/^/  | /' $log | tail -n 25
    return $code
}

barrier() {
    echo "$1" >/work/flag
    offer /work/flag "$1"
    fetch "$1" && rm -f "$1"
}

echo "VM-BEGIN $(uname -r) role $ROLE"
if try migrate check; then result check ok; else result check FAILED; fi
sed 's/^/check: /' $log
if grep -q pagemap_scan /proc/kallsyms; then has_wp=1; else has_wp=0; fi
for track in auto soft-dirty soft-dirty-pagemap hash wp; do
    if [ $track = wp ] && [ $has_wp = 0 ]; then
        start_torture chain 3
        migrate pre-dump "$pid" -D /work/refused --track wp >$log 2>&1
        if [ $? = 3 ] && grep -q M0707 $log; then result track:wp refused; else result track:wp FAILED; fi
        kill -9 "$pid"
        continue
    fi
    chain $track
    result "track:$track $(verdict $?)"
done
for what in vdso in_vdso torture; do
    exchange $what
done
try migrate keygen
fingerprint=$(grep -o 'SHA256:[^ ]*' $log | head -1)
echo "$fingerprint there" >/work/peer
offer /work/peer peer
fetch peer
mv peer /etc/migrate/peers
setsid migrate agent --listen "tcp://$me:7413" >/work/agent.log 2>&1 </dev/null &
sleep 3
barrier agents
for what in in_vdso torture; do
    for turn in a b; do
        if [ $turn = $ROLE ]; then
            start $what
            result "move-prepared:$what $(verdict $?)"
            echo begun >/work/flag
            offer /work/flag "begun-$what-$turn"
            move "tcp://$peer:7413"
            code=$?
            echo $code >/work/flag
            offer /work/flag "moved-$what-$turn"
            result "moved-away:$what $(verdict $code)"
            [ $code = 0 ] || kill -9 "$pid" 2>/dev/null
        else
            rm -f /work/away.verdict
            [ $what = torture ] || { rm -rf "/work/$what"; mkdir "/work/$what"; }
            fetch "begun-$what-$turn"
            fetch "moved-$what-$turn"
            [ "$(cat "moved-$what-$turn")" = 0 ] && is_right $what
            result "moved-here:$what $(verdict $?)"
        fi
        barrier "done-$what-$turn"
    done
done
sed 's/^/agent: /' /work/agent.log
barrier end
# The other machine may still be about to fetch its part of the barrier.
sleep 10
