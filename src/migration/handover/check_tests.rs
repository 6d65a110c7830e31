//! Every interleaving of the two machines, bounded by the number of faults: at most one runs, the last complete copy is
//! never deleted, nothing runs from an incomplete one, and nobody is in doubt but where the rules say so. With a rule
//! broken on purpose the same search finds the harm that the rule prevents.

use super::destination::{self, Phase as There};
use super::source::{self, Phase as Here};
use super::world::{DestinationHost, Driver, Harm, Made, Mishap, World};
use super::{Candidate, Choice, Reply, Request, Rule, Rules};
use std::collections::{BTreeSet, HashMap, HashSet};

/// How far the search goes.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    candidates: u8,
    /// Deaths, power losses, full disks, decisions of a person; losing and delaying messages is free.
    faults: u8,
    /// A person decides without looking.
    blind: bool,
    /// Hosts lose their power, and disks are full.
    power: bool,
    /// From every world it is also tried how it ends when nothing more goes wrong.
    to_the_end: bool,
}

/// What a search found.
struct Found {
    worlds: usize,
    harms: BTreeSet<Harm>,
    /// Worlds from which no way without further faults leads out of doubt, by reason.
    doubts: HashMap<&'static str, usize>,
    /// Ends without a fault, by what became of the target.
    moved: usize,
    stayed: usize,
}

