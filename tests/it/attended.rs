//! A prepared copy whose session was killed is attended by another process of ours, also one that a later agent starts: it is shown,
//! answers a source that comes back, is parked when its lease is over; and what was not prepared is ended, what was this host's runs.

use crate::handover::{Play, children, is_stopped, stopped_session, wait, wait_for};
use crate::leases::{LEASE, images, is_over, is_parked, journals, others};
use crate::moves::{Agent, can_move, run, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};

/// No lease of these tests ends by itself.
const LONG: [&str; 2] = ["--lease", "1h"];

/// What a copy is was written down beside its journal.
fn inventory(play: &Play) -> bool {
    let entries = std::fs::read_dir(journals(play)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "inventory"))
}

/// Where pages were stored of what the destination's journals know.
fn stores(play: &Play) -> Vec<String> {
    let names = |dir: &std::path::Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let attempts: Vec<String> = names(&journals(play))
        .iter()
        .filter(|name| name.ends_with(".journal"))
        .map(|name| name[..name.find('.').unwrap()].to_owned())
        .collect();
    let all = names("/dev/shm".as_ref()).into_iter();
    all.filter(|name| attempts.iter().any(|id| name.starts_with(&format!("migrate-incoming-{id}")))).collect()
}

/// The agent and this session are killed, and another agent takes its place.
fn renewed(play: &mut Play, session: Option<Pid>) {
    play.agent.kill();
    if let Some(session) = session {
        let _ = kill(session, Signal::SIGKILL);
    }
    let listen = play.agent.address.clone();
    let _ = std::fs::remove_file(listen.trim_start_matches("unix:"));
    play.agent = Agent::start(&play.dir.path().join("b"), &listen);
}

/// A move that stands still before COMMIT. Dropped, it is ended: who is traced by one that stands still cannot end.
struct Mover(Option<Child>);

impl Mover {
    fn spawn(command: &mut Command) -> Self {
        let mover = Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()));
        wait(|| is_stopped(mover.pid().as_raw()), "the source stands still");
        mover
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.as_ref().unwrap().id() as i32)
    }

    /// It goes on, and comes to its end.
    fn succeeds(mut self, what: &str) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output));
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Its copy is prepared and described, besides.
fn stopped_move(play: &Play, lease: &[&str]) -> Mover {
    let mut mover = play.mover("MIGRATE_STOP", "source-ready");
    let stopped = play.dir.path().join("stopped");
    std::fs::write(&stopped, "").unwrap();
    let mover = Mover::spawn(mover.args(lease).env("MIGRATE_ONCE", &stopped));
    // With a short lease it may be parked already, on a slow day.
    wait(|| inventory(play) || !images(play).is_empty(), "what the copy is was written down");
    mover
}

/// Somebody has the journal, and the copy stands in memory.
fn is_attended(play: &Play) {
    wait(|| play.status("b")["phase"] == "prepared, waits", "it is attended");
    assert_eq!(others(play).len(), 1, "it stands in memory");
}

#[test]
fn a_source_that_comes_back_is_answered_by_whoever_attends_the_copy() {
    if !can_move() {
        return;
    }
    // The session alone, and the agent with it; until the lease is over, and after that.
    for (with_agent, lease) in [(false, LONG), (true, LONG), (false, LEASE), (true, LEASE)] {
        let mut play = Play::begin("NOBODY", "");
        let mover = stopped_move(&play, &lease);
        let session = children(play.agent.pid()).first().copied().map(Pid::from_raw);
        if with_agent {
            renewed(&mut play, session);
        } else if let Some(session) = session {
            let _ = kill(session, Signal::SIGKILL);
        }
        if lease == LONG {
            is_attended(&play);
        } else {
            is_parked(&play);
        }
        mover.succeeds(&format!("{with_agent} {lease:?}"));
        is_over(&play, true, "it came back");
        wait(|| play.status("a").is_null() && play.status("b").is_null(), "it is over");
        assert!(!inventory(&play));
    }
}

#[test]
fn a_copy_whose_session_was_killed_waits_for_a_person_and_is_parked() {
    if !can_move() {
        return;
    }
    for moves in [true, false] {
        let mut play = Play::begin("NOBODY", "");
        play.killed_with_guardian("source-committing", &["--lease", "3s"]);
        wait(|| inventory(&play), "what the copy is was written down");
        let session = wait_for(|| children(play.agent.pid()).first().copied(), "a session");
        renewed(&mut play, Some(Pid::from_raw(session)));
        is_attended(&play);
        play.nobody_counts("attended");
        if moves {
            is_parked(&play);
            play.resolves("b", "--run");
            play.resolves("a", "--discard");
        } else {
            play.resolves("a", "--run");
            wait(|| play.status("b").is_null(), "the destination knows");
        }
        is_over(&play, moves, "attended");
    }
}

