//! The policy against cases, and against workloads that are played page by page.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn goals() -> Goals {
    Goals {
        downtime_max: Duration::from_millis(50),
        rounds_max: 30,
        time_max: Duration::from_secs(600),
        bytes_max: None,
        exit_when: ExitCondition::DEFAULT.to_vec(),
        converge: vec![Step::Anyway],
    }
}

fn round(ms: u64, sent_mib: u64, residual_mib: u64) -> RoundStats {
    RoundStats {
        took: Duration::from_millis(ms),
        sent_bytes: sent_mib * MIB,
        content_bytes: sent_mib * MIB,
        residual_bytes: residual_mib * MIB,
        dirty_bytes: residual_mib * MIB,
        lacking_room_bytes: 0,
    }
}

#[test]
fn an_idle_target_is_switched_after_one_round() {
    assert_eq!(decide(&[round(1000, 1000, 0)], &goals(), &[]), Decision::SwitchOver(ExitCondition::DowntimeNet));
}

#[test]
fn a_residual_that_takes_too_long_is_another_round() {
    // 1000 MiB/s less 100 MiB/s: 100 MiB take 111 ms.
    let first = round(1000, 1000, 100);
    assert_eq!(decide(&[first], &goals(), &[]), Decision::Continue);
    // Then 10 MiB, 11 ms: short enough, and a round that takes a tenth makes it a tenth.
    let second = round(100, 100, 10);
    assert_eq!(decide(&[first, second], &goals(), &[]), Decision::Continue);
    let third = round(10, 10, 1);
    assert_eq!(decide(&[first, second, third], &goals(), &[]), Decision::SwitchOver(ExitCondition::DowntimeNet));
    let no_better = round(20, 16, 10);
    assert_eq!(decide(&[first, no_better], &goals(), &[]), Decision::SwitchOver(ExitCondition::DowntimeNet));
}

#[test]
fn the_net_rate_counts() {
    // 40 MiB at 1000 MiB/s would take 40 ms, but 960 MiB/s are written: 1 s net.
    let rounds = [round(1000, 1000, 1), round(41, 41, 40)];
    assert_eq!(decide(&rounds, &goals(), &[]), Decision::Continue);
}

#[test]
fn three_fruitless_rounds_are_enough() {
    let hot = round(1000, 1000, 1000);
    assert_eq!(decide(&[hot, hot], &goals(), &[]), Decision::Continue);
    assert_eq!(decide(&[hot, hot, hot], &goals(), &[]), Decision::SwitchOver(ExitCondition::NotConverging));
    let cool = round(1000, 1000, 500);
    assert_eq!(decide(&[hot, hot, cool, hot, hot], &goals(), &[]), Decision::Continue, "three running");
}

#[test]
fn limits_hold() {
    let slow = round(1000, 1000, 900);
    let limit = |goals: Goals| decide(&[slow, slow], &goals, &[]);
    assert_eq!(limit(Goals { rounds_max: 2, ..goals() }), Decision::SwitchOver(ExitCondition::Rounds));
    let time_max = Duration::from_secs(2);
    assert_eq!(limit(Goals { time_max, ..goals() }), Decision::SwitchOver(ExitCondition::Time));
    assert_eq!(limit(Goals { bytes_max: Some(2800 * MIB), ..goals() }), Decision::SwitchOver(ExitCondition::Bytes));
    assert_eq!(limit(goals()), Decision::Continue);
    let full = RoundStats { lacking_room_bytes: 1, ..slow };
    assert_eq!(decide(&[full], &goals(), &[]), Decision::SwitchOver(ExitCondition::Bytes));
}

#[test]
fn a_tiny_round_says_nothing_about_the_rate() {
    let rounds = [round(1000, 1000, 1), RoundStats { sent_bytes: 4096, content_bytes: 4096, ..round(100, 0, 20) }];
    assert_eq!(send_rate(&rounds), 1000 * MIB);
}

