//! A target that is to go on from its destination.

use super::*;
use crate::migration::cascade::Onward;

fn onward() -> Onward {
    let choices = serde_json::json!({ "quorum": 1 });
    Onward { number: 2, stages: vec![vec!["c".into(), "d".into()]], choices, keep_warm: false }
}

#[test]
fn it_is_passed_on_with_the_link_once_its_original_has_ended() {
    for streams in [0, 1, 3] {
        let target = FakeTarget::new(300, 1, Fault::None);
        let play = play(target, (Fault::None, Ahead::FitsInPart), streams, None, |wishes| {
            wishes.onward = Some(onward());
        });
        play.check();
        let passed = play.builder.passed.unwrap();
        assert_eq!((passed.pid, passed.onward), (77, onward()));
        assert_eq!(play.target.state, State::Ended);
        assert!(play.source.unwrap().observer.is_some(), "the source can hear how that goes");
    }
}

#[test]
fn what_stays_is_passed_on_by_nobody() {
    let play = play(FakeTarget::new(10, 1, Fault::None), (Fault::Arm, Ahead::FitsInPart), 1, None, |wishes| {
        wishes.onward = Some(onward());
    });
    play.check();
    assert!(play.builder.passed.is_none());
}

#[test]
fn stages_beyond_the_limits_are_a_blocker() {
    let play = play(FakeTarget::new(10, 1, Fault::None), (Fault::None, Ahead::FitsInPart), 0, None, |wishes| {
        wishes.onward = Some(Onward { stages: vec![Vec::new()], ..onward() });
    });
    play.check();
    assert!(matches!(&play.source, Err(MoveError::Blocked(blockers)) if blockers[0].reason.contains("0 destinations")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whoever moves it on may do so at once: nothing of it is left at the source.
    #[test]
    fn over_a_link_that_is_cut_anywhere_it_is_passed_on_only_when_its_original_has_ended(
        to_destination in any::<bool>(), after in 0i64..20_000, pages in 1u64..5,
    ) {
        let after = 8_000 + if to_destination { after } else { after % 1_500 };
        let cut = Some((to_destination, after));
        let play = play(FakeTarget::new(pages, 2, Fault::None), (Fault::None, Ahead::FitsInPart), 1, cut, |wishes| {
            wishes.onward = Some(onward());
        });
        play.check();
        if play.builder.passed.is_some() {
            assert_eq!(play.target.state, State::Ended);
        }
    }
}
