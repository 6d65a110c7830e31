# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_migrate_global_optspecs
    string join \n v q json log= config= progress= color= h/help V/version
end

function __fish_migrate_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_migrate_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_migrate_using_subcommand
    set -l cmd (__fish_migrate_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c migrate -n "__fish_migrate_needs_command" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_needs_command" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_needs_command" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_needs_command" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_needs_command" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_needs_command" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_needs_command" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_needs_command" -s V -l version -d 'Print version'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "check" -d 'Say what this host can do, and what stands in the way of a target'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "list" -d 'List process trees that could be moved'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "status" -d 'Show moves of this host, and who owns the target'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "show" -d 'Show what is in an image'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "verify" -d 'Check an image from end to end without starting anything'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "explain" -d 'Explain what stands in the way: object, why, remedy, kernel versions'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "agent" -d 'Receive process trees from other hosts'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "keygen" -d 'Make the key with which this host or user shows who it is'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "dump" -d 'Save a process tree to an image'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "pre-dump" -d 'Save the memory of a process tree ahead of a dump'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "restore" -d 'Start a process tree from an image'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "demo" -d 'Show a live move between two hosts made of namespaces'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "move" -d 'Move a running process tree to another host'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "clone" -d 'Start a copy of a running process tree on every destination'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "warm" -d 'Keep a running process tree up to date on other hosts, for a move that takes a moment'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "switch" -d 'Move the target of a warm-up to a destination that is warm'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "cancel" -d 'End a warm-up, or the tracker that a pre-dump has left'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "promote" -d 'Start a target that was kept warm on this host, when its source is dead'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "evacuate" -d 'Move trees of this host to others, by a plan'
complete -c migrate -n "__fish_migrate_needs_command" -f -a "resolve" -d 'Decide what becomes of this host\'s copy of a target whose move is in doubt'
complete -c migrate -n "__fish_migrate_using_subcommand check" -l to -d 'Hosts to ask as well, as for `move`: separated by commas, or @GROUP' -r -f -a "(__fish_print_hostnames)"
complete -c migrate -n "__fish_migrate_using_subcommand check" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand check" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand check" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand check" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand check" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand check" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand check" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand check" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand check" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand check" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand check" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand check" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand check" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand list" -l to -d 'Hosts to ask, as for `move`: separated by commas, or @GROUP' -r -f -a "(__fish_print_hostnames)"
complete -c migrate -n "__fish_migrate_using_subcommand list" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand list" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand list" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand list" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand list" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand list" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand list" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand list" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand list" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand list" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand list" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand list" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand list" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand status" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand status" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand status" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand status" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand status" -l all -d 'Also those that have ended in the last 30 days'
complete -c migrate -n "__fish_migrate_using_subcommand status" -l watch -d 'Look again and again, and show what changes, until the session is over or this is interrupted'
complete -c migrate -n "__fish_migrate_using_subcommand status" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand status" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand status" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand show" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand show" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand show" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand show" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand show" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand show" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand show" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand verify" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand verify" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand verify" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand verify" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand verify" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand verify" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand verify" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l all -d 'Explain every code'
complete -c migrate -n "__fish_migrate_using_subcommand explain" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand explain" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand explain" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l listen -d 'Listen on unix:PATH (mode 0600) or tcp://[HOST]:PORT (TLS, both sides show a key); may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l peers -d 'Who may connect: lines like those that `migrate keygen` prints [default: peers beside the configuration]' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l max-memory -d 'Refuse targets with more memory than this [default: what is free]' -r
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l max-sessions -d 'Sessions at a time' -r
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l metrics -d 'Answer GET /metrics in the OpenMetrics format at [HOST:]PORT; loopback unless a host is named' -r
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l stdio -d 'Serve one session over standard input and output, as ssh does'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l allow-plain -d 'Allow tcp+plain beyond loopback: nothing is encrypted, and whoever connects can run anything here'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l refuse-then -d 'Move no program on from here to a further host, whoever asks for that (migrate move --then)'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand agent" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l name -d 'Name in the certificate and in the line [default: name of this host]' -r
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l force -d 'Replace the key that is there: peers know the old one'
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand keygen" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -s D -d 'Directory of the image; a dump makes it, with mode 0700' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l parent -d 'Add to this image: only pages that differ from it are written' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l stream -d 'The image is one self-checking stream: standard output of a dump, standard input of a restore'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l leave-running -d 'Let the target run on'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l leave-stopped -d 'Leave the target stopped, as by SIGSTOP'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l stop-first -d 'Stop the target before the first page is read: one copy, a longer pause'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l snapshot -d 'Save one instant behind the running target'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l dry-run -d 'Only say what stands in the way, if anything'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l force -d 'Replace an image that is already there'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -s D -d 'Directory of the image' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l parent -d 'Add to this image: only pages that differ from it are written' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l keep-tracking -d 'How long the tracker waits for the next dump' -r
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -s D -d 'Directory of the image; a dump makes it, with mode 0700' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l pidfile -d 'Write the process id of the tree\'s root to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l count -d 'Start so many copies, each in PID, network, UTS and mount namespaces of its own' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l on -d 'Restore on these hosts instead of here: [USER@]HOST (ssh), tcp://HOST[:PORT] (TLS), unix:PATH, local, or @GROUP' -r -f -a "(__fish_print_hostnames)"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l lease -d 'What a host of --on waits for this one when it hears nothing before it deletes what it was sent, or parks what is prepared' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l stream -d 'The image is one self-checking stream: standard output of a dump, standard input of a restore'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l detach -d 'Return as soon as the target runs'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l leave-stopped -d 'Leave the target stopped, as by SIGSTOP'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l lazy -d 'Run at once; memory comes when it is touched, and the rest behind'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l dry-run -d 'Only say whether it would run, here or on the hosts of --on'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l mode -d 'How the target moves' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
stop-and-copy\t'pause it, copy everything'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l kill -d 'Cut something off in the moment of handing over, and show that exactly one copy goes on' -r -f -a "source\t'migrate move is killed as COMMIT has left; its guardian settles it'
destination\t'the session is killed before it can say PREPARED; it stays'
link\t'the link is cut as COMMIT goes over it, and mended; the source asks'"
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l part -d 'One of the programs of the demo, run by the demo itself' -r -f -a "counter\t''
client\t''"
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l file -d 'Where that program writes its process id' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l keep -d 'Leave logs and images behind and say where'
complete -c migrate -n "__fish_migrate_using_subcommand demo" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand demo" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand demo" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand move" -l hook -d 'Run a command at a point of the move: POINT=COMMAND; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l report -d 'Write what happened to this file as a page for a browser: timeline, rounds, where the pause went' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand move" -l mode -d 'How the target moves' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
stop-and-copy\t'pause it, copy everything'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l max-downtime -d 'The pause to aim at: rounds go on until what is left fits in it' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l max-rounds -d 'Pause after this many rounds at the latest' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l max-time -d 'Pause when the rounds have taken this long' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l max-bytes -d 'Pause when the rounds have sent this much [default: unlimited]' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l exit-when -d 'Conditions that end the rounds: the first that holds' -r -f -a "downtime\t'what is left fits in --max-downtime at the rate seen'
downtime-net\t'the same with what is written meanwhile; never while that outruns the link'
all-sent\t'all state was sent once'
memory-sent\t'all pages were sent once'
not-converging\t'written as fast as sent in 3 rounds, and no step of --converge is left'
rounds\t'--max-rounds is reached'
time\t'--max-time is reached'
bytes\t'--max-bytes is reached'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l converge -d 'What is tried, in this order, for a target that writes as fast as it is sent' -r -f -a "defer\t'leave pages that are written again and again for later'
delta\t'send of pages that were sent before what has changed in them'
compress\t'pack pages harder'
throttle\t'give the target less processor time'
post-copy\t'pause, and what is left follows when the target runs'
anyway\t'pause all the same'
abort\t'leave it where it is, exit code 1'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l fence-cmd -d 'Command that switches the destination\'s host off, for a move in doubt whose destination is silent' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l recoverable -d 'In post-copy: a consistent state comes back every TIME until all memory is there, from which it can be resumed here' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l with -d 'A directory that goes along as a whole, such as a database\'s; may be given several times' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l base -d 'An image at the destination, such as an earlier one of the target: pages that it has are named, not sent' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand move" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l lease -d 'What the destination waits for this side when it hears nothing before it deletes what it has of the target' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l quorum -d 'The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75% [default: 1]' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l alternate -d 'Where to if none of the destinations takes the target' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l retries -d 'Try all of them again so often (not at all), after a second and then after longer pauses' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l retry-timeout -d 'Try nothing again after this time; without --retries as often as it allows' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l disjoint-paths -d 'When the paths to two destinations share a node: both ends are not counted' -r -f -a "refuse\t'nothing is moved'
drop\t'the later one is left out'
replace\t'an alternate takes its place, the first whose path shares nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l route -d 'The way to a destination: an interface of this host, or one of its addresses; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l via -d 'Send what is for the destinations once to this host, which passes it on; of several, each to the next' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l fanout-tree -d 'Destinations pass on what is for several of them, to so many each: this host sends it to the first K only, to the first alone with 1' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l then -d 'Where to from its destination; each use is one further stage' -r
complete -c migrate -n "__fish_migrate_using_subcommand move" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand move" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand move" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand move" -l dry-run -d 'Only say what stands in the way on either side, if anything'
complete -c migrate -n "__fish_migrate_using_subcommand move" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand move" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand move" -l keep-warm -d 'Keep the destinations that have not got the target up to date, from the one that has; the id of that session is in the report'
complete -c migrate -n "__fish_migrate_using_subcommand move" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand move" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand move" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand move" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l connections -d 'What becomes of established TCP connections: close, or the destination that they are left to' -r -f -a "(__fish_print_hostnames)"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l address -d 'An address for the copy on the destination at this place of the list: IP/LEN@IF; once for each' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l hook -d 'Run a command at a point of the move: POINT=COMMAND; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l report -d 'Write what happened to this file as a page for a browser: timeline, rounds, where the pause went' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l mode -d 'How the target moves' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
stop-and-copy\t'pause it, copy everything'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l max-downtime -d 'The pause to aim at: rounds go on until what is left fits in it' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l max-rounds -d 'Pause after this many rounds at the latest' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l max-time -d 'Pause when the rounds have taken this long' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l max-bytes -d 'Pause when the rounds have sent this much [default: unlimited]' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l exit-when -d 'Conditions that end the rounds: the first that holds' -r -f -a "downtime\t'what is left fits in --max-downtime at the rate seen'
downtime-net\t'the same with what is written meanwhile; never while that outruns the link'
all-sent\t'all state was sent once'
memory-sent\t'all pages were sent once'
not-converging\t'written as fast as sent in 3 rounds, and no step of --converge is left'
rounds\t'--max-rounds is reached'
time\t'--max-time is reached'
bytes\t'--max-bytes is reached'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l converge -d 'What is tried, in this order, for a target that writes as fast as it is sent' -r -f -a "defer\t'leave pages that are written again and again for later'
delta\t'send of pages that were sent before what has changed in them'
compress\t'pack pages harder'
throttle\t'give the target less processor time'
post-copy\t'pause, and what is left follows when the target runs'
anyway\t'pause all the same'
abort\t'leave it where it is, exit code 1'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l fence-cmd -d 'Command that switches the destination\'s host off, for a move in doubt whose destination is silent' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l recoverable -d 'In post-copy: a consistent state comes back every TIME until all memory is there, from which it can be resumed here' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l with -d 'A directory that goes along as a whole, such as a database\'s; may be given several times' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l base -d 'An image at the destination, such as an earlier one of the target: pages that it has are named, not sent' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l lease -d 'What the destination waits for this side when it hears nothing before it deletes what it has of the target' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l alternate -d 'Where to if none of the destinations takes the target' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l retries -d 'Try all of them again so often (not at all), after a second and then after longer pauses' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l retry-timeout -d 'Try nothing again after this time; without --retries as often as it allows' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l disjoint-paths -d 'When the paths to two destinations share a node: both ends are not counted' -r -f -a "refuse\t'nothing is moved'
drop\t'the later one is left out'
replace\t'an alternate takes its place, the first whose path shares nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l route -d 'The way to a destination: an interface of this host, or one of its addresses; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l via -d 'Send what is for the destinations once to this host, which passes it on; of several, each to the next' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l fanout-tree -d 'Destinations pass on what is for several of them, to so many each: this host sends it to the first K only, to the first alone with 1' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l then -d 'Where to from its destination; each use is one further stage' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l quorum -d 'The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75% [default: 100%]' -r
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l end-source -d 'End the target once a copy runs'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l dry-run -d 'Only say what stands in the way on either side, if anything'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l keep-warm -d 'Keep the destinations that have not got the target up to date, from the one that has; the id of that session is in the report'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand clone" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l cpu-share -d 'How much of one processor this takes at most while nobody waits for a switch' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l standby -d 'Every TIME destinations are brought a consistent state of the target, from which migrate promote starts it there when this host is dead [default: 10s]' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l hook -d 'Run a command at a point of the move: POINT=COMMAND; may be given several times; see migrate-move(1)' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l mode -d 'How the target moves' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
stop-and-copy\t'pause it, copy everything'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l max-downtime -d 'The pause to aim at: rounds go on until what is left fits in it' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l max-rounds -d 'Pause after this many rounds at the latest' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l max-time -d 'Pause when the rounds have taken this long' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l max-bytes -d 'Pause when the rounds have sent this much [default: unlimited]' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l exit-when -d 'Conditions that end the rounds: the first that holds' -r -f -a "downtime\t'what is left fits in --max-downtime at the rate seen'
downtime-net\t'the same with what is written meanwhile; never while that outruns the link'
all-sent\t'all state was sent once'
memory-sent\t'all pages were sent once'
not-converging\t'written as fast as sent in 3 rounds, and no step of --converge is left'
rounds\t'--max-rounds is reached'
time\t'--max-time is reached'
bytes\t'--max-bytes is reached'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l converge -d 'What is tried, in this order, for a target that writes as fast as it is sent' -r -f -a "defer\t'leave pages that are written again and again for later'
delta\t'send of pages that were sent before what has changed in them'
compress\t'pack pages harder'
throttle\t'give the target less processor time'
post-copy\t'pause, and what is left follows when the target runs'
anyway\t'pause all the same'
abort\t'leave it where it is, exit code 1'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l fence-cmd -d 'Command that switches the destination\'s host off, for a move in doubt whose destination is silent' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l recoverable -d 'In post-copy: a consistent state comes back every TIME until all memory is there, from which it can be resumed here' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l with -d 'A directory that goes along as a whole, such as a database\'s; may be given several times' -r -f -a "(__fish_complete_directories)"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l lease -d 'What a destination waits for this side when it hears nothing before it deletes what it has of the target' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l quorum -d 'The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75% [default: 1]' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l disjoint-paths -d 'When the paths to two destinations share a node: both ends are not counted' -r -f -a "refuse\t'nothing is moved'
drop\t'the later one is left out'
replace\t'an alternate takes its place, the first whose path shares nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l route -d 'The way to a destination: an interface of this host, or one of its addresses; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l via -d 'Send what is for the destinations once to this host, which passes it on; of several, each to the next' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l fanout-tree -d 'Destinations pass on what is for several of them, to so many each: this host sends it to the first K only, to the first alone with 1' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l then -d 'Where to from its destination; each use is one further stage' -r
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l keep-warm -d 'Keep the destinations that have not got the target up to date, from the one that has; the id of that session is in the report'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand warm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l mode -d 'How the target moves: with what is left in the pause, or following when it runs' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l timeout -d 'Give up when the exit condition has not held for so long [default: wait]' -r
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l now -d 'Do not wait for the exit condition, however long the pause will be'
complete -c migrate -n "__fish_migrate_using_subcommand switch" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand switch" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand switch" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand switch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand cancel" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l fence-cmd -d 'Switch the source\'s host off first, by this command' -r
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l yes -d 'Without it only the age of the state and the risk are told'
complete -c migrate -n "__fish_migrate_using_subcommand promote" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand promote" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand promote" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand promote" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l to -d 'Where to: destinations as for move, separated by commas, or @GROUP' -r -f -a "(__fish_print_hostnames)"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l jobs -d 'How many move at a time' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l place -d 'Which of the hosts that would take a tree gets it' -r -f -a "spread\t'each tree to the host with most free memory'
fill\t'as few hosts as possible'
fixed\t'the first of the list that would take it'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l hook -d 'Run a command at a point of each move: POINT=COMMAND; may be given several times; see migrate-move(1)' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l report -d 'Write what happened to this file as a page for a browser: a timeline of all moves, and what has become of each tree' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l mode -d 'How the target moves' -r -f -a "auto\t'pre-copy; what does not converge goes on as in post-copy'
pre-copy\t'copy while the target runs, then pause it for what is left'
stop-and-copy\t'pause it, copy everything'
post-copy\t'pause it, move what it needs to run; memory follows as it is touched, the rest behind'
hybrid\t'pre-copy, and what is left follows as in post-copy'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l max-downtime -d 'The pause to aim at: rounds go on until what is left fits in it' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l max-rounds -d 'Pause after this many rounds at the latest' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l max-time -d 'Pause when the rounds have taken this long' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l max-bytes -d 'Pause when the rounds have sent this much [default: unlimited]' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l exit-when -d 'Conditions that end the rounds: the first that holds' -r -f -a "downtime\t'what is left fits in --max-downtime at the rate seen'
downtime-net\t'the same with what is written meanwhile; never while that outruns the link'
all-sent\t'all state was sent once'
memory-sent\t'all pages were sent once'
not-converging\t'written as fast as sent in 3 rounds, and no step of --converge is left'
rounds\t'--max-rounds is reached'
time\t'--max-time is reached'
bytes\t'--max-bytes is reached'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l converge -d 'What is tried, in this order, for a target that writes as fast as it is sent' -r -f -a "defer\t'leave pages that are written again and again for later'
delta\t'send of pages that were sent before what has changed in them'
compress\t'pack pages harder'
throttle\t'give the target less processor time'
post-copy\t'pause, and what is left follows when the target runs'
anyway\t'pause all the same'
abort\t'leave it where it is, exit code 1'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l fence-cmd -d 'Command that switches the destination\'s host off, for a move in doubt whose destination is silent' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l recoverable -d 'In post-copy: a consistent state comes back every TIME until all memory is there, from which it can be resumed here' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l track -d 'How pages that were written to between two rounds are found' -r -f -a "auto\t'the best this kernel has'
wp\t'userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later'
soft-dirty\t'soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it'
soft-dirty-pagemap\t'the same, read page by page from the pagemap: any kernel since 3.11'
hash\t'compare each page with the copy taken before'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l compress -d 'Compress pages: auto, off, or a level of zstd from 1 to 19' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l bandwidth -d 'Write or send at most this much a second, as in 100MB/s or 1Gbit/s' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l streams -d 'Number of streams pages are carried in [default: as many as pay]' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l cpu -d 'Which CPU features the destination must have [default: superset]' -r -f -a "superset\t'all features of the source\'s CPU'
minimal\t'only those whose registers are in use'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l pids -d 'Which process ids the restored tree gets [default: auto]' -r -f -a "auto\t'the same if they are free, else a new PID namespace'
same\t'the same, or none'
new\t'the same, in a new PID namespace with its own /proc'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l files -d 'What is done about files that the target has open or mapped [default: auto]' -r -f -a "auto\t'nothing where both sides see the same file system, else compare what is read, copy what is written to'
check\t'compare; refuse if one differs'
copy\t'copy what differs (a move only)'
skip\t'take what has the same name'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l tcp -d 'What becomes of established TCP connections' -r -f -a "keep\t'they survive'
close\t'both ends see a reset'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l external-unix -d 'What becomes of UNIX sockets connected to processes outside the tree [default: refuse]' -r -f -a "refuse\t'refuse to dump or move'
reconnect\t'connect again by the path of the peer'
close\t'the program sees its peer gone'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l stdio -d 'What becomes of terminals and pipes held outside the tree' -r -f -a "auto\t'attach for a restore in the foreground, else refuse'
attach\t'carry them to where this command runs'
null\t'put /dev/null in their place'
log\t'put a log file in their place'
refuse\t'refuse to dump or move'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l move-address -d 'An address that moves with the target: IP/LEN@IF[:DEST_IF]; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l cgroup -d 'Which cgroup the restored tree runs in: scope, same, or a path [default: scope]' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l supervisor -d 'What is done about a service manager that would start the target again' -r -f -a "refuse\t'refuse to go on'
hold\t'keep a systemd unit from starting it again, or beside it'
ignore\t'you have taken care of it'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l rsh -d 'Program that reaches a host, with its arguments; your ssh_config counts' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l remote -d 'How migrate is called over there, as in \'sudo -n migrate\'' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l connect-timeout -d 'Give up when there is no connection after this time' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l peer-timeout -d 'Take the peer for lost after a silence of this length' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l lease -d 'What a destination waits for this side when it hears nothing before it deletes what it has of a target' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l alternate -d 'Where what none of the others takes is to go' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l retries -d 'Try all of them again so often (not at all), after a second and then after longer pauses' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l retry-timeout -d 'Try nothing again after this time; without --retries as often as it allows' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l route -d 'The way to a destination: an interface of this host, or one of its addresses; may be given several times' -r
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l all -d 'Every tree of this host that can be meant'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l serial -d 'One by one: the first by pre-copy, the others by post-copy'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l keep-going -d 'Begin moves also after one has failed'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l dry-run -d 'Print the plan: what would go where, in which order, bytes and time; nothing is moved'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l bootstrap -d 'Send this program where there is none of this version'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l allow-plain -d 'Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l log -d 'Write a debug log to this file' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l config -d 'Read this configuration before the user\'s and the system\'s' -r -F
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l progress -d 'How progress is shown' -r -f -a "auto\t'bar on a terminal, else plain'
bar\t'a bar that moves'
plain\t'a line every 5 seconds'
none\t'nothing'"
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l color -d 'Whether colours are used' -r -f -a "auto\t'on a terminal, unless NO_COLOR is set'
always\t'always'
never\t'never'"
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l run -d 'Let the copy of this host run'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l discard -d 'End the copy of this host'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l yes -d 'Without it only the risk is told'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -s v -d 'Say more on standard error; -vv says everything'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -s q -d 'Say nothing but failures'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -l json -d 'Write events and the result to standard output as JSON Lines, see migrate-events(5)'
complete -c migrate -n "__fish_migrate_using_subcommand resolve" -s h -l help -d 'Print help (see more with \'--help\')'

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
    printf '%s\t%s\n' M0101 'traced by another process' \
        M0102 'does not stop' \
        M0103 'first thread has exited while others run' \
        M0104 '32-bit program' \
        M0105 'uses a shadow stack' \
        M0106 'process id in use here' \
        M0107 'session or process group begun outside the tree' \
        M0108 'thread of the kernel' \
        M0109 'this command runs inside the target' \
        M0110 'process id above the limit here' \
        M0111 'shares memory or descriptors with a process outside' \
        M0112 'makes new tasks faster than they can be stopped' \
        M0113 'scheduling policy cannot be given here' \
        M0201 'handles its own page faults (userfaultfd)' \
        M0202 'secret memory' \
        M0203 'memory of a device' \
        M0204 'too few huge pages here' \
        M0205 'System V memory attached outside the tree' \
        M0206 'shared memory mapped outside the tree' \
        M0207 'asynchronous I/O context (io_setup)' \
        M0208 'probed by uprobes' \
        M0209 'not enough memory here' \
        M0210 'locked memory above the limit here' \
        M0211 'protection keys that this CPU does not have' \
        M0212 'address not available here' \
        M0213 'mapping of an unknown kind' \
        M0214 'NUMA memory policy that cannot be given here' \
        M0301 'io_uring instance' \
        M0302 'userfaultfd' \
        M0303 'performance counter' \
        M0304 'BPF program, map or link' \
        M0305 'fanotify group' \
        M0306 'virtual machine' \
        M0307 'device with state of its own' \
        M0308 'terminal held outside the tree' \
        M0309 'pipe that ends outside the tree' \
        M0310 'seccomp notification listener' \
        M0311 'buffer shared with a device' \
        M0312 'pidfd of a process outside the tree' \
        M0313 'file lease of the original' \
        M0314 'POSIX message queue' \
        M0315 'descriptor of an unknown kind' \
        M0316 'epoll set watches a file nobody has open' \
        M0317 'descriptor number above the limit here' \
        M0318 'Landlock rule set' \
        M0319 'watched file cannot be found' \
        M0320 'pipe larger than allowed here' \
        M0321 'open file in /proc of a process outside the tree' \
        M0322 'file lock held by another process here' \
        M0323 'descriptor of a namespace outside the tree' \
        M0324 'file events that were not read yet' \
        M0325 'signals of a descriptor go to a process outside' \
        M0401 'UNIX socket connected to a process outside' \
        M0402 'packet socket' \
        M0403 'netlink socket in use' \
        M0404 'virtual machine socket' \
        M0405 'raw socket with a filter of messages' \
        M0406 'socket of a kind that cannot be saved' \
        M0407 'TCP connection that is just being made' \
        M0408 'established TCP connection' \
        M0409 'TCP connection with kernel TLS or MPTCP' \
        M0410 'TCP connections cannot be repaired here' \
        M0411 'address not on this host' \
        M0412 'port in use here' \
        M0413 'connections that were not accepted yet' \
        M0414 'socket with a BPF program attached' \
        M0415 'socket of a network namespace outside the tree' \
        M0416 'TCP socket with keys for signatures' \
        M0417 'UNIX socket with messages that cannot be read' \
        M0418 'socket that cannot stay while its program moves' \
        M0419 'urgent data in a TCP connection' \
        M0420 'network interface not on this host' \
        M0421 'address that each of several destinations would answer for' \
        M0501 'file differs from the one that was open' \
        M0502 'file does not exist here' \
        M0503 'not enough space for the image' \
        M0504 'directory was removed' \
        M0505 'file cannot be reached by its name' \
        M0506 'program or library differs' \
        M0507 'mount from outside' \
        M0508 'file cannot be opened the same way here' \
        M0509 'deleted file is too large' \
        M0510 'not enough space for files that come along' \
        M0511 'file cannot come to its place' \
        M0601 'namespace of its own that cannot be made' \
        M0602 'user namespace that begins inside the tree' \
        M0603 'PID namespace that begins inside the tree' \
        M0604 'monotonic clock would go back' \
        M0605 'no new namespace allowed here' \
        M0606 'cgroup does not exist here and cannot be made' \
        M0607 'no cgroup can be made here' \
        M0608 'System V semaphores or queues of the host' \
        M0609 'network namespace of another program' \
        M0610 'mount that cannot be made again' \
        M0611 'cgroup is frozen by someone else' \
        M0701 'CPU features missing here' \
        M0702 'extended CPU state does not fit here' \
        M0703 'other architecture or page size' \
        M0704 'kernel is too old' \
        M0705 'kernel was built without a needed option' \
        M0706 'vDSO cannot be joined with the one here' \
        M0707 'dirty tracking of this kind is not available' \
        M0708 'system call or option not available here' \
        M0801 'belongs to another user' \
        M0802 'tracing is forbidden by the system' \
        M0803 'this command itself runs under a seccomp filter' \
        M0804 'resource limit above the one allowed here' \
        M0805 'confined by Landlock' \
        M0806 'security label or profile not available here' \
        M0807 'process ids cannot be chosen here' \
        M0808 'users or groups that cannot be given here' \
        M0809 'program forbids to be read' \
        M0810 'seccomp filter cannot be read' \
        M0811 'mapped memory that only root can reach' \
        M0901 'host cannot be reached' \
        M0902 'other version of migrate over there' \
        M0903 'no migrate over there' \
        M0904 'authentication failed' \
        M0905 'peer does not allow this' \
        M0906 'peer has too many sessions' \
        M0907 'connection would not be protected' \
        M0908 'user over there may not restore this' \
        M0909 'image of --base cannot be used' \
        M0910 'paths to destinations share a node' \
        M0911 'target was started there' \
        M1001 'image is not complete' \
        M1002 'image is damaged' \
        M1003 'image of a newer version' \
        M1004 'parent image is missing' \
        M1005 'there is an image already' \
        M1006 'parent image is of another tree' \
        M1007 'image could have been changed by others' \
        M1008 'directory holds other files' \
        M1101 'service manager would start it again' \
        M1102 'belongs to a container runtime' \
        M1103 'watched by a watchdog' \
        M1104 'started by a supervisor that starts it again' \
        M1105 'a unit runs the same program here'
end

complete -c migrate -n "__fish_migrate_using_subcommand check" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand explain" -f -a "(__fish_migrate_codes)"
complete -c migrate -n "__fish_migrate_using_subcommand dump" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand pre-dump" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand move" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand move" -f -a "(__fish_migrate_dests)"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand clone" -f -a "(__fish_migrate_dests)"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -f -a "(__fish_migrate_targets)"
complete -c migrate -n "__fish_migrate_using_subcommand warm" -f -a "(__fish_migrate_dests)"
complete -c migrate -n "__fish_migrate_using_subcommand switch" -f -a "(__fish_migrate_dests)"
complete -c migrate -n "__fish_migrate_using_subcommand evacuate" -f -a "(__fish_migrate_targets)"
