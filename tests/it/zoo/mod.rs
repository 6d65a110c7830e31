//! The zoo: every kind of state is set up by a fixture, saved, restored, and verified from inside; the model and an
//! independent reader of /proc see the same before and after.
//!
//! A row is a case of a fixture (`tests/fixtures/FIXTURE.c`); it runs in every mode of [`harness::Mode`] that makes sense.

mod back_and_forth;
mod canonical;
mod faults;
pub mod frozen;
mod harness;
mod late_guarded;
mod late_lost;
mod late_moves;
mod late_recovered;
mod mutation;
mod other_clocks;
mod other_kernel;
mod pids;
mod schema;
pub mod tools;

use harness::{Mode, Scenario, run};
pub use harness::{marked, terminals_lock};

/// What is particular about a case.
fn scenario(fixture: &'static str, case: &'static str) -> Scenario {
    let plain = Scenario { fixture, case, ignore: &[], allow: "", busy: false, timed: fixture == "waits" };
    match (fixture, case) {
        // They spin, or sleep for a time that is measured: nobody may look at them for long.
        ("threads", "in_vfork") => Scenario { busy: true, ignore: CHILD_ENDED, ..plain },
        ("waits", "in_recv" | "in_send" | "in_accept_with_time_out") | ("wakes", "in_accept" | "in_read_of_socket") => {
            Scenario { ignore: SOCKETS, busy: true, ..plain }
        }
        ("waits", "in_read_of_timer" | "in_read_of_timer_of_clock_ahead" | "in_read_of_timer_of_clock_behind") => {
            Scenario { ignore: DESCRIPTORS, busy: true, ..plain }
        }
        ("processor" | "waits" | "wakes" | "clocks", _) => Scenario { busy: true, ..plain },
        ("tree", "zombies" | "zombie_leads_session" | "adopted_from_zombie") => {
            Scenario { allow: ZOMBIES, ignore: CORE_LIMIT, ..plain }
        }
        ("descriptors", "other_name") => Scenario { ignore: LINKED, allow: OTHER_NAMES, ..plain },
        ("descriptors", "deleted_and_replaced" | "deleted_directory" | "temporary") => {
            Scenario { ignore: DESCRIPTORS, allow: OTHER_NAMES, ..plain }
        }
        ("descriptors", "timer_descriptors" | "timer_descriptors_of_clock_ahead") => {
            Scenario { ignore: DESCRIPTORS, allow: TICKS, ..plain }
        }
        ("namespaces", "own_program") => Scenario { ignore: OWN_PROGRAM, allow: NEW_FILE_SYSTEMS, ..plain },
        ("namespaces", "layers") => Scenario { ignore: LAYERS, allow: NEW_FILE_SYSTEMS, ..plain },
        ("namespaces", _) => Scenario { ignore: NAMESPACES, allow: NEW_FILE_SYSTEMS, ..plain },
        ("descriptors", _) => Scenario { ignore: DESCRIPTORS, ..plain },
        ("signals", "interval_timers" | "alarm_clock" | "posix_timers") => {
            Scenario { ignore: GONE_OFF, allow: GONE_OFF_SEEN, timed: true, ..plain }
        }
        ("sockets", "tcp_ended") => Scenario { ignore: ENDED, allow: ENDED_SEEN, ..plain },
        ("sockets" | "unix_sockets", _) => Scenario { ignore: SOCKETS, allow: SOCKETS_SEEN, ..plain },
        ("memory", "deleted_files") => Scenario { ignore: DESCRIPTORS, ..plain },
        ("memory" | "late_shared", "hugetlb" | "segments_of_others") => Scenario { allow: HUGE_PAGES, ..plain },
        _ => plain,
    }
}

/// What is made anew has a number of its own, and clocks go on.
const DESCRIPTORS: &[(&str, &str)] = &[
    ("**.spec.remaining_ns", "time passes"),
    ("**.due_ns", "two clocks are read one after the other"),
    ("**.ticks", "a periodic timer goes on"),
    ("ghosts[*].path.inode", "a deleted file is made anew"),
    ("pipes[*].fifo.inode", "a deleted FIFO is made anew"),
    ("ghosts[*].path.path", "its name may be another file's by now, or its directory gone"),
];

/// The same for the independent reader; the fixtures count what has gone off.
const GONE_OFF_SEEN: &str = r#"
[[allow]]
path = "processes/*/status/ShdPnd"
rule = "ignore"
reason = "a timer may have gone off just then"
[[allow]]
path = "processes/*/threads/*/status/ShdPnd"
rule = "ignore"
reason = "a timer may have gone off just then"
"#;

const GONE_OFF: &[(&str, &str)] = &[
    ("tasks[0].pending", "a timer may have gone off just then"),
    ("tasks[0].threads[*].pending", "a timer may have gone off just then"),
];