fn search(bounds: Bounds, rules: Rules) -> Found {
    let start = World::new(bounds.candidates, rules);
    let mut seen: HashSet<World> = [start.clone()].into();
    let mut todo = vec![start];
    let mut found = Found { worlds: 0, harms: BTreeSet::new(), doubts: HashMap::new(), moved: 0, stayed: 0 };
    while let Some(world) = todo.pop() {
        found.worlds += 1;
        if let Some(harm) = world.harm {
            found.harms.insert(harm);
            if rules != Rules::default() {
                break;
            }
            continue;
        }
        let end = if bounds.to_the_end { settle(&world) } else { Ok(None) };
        match end {
            Ok(None) if world.source.alive => found.stayed += 1,
            Ok(None) => found.moved += 1,
            Ok(Some(reason)) => *found.doubts.entry(reason).or_default() += 1,
            Err(harm) => {
                found.harms.insert(harm);
                if rules == Rules::default() && !bounds.blind {
                    panic!("{harm:?}: {world:#?}");
                }
            }
        }
        for next in successors(&world, bounds) {
            if let (Some(harm), true) = (next.harm, rules == Rules::default() && !bounds.blind) {
                panic!("{harm:?}\n--- from\n{world:#?}\n--- to\n{next:#?}");
            }
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    found
}

/// Everything that can happen next.
fn successors(world: &World, bounds: Bounds) -> Vec<World> {
    let mut next = Vec::new();
    source_successors(world, bounds, &mut next);
    for n in 0..world.dests.len() {
        destination_successors(world, bounds, n, &mut next);
    }
    if world.faults < bounds.faults {
        let before = next.len();
        deaths(world, &mut next);
        if bounds.power {
            power_losses(world, &mut next);
        }
        people(world, bounds.blind, &mut next);
        next[before..].iter_mut().for_each(|world| world.faults += 1);
    }
    next
}

/// The same step in every way it can go: whole, cut short by a death after each action, or with a full disk.
fn ways(world: &World, bounds: Bounds, step: &dyn Fn(&mut World, Mishap) -> bool, next: &mut Vec<World>) {
    let with = |mishap| {
        let mut world = world.clone();
        let whole = step(&mut world, mishap);
        world.faults += u8::from(mishap != Mishap::None);
        (world, whole)
    };
    let (plain, _) = with(Mishap::None);
    next.push(plain);
    if world.faults >= bounds.faults {
        return;
    }
    if bounds.power {
        next.push(with(Mishap::DiskFull).0);
    }
    for with_guardian in [false, true] {
        for after in 1.. {
            let (world, whole) = with(Mishap::Dies { after, with_guardian });
            if whole {
                break;
            }
            next.push(world);
        }
    }
}

fn source_successors(world: &World, bounds: Bounds, next: &mut Vec<World>) {
    let source = &world.source;
    if source.driver == Driver::Nobody {
        if source.guardian {
            let mut world = world.clone();
            world.source_recovers();
            next.push(world);
        }
        return;
    }
    let mut event = |event| ways(world, bounds, &|world, mishap| world.source_event(event, mishap), next);
    event(source::Event::Failed);
    for n in 0..world.dests.len() {
        let candidate = Candidate(n as u8);
        event(source::Event::Silent(candidate));
        event(source::Event::Connected(candidate));
        if world.dests[n].off {
            event(source::Event::Fenced(candidate));
        }
    }
    for (n, dest) in world.dests.iter().enumerate() {
        for (own, reply) in dest.replies.iter().copied() {
            ways(world, bounds, &|world, mishap| world.hear(n, own, reply, mishap), next);
        }
    }
}

fn destination_successors(world: &World, bounds: Bounds, n: usize, next: &mut Vec<World>) {
    let dest = &world.dests[n];
    if dest.off {
        return;
    }
    let mut event = |event| ways(world, bounds, &|world, mishap| world.dest_event(n, event, mishap), next);
    for request in dest.requests.iter().copied() {
        event(destination::Event::Asked(super::world::ATTEMPT, request));
    }
    if dest.driver == Driver::Nobody {
        if dest.guardian {
            let mut world = world.clone();
            world.dest_recovers(n);
            next.push(world);
        }
        return;
    }
    event(destination::Event::Silent);
    event(destination::Event::LeaseOver);
    if dest.made == Made::Gone && dest.machine.phase() != There::Parked {
        event(destination::Event::CopyDied);
    }
    if dest.machine.phase() == There::Receiving && dest.made == Made::Building {
        event(destination::Event::Failed);
        let arms = |world: &mut World, mishap| {
            world.dests[n].made = world.arms();
            world.dest_event(n, destination::Event::Armed, mishap)
        };
        ways(world, bounds, &arms, next);
    }
}

/// Programs and tasks that are killed.
fn deaths(world: &World, next: &mut Vec<World>) {
    let mut with = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        next.push(world);
    };
    if world.source.driver != Driver::Nobody {
        with(&|world| world.source_dies(false));
        with(&|world| world.source_dies(true));
    }
    if world.source.guardian {
        with(&|world| world.source.guardian = false);
    }
    for (n, dest) in world.dests.iter().enumerate().filter(|(_, dest)| !dest.off) {
        if dest.driver != Driver::Nobody {
            with(&|world| world.dest_dies(n, false));
            with(&|world| world.dest_dies(n, true));
        }
        if dest.guardian {
            with(&|world| world.dests[n].guardian = false);
        }
        if dest.made == Made::Armed {
            with(&|world| world.kill_copy(n));
        }
    }
}

fn power_losses(world: &World, next: &mut Vec<World>) {
    if world.source.boot == 0 {
        next.extend(world.source_loses_power());
    }
    for (n, _) in world.dests.iter().enumerate().filter(|(_, dest)| dest.boot == 0) {
        next.extend(world.dest_loses_power(n, false));
        next.extend(world.dest_loses_power(n, true));
        next.extend(world.dest_forgets(n));
    }
}

/// What a person may decide who has looked at every host that can be looked at.
fn people(world: &World, blind: bool, next: &mut Vec<World>) {
    let mut source = |choice| {
        let mut world = world.clone();
        world.resolve_source(choice);
        next.push(world);
    };
    let nowhere_else = world.dests.iter().all(|d| !d.ran && d.made == Made::Gone && !d.image && !d.undeletable);
    if world.source.alive && (nowhere_else || blind) {
        source(Choice::Run);
    }
    if world.source.alive && world.dests.iter().any(|d| d.ran) {
        source(Choice::Discard);
    }
    for (n, dest) in world.dests.iter().enumerate().filter(|(_, d)| d.waits() && !d.off) {
        if blind || may_run_there(world, n) {
            let mut world = world.clone();
            world.dest_event(n, destination::Event::Resolved(Choice::Run), Mishap::None);
            next.push(world);
        }
        if matches!(dest.machine.phase(), There::Prepared | There::Parked) && world.another_copy(n) {
            let mut world = world.clone();
            world.dest_event(n, destination::Event::Resolved(Choice::Discard), Mishap::None);
            next.push(world);
        }
    }
}

/// The original cannot run any more but by this destination's word, nor can any other candidate.
fn may_run_there(world: &World, n: usize) -> bool {
    let committed =
        matches!(world.source.machine.phase(), Here::Committed(to) | Here::InDoubt(to) if to.0 as usize == n);
    let original = !world.source.alive || (committed && !world.source_runs());
    let mut others = world.dests.iter().enumerate().filter(|(other, _)| *other != n).map(|(_, d)| d);
    original
        && !world.source.ran
        && others.all(|d| !d.ran && (d.made == Made::Gone && !d.image || !d.requests.contains(&Request::Commit)))
}

/// Lets everything go its way without another fault. What is left to a person, and why; [`Harm::Stuck`] where the rules allow no
/// doubt, or a person could not end it.
fn settle(world: &World) -> Result<Option<&'static str>, Harm> {
    let mut world = world.clone();
    for _ in 0..4 {
        calm(&mut world);
        if let Some(harm) = world.harm {
            return Err(harm);
        }
    }
    // A copy is out of date once the original has gone on.
    let has_it = |d: &DestinationHost| d.made == Made::Runs || d.waits() && !world.source.ran;
    let somebody_has_it = world.source.alive || world.dests.iter().any(has_it);
    if world.runners() == 1 || !somebody_has_it {
        return Ok(None);
    }
    let reason = doubt(&world).ok_or(Harm::Stuck)?;
    person(&mut world);
    match (world.harm, world.runners()) {
        (Some(harm), _) => Err(harm),
        (None, 1) => Ok(Some(reason)),
        // Only a switched-off host, or one that it ended with, has had it; an image there is a person's to restore.
        (None, _) if world.dests.iter().any(|d| d.off || d.ran || d.machine.phase() == There::EndedWithHost) => {
            Ok(Some(reason))
        }
        (None, _) => Err(Harm::Stuck),
    }
}

