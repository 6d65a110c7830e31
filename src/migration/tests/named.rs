//! Content that is named by digest, on both sides.

use super::*;
use crate::migration::common_pages::CommonId;
use crate::migration::common_pages::desk::{Account, Desk};
use crate::migration::common_pages::shelf::CommonShelf;
use crate::migration::earlier::hint;
use crate::migration::pages::Packer;
use protocol::{FromDestination, FromSource};

/// Slow enough, and no wait for what is sent here.
const SLOW: Option<u64> = Some(100 << 20);

#[test]
fn what_is_named_arrives() {
    let ways = [Ahead::Nothing, Ahead::Fits, Ahead::FitsInPart, Ahead::DoesNotFit];
    for (streams, ahead) in [0, 1, 3].into_iter().flat_map(|streams| ways.map(|ahead| (streams, ahead))) {
        let target = FakeTarget::new(2000, 20, Fault::None);
        let play = play(target, (Fault::None, ahead), streams, None, |wishes| {
            wishes.goals.rounds_max = 3;
            wishes.bandwidth = SLOW;
        });
        play.check();
        let report = play.source.unwrap();
        play.destination.unwrap();
        // 255 contents, each sent once, and once more if it found the first half of the shelf full. Of several channels each
        // sends what another one has not sent yet: how often depends on who gets to run.
        let (zero, first) = (report.unsent.zero, &report.rounds[0]);
        let least = if streams > 1 { 1 } else { first.pages - zero - 255 - 128 };
        assert!(zero >= 400 && report.unsent.named >= least, "{streams} {:?}", report.unsent);
        assert!(streams > 1 || first.bytes < (255 + 128 + 100) * PAGE, "{:?}", report.rounds);
    }
}