const SOCKETS: &[(&str, &str)] = &[
    ("unix_sockets[*].inode", "a socket is made anew"),
    ("unix_sockets[*].node.path.inode", "its node is made anew"),
    ("**.Connected.timestamp", "a clock"),
    ("**.Connected.window", "what the other end was told last"),
];

const ENDED: &[(&str, &str)] = &[
    ("**.Tcp.local", "the end of another connection stands for one that is over"),
    ("**.Tcp.ints", "and has negotiated segments of its own"),
];

const ENDED_SEEN: &str = r#"
[[allow]]
path = "**/socket/name/*"
rule = "ignore"
reason = "the end of another connection stands for one that is over"
[[allow]]
path = "**/socket/tcp/TCP_QUICKACK"
rule = "ignore"
reason = "the kernel sets it by whether the connection was interactive lately"
[[allow]]
path = "**/socket/tcp/TCP_MAXSEG"
rule = "ignore"
reason = "the end of another connection stands for one that is over"
"#;

/// The same for the independent reader.
const SOCKETS_SEEN: &str = r#"
[[allow]]
path = "**/socket/unsent"
rule = "ignore"
reason = "of a UNIX socket, memory that the kernel holds for its messages, which may have been sent in larger ones"
[[allow]]
path = "**/socket/tcp/TCP_QUICKACK"
rule = "ignore"
reason = "the kernel sets it by whether the connection was interactive lately"
[[allow]]
path = "**/socket/tcp/TCP_WINDOW_CLAMP"
rule = "ignore"
reason = "computed from the size of the buffer and of the segments that came"
[[allow]]
path = "**/socket/tcp/TCP_MAXSEG"
rule = "ignore"
reason = "bounded to half of the largest window seen; the fixture compares it after more data"
"#;

const NAMESPACES: &[(&str, &str)] = &[
    ("**.path.device", "a tmpfs of its own is made anew"),
    ("**.path.inode", "a tmpfs of its own is made anew"),
    ("**.cwd.device", "a tmpfs of its own is made anew"),
    ("**.cwd.inode", "a tmpfs of its own is made anew"),
    ("**.exe.device", "a tmpfs of its own is made anew"),
    ("**.exe.inode", "a tmpfs of its own is made anew"),
    ("ghosts[*].path.path", "its name may be another file's by now, or its directory gone"),
];

const OWN_PROGRAM: &[(&str, &str)] = &[
    ("**.path.device", "a tmpfs of its own is made anew"),
    ("**.path.inode", "a tmpfs of its own is made anew"),
    ("**.exe.device", "a tmpfs of its own is made anew"),
    ("**.exe.inode", "a tmpfs of its own is made anew"),
    ("namespaces[*].kind.Mnt.mounts[*].content.entries[*].atime_ns", "to map a file is an access"),
];

const LAYERS: &[(&str, &str)] = &[(
    "namespaces[*].kind.Mnt.mounts[*].content.entries[6].atime_ns",
    "the work directory of an overlay, which the kernel looks through as it is mounted",
)];

const NEW_FILE_SYSTEMS: &str = r#"
[[allow]]
path = "**/stat/file"
rule = "ignore"
reason = "a tmpfs of its own is made anew: its device number is another one, and so are those of its inodes"
[[allow]]
path = "**/cwd/file"
rule = "ignore"
reason = "a tmpfs of its own is made anew: its device number is another one, and so are those of its inodes"
[[allow]]
path = "**/exe/file"
rule = "ignore"
reason = "a tmpfs of its own is made anew: its device number is another one, and so are those of its inodes"
[[allow]]
path = "**/memory/*/file"
rule = "ignore"
reason = "a tmpfs of its own is made anew: its device number is another one, and so are those of its inodes"
"#;

const LINKED: &[(&str, &str)] = &[
    ("ghosts", "a file that is opened by another name of its own is no deleted one any more"),
    ("files[*].kind", "a file that is opened by another name of its own is no deleted one any more"),
];

const OTHER_NAMES: &str = r#"
[[allow]]
path = "processes/*/descriptors/*/link"
rule = "ignore"
reason = "the name of a removed file is another file's by now, or its directory is gone; it is shown under the name it was made with"
"#;

const HUGE_PAGES: &str = r#"
[[allow]]
path = "**/status/HugetlbPages"
rule = "ignore"
reason = "what is shared counts once it is touched; its contents are verified from inside"
"#;

const TICKS: &str = r#"
[[allow]]
path = "processes/*/descriptors/*/info/ticks"
rule = "ignore"
reason = "a periodic timer goes on"
"#;