/// Plays rounds against a link of `rate` and a target that writes `dirty` bytes a second over `set` bytes.
fn play(memory: u64, rate: u64, dirty: u64, set: u64, goals: &Goals) -> (Vec<RoundStats>, ExitCondition) {
    let mut rounds = Vec::new();
    let mut left = memory;
    loop {
        let took = Duration::from_secs_f64(left as f64 / rate as f64).max(Duration::from_micros(200));
        let residual = ((dirty as f64 * took.as_secs_f64()) as u64).min(set);
        rounds.push(RoundStats {
            took,
            sent_bytes: left,
            content_bytes: left,
            residual_bytes: residual,
            dirty_bytes: residual,
            lacking_room_bytes: 0,
        });
        match decide(&rounds, goals, &[]) {
            Decision::SwitchOver(exit) | Decision::Follow(exit) => return (rounds, exit),
            _ => left = residual,
        }
    }
}

fn all_steps() -> Goals {
    Goals { converge: Step::DEFAULT.to_vec(), ..goals() }
}

#[test]
fn steps_are_tried_in_their_order_and_given_time() {
    let hot = round(1000, 1000, 1000);
    let goals = all_steps();
    assert_eq!(decide(&[hot; 3], &goals, &[]), Decision::Try(Step::Defer));
    let mut tried = vec![(3, Step::Defer)];
    assert_eq!(decide(&[hot; 5], &goals, &tried), Decision::Continue);
    assert_eq!(decide(&[hot; 6], &goals, &tried), Decision::Try(Step::Delta));
    tried.push((6, Step::Delta));
    assert_eq!(decide(&[hot; 9], &goals, &tried), Decision::Try(Step::Compress));
    tried.push((9, Step::Compress));
    for n in 0..THROTTLE_STEPS {
        let rounds = 12 + 3 * n;
        assert_eq!(decide(&vec![hot; rounds], &goals, &tried), Decision::Try(Step::Throttle));
        tried.push((rounds, Step::Throttle));
    }
    assert_eq!(decide(&[hot; 21], &goals, &tried), Decision::Follow(ExitCondition::NotConverging));
    let whole = Goals { converge: vec![Step::Anyway], ..goals.clone() };
    assert_eq!(decide(&[hot; 21], &whole, &tried), Decision::SwitchOver(ExitCondition::NotConverging));
    let firm = Goals { converge: vec![Step::Abort], ..goals.clone() };
    assert_eq!(decide(&[hot; 3], &firm, &[]), Decision::Abort(ExitCondition::NotConverging));
    let patient = Goals { exit_when: vec![ExitCondition::DowntimeNet], ..goals };
    assert_eq!(decide(&[hot; 100], &patient, &tried), Decision::Continue, "it was asked for nothing else");
}

#[test]
fn a_limit_leaves_the_last_word() {
    let slow = round(1000, 1000, 900);
    let limited = Goals { rounds_max: 2, converge: vec![Step::Defer, Step::Abort], ..goals() };
    assert_eq!(decide(&[slow; 2], &limited, &[]), Decision::Abort(ExitCondition::Rounds));
    // The promise is kept without the net rate: no reason to stay.
    let short = round(1000, 1000, 40);
    let hotter = Goals { exit_when: vec![ExitCondition::Rounds], ..limited };
    assert_eq!(decide(&[short; 2], &hotter, &[]), Decision::SwitchOver(ExitCondition::Rounds));
}

#[test]
fn conditions_hold_when_they_are_chosen() {
    let rounds = [round(1000, 1000, 900)];
    let only = |condition| Goals { exit_when: vec![condition], ..goals() };
    for (condition, holds) in [
        (ExitCondition::AllSent, true),
        (ExitCondition::MemorySent, true),
        (ExitCondition::Downtime, false),
        (ExitCondition::DowntimeNet, false),
    ] {
        let wanted = if holds { Decision::SwitchOver(condition) } else { Decision::Continue };
        assert_eq!(decide(&rounds, &only(condition), &[]), wanted, "{condition:?}");
    }
    // 40 MiB at 1000 MiB/s take 40 ms, but 960 MiB/s are written meanwhile.
    let hot = [round(1000, 1000, 1), round(41, 41, 40)];
    assert_eq!(decide(&hot, &only(ExitCondition::Downtime), &[]), Decision::SwitchOver(ExitCondition::Downtime));
    assert_eq!(decide(&hot, &only(ExitCondition::DowntimeNet), &[]), Decision::Continue);
}

