//! What is left of an attempt whose programs are dead, as whoever is asked about it finds it by the journal.

use super::*;
use crate::migration::handover::{Choice, Reply, Request};
use crate::migration::journal::{Journal, Role, Step};
use crate::migration::keeper::{self, Answer, Question};
use crate::migration::postcopy;
use crate::net::address::Place;
use nix::sched::{CloneFlags, unshare};
use std::path::PathBuf;

const ATTEMPT: AttemptId = AttemptId([9; 16]);

/// The host of the destination.
struct Left {
    dir: tempfile::TempDir,
}

impl Left {
    /// A copy whose last line says so, and nothing of it that stands here but these addresses.
    fn after(step: Step, addresses: &[&Place]) -> Self {
        let left = Self { dir: tempfile::tempdir().unwrap() };
        let mut journal = Journal::begin(&left.journals(), Role::Destination, ATTEMPT, "a", "abcdefgh").unwrap();
        let named = addresses.iter().map(|place| (place.ip, place.prefix, place.interface.clone()));
        journal.set_addresses(named.collect());
        journal.write(step).unwrap();
        left
    }

    fn journals(&self) -> PathBuf {
        self.dir.path().join("moves")
    }

    fn ask(&self, question: Question) -> Answer {
        keeper::answer(&self.journals(), self.dir.path(), ATTEMPT, question, &mut FakeBuilder::default())
    }

    fn says(&self, request: Request) -> Option<Reply> {
        self.ask(Question::Source(request)).reply
    }

    /// As the journal is read on the next boot of the host.
    fn rebooted(&self) {
        let path = self.journals().join(format!("{ATTEMPT}.destination.journal"));
        let lines = std::fs::read_to_string(&path).unwrap();
        let here = crate::proc::sys::boot_id().unwrap();
        assert!(lines.contains(&here));
        std::fs::write(&path, lines.replace(&here, "00000000-0000-4000-8000-000000000000")).unwrap();
    }
}

/// In a network of its own, with an address on an interface of it.
fn with_address(work: fn(&Place)) {
    let alone = || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            crate::skip!("needs a network namespace of its own");
            return;
        }
        let place = Place { ip: "10.9.9.9".parse().unwrap(), prefix: 32, interface: "lo".into() };
        place.add().unwrap();
        work(&place);
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

#[test]
fn an_address_is_taken_away_once_and_not_from_a_later_attempt() {
    with_address(|place| taken_once(place, Step::Prepared));
    with_address(|place| taken_once(place, Step::Begun));
}

fn taken_once(place: &Place, step: Step) {
    let left = Left::after(step, &[place]);
    assert_eq!(left.says(Request::Ask), Some(Reply::Aborted));
    assert!(!place.is_here(), "{step:?}: it goes with the copy");
    // A later attempt brings the same.
    place.add().unwrap();
    for request in [Request::Ask, Request::Abort, Request::Commit] {
        assert_eq!(left.says(request), Some(Reply::Aborted));
        assert!(place.is_here(), "{step:?} {request:?}");
    }
}

#[test]
fn a_copy_that_ended_with_its_host_is_discarded_and_nothing_of_the_host_is() {
    with_address(|place| {
        let left = Left::after(Step::Prepared, &[place]);
        left.rebooted();
        // That address is somebody else's on this boot.
        assert_eq!(left.says(Request::Abort), Some(Reply::Aborted));
        assert!(place.is_here());
        assert_eq!(left.says(Request::Commit), Some(Reply::Aborted), "also for good");
    });
    let left = Left::after(Step::Owner, &[]);
    left.rebooted();
    for request in [Request::Ask, Request::Abort, Request::Commit] {
        assert_eq!(left.says(request), Some(Reply::EndedWithHost), "how far it ran nobody knows");
    }
    // Nor does a person decide about what is not there.
    assert_eq!(left.ask(Question::Person(Choice::Run)).reply, None);
}

#[test]
fn a_copy_says_that_it_lacks_pages_until_its_pager_has_them_all() {
    let left = Left::after(Step::Owner, &[]);
    let pager = postcopy::socket_path(left.dir.path(), &postcopy::name(ATTEMPT));
    std::fs::write(&pager, "").unwrap();
    for request in [Request::Ask, Request::Commit, Request::Abort] {
        assert!(left.ask(Question::Source(request)).lacks_pages, "{request:?}");
    }
    // A pager that is dead, or has given up, has left it behind.
    assert!(left.ask(Question::Source(Request::Ask)).lacks_pages);
    std::fs::remove_file(&pager).unwrap();
    assert!(!left.ask(Question::Source(Request::Ask)).lacks_pages);
    let other = Left::after(Step::Owner, &[]);
    assert!(!other.ask(Question::Source(Request::Ask)).lacks_pages, "another host's");
}