const CHILD_ENDED: &[(&str, &str)] = &[
    ("tasks[1]", "the child has ended, and its parent may not have waited for it yet"),
    ("tasks[0].pending", "the signal of its end"),
];

const CORE_LIMIT: &[(&str, &str)] =
    &[("tasks[*].rlimits[4]", "a zombie ends again, without writing a core file this time")];

const ZOMBIES: &str = r#"
[[allow]]
path = "processes/*/stat/signal"
rule = "ignore"
reason = "the signal that ended a process stays pending in what is left of it; nobody takes it any more"
[[allow]]
path = "processes/*/status/SigPnd"
rule = "ignore"
reason = "the signal that ended a process stays pending in what is left of it; nobody takes it any more"
[[allow]]
path = "processes/*/stat/blocked"
rule = "ignore"
reason = "a zombie gets no signals"
[[allow]]
path = "processes/*/status/SigBlk"
rule = "ignore"
reason = "a zombie gets no signals"
[[allow]]
path = "processes/*/stat/sigignore"
rule = "ignore"
reason = "a zombie gets no signals"
[[allow]]
path = "processes/*/status/SigIgn"
rule = "ignore"
reason = "a zombie gets no signals"
[[allow]]
path = "processes/*/stat/sigcatch"
rule = "ignore"
reason = "a zombie gets no signals"
[[allow]]
path = "processes/*/status/SigCgt"
rule = "ignore"
reason = "a zombie gets no signals"
"#;

macro_rules! row {
    ($fixture:ident, $case:ident, $($test:ident = $mode:ident),*) => {
        mod $case {
            $(#[test]
            fn $test() {
                super::super::run(
                    &super::super::scenario(stringify!($fixture), stringify!($case)),
                    super::super::Mode::$mode,
                );
            })*
        }
    };
}

/// Cases that run in every mode.
macro_rules! zoo {
    ($fixture:ident: $($case:ident)*) => {
        mod $fixture {
            $(row!($fixture, $case, dumped = LeaveRunning, restored = Once, chain = Chain, new_pids = NewPids, moved = Move);)*
        }
    };
}

/// Cases whose memory comes late.
macro_rules! late {
    ($name:ident = $fixture:ident: $($case:ident)*) => {
        mod $name {
            $(row!($fixture, $case, late = Late, late_dumped = LateDumped, post_copy = PostCopy, hybrid = Hybrid);)*
        }
    };
}

/// Cases that wait at their destination as an image.
macro_rules! parked {
    ($name:ident = $fixture:ident: $($case:ident)*) => {
        mod $name {
            $(row!($fixture, $case, parked = Parked);)*
        }
    };
}

/// Cases that measure time: one dump, one restore or one move is what they have time for.
macro_rules! timed {
    ($name:ident = $fixture:ident: $($case:ident)*) => {
        mod $name {
            $(row!($fixture, $case, dumped = LeaveRunning, restored = Once, later = Later, moved = Move);)*
        }
    };
}

zoo!(tree: plain three_generations hundred_children sessions left_behind orphaned_session orphaned_group zombies
    zombie_leads_session adopted_in_live_session adopted_from_zombie orphans_of_one_session stopped subreaper exit_signals goes_on deep);
zoo!(threads: few five_hundred synchronised robust_list own_tables own_attributes children_of_threads goes_on siblings_share shares_vm
    shares_files shares_fs shares_sighand shares_io shares_all);
zoo!(identity: names logged_in unprivileged mixed_ids capabilities securebits no_new_privs not_dumpable parent_death_signal limits
    scheduling deadline oom personalities places changed_root seccomp_filter seccomp_several seccomp_per_thread
    seccomp_synchronised seccomp_strict);
zoo!(processor: general_registers x87_and_sse avx avx512 protection_keys segment_bases vdso in_vdso rseq_registered rseq_critical);
zoo!(wakes: in_read in_futex_for_ever in_wait4 in_pause in_sigsuspend in_epoll_for_ever in_poll_for_ever in_sigwait
    in_accept in_read_of_socket in_read_of_terminal in_read_of_eventfd in_write in_waitid in_flock in_posix_lock
    in_ofd_lock in_msgrcv in_semop in_masked_ppoll in_masked_pselect in_masked_epoll in_interrupted_epoll
    in_restarting_handler in_interrupting_handler);
