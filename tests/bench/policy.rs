//! The switch-over policy against thousands of random workloads, played block by block: `cargo bench --bench policy`.
//!
//! usage: policy [--workloads N] [--seed N] [--max-downtime-ms N]
//!
//! Each workload has a size, a link, a rate of writes and a pattern (uniform, Zipf 0.99, sequential, a working set that
//! moves). The policy decides after each round from what a source would see; a yardstick makes five rounds and pauses.
//! Printed: how often the promise (the residual crosses within the goal) was kept, and why not; what was sent. Exit code 1
//! if the policy claims a kept promise that is none.

use migrate_engine::image::MmId;
use migrate_engine::memory::{PageRange, RangeSet, Space};
use migrate_engine::migration::switchover::history::History;
use migrate_engine::migration::switchover::{Decision, ExitCondition, Goals, RoundStats, Step, decide};
use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::time::Duration;

/// What is tracked as one: the more, the coarser and the faster.
const BLOCK: u64 = 64 << 10;
const SPACE: Space = Space::Mm(MmId(0));
/// A core packs so many bytes a second.
const CORE: f64 = 437.0 * 1048576.0;
/// What a round costs beside sending.
const FIXED: Duration = Duration::from_micros(500);

/// A small generator with a seed (xorshift64*): the same workloads on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly over the orders of magnitude.
    fn scale(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.unit())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern {
    Uniform,
    Zipf,
    Sequential,
    MovingSet,
}

struct Workload {
    blocks: u64,
    /// Bytes a second.
    link: f64,
    /// Block writes a second.
    writes: f64,
    /// Blocks that are ever written.
    set: u64,
    pattern: Pattern,
    /// How much smaller pages become when packed.
    ratio: f64,
    random: Random,
    at: u64,
}

impl Workload {
    fn random(random: &mut Random) -> Self {
        let blocks = random.scale(256.0, 65536.0) as u64;
        let patterns = [Pattern::Uniform, Pattern::Zipf, Pattern::Sequential, Pattern::MovingSet];
        Self {
            blocks,
            link: random.scale(10e6, 1e9),
            writes: random.scale(100.0, 200_000.0),
            set: (random.scale(0.005, 1.0) * blocks as f64).max(1.0) as u64,
            pattern: patterns[(random.next() % 4) as usize],
            ratio: random.scale(1.0, 4.0),
            random: Random(random.next() | 1),
            at: 0,
        }
    }

    /// What is written in a while.
    fn run(&mut self, time: Duration, share: f64) -> RangeSet {
        let writes = (self.writes * share * time.as_secs_f64()).round();
        // Beyond this everything in the set has been hit.
        let writes = writes.min(self.set as f64 * 12.0) as u64;
        let mut hit = vec![false; self.blocks as usize];
        for n in 0..writes {
            let block = match self.pattern {
                Pattern::Uniform => self.random.next() % self.set,
                Pattern::Zipf => ((self.set as f64).powf(self.random.unit()) as u64).min(self.set) - 1,
                Pattern::Sequential => (self.at + n) % self.set,
                Pattern::MovingSet => self.at / 8 + self.random.next() % (self.set / 8 + 1),
            };
            hit[(block % self.blocks) as usize] = true;
        }
        self.at = (self.at + writes) % (self.set * 8);
        (0..self.blocks).filter(|block| hit[*block as usize]).map(|block| PageRange::new(block, 1)).collect()
    }

    fn rate(&self, packed: bool) -> f64 {
        if packed { (self.link * self.ratio).min(CORE).max(self.link) } else { self.link }
    }
}

struct Played {
    exit: String,
    kept: bool,
    promised: bool,
    sent_bytes: f64,
    rounds: usize,
    steps: usize,
}

