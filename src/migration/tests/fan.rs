//! Several destinations over sockets inside this process: the first that is ready has the target, with every page as it was, and the
//! others have nothing; whatever is cut or fails.

use super::*;
use crate::migration::handover::Candidate;
use crate::migration::report::{Became, Report};
use crate::migration::source::{Again, Original, fan};
use std::sync::atomic::AtomicBool;

/// One destination of a play.
#[derive(Clone, Copy, Default)]
struct Part {
    fault: Fault,
    ahead: Ahead,
    /// The link is cut after so many bytes in this direction.
    cut: Option<(bool, i64)>,
    /// It takes so many bytes a second.
    rate: Option<u64>,
    /// A person discards the copy there when the target is to be held.
    is_discarded_at_hold: bool,
}

/// Until nothing is prepared there any more.
fn is_discarded(journals: &Path, run: &Path) {
    let prepared = || journal::undecided(journals).unwrap().iter().any(|line| line.step == Step::Prepared);
    let until = Instant::now() + Duration::from_secs(10);
    while prepared() && Instant::now() < until {
        discard(journals, run);
    }
}

/// A pair of streams that takes so many bytes a second in one direction.
fn slow(rate: u64) -> (Stream, Stream) {
    let (a, source_end) = UnixStream::pair().unwrap();
    let (b, destination_end) = UnixStream::pair().unwrap();
    let ends = (source_end.try_clone().unwrap(), destination_end.try_clone().unwrap());
    for (mut from, mut to, is_slow) in [(ends.0, ends.1, true), (destination_end, source_end, false)] {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
                if is_slow {
                    std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
                }
            }
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
    (Stream::unix(a).unwrap(), Stream::unix(b).unwrap())
}

struct Fan {
    source: std::result::Result<Report, MoveError>,
    target: FakeTarget,
    builders: Vec<FakeBuilder>,
    dir: tempfile::TempDir,
    left_behind: usize,
}

/// Answers links that are made anew, until it is over.
fn answers(around: Surroundings<'_>, asked: &crossbeam_channel::Receiver<Link>, over: &AtomicBool) {
    std::thread::scope(|scope| {
        while !over.load(Ordering::Relaxed) {
            if let Ok(server) = asked.recv_timeout(Duration::from_millis(5)) {
                scope.spawn(move || destination::run(server, &mut FakeBuilder::default(), around));
            }
        }
    });
}