fn calm(world: &mut World) {
    if world.source.driver == Driver::Nobody && world.source.guardian {
        world.source_recovers();
    }
    for n in 0..world.dests.len() {
        if world.dests[n].driver == Driver::Nobody && world.dests[n].guardian && !world.dests[n].off {
            world.dest_recovers(n);
        }
    }
    if world.source.driver == Driver::Nobody {
        return;
    }
    match world.source.machine.phase() {
        Here::Open => drop(world.source_event(source::Event::Failed, Mishap::None)),
        Here::Committed(to) => drop(world.source_event(source::Event::Silent(to), Mishap::None)),
        _ => {}
    }
    for n in 0..world.dests.len() {
        if world.dests[n].off {
            world.source_event(source::Event::Fenced(Candidate(n as u8)), Mishap::None);
            continue;
        }
        let before = std::mem::take(&mut world.dests[n].requests);
        world.source_event(source::Event::Connected(Candidate(n as u8)), Mishap::None);
        exchange(world, n);
        world.dests[n].requests.extend(before);
    }
}

/// Requests and replies, until nothing new is said.
fn exchange(world: &mut World, n: usize) {
    for _ in 0..4 {
        let requests = std::mem::take(&mut world.dests[n].requests);
        for request in requests {
            for reply in world.ask(n, request) {
                world.hear(n, true, reply, Mishap::None);
            }
        }
    }
}

/// Why nobody runs, as far as the rules allow it.
fn doubt(world: &World) -> Option<&'static str> {
    let source = &world.source;
    if !source.alive {
        return Some("the original ended with its host, and a prepared copy waits");
    }
    if source.driver == Driver::Nobody {
        return Some("every program of ours on the source is dead");
    }
    let Here::InDoubt(to) = source.machine.phase() else { return None };
    let dest = &world.dests[usize::from(to.0)];
    match dest.machine.phase() {
        _ if dest.off => Some("the destination is off"),
        There::EndedWithHost => Some("it ran there and ended with the host"),
        There::Unknown => Some("the destination's journal is gone"),
        _ => None,
    }
}

/// Somebody who looks everywhere, and then decides.
fn person(world: &mut World) {
    for n in 0..world.dests.len() {
        if world.dests[n].driver == Driver::Nobody && !world.dests[n].off {
            world.dest_recovers(n);
        }
    }
    let stands = |phase| matches!(phase, There::Prepared | There::Parked);
    let waits = |n: &usize| stands(world.dests[*n].machine.phase()) && world.dests[*n].waits();
    let armed = (0..world.dests.len()).filter(waits).find(|n| may_run_there(world, *n));
    match armed {
        Some(n) => drop(world.dest_event(n, destination::Event::Resolved(Choice::Run), Mishap::None)),
        None if world.source.alive && world.dests.iter().all(|d| !d.ran) => {
            for n in 0..world.dests.len() {
                if !world.dests[n].off {
                    world.dest_event(n, destination::Event::Resolved(Choice::Discard), Mishap::None);
                }
            }
            world.resolve_source(Choice::Run);
        }
        None => {}
    }
}

const TWO: Bounds = Bounds { candidates: 1, faults: 3, blind: false, power: true, to_the_end: true };
const THREE: Bounds = Bounds { candidates: 2, faults: 1, blind: false, power: true, to_the_end: true };

#[test]
fn two_hosts_never_lose_nor_double_the_target() {
    let found = search(TWO, Rules::default());
    eprintln!("{} worlds, moved {}, stayed {}, in doubt {:?}", found.worlds, found.moved, found.stayed, found.doubts);
    assert!(found.harms.is_empty());
    assert!(found.moved > 0 && found.stayed > 0 && found.doubts.len() == 4, "{:?}", found.doubts);
}