fn play(work: &mut Workload, goals: &Goals, fixed_rounds: Option<usize>) -> Played {
    let (mut rounds, mut tried, mut history) = (Vec::new(), Vec::new(), History::default());
    let mut owed: RangeSet = [PageRange::new(0, work.blocks)].into_iter().collect();
    let mut deferred = RangeSet::new();
    let mut sent_bytes = 0.0;
    loop {
        let has = |step| tried.iter().any(|(_, t)| *t == step);
        if !rounds.is_empty() && has(Step::Defer) {
            deferred = owed.intersection(&history.hot(SPACE));
        }
        let sending = owed.difference(&deferred);
        let rate = work.rate(has(Step::Compress));
        let bytes = sending.pages() * BLOCK;
        let took = Duration::from_secs_f64(bytes as f64 / rate) + FIXED;
        let slowed = tried.iter().filter(|(_, t)| *t == Step::Throttle).count();
        let written = work.run(took, [1.0, 0.5, 0.25, 0.1][slowed.min(3)]);
        sent_bytes += bytes as f64;
        history.note(HashMap::from([(SPACE, written.union(&deferred))]));
        owed = written.union(&deferred);
        rounds.push(RoundStats {
            took,
            sent_bytes: bytes,
            content_bytes: bytes,
            residual_bytes: owed.pages() * BLOCK,
            dirty_bytes: owed.difference(&deferred).pages() * BLOCK,
            lacking_room_bytes: 0,
        });
        let decision = match fixed_rounds {
            Some(most) if rounds.len() == most => Decision::SwitchOver(ExitCondition::Rounds),
            Some(_) => Decision::Continue,
            None => decide(&rounds, goals, &tried),
        };
        match decision {
            Decision::Continue => {}
            Decision::Try(step) => tried.push((rounds.len(), step)),
            Decision::SwitchOver(exit) | Decision::Follow(exit) | Decision::Abort(exit) => {
                let last = (owed.pages() * BLOCK) as f64;
                let pause = last / rate;
                return Played {
                    exit: exit.name().to_owned(),
                    kept: pause <= goals.downtime_max.as_secs_f64() * 1.05,
                    promised: exit == ExitCondition::DowntimeNet,
                    sent_bytes: sent_bytes + last,
                    rounds: rounds.len(),
                    steps: tried.len(),
                };
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(name: &str, played: &[(Pattern, u64, Played)]) {
    let share = |n: usize| 100.0 * n as f64 / played.len().max(1) as f64;
    let kept = played.iter().filter(|(.., p)| p.kept).count();
    let sent = median(played.iter().map(|(_, blocks, p)| p.sent_bytes / (blocks * BLOCK) as f64).collect());
    let rounds = median(played.iter().map(|(.., p)| p.rounds as f64).collect());
    println!(
        "{name}: promise kept in {:.1} % of {}, sent {sent:.2} x memory, {rounds} rounds",
        share(kept),
        played.len()
    );
    let mut reasons: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    for (.., p) in played {
        *reasons.entry((p.exit.as_str(), p.kept)).or_default() += 1;
    }
    for ((exit, kept), n) in reasons {
        println!("  {:<16} {:<7} {n:>6}  {:>5.1} %", exit, if kept { "kept" } else { "broken" }, share(n));
    }
    for pattern in [Pattern::Uniform, Pattern::Zipf, Pattern::Sequential, Pattern::MovingSet] {
        let of: Vec<_> = played.iter().filter(|(p, ..)| *p == pattern).collect();
        let kept = of.iter().filter(|(.., p)| p.kept).count();
        println!(
            "  {:<16} {:.1} % of {} kept",
            format!("{pattern:?}"),
            100.0 * kept as f64 / of.len().max(1) as f64,
            of.len()
        );
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let number = |name: &str, otherwise: u64| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).and_then(|word| word.parse().ok()).unwrap_or(otherwise)
    };
    let (count, seed) = (number("--workloads", 3000), number("--seed", 20261126));
    let goals = Goals {
        downtime_max: Duration::from_millis(number("--max-downtime-ms", 50)),
        rounds_max: 30,
        time_max: Duration::from_secs(600),
        bytes_max: None,
        exit_when: ExitCondition::DEFAULT.to_vec(),
        // The pause that rounds alone come to.
        converge: Step::DEFAULT.into_iter().filter(|step| *step != Step::PostCopy).collect(),
    };
    println!("{count} workloads, seed {seed}, goal {:?}", goals.downtime_max);
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    let still = Goals { converge: vec![Step::Anyway], ..goals.clone() };
    for (n, (goals, fixed)) in [(&goals, None), (&still, None), (&still, Some(5))].into_iter().enumerate() {
        let mut random = Random(seed | 1);
        for _ in 0..count {
            let mut work = Workload::random(&mut random);
            let (pattern, blocks) = (work.pattern, work.blocks);
            all[n].push((pattern, blocks, play(&mut work, goals, fixed)));
        }
    }
    let [policy, without_steps, fixed] = all;
    print("policy", &policy);
    print("policy without steps", &without_steps);
    print("five rounds", &fixed);
    let helped = policy.iter().filter(|(.., p)| p.steps > 0 && p.kept).count();
    println!("kept only with the help of a step: {helped}");
    let false_claims = policy.iter().filter(|(.., p)| p.promised && !p.kept).count();
    println!("claimed to be kept, and was not: {false_claims}");
    ExitCode::from(u8::from(false_claims > 0))
}