fn play_all(mut target: FakeTarget, parts: &[Part], streams: u16, change: impl FnOnce(&mut Wishes<'_>)) -> Fan {
    let dir = tempfile::tempdir().unwrap();
    let place = |n: usize, what: &str| {
        let path = dir.path().join(format!("{n}-{what}"));
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let source_journals = dir.path().join("source");
    let places: Vec<_> = (0..parts.len()).map(|n| (place(n, "journals"), place(n, "store"))).collect();
    let (asks, asked): (Vec<_>, Vec<_>) = parts.iter().map(|_| crossbeam_channel::bounded::<Link>(4)).unzip();
    let again = |to: Candidate, _: Option<&Abort>| {
        let (client, server) = links(0, None);
        asks[usize::from(to.0)].send(server).unwrap();
        Ok(client)
    };
    let mut wishes = Wishes { again: Some(Again::new(&again)), ..wishes(&source_journals) };
    wishes.states = vec![wishes.states[0].clone(); parts.len()];
    change(&mut wishes);
    for (part, (journals, store)) in parts.iter().zip(places.clone()) {
        if part.is_discarded_at_hold {
            target.at_hold = Some(Box::new(move || is_discarded(&journals, &store)));
        }
    }
    let (clients, servers): (Vec<Link>, Vec<Link>) = parts
        .iter()
        .map(|part| match part.rate {
            Some(rate) => links_over(slow(rate), 0),
            None => links(streams, part.cut),
        })
        .unzip();
    let mut builders: Vec<_> = parts
        .iter()
        .map(|part| FakeBuilder { fault: part.fault, ahead: part.ahead, ..FakeBuilder::default() })
        .collect();
    let over = AtomicBool::new(false);
    let source = std::thread::scope(|scope| {
        let mut destinations = Vec::new();
        for (((journals, store), builder), server) in places.iter().zip(&mut builders).zip(servers) {
            let stores: &'static [&'static Path] = Box::leak(Box::new([&*Box::leak(store.clone().into_boxed_path())]));
            let around = Surroundings { journals, run: store, stores, max_memory_bytes: None, principal: "" };
            destinations.push(scope.spawn(move || destination::run(server, builder, around)));
        }
        for ((journals, store), asked) in places.iter().zip(&asked) {
            let around = Surroundings { journals, run: store, stores: &[], max_memory_bytes: None, principal: "" };
            let over = &over;
            scope.spawn(move || answers(around, asked, over));
        }
        let source = fan::run(clients, &mut target, &wishes, &Quiet, &Abort::new().unwrap());
        destinations.into_iter().for_each(|destination| drop(destination.join().unwrap()));
        over.store(true, Ordering::Relaxed);
        source
    });
    let left_behind = places.iter().map(|(_, store)| std::fs::read_dir(store).unwrap().count()).sum();
    drop(wishes);
    drop(asks);
    Fan { source, target, builders, dir, left_behind }
}

impl Fan {
    /// At most one runs, and one does; it has every page as it was; nobody else has anything.
    fn check(&self) {
        let running: Vec<usize> = (0..self.builders.len()).filter(|n| self.builders[*n].runs).collect();
        let here = self.target.state == State::Running;
        let said = self.source.as_ref().err().map(ToString::to_string);
        assert_eq!(running.len() + usize::from(here), 1, "{running:?}, here {here}: {said:?}");
        assert_eq!(self.left_behind, 0, "page stores are removed");
        assert_eq!(self.source.is_ok(), !here, "{said:?}");
        for (n, builder) in self.builders.iter().enumerate() {
            if builder.runs {
                let mut memory = builder.built.clone().unwrap();
                let later = builder.pager.iter().flat_map(|pager| &pager.lacked);
                for page in later.flat_map(|(space, pages)| pages.iter().map(|range| (*space, range))) {
                    let pages = (page.1.first..page.1.end()).map(|number| (page.0, number));
                    pages.for_each(|page| {
                        assert!(!memory.contains_key(&page), "{page:?} is there, which was to follow")
                    });
                }
                memory.extend(builder.pager.as_ref().map(late::Pager::came).unwrap_or_default());
                assert_eq!(memory, self.target.expected(), "destination {n} has wrong memory");
            } else {
                assert!(builder.discarded || builder.built.is_none(), "destination {n} holds a copy");
            }
        }
        let open = journal::undecided(&self.dir.path().join("source")).unwrap();
        assert!(open.is_empty(), "{open:?}");
    }

    fn became(&self) -> Vec<&'static str> {
        self.source.as_ref().unwrap().candidates.iter().map(|candidate| candidate.became.name()).collect()
    }
}

#[test]
fn one_of_several_has_the_target_and_the_others_have_nothing() {
    for (number, streams) in [(2, 0), (2, 1), (3, 2), (8, 1)] {
        let parts = vec![Part { ahead: Ahead::FitsInPart, ..Part::default() }; number];
        let play = play_all(FakeTarget::new(3000, 20, Fault::None), &parts, streams, |_| {});
        play.check();
        let became = play.became();
        assert_eq!(became.iter().filter(|became| **became == "owner").count(), 1, "{became:?}");
        assert_eq!(became.iter().filter(|became| **became == "stopped").count(), number - 1, "{became:?}");
        let report = play.source.as_ref().unwrap();
        let packets = [(false, b"first".to_vec()), (false, b"second".to_vec()), (true, b"straggler".to_vec())];
        let owner = play.builders.iter().find(|builder| builder.runs).unwrap();
        assert_eq!(owner.delivered, packets);
        assert!(report.rounds.len() >= 2 && report.bytes_sent > 1000 * PAGE * number as u64);
    }
}

#[test]
fn who_cannot_is_left_out() {
    use Fault::{Adopt, Arm, Build, Prepare, Verdict, VerdictBlocker};
    for fault in [Verdict, VerdictBlocker, Build, Adopt, Prepare, Arm] {
        for failing in [0, 1] {
            let part = |n| Part {
                fault: if n == failing { fault } else { Fault::None },
                ahead: Ahead::Fits,
                ..Part::default()
            };
            let play = play_all(FakeTarget::new(300, 5, Fault::None), &[part(0), part(1)], 1, |_| {});
            play.check();
            if fault == Build {
                // It makes the tree in the pause instead.
                continue;
            }
            assert!(play.builders[1 - failing].runs, "{fault:?}");
            let became = &play.source.as_ref().unwrap().candidates[failing].became;
            // In the pause the other one may be ready before that is heard.
            let is_early = matches!(fault, Verdict | VerdictBlocker);
            assert!(
                matches!(became, Became::Out(_)) || !is_early && *became == Became::Stopped,
                "{fault:?}: {became:?}"
            );
        }
    }
}