#[test]
fn three_hosts_never_lose_nor_double_the_target() {
    let found = search(Bounds { faults: faults(THREE.faults), ..THREE }, Rules::default());
    eprintln!("{} worlds, moved {}, stayed {}, in doubt {:?}", found.worlds, found.moved, found.stayed, found.doubts);
    assert!(found.harms.is_empty() && found.moved > 0 && found.stayed > 0);
}

/// A longer search by hand: `MIGRATE_CHECK_FAULTS=2` takes half a million worlds.
fn faults(usual: u8) -> u8 {
    std::env::var("MIGRATE_CHECK_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
fn every_rule_is_needed() {
    for rule in Rule::ALL.iter().copied() {
        // Those of several candidates show with three hosts only.
        let two = Bounds { faults: 2, to_the_end: false, ..TWO };
        let searches = [two, Bounds { candidates: 2, power: false, ..two }];
        let harms = searches.into_iter().map(|bounds| search(bounds, Rules::without(rule)).harms);
        let harm = harms.flatten().next();
        eprintln!("without {rule:?}: {harm:?}");
        assert!(harm.is_some(), "without {rule:?} nothing happens");
    }
}

#[test]
fn a_person_who_does_not_look_doubles_it() {
    let found = search(Bounds { faults: 1, blind: true, to_the_end: false, ..TWO }, Rules::default());
    assert!(found.harms.contains(&Harm::Doubled));
}

#[test]
fn what_comes_late_changes_nothing() {
    let mut world = World::new(1, Rules::default());
    world.dests[0].made = Made::Armed;
    world.dest_event(0, destination::Event::Armed, Mishap::None);
    world.dest_event(0, destination::Event::Silent, Mishap::None);
    assert_eq!(world.ask(0, Request::Abort), [Reply::Aborted]);
    assert_eq!(world.ask(0, Request::Commit), [Reply::Aborted]);
    assert_eq!(world.runners(), 0);
}

/// A destination that has said PREPARED and has heard nothing for a whole lease.
fn parked() -> World {
    let mut world = World::new(1, Rules::default());
    world.dests[0].made = Made::Armed;
    world.dest_event(0, destination::Event::Armed, Mishap::None);
    world.dest_event(0, destination::Event::LeaseOver, Mishap::None);
    assert_eq!((world.dests[0].made, world.dests[0].image), (Made::Gone, true), "memory and process ids are free");
    assert_eq!(world.ask(0, Request::Ask), [Reply::Prepared], "what was said holds");
    world
}

#[test]
fn a_parked_copy_waits_for_the_source_and_runs_or_is_deleted() {
    let mut world = parked();
    world.source.traced = false;
    world.source.held = true;
    assert_eq!(world.ask(0, Request::Commit), [Reply::Running]);
    assert_eq!((world.runners(), world.dests[0].image, world.harm), (1, false, None));
    let mut world = parked();
    assert_eq!(world.ask(0, Request::Abort), [Reply::Aborted]);
    assert_eq!(world.ask(0, Request::Commit), [Reply::Aborted]);
    assert_eq!((world.runners(), world.dests[0].waits()), (0, false));
    // Whatever dies, the image is found by whoever comes next; also on the next boot.
    let world = parked();
    for mut world in world.dest_loses_power(0, false) {
        assert_eq!(world.ask(0, Request::Ask), [Reply::Prepared]);
        assert_eq!(world.dests[0].machine.phase(), There::Parked);
    }
}

#[test]
fn a_copy_that_cannot_be_parked_stays_in_memory_and_one_that_cannot_be_made_a_tree_stays_parked() {
    let mut world = World::new(1, Rules::default());
    world.dests[0].made = Made::Armed;
    world.dest_event(0, destination::Event::Armed, Mishap::None);
    world.dest_event(0, destination::Event::LeaseOver, Mishap::DiskFull);
    assert_eq!((world.dests[0].made, world.dests[0].machine.phase()), (Made::Armed, There::Prepared));
    let mut world = parked();
    world.dest_event(0, destination::Event::Asked(super::world::ATTEMPT, Request::Commit), Mishap::DiskFull);
    assert_eq!((world.dests[0].image, world.dests[0].machine.phase()), (true, There::Parked));
    assert_eq!(world.ask(0, Request::Commit), [Reply::Running]);
}

#[test]
fn a_lease_that_ends_before_prepared_leaves_nothing() {
    let mut world = World::new(1, Rules::default());
    world.dest_event(0, destination::Event::LeaseOver, Mishap::None);
    assert_eq!((world.dests[0].made, world.dests[0].machine.phase()), (Made::Gone, There::Aborted));
    assert_eq!(world.ask(0, Request::Commit), [Reply::Aborted]);
}