#[test]
fn nothing_is_named_without_compression() {
    let target = FakeTarget::new(500, 5, Fault::None);
    let play = play(target, (Fault::None, Ahead::Fits), 1, None, |wishes| {
        wishes.bandwidth = SLOW;
        wishes.compression = Compression::Off;
    });
    play.check();
    assert_eq!(play.source.unwrap().unsent.named, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_link_that_is_cut_between_names_never_doubles_or_loses(after in 8_000i64..200_000, streams in 0u16..3) {
        let target = FakeTarget::new(600, 20, Fault::None);
        play(target, (Fault::None, Ahead::FitsInPart), streams, Some((true, after)), |wishes| wishes.bandwidth = SLOW).check();
    }
}

/// What a destination says to a source that sends these frames in its first round. It has never run anything.
fn refused(frames: &[&dyn Fn(&mut Packer)]) -> String {
    let (mut client, server) = links(0, None);
    let stores = tempfile::tempdir().unwrap();
    let mut builder = FakeBuilder::default();
    let (attempt, bytes) = (AttemptId([1; 16]), model());
    let error = std::thread::scope(|scope| {
        let destination = scope.spawn(|| arrives(server, &mut builder, stores.path()));
        let control = &mut client.control;
        let offer = FromSource::Offer {
            attempt,
            session: "abcdefgh".into(),
            target: TargetSummary { pid: 1, comm: "x".into(), tasks: 1, memory_bytes: 3 * PAGE, once_bytes: 1 },
            state: serde_json::json!({ "pids": "auto" }),
            dry_run: false,
            model_bytes: bytes.len() as u64,
            follows: false,
            may_follow: false,
            recoverable: false,
            files: Some(no_files()),
            base: None,
            lease_ms: None,
            to_several: false,
            conventions: Default::default(),
            is_clone: false,
            onward: None,
            keep_warm: None,
            standby: None,
            common: None,
        };
        protocol::send(control, &offer).unwrap();
        protocol::send_model(control, &bytes).unwrap();
        let verdict = protocol::receive::<FromDestination>(control).unwrap();
        assert!(matches!(verdict, FromDestination::Verdict { shelf_pages: 3, .. }), "{verdict:?}");
        protocol::send(control, &FromSource::Round { attempt, number: 1, state: false }).unwrap();
        let mut packer = Packer::new(None);
        for frame in frames {
            frame(&mut packer);
            control.send(FrameKind::PAGES, packer.take()).unwrap();
        }
        let said = protocol::receive::<FromDestination>(control).unwrap();
        assert!(matches!(said, FromDestination::Failed { .. }), "{said:?}");
        destination.join().unwrap().unwrap_err().to_string()
    });
    assert!(!builder.runs && builder.built.is_none());
    error
}

/// A mover that has claimed and sent, as it says, all that this target has, and does not bring it.
fn deceive(wishes: &mut Wishes<'_>, run: &Path, desk: &Desk, contents: &[Vec<u8>]) -> (Account, CommonShelf) {
    let journals = wishes.journals.with_file_name("b");
    std::fs::create_dir_all(&journals).unwrap();
    let shelf = CommonShelf::begin(&journals, ("", desk.id()), None).unwrap().unwrap();
    let account = || Account::at(run, desk.id(), "b".into()).unwrap();
    let liar = account();
    liar.open(shelf.shared());
    let hints: Vec<_> = contents.iter().map(|page| hint(blake3::hash(page).as_bytes())).collect();
    liar.claim(hints);
    wishes.common = Some(Arc::new(account()));
    // Soon it is clear that nothing comes.
    wishes.lease = Duration::from_secs(1);
    (liar, shelf)
}

#[test]
fn what_another_mover_has_not_brought_after_all_comes_again() {
    for (streams, ahead) in [(0, Ahead::Nothing), (1, Ahead::Fits), (3, Ahead::FitsInPart)] {
        let run = tempfile::tempdir().unwrap();
        let desk = Desk::open(run.path(), CommonId::random().unwrap()).unwrap();
        let target = FakeTarget::new(2000, 20, Fault::None);
        let contents: Vec<_> = target.expected().into_values().take(900).collect();
        let mut liar = None;
        let play = play(target, (Fault::None, ahead), streams, None, |wishes| {
            wishes.goals.rounds_max = 3;
            liar = Some(deceive(wishes, run.path(), &desk, &contents));
        });
        play.check();
        play.destination.unwrap();
        let report = play.source.unwrap();
        assert!(report.unsent.named > 200, "{:?}", report.unsent);
        assert!(report.rounds[1].pages > 200, "they came again: {:?}", report.rounds);
    }
}

#[test]
fn a_tree_names_what_one_before_it_has_brought() {
    let (run, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let desk = Desk::open(run.path(), CommonId::random().unwrap()).unwrap();
    // Sessions here look after nothing.
    let _stays = CommonShelf::begin(kept.path(), ("", desk.id()), None).unwrap();
    let mut bytes = Vec::new();
    // Journals are apart; the shelf is made to be the same.
    for streams in [1, 0, 2] {
        let play = play(FakeTarget::new(2000, 0, Fault::None), (Fault::None, Ahead::Fits), streams, None, |wishes| {
            std::os::unix::fs::symlink(kept.path(), wishes.journals.with_file_name("b")).unwrap();
            wishes.common = Some(Arc::new(Account::at(run.path(), desk.id(), "b".into()).unwrap()));
        });
        play.check();
        play.destination.unwrap();
        bytes.push(play.source.unwrap().rounds[0].bytes);
    }
    assert!(bytes[0] > 255 * PAGE && bytes[1..].iter().all(|bytes| *bytes < 100 * PAGE), "{bytes:?}");
}

fn run(first: u64, count: u64, what: What) -> Run {
    Run::new(MM, PageRange::new(first, count), what)
}

#[test]
fn what_is_not_there_cannot_be_named() {
    let content = vec![7; PAGE as usize];
    let digest: [u8; 32] = blake3::hash(&content).into();
    let name = |packer: &mut Packer| packer.content(run(9, 1, What::Named), &digest);
    let send = |packer: &mut Packer| packer.content(run(5, 1, What::Data), &content);
    assert!(refused(&[&name]).contains("page 9"));
    // It was sent, but not to be kept.
    assert!(refused(&[&send, &name]).contains("nothing is known"));
}

#[test]
fn no_more_is_kept_than_was_offered() {
    let content: Vec<u8> = (1..5).flat_map(|fill| vec![fill; PAGE as usize]).collect();
    let keep = |packer: &mut Packer| packer.content(Run { shelve: true, ..run(0, 4, What::Data) }, &content);
    assert!(refused(&[&keep]).contains("more than 3 pages"));
}