/// Discarded by a person there between PREPARED and COMMIT: its journal says so when it is asked, and the other one, which is ready later,
/// has the target.
#[test]
fn if_the_chosen_one_has_aborted_the_next_is_taken_in_the_same_pause() {
    let first = Part { ahead: Ahead::Fits, is_discarded_at_hold: true, ..Part::default() };
    let later = Part { ahead: Ahead::Fits, rate: Some(1 << 20), ..Part::default() };
    let play = play_all(FakeTarget::new(300, 5, Fault::None), &[first, later], 1, |_| {});
    play.check();
    assert!(play.builders[1].runs && play.builders[0].discarded);
    let lines = journal::all(&play.dir.path().join("source")).unwrap();
    assert_eq!((lines[0].step, lines[0].candidate, lines[0].candidates()), (Step::Done, 1, 2));
}

#[test]
fn if_all_fail_it_goes_on_here() {
    use Fault::{Adopt, Prepare, VerdictBlocker};
    for (faults, blocked) in
        [([Adopt, Prepare], false), ([VerdictBlocker, VerdictBlocker], true), ([VerdictBlocker, Prepare], false)]
    {
        let parts = faults.map(|fault| Part { fault, ahead: Ahead::Fits, ..Part::default() });
        let play = play_all(FakeTarget::new(300, 5, Fault::None), &parts, 1, |_| {});
        play.check();
        let error = play.source.as_ref().unwrap_err();
        match error {
            MoveError::Blocked(blockers) => assert!(blocked && blockers.len() == 2, "{error}"),
            _ => assert!(!blocked, "{error}"),
        }
        assert_eq!(play.target.state, State::Running);
    }
}

#[test]
fn faults_of_the_target_leave_it_here() {
    use Fault::{Blocker, Freeze, Hold, Survey, TakeDirty};
    for fault in [Survey, Blocker, TakeDirty, Freeze, Hold] {
        let play = play_all(FakeTarget::new(300, 5, fault), &[Part::default(); 3], 2, |_| {});
        play.check();
        assert_eq!(play.target.state, State::Running, "{fault:?}");
    }
}

#[test]
fn a_dry_run_asks_all_and_moves_nothing() {
    let play = play_all(FakeTarget::new(100, 5, Fault::None), &[Part::default(); 2], 1, |wishes| wishes.dry_run = true);
    assert!(play.source.unwrap().pid.is_none() && play.target.state == State::Running);
    assert!(play.builders.iter().all(|builder| !builder.runs && builder.built.is_none()));
}

#[test]
fn stop_and_copy_to_several() {
    let play = play_all(
        FakeTarget::new(2000, 5, Fault::None),
        &[Part { ahead: Ahead::Fits, ..Part::default() }; 3],
        2,
        |wishes| {
            wishes.stop_and_copy = true;
        },
    );
    play.check();
    assert!(play.builders.iter().any(|builder| builder.runs));
}

/// It would take a minute: it fills its queue, is passed over, and is told to stop when the other one has the target.
#[test]
fn a_slow_one_holds_nobody_up() {
    let slow = Part { ahead: Ahead::Fits, rate: Some(200 << 10), ..Part::default() };
    for parts in
        [[Part { ahead: Ahead::Fits, ..Part::default() }, slow], [slow, Part { ahead: Ahead::Fits, ..Part::default() }]]
    {
        let begun = Instant::now();
        let play = play_all(FakeTarget::new(6000, 5, Fault::None), &parts, 1, |_| {});
        let took = begun.elapsed();
        play.check();
        let fast = usize::from(parts[0].rate.is_some());
        assert!(play.builders[fast].runs && took < Duration::from_secs(25), "after {took:?}");
        let report = play.source.as_ref().unwrap();
        let to_slow = report.candidates[1 - fast].bytes_sent;
        assert!(to_slow < 3000 * PAGE, "{to_slow} bytes were sent to the slow one");
        assert!(report.candidates[fast].bytes_sent > 4000 * PAGE);
        // What waits for the slow one alone takes it 40 s.
        assert!(report.downtime.unwrap() < Duration::from_secs(5), "{:?}", report.downtime_parts);
    }
}

