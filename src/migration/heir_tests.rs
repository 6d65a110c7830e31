use super::*;
use crate::image::{MmId, Pid, mm::PAGE};
use crate::memory::pipeline::PageError;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::postcopy::send_missing;
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::transport::{Channel, FrameKind};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

const ATTEMPT: AttemptId = AttemptId([9; 16]);
const MM: Space = Space::Mm(MmId(0));
const ALL: PageRange = PageRange { first: 100, count: 400 };

/// Every page has its number in it.
struct Numbered;

impl ReadPages for Numbered {
    fn read(&self, _: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let pages = ranges.iter().flat_map(|range| range.first..range.end());
        pages.zip(buf.chunks_exact_mut(PAGE as usize)).for_each(|(page, content)| content.fill(page as u8 | 1));
        Ok(())
    }
}

/// What was done with the original.
#[derive(Debug, Default)]
struct Fate(Mutex<Vec<&'static str>>);

impl Fate {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

impl Original for &Fate {
    fn release(&mut self) -> io::Result<()> {
        self.note("released");
        Ok(())
    }

    fn end(&mut self) {
        self.note("ended");
    }
}

/// A destination that runs the target, and lacks pages of it.
struct There {
    missing: Mutex<RangeSet>,
    /// Pages that have come, in their order.
    came: Mutex<Vec<u64>>,
    /// The first links are lost after so many.
    cut_after: Mutex<Option<usize>>,
    reply: Reply,
}

impl There {
    fn new(reply: Reply, cut_after: Option<usize>) -> Self {
        let missing = [ALL].into_iter().collect();
        Self { missing: Mutex::new(missing), came: Mutex::default(), cut_after: Mutex::new(cut_after), reply }
    }

    /// One link, until it is over.
    fn attend(&self, mut link: Link) -> Option<()> {
        let lacks_pages = !self.missing.lock().unwrap().is_empty();
        let says = |reply| FromDestination::Says { attempt: ATTEMPT, reply: Some(reply), pid: Some(1), lacks_pages };
        let control = &mut link.control;
        loop {
            match protocol::receive(control).ok()? {
                FromSource::Ask { .. } => protocol::send(control, &says(self.reply)).ok()?,
                FromSource::Abort { .. } => protocol::send(control, &says(Reply::Aborted)).ok()?,
                FromSource::Pages { urgent: true, .. } => return self.urgent(control),
                FromSource::Pages { urgent: false, .. } => return self.bulk(control),
                FromSource::Done { .. } => {
                    let heard = FromDestination::Says { attempt: ATTEMPT, reply: None, pid: None, lacks_pages };
                    return protocol::send(control, &heard).ok();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn urgent(&self, control: &mut Channel) -> Option<()> {
        let missing = self.missing.lock().unwrap().clone();
        send_missing(control, &BTreeMap::from([(MM, missing)])).ok()?;
        while !self.missing.lock().unwrap().is_empty() {
            if *self.cut_after.lock().unwrap() == Some(0) {
                *self.cut_after.lock().unwrap() = None;
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        control.send(FrameKind::MARK, &[]).ok()?;
        control.expect(FrameKind::MARK, "the last word").map(drop).ok()
    }

    fn bulk(&self, control: &mut Channel) -> Option<()> {
        let mut buffer = Vec::new();
        loop {
            let frame = control.receive().ok()?;
            crate::migration::pages::unpack(frame.body, &mut buffer, &mut |run, content| {
                for (page, content) in (run.range.first..run.range.end()).zip(content.chunks_exact(PAGE as usize)) {
                    assert!(content.iter().all(|byte| *byte == page as u8 | 1));
                    self.came.lock().unwrap().push(page);
                }
                self.missing.lock().unwrap().remove(run.range);
            })
            .ok()?;
            let came = self.came.lock().unwrap().len();
            let mut cut = self.cut_after.lock().unwrap();
            if cut.is_some_and(|after| came >= after) {
                *cut = Some(0);
                return None;
            }
        }
    }
}

/// A journal that says that memory is owed by this copy.
fn journal(dir: &Path, held: Held) {
    let mut journal = Journal::begin(dir, Role::Source, ATTEMPT, "b", "abcdefgh").unwrap();
    journal.set_pages_owed(true);
    journal.set_held(held);
    journal.write(Step::Committing).unwrap();
}

fn alive() -> Held {
    Held::of(&[Pid(std::process::id().cast_signed())], None).unwrap()
}

/// How it is settled, what became of the original, and the last line of the journal.
fn settled(there: &There, held: Held, serves: bool) -> (Settled, Vec<&'static str>, Line) {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), held);
    let fate = Fate::default();
    let settled = std::thread::scope(|scope| {
        let again = |_: Candidate, _: Option<&crate::transport::Abort>| {
            let (ours, theirs) = crate::migration::tests::links(0, None);
            scope.spawn(move || there.attend(theirs));
            Ok(ours)
        };
        let rest = serves.then_some(Rest { pages: &Numbered, level: None, states: None });
        settle(dir.path(), ATTEMPT, Again::new(&again), None, rest, &mut |_| Box::new(&fate)).unwrap()
    });
    let (_, last) = Journal::take_over(dir.path(), Role::Source, ATTEMPT).unwrap();
    (settled, fate.all(), last)
}

#[test]
fn what_is_owed_is_served_once_and_then_the_original_ends() {
    for cut_after in [None, Some(70)] {
        let there = There::new(Reply::Running, cut_after);
        let (settled, fate, last) = settled(&there, alive(), true);
        assert_eq!((settled, fate), (Settled::Moved, vec!["ended"]));
        assert_eq!((last.step, last.pages_owed), (Step::Done, false));
        let mut came = there.came.into_inner().unwrap();
        came.sort_unstable();
        assert_eq!(came, (ALL.first..ALL.end()).collect::<Vec<_>>(), "cut after {cut_after:?}");
    }
}

#[test]
fn what_nobody_can_serve_is_left_to_a_person_who_finds_the_original_as_it_was() {
    let gone = Held { processes: vec![(std::process::id().cast_signed(), 1)], ..Held::default() };
    for (held, serves) in [(alive(), false), (gone, true)] {
        let there = There::new(Reply::Running, None);
        let (settled, fate, last) = settled(&there, held, serves);
        assert_eq!((settled, fate), (Settled::PagesOwed, Vec::new()), "{serves}");
        assert_eq!((last.step, last.pages_owed), (Step::Committing, true));
        assert_eq!(there.came.into_inner().unwrap(), Vec::<u64>::new());
    }
}

#[test]
fn a_copy_that_was_not_told_to_run_is_given_up_for_the_whole_one() {
    let there = There::new(Reply::Prepared, None);
    let (settled, fate, last) = settled(&there, alive(), true);
    assert_eq!((settled, fate, last.step), (Settled::Stays, vec!["released"], Step::Aborted));
}