mod outer {
    row!(tree, outer_session, dumped = LeaveRunning, new_pids = NewPids, chain = NewPidsChain);
}
timed!(sleeps = waits: in_nanosleep in_clock_nanosleep in_absolute_sleep in_absolute_boottime in_realtime_sleep
    in_absolute_realtime in_nanosleep_with_remainder in_poll in_poll_by_number in_empty_poll in_ppoll in_select in_pselect
    in_epoll in_futex
    in_absolute_futex in_sigtimedwait in_recv in_semtimedop in_epoll_pwait2 in_ppoll_of_constant in_pselect_of_constant
    in_select_of_constant in_one_epoll_after_another in_futex_waitv in_lock_pi in_condition in_send
    in_accept_with_time_out in_clock_ahead in_clock_behind in_futex_of_clock_ahead in_futex_of_clock_behind
    in_poll_of_clock_ahead in_poll_of_clock_behind in_timer in_timer_of_clock_ahead in_timer_of_clock_behind in_read_of_timer
    in_read_of_timer_of_clock_ahead in_read_of_timer_of_clock_behind);
zoo!(clocks: as_the_host ahead behind);
parked!(parked_tree = tree: three_generations zombies stopped);
parked!(parked_threads = threads: few shares_vm);
parked!(parked_memory = memory: anonymous stack heap file_mappings deleted_files shared_memory system_v memory_files guards locked
    hugetlb sealed grows_down copy_on_write large);
parked!(parked_descriptors = descriptors: regular deleted pipes fifos memory_files event_counters locks);
parked!(parked_signals = signals: pending);
parked!(parked_namespaces = namespaces: private_files);
zoo!(memory: anonymous stack heap file_mappings deleted_files shared_memory system_v segments_of_others of_device memory_files
    guards locked locked_future advice huge_pages_off hugetlb layout sealed no_new_code named droppable grows_down
    thousand_mappings copy_on_write shared_pages barriers large);
zoo!(numa: of_mappings of_threads of_relatives of_segment);
late!(late_numa = numa: of_mappings of_threads of_relatives);
zoo!(mappings: no_vdso huge_pages past_the_end sparse seals shared_for_reading keys ten_thousand);
zoo!(signals: handlers trap_handled masks pending pending_of_threads pending_while_stopped alternate_stack
    on_alternate_stack);
late!(late = late: moved dropped forked kept_from_children in_kernel executed by_threads at_random);
late!(late_shared = late_shared: relatives unnamed_file open_file segment in_kernel forked moved dropped removed_first executed
    by_threads hugetlb);
late!(late_memory = memory: anonymous stack heap file_mappings shared_memory system_v segments_of_others of_device memory_files
    guards locked locked_future advice
    huge_pages_off hugetlb sealed no_new_code named droppable grows_down thousand_mappings copy_on_write large);
// Pages that come one by one are small ones: `huge_pages` looks for large ones.
late!(late_mappings = mappings: past_the_end sparse keys ten_thousand);
late!(late_threads = threads: few five_hundred synchronised robust_list shares_vm goes_on);
late!(late_processor = processor: rseq_registered rseq_critical vdso in_vdso);
late!(late_waits = wakes: in_read in_futex_for_ever in_poll_for_ever in_masked_ppoll in_epoll_for_ever in_read_of_socket);
// Its last child ends with the original and keeps its number until somebody waits for it: the copy takes new numbers.
mod children {
    row!(threads, in_vfork, dumped = LeaveRunning, new_pids = NewPids, chain = NewPidsChain);
}
timed!(timers = signals: interval_timers alarm_clock posix_timers);
mod timers_again {
    row!(signals, interval_timers, chain = Chain, new_pids = NewPids);
    row!(signals, alarm_clock, chain = Chain, new_pids = NewPids);
    row!(signals, posix_timers, chain = Chain, new_pids = NewPids);
}
zoo!(descriptors: regular appended directories shared_between_processes deleted deleted_and_replaced deleted_directory
    other_name pipes packets dead_ends pipe_between_processes fifos event_counters signal_descriptors polled
    polled_numbers watched process_descriptors namespace_descriptors devices memory_files proc_files locks owners leases
    executed_memory_file removed_working_directory three_thousand table_of_a_thread nothing_open temporary timer_descriptors timer_descriptors_of_clock_ahead);
// On a file system that both hosts have nobody opens a file while it is under a lease to write.
mod leases_to_write {
    row!(descriptors, broken_leases, restored = Once, dumped = LeaveRunning, chain = Chain, new_pids = NewPids);
}
zoo!(terminals: pair of_another_user lines raw_data sides session foreground_gone shell_like hung_up no_terminal_of_its_own);
zoo!(namespaces: private_files own_program nodes_and_propagation bound layers different users users_and_threads users_and_mounts host_name
    taken_from_child taken_from_parent);
zoo!(unix_sockets: stream_pair datagram_pair packet_pair in_flight watching_in_flight in_flight_of_each_other credentials shut_down listening
    listening_abstract listening_for_packets datagrams_with_names between_processes);
zoo!(sockets: options udp udp_shut_down udp_six udp_lite tcp_listening tcp_listening_six tcp tcp_six tcp_half_closed tcp_ended
    netlink raw multicast);