/// It is passed over in the pause, too; when the one that was ready gives the target up it gets what it lacks.
#[test]
fn a_slow_one_stands_in_for_the_chosen() {
    let first = Part { ahead: Ahead::Fits, is_discarded_at_hold: true, ..Part::default() };
    let slow = Part { ahead: Ahead::Fits, rate: Some(12 << 20), ..Part::default() };
    let play = play_all(FakeTarget::new(6000, 5, Fault::None), &[first, slow], 1, |_| {});
    play.check();
    assert!(play.builders[1].runs && play.builders[0].discarded);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// The link of each may be cut anywhere, in either direction; links that are made anew are whole.
    #[test]
    fn links_that_are_cut_anywhere_never_double_nor_lose_it(
        cuts in proptest::collection::vec(proptest::option::of((any::<bool>(), 0i64..60_000)), 2..4),
        streams in 0u16..3, pages in 1u64..60, fits in any::<bool>(),
    ) {
        let part = |cut: &Option<(bool, i64)>| {
            let cut = cut.map(|(to, after)| (to, 8_000 + if to { after } else { after % 2_500 }));
            Part { fault: Fault::None, ahead: if fits { Ahead::FitsInPart } else { Ahead::DoesNotFit }, cut, ..Part::default() }
        };
        let parts: Vec<Part> = cuts.iter().map(part).collect();
        play_all(FakeTarget::new(pages, 3, Fault::None), &parts, streams, |_| {}).check();
    }
}

fn follows(pages: u64, writes: u64) -> FakeTarget {
    FakeTarget { follows: true, ..FakeTarget::new(pages, writes, Fault::None) }
}

fn came(builder: &FakeBuilder) -> usize {
    builder.pager.as_ref().map_or(0, |pager| pager.came().len())
}

#[test]
fn pages_follow_to_the_one_that_runs_it_and_to_nobody_else() {
    for (number, streams, rounds) in [(2, 0, false), (3, 1, true), (2, 2, true), (8, 1, false)] {
        let parts = vec![Part { ahead: Ahead::FitsInPart, ..Part::default() }; number];
        let play = play_all(follows(3000, 20), &parts, streams, |wishes| {
            (wishes.follows, wishes.stop_and_copy) = (true, !rounds);
        });
        play.check();
        let served = play.source.as_ref().unwrap().late.clone().unwrap().pages;
        for builder in &play.builders {
            assert_eq!(came(builder) > 0, builder.runs);
            assert!(!builder.runs || came(builder) as u64 == served && (rounds || served > 2000));
        }
    }
}

/// As above: the pages that the next one lacks are other ones, and it gets them all although some have gone to the first.
#[test]
fn if_the_chosen_one_has_aborted_the_next_gets_the_pages_that_it_lacks() {
    for rounds in [true, false] {
        let first = Part { ahead: Ahead::Fits, is_discarded_at_hold: true, ..Part::default() };
        let later = Part { ahead: Ahead::Fits, rate: Some(1 << 20), ..Part::default() };
        let play = play_all(follows(300, 5), &[first, later], 1, |wishes| {
            (wishes.follows, wishes.stop_and_copy) = (true, !rounds);
        });
        play.check();
        assert!(play.builders[1].runs && play.builders[0].discarded && came(&play.builders[1]) > 0);
        let lines = journal::all(&play.dir.path().join("source")).unwrap();
        assert_eq!((lines[0].step, lines[0].candidate, lines[0].pages_owed), (Step::Done, 1, false));
    }
}