/// Where the session was killed before what the copy is could be written down, it is attended nevertheless, and says why it stays in
/// memory.
#[test]
fn a_copy_that_nobody_has_described_stays_in_memory() {
    if !can_move() {
        return;
    }
    let play = Play::begin("MIGRATE_STOP", "destination-prepared");
    let mut mover = play.mover("MIGRATE_STOP", "source-ready");
    let stopped = play.dir.path().join("stopped");
    std::fs::write(&stopped, "").unwrap();
    let mover = Mover::spawn(mover.args(LEASE).env("MIGRATE_ONCE", &stopped));
    let session = wait_for(|| stopped_session(&play), "PREPARED is sent");
    kill(session, Signal::SIGKILL).unwrap();
    is_attended(&play);
    // The lease that is usual where nobody has said another holds, which nobody waits for here.
    assert_eq!(images(&play).len(), 0);
    mover.succeeds("not described");
    is_over(&play, true, "not described");
}

#[test]
fn what_was_not_prepared_is_ended_and_what_was_this_hosts_runs() {
    if !can_move() {
        return;
    }
    for (point, runs) in [("destination-armed", false), ("destination-recorded", false), ("destination-owner", true)] {
        let mut play = Play::begin("MIGRATE_STOP", point);
        let mut mover = play.mover("NOBODY", "").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let session = wait_for(|| stopped_session(&play), point);
        // Nobody of the source comes back.
        for pid in children(mover.id()).into_iter().chain([mover.id() as i32]) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        mover.wait().unwrap();
        renewed(&mut play, Some(session));
        match point {
            "destination-armed" => wait(|| others(&play).is_empty(), "nobody counts on it: it is ended"),
            // PREPARED may have been sent, as far as the journal knows.
            "destination-recorded" => is_attended(&play),
            _ => {
                wait(|| play.status("b")["owner"] == "here", "it is this host's");
                let line = play.counter.numbers().len();
                wait(|| play.counter.numbers().len() > line, "it runs");
            }
        }
        if runs {
            play.resolves("a", "--discard");
        } else if point == "destination-recorded" {
            play.resolves("b", "--discard");
        }
        is_over(&play, runs, point);
        wait(|| stores(&play).is_empty(), "where pages were stored is removed");
    }
}

/// Memory that follows when it runs: what is there is parked, and what is not is still asked of the source, by a tree that was made
/// anew.
#[test]
fn a_copy_whose_memory_follows_is_parked_too() {
    if !can_move() {
        return;
    }
    // After rounds, what was written to since the last of them follows: the rest is there, and parked.
    for (killed, mode) in [(false, "post-copy"), (true, "post-copy"), (false, "hybrid"), (true, "hybrid")] {
        let mut play = Play::begin("NOBODY", "");
        let mover = stopped_move(&play, &["--lease", "3s", "--mode", mode]);
        if killed {
            let session = children(play.agent.pid()).first().copied().map(Pid::from_raw);
            renewed(&mut play, session);
        }
        let looked = |status: &serde_json::Value| {
            assert!(!status["not_parked"].is_string(), "{status}");
            status["phase"] == "parked"
        };
        let status = wait_for(|| Some(play.status("b")).filter(looked), "it is parked");
        wait(|| others(&play).is_empty(), "process ids are free");
        // Nobody takes it for a whole one.
        let image = status["image"].as_str().unwrap();
        let restored = run(play.host("b"), &["restore", "-D", image]);
        assert!(!restored.status.success(), "{}", text(&restored));
        assert_eq!(others(&play), Vec::<i32>::new());
        mover.succeeds(&format!("{mode}, killed: {killed}"));
        // Every page is read.
        let before = *play.counter.numbers().last().unwrap();
        play.counter.wait_for_more(before + 256);
        is_over(&play, true, mode);
        wait(|| play.status("a").is_null() && play.status("b").is_null(), "it is over");
    }
}

/// Whoever parks it, or makes a tree of it, is killed: the pager of the tree that is left ends with that.
#[test]
fn a_copy_whose_memory_follows_outlives_whoever_parks_it() {
    if !can_move() {
        return;
    }
    for point in ["destination-parking", "destination-parked", "destination-unparked"] {
        let play = Play::begin("MIGRATE_KILL", point);
        let mover = stopped_move(&play, &["--lease", "1s", "--mode", "post-copy"]);
        wait(|| play.status("b")["phase"] == "parked", "it is parked");
        wait(|| others(&play).is_empty(), "process ids are free");
        mover.succeeds(point);
        assert!(!play.once.exists(), "{point} was not reached");
        let before = *play.counter.numbers().last().unwrap();
        play.counter.wait_for_more(before + 256);
        is_over(&play, true, point);
    }
}

/// As long as COMMIT is not out, the whole one goes on.
#[test]
fn a_parked_copy_whose_source_is_dead_is_given_up_where_its_memory_would_follow() {
    if !can_move() {
        return;
    }
    let play = Play::begin("NOBODY", "");
    let mover = stopped_move(&play, &["--lease", "1s", "--mode", "post-copy"]);
    wait(|| play.status("b")["phase"] == "parked", "it is parked");
    // Its guardian decides.
    drop(mover);
    wait(|| play.status("b").is_null(), "the destination knows");
    is_over(&play, false, "the source was killed");
}
