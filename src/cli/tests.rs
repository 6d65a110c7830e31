use super::*;
use crate::failure::FailureKind;
use crate::image::Pid;
use crate::migration::source::Quorum;
use crate::migration::switchover::{ExitCondition, Step};
use crate::ops::options::*;
use crate::ops::paths::Disjoint;
use crate::ops::words::{Address, Dest, Target};
use clap::{Args, Parser};
use std::time::Duration;

/// One verb by itself.
#[derive(Debug, Parser)]
struct One<T: Args> {
    #[command(flatten)]
    args: T,
}

fn parse<T: Args>(line: &str) -> Result<T, clap::Error> {
    One::<T>::try_parse_from(std::iter::once("verb").chain(line.split_whitespace())).map(|one| one.args)
}

fn refused<T: Args + std::fmt::Debug>(lines: &[&str]) {
    for line in lines {
        let error = parse::<T>(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_option_has_a_help_text_and_every_verb_an_introduction() {
    for verb in command().get_subcommands() {
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
        for arg in verb.get_arguments() {
            let help = arg.get_help().unwrap_or_else(|| panic!("{} {}", verb.get_name(), arg.get_id())).to_string();
            assert!(!help.is_empty() && !help.ends_with('.'), "{} {}: {help}", verb.get_name(), arg.get_id());
        }
    }
}

#[test]
fn dump_defaults_are_those_of_the_engine() {
    let options = parse::<dump::Args>("7 -D /tmp/i").unwrap().options();
    let place = ImagePlace::Dir("/tmp/i".into());
    assert_eq!(options, DumpOptions { session: options.session, ..DumpOptions::new(Target::Pid(Pid(7)), place) });
}

#[test]
fn dump_options() {
    let line = "unit:a.service --stream --parent=/p --leave-running --stop-first --dry-run --force --track wp --compress 3 \
                --bandwidth 8Mbit/s --streams 2 --cpu minimal --pids new --files check --tcp close --external-unix reconnect \
                --stdio log --move-address 10.0.0.7/24@eth0 --move-address fd00::7/64@a:b --cgroup /jobs/7 --supervisor ignore";
    let options = parse::<dump::Args>(line).unwrap().options();
    assert_eq!(options.target, Target::Unit("a.service".into()));
    assert_eq!(options.image, ImagePlace::Stream);
    assert_eq!(options.parent, Some("/p".into()));
    assert_eq!(options.after, AfterDump::Run);
    assert!(options.stop_first && options.dry_run && options.force);
    let memory = MemoryOptions {
        track: Track::WriteProtect,
        compress: Compress::Level(3),
        bandwidth: Some(1_000_000),
        streams: Some(2),
    };
    assert_eq!(options.memory, memory);
    let addresses = options.state.move_addresses.clone();
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.7/24@eth0", "fd00::7/64@a:b"]);
    let state = StateOptions {
        cpu: Some(Cpu::Minimal),
        pids: Some(Pids::New),
        files: Some(Files::Check),
        tcp: Tcp::Close,
        external_unix: Some(ExternalUnix::Reconnect),
        stdio: Stdio::Log,
        move_addresses: addresses,
        cgroup: Some(Cgroup::Path("/jobs/7".into())),
        supervisor: Supervisor::Ignore,
        hooks: Vec::new(),
        identity: None,
        from_image: false,
    };
    assert_eq!(options.state, state);
}

#[test]
fn the_last_of_leave_running_and_leave_stopped_counts() {
    let after = |line| parse::<dump::Args>(line).unwrap().options().after;
    assert_eq!(after("7 -D d --leave-running --leave-stopped"), AfterDump::Stop);
    assert_eq!(after("7 -D d --leave-stopped --leave-running"), AfterDump::Run);
    assert_eq!(after("7 -D d --snapshot"), AfterDump::Run);
    assert!(parse::<dump::Args>("7 -D d --snapshot").unwrap().options().snapshot);
    assert!(parse::<dump::Args>("7 -D d --snapshot --stop-first").is_err());
    assert!(parse::<dump::Args>("7 -D d --snapshot --leave-stopped").is_err());
}

#[test]
fn wrong_dumps_are_refused() {
    refused::<dump::Args>(&[
        "",
        "7",
        "-D d",
        "0 -D d",
        "7 -D d --stream",
        "7 8 -D d",
        "7 -D d --mode pre-copy",
        "7 -D d --rsh ssh",
        "7 -D d --bandwidth 100",
        "7 -D d --compress 20",
        "7 -D d --compress zstd",
        "7 -D d --track soft",
        "7 -D d --streams 0",
        "7 -D d --cgroup jobs",
        "7 -D d --cgroup /jobs/../x",
        "7 -D d --lea",
        "7 -D d --dry-run=yes",
        "7 -D d --force --force",
        "container:x -D d",
    ]);
}

#[test]
fn pre_dump() {
    let options = parse::<pre_dump::Args>("7 -D d").unwrap().options();
    assert_eq!(
        options,
        PreDumpOptions { session: options.session, ..PreDumpOptions::new(Target::Pid(Pid(7)), "d".into()) }
    );
    let options = parse::<pre_dump::Args>("7 -D d --keep-tracking 5m --parent p --track hash").unwrap().options();
    assert_eq!(options.keep_tracking, Duration::from_secs(300));
    assert_eq!(options.memory.track, Track::Hash);
    refused::<pre_dump::Args>(&[
        "7",
        "7 --stream",
        "7 -D d --keep-tracking 60",
        "7 -D d --leave-running",
        "7 -D d --tcp keep",
    ]);
}

#[test]
fn restore() {
    let options = parse::<restore::Args>("-D d").unwrap().options();
    assert_eq!(
        options,
        RestoreOptions { session: options.session, ..RestoreOptions::new(ImagePlace::Dir("d".into())) }
    );
    let options = parse::<restore::Args>("--stream --detach --pidfile=p --leave-stopped --dry-run").unwrap().options();
    assert!(options.detach && options.leave_stopped && options.dry_run);
    assert_eq!(options.pidfile, Some("p".into()));
    refused::<restore::Args>(&[
        "",
        "7 -D d",
        "-D d --stream",
        "-D d --compress off",
        "--stream --lazy",
        "--stream --on host",
        "-D d --on host --lazy",
        "-D d --on host --pidfile p",
        "-D d --on host --leave-stopped",
        "-D d --detach --rsh ssh",
        "-D d --detach --lease 5s",
        "-D d --count 2",
        "-D d --detach --count 0",
        "--stream --detach --count 2",
    ]);
    assert!(parse::<restore::Args>("-D d --lazy").unwrap().options().lazy);
    let remote = |line| parse::<restore::Args>(line).unwrap().remote(&Config::default()).unwrap();
    assert_eq!(remote("-D d"), None);
    let on = remote("-D d --on b,tcp://c --count 3 --peer-timeout 5s").unwrap();
    assert_eq!((on.dests, on.count), (vec!["b".parse().unwrap(), "tcp://c".parse().unwrap()], Some(3)));
    assert_eq!((on.peer.peer_timeout, on.lease), (Duration::from_secs(5), Duration::from_secs(60)));
}

#[test]
fn clones() {
    let read = |line| parse::<clone::Args>(line).unwrap().options(&Config::default()).unwrap();
    let options = read("7 b b");
    assert_eq!(options.dests.len(), 2, "a destination may be named twice");
    assert_eq!(options.clones, Some(CloneOptions::default()));
    assert_eq!((options.mode.mode, options.quorum), (Mode::PreCopy, Quorum::Percent(100)));
    let options =
        read("7 b c --end-source --address 10.0.0.7/24@eth0 --address fd00::7/64@eth1 --quorum 1 --mode stop-and-copy");
    let clones = options.clones.unwrap();
    let addresses: Vec<_> = clones.addresses.iter().map(ToString::to_string).collect();
    assert_eq!((clones.end_source, addresses), (true, vec!["10.0.0.7/24 at eth0".into(), "fd00::7/64 at eth1".into()]));
    assert_eq!((options.mode.mode, options.quorum), (Mode::StopAndCopy, Quorum::Number(1)));
    let left_to = |line| read(line).clones.unwrap().connections;
    assert_eq!(left_to("7 b c --connections close"), None);
    assert_eq!(left_to("7 b c --end-source --connections tcp://c"), Some("tcp://c".parse().unwrap()));
    refused::<clone::Args>(&["7", "", "7 b --address 10.0.0.7", "7 b --address 10.0.0.7/24@eth0:eth1"]);
}

#[test]
fn moves() {
    let config = Config::default();
    let read = |line| parse::<r#move::Args>(line).unwrap().options(&config);
    let options = read("7 b").unwrap();
    let dest: Dest = "b".parse().unwrap();
    assert_eq!(options, MoveOptions { session: options.session, ..MoveOptions::new(Target::Pid(Pid(7)), dest) });

    let then = read("7 b --then c,tcp://d --then e --retries 1 --disjoint-paths drop").unwrap().then;
    let names: Vec<String> = then.dests().map(ToString::to_string).collect();
    assert_eq!((then.stages.len(), names.join(" ").as_str()), (2, "c tcp://d:7413 e"));
    assert_eq!((then.retries, then.disjoint), (Some(1), Some(Disjoint::Drop)));
    assert!(read("7 b --then @none").is_err() && parse::<r#move::Args>("7 b --then c,").is_err());
    assert_eq!(read("7 b --base /images/a").unwrap().base, Some("/images/a".into()));
    assert!(parse::<r#move::Args>("7 b --base images").is_err(), "over there there is no directory where one is");
    let contradiction = read("7 b --base /a --compress off").unwrap_err();
    assert!(contradiction.what.contains("--compress off") && contradiction.kind == FailureKind::Usage);

    let options = read(
        "7 unix:/s --mode stop-and-copy --max-downtime 5ms --max-rounds 3 --max-time 1m --max-bytes 1GiB \
         --exit-when downtime,time --converge throttle,abort --fence-cmd off --recoverable=2s --remote sudo \
         --bootstrap --connect-timeout 1s --peer-timeout 2s --lease 3s --allow-plain --dry-run",
    )
    .unwrap();
    let mode = ModeOptions {
        mode: Mode::StopAndCopy,
        max_downtime: Duration::from_millis(5),
        max_rounds: 3,
        max_time: Duration::from_secs(60),
        max_bytes: Some(1 << 30),
        exit_when: vec![ExitCondition::Downtime, ExitCondition::Time],
        converge: vec![Step::Throttle, Step::Abort],
        fence: Some("off".into()),
        recoverable: Some(Duration::from_secs(2)),
    };
    assert_eq!(options.mode, mode);
    assert_eq!(options.peer.connect_timeout, Duration::from_secs(1));
    assert_eq!(options.peer.peer_timeout, Duration::from_secs(2));
    assert_eq!(options.lease, Duration::from_secs(3));
    assert_eq!(options.peer.remote, "sudo");
    assert!(options.peer.bootstrap && options.peer.allow_plain && options.dry_run);
    refused::<r#move::Args>(&[
        "7",
        "",
        "7 b --max-downtime 50",
        "7 http://x",
        "7 b --mode lazy",
        "7 b --recoverable=2",
        "7 b --exit-when luck",
        "7 b --converge hope",
        "7 b -D d",
    ]);
}

#[test]
fn several_destinations() {
    let config = Config::default();
    for line in ["7 b c --quorum 50%", "7 b,c --quorum=50%"] {
        let options = parse::<r#move::Args>(line).unwrap().options(&config).unwrap();
        assert_eq!(options.dests, ["b", "c"].map(|dest| dest.parse().unwrap()));
        assert_eq!(options.quorum, Quorum::Percent(50));
    }
    let options = parse::<r#move::Args>("7 b c --via p,tcp://q").unwrap().options(&config).unwrap();
    assert_eq!(options.peer.via, ["p", "tcp://q"].map(|dest| dest.parse().unwrap()));
    refused::<r#move::Args>(&["7 b --quorum 0", "7 b --quorum all", "7 b --via"]);
    let failure = parse::<r#move::Args>("7 @rack").unwrap().options(&config).unwrap_err();
    assert!(failure.what.contains("no group rack"), "{}", failure.what);
}

#[test]
fn evacuations() {
    use crate::ops::evacuate::plan::Place;
    let config = Config::default();
    let read = |line| parse::<evacuate::Args>(line).unwrap().options(&config).unwrap();
    let options = read("7 unit:a.service --to b,c");
    let targets = vec![Target::Pid(Pid(7)), Target::Unit("a.service".into())];
    let to = ["b", "c"].map(|dest| dest.parse().unwrap()).to_vec();
    assert_eq!(options, EvacuateOptions { session: options.session, ..EvacuateOptions::new(targets, to) });
    let options = read(
        "--all --to b --jobs 3 --place fill --keep-going --dry-run --retries 2 --retry-timeout 1m --bandwidth 8Mbit/s \
         --route b=eth0 --hook frozen=true --lease 3s --alternate c,d",
    );
    assert_eq!(options.further.alternates.len(), 2);
    assert!(options.all && options.targets.is_empty() && options.keep_going && options.dry_run);
    assert_eq!((options.jobs, options.place, options.memory.bandwidth), (3, Place::Fill, Some(1_000_000)));
    assert_eq!((options.further.retries, options.further.within), (Some(2), Some(Duration::from_secs(60))));
    assert_eq!((options.peer.routes.len(), options.state.hooks.len(), options.lease), (1, 1, Duration::from_secs(3)));
    assert!(read("7 --to b --serial").serial);
    refused::<evacuate::Args>(&[
        "",
        "7",
        "--all",
        "--to b",
        "7 --all --to b",
        "7 --to b --jobs 0",
        "7 --to b --serial --jobs 3",
        "7 --to b --place best",
        "7 --to b --quorum 2",
        "7 --to b --base /x",
    ]);
}

#[test]
fn smaller_verbs() {
    assert_eq!(parse::<check::Args>("7 unit:x").unwrap().options(&Config::default()).unwrap().targets.len(), 2);
    assert_eq!(parse::<check::Args>("").unwrap().options(&Config::default()).unwrap(), CheckOptions::default());
    refused::<check::Args>(&["0"]);
    assert_eq!(parse::<list::Args>("").unwrap().options(&Config::default()).unwrap(), ListOptions::default());
    let list = parse::<list::Args>("--to a,tcp://b --rsh x").unwrap().options(&Config::default()).unwrap();
    assert_eq!((list.to.len(), list.peer.rsh.len()), (2, 1));
    assert_eq!(parse::<show::Args>("d").unwrap().options().dir, std::path::Path::new("d"));
    assert_eq!(parse::<verify::Args>("d").unwrap().options().dir, std::path::Path::new("d"));
    assert!(parse::<status::Args>("abc --all").unwrap().options().all);
    assert_eq!(parse::<status::Args>("").unwrap().options().session, None);
    let resolve = parse::<resolve::Args>("abc --discard --yes").unwrap().options();
    assert_eq!((resolve.choice, resolve.yes), (crate::migration::handover::Choice::Discard, true));
    refused::<resolve::Args>(&["", "abc", "abc --run --discard"]);
    let promote = parse::<promote::Args>("abc --yes --fence-cmd true").unwrap().options();
    assert_eq!((promote.session.as_str(), promote.fence.as_deref(), promote.yes), ("abc", Some("true"), true));
    refused::<promote::Args>(&["", "abc --run"]);
    assert_eq!(parse::<cancel::Args>("abc").unwrap().options().session, "abc");
    assert_eq!(parse::<demo::Args>("").unwrap().options(), DemoOptions::default());
    assert!(parse::<demo::Args>("--keep --mode pre-copy").unwrap().options().keep);
    assert_eq!(parse::<keygen::Args>("").unwrap().options(), KeygenOptions::default());
    assert_eq!(parse::<keygen::Args>("--name a --force").unwrap().options().name.as_deref(), Some("a"));
    refused::<show::Args>(&["", "a b"]);
    refused::<list::Args>(&["7"]);
    assert_eq!(parse::<demo::Args>("--kill link").unwrap().options().kill, Some(Kill::Link));
    refused::<demo::Args>(&["--kill time"]);
    refused::<explain::Args>(&["", "301", "M0301 --all"]);
}

#[test]
fn agents() {
    let read = |line| parse::<agent::Args>(line).unwrap().options();
    assert_eq!(read("--stdio").unwrap(), AgentOptions::new(AgentPlace::Stdio));
    let options = read("--listen unix:/a --listen tcp://:7413 --peers p --max-memory 1GiB --max-sessions 2").unwrap();
    assert!(matches!(options.place, AgentPlace::Listen(places) if places.len() == 2));
    assert_eq!((options.max_memory, options.max_sessions), (Some(1 << 30), 2));
    assert_eq!(read("").unwrap_err().kind, FailureKind::Usage);
    for (line, host) in
        [("--listen unix:/a --metrics 9413", "127.0.0.1"), ("--listen unix:/a --metrics [::]:9413", "::")]
    {
        assert_eq!(read(line).unwrap().metrics, Some(Address { host: host.to_owned(), port: 9413 }));
    }
    refused::<agent::Args>(&[
        "--listen unix:/a --stdio",
        "--listen 7413",
        "--stdio --max-sessions 0",
        "--listen unix:/a --metrics :x",
    ]);
}