/// It has missed rounds: what it lacks of them is not waited for in the pause, but follows.
#[test]
fn what_a_slow_one_has_missed_follows_when_it_runs_there() {
    let first = Part { ahead: Ahead::Fits, is_discarded_at_hold: true, ..Part::default() };
    let slow = Part { ahead: Ahead::Fits, rate: Some(4 << 20), ..Part::default() };
    let play = play_all(follows(6000, 5), &[first, slow], 1, |wishes| wishes.follows = true);
    play.check();
    assert!(play.builders[1].runs && play.builders[0].discarded);
    let lacked = |n: usize| play.builders[n].pager.as_ref().unwrap().lacked.clone();
    let pages = |n: usize| lacked(n).iter().map(|(_, pages)| pages.pages()).sum::<u64>();
    assert!(pages(1) > pages(0) + 500, "{} and {}", pages(0), pages(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// As above, with pages that follow.
    #[test]
    fn links_that_are_cut_anywhere_never_double_nor_lose_one_whose_pages_follow(
        cuts in proptest::collection::vec(proptest::option::of((any::<bool>(), 0i64..60_000)), 2..4),
        streams in 0u16..3, pages in 1u64..60, fits in any::<bool>(), rounds in any::<bool>(),
    ) {
        let part = |cut: &Option<(bool, i64)>| {
            let cut = cut.map(|(to, after)| (to, 8_000 + if to { after } else { after % 2_500 }));
            Part { fault: Fault::None, ahead: if fits { Ahead::FitsInPart } else { Ahead::DoesNotFit }, cut, ..Part::default() }
        };
        let parts: Vec<Part> = cuts.iter().map(part).collect();
        play_all(follows(pages, 3), &parts, streams, |wishes| {
            (wishes.follows, wishes.stop_and_copy) = (true, !rounds);
        }).check();
    }
}

/// A play in which each destination is to have a copy.
fn clones(original: Original, faults: &[Fault]) -> Fan {
    let parts: Vec<Part> =
        faults.iter().map(|fault| Part { fault: *fault, ahead: Ahead::FitsInPart, ..Part::default() }).collect();
    let mut target = FakeTarget::new(600, 10, Fault::None);
    target.copied = true;
    let play = play_all(target, &parts, 1, |wishes| wishes.clones = Some(original));
    assert_eq!(play.left_behind, 0, "page stores are removed");
    let open = journal::undecided(&play.dir.path().join("source")).unwrap();
    assert!(open.is_empty(), "{open:?}");
    for builder in &play.builders {
        if builder.runs {
            assert_eq!(builder.built.as_ref(), Some(&play.target.expected()), "a copy has wrong memory");
        } else {
            assert!(builder.discarded || builder.built.is_none(), "what does not run is deleted");
        }
    }
    play
}

#[test]
fn each_starts_a_copy_of_the_same_moment() {
    for (original, state) in [(Original::RunsOn, State::Running), (Original::Ends, State::Ended)] {
        for number in [1, 2, 5] {
            let play = clones(original, &vec![Fault::None; number]);
            assert!(play.builders.iter().all(|builder| builder.runs));
            assert_eq!((play.became(), play.target.state), (vec!["running"; number], state));
            let report = play.source.as_ref().unwrap();
            assert!(report.downtime.is_some() && report.total.is_some() && report.pid.is_some());
        }
    }
}

#[test]
fn a_copy_that_fails_takes_nothing_from_the_others() {
    use Fault::{Adopt, Arm, Prepare, Verdict, VerdictBlocker};
    for (original, state) in [(Original::RunsOn, State::Running), (Original::Ends, State::Ended)] {
        for fault in [Verdict, VerdictBlocker, Adopt, Prepare, Arm] {
            let play = clones(original, &[Fault::None, fault, Fault::None]);
            assert_eq!((play.became(), play.target.state), (vec!["running", "out", "running"], state), "{fault:?}");
        }
    }
}

#[test]
fn where_no_copy_runs_the_original_goes_on() {
    for original in [Original::RunsOn, Original::Ends] {
        for fault in [Fault::Verdict, Fault::Prepare, Fault::Arm] {
            let play = clones(original, &[fault, fault]);
            assert!(play.source.is_err() && play.target.state == State::Running, "{original:?} {fault:?}");
        }
    }
}

/// A play in which the target goes to the destination in the middle, and the others are to have clones.
fn beside_clones(faults: [Fault; 3]) -> Fan {
    let parts = faults.map(|fault| Part { fault, ahead: Ahead::FitsInPart, ..Part::default() });
    let to = Original::Moves(Candidate(1));
    let play = play_all(FakeTarget::new(600, 10, Fault::None), &parts, 1, |wishes| wishes.clones = Some(to));
    assert_eq!(play.left_behind, 0, "page stores are removed");
    let open = journal::undecided(&play.dir.path().join("source")).unwrap();
    assert!(open.is_empty(), "{open:?}");
    for builder in &play.builders {
        if builder.runs {
            assert_eq!(builder.built.as_ref(), Some(&play.target.expected()), "wrong memory");
        } else {
            assert!(builder.discarded || builder.built.is_none(), "what does not run is deleted");
        }
    }
    play
}

#[test]
fn the_target_moves_to_one_and_the_others_start_clones_if_it_does() {
    use Fault::{Arm, None, Prepare, Verdict};
    let play = beside_clones([None; 3]);
    assert_eq!((play.became(), play.target.state), (vec!["running", "owner", "running"], State::Ended));
    for fault in [Verdict, Prepare, Arm] {
        let play = beside_clones([fault, None, None]);
        assert_eq!((play.became(), play.target.state), (vec!["out", "owner", "running"], State::Ended), "{fault:?}");
        let play = beside_clones([None, fault, None]);
        assert!(play.source.is_err() && play.target.state == State::Running, "{fault:?}");
        assert!(play.builders.iter().all(|builder| !builder.runs), "{fault:?}");
    }
}