#[test]
fn pages_are_compared_with_pages_however_small_they_travel() {
    // Of 1000 MiB/s of pages only 10 are sent; 500 are written meanwhile.
    let packed = RoundStats { sent_bytes: 10 * MIB, ..round(1000, 1000, 500) };
    assert_eq!((send_rate(&[packed]), link_rate(&[packed])), (1000 * MIB, 10 * MIB));
    assert_eq!(decide(&[packed; 5], &all_steps(), &[]), Decision::Continue, "each round halves it");
    // The same with what is left as large as what is sent.
    let hot = RoundStats { sent_bytes: 10 * MIB, ..round(1000, 1000, 1000) };
    assert_eq!(decide(&[hot; 3], &all_steps(), &[]), Decision::Try(Step::Defer));
}

#[test]
fn what_is_deferred_and_stays_counts_as_in_vain() {
    let deferred = RoundStats { dirty_bytes: MIB, ..round(100, 100, 300) };
    let goals = all_steps();
    assert_eq!(decide(&[deferred; 4], &goals, &[(0, Step::Defer)]), Decision::Try(Step::Delta));
    // It becomes less: one more round is worth it.
    let less = |n: u64| RoundStats { residual_bytes: (300 - 60 * n) * MIB, ..deferred };
    assert_eq!(decide(&[less(0), less(1), less(2), less(3)], &goals, &[(0, Step::Defer)]), Decision::Continue);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn every_workload_ends_and_the_reason_is_true(
        memory_mib in 1u64..65536, rate_mib in 1u64..10_000, dirty_mib in 0u64..20_000, set_mib in 0u64..65536,
    ) {
        let goals = goals();
        let (rounds, exit) = play(memory_mib * MIB, rate_mib * MIB, dirty_mib * MIB, set_mib.min(memory_mib) * MIB, &goals);
        prop_assert!(rounds.len() <= goals.rounds_max as usize);
        let last = rounds.last().unwrap();
        match exit {
            ExitCondition::DowntimeNet => {
                // The promise: at the rate of the link the residual fits into the goal.
                let seconds = last.residual_bytes as f64 / (rate_mib * MIB) as f64;
                prop_assert!(seconds <= goals.downtime_max.as_secs_f64() * 1.01, "{seconds}");
            }
            ExitCondition::NotConverging => prop_assert!(rounds.len() >= FRUITLESS_ROUNDS),
            ExitCondition::Rounds => prop_assert_eq!(rounds.len(), goals.rounds_max as usize),
            ExitCondition::Time => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_link_twice_as_fast_as_the_writer_converges(memory_mib in 1u64..65536, rate_mib in 100u64..10_000) {
        let goals = Goals { time_max: Duration::MAX, ..goals() };
        let (_, exit) = play(memory_mib * MIB, rate_mib * MIB, rate_mib * MIB / 2, memory_mib * MIB, &goals);
        prop_assert_eq!(exit, ExitCondition::DowntimeNet);
    }

    #[test]
    fn any_numbers_are_decided(
        rounds in proptest::collection::vec(any::<[u64; 5]>(), 0..8),
    ) {
        let rounds: Vec<_> = rounds
            .into_iter()
            .map(|[ns, sent_bytes, residual_bytes, dirty_bytes, lacking_room_bytes]| RoundStats {
                took: Duration::from_nanos(ns), sent_bytes, content_bytes: sent_bytes, residual_bytes, dirty_bytes, lacking_room_bytes,
            })
            .collect();
        decide(&rounds, &all_steps(), &[(1, Step::Defer)]);
    }
}

#[test]
fn what_does_not_converge_can_follow() {
    let hot = round(100, 1000, 1000);
    let goals = Goals { converge: vec![Step::PostCopy, Step::Anyway], ..goals() };
    assert_eq!(decide(&[hot, hot, hot], &goals, &[]), Decision::Follow(ExitCondition::NotConverging));
    // Not where the pause is short enough by itself.
    let cool = round(1000, 1000, 0);
    assert_eq!(decide(&[hot, hot, cool], &goals, &[]), Decision::SwitchOver(ExitCondition::DowntimeNet));
}
