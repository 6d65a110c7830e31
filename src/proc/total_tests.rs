//! Every parser of this room is total: arbitrary bytes, and samples with bytes changed, cut out and put in, never
//! panic and never take long.

use super::*;
use proptest::prelude::*;

type Parser = fn(&[u8]) -> bool;

/// Each parser with a sample that it accepts.
fn parsers() -> Vec<(&'static str, Parser, &'static [u8])> {
    vec![
        ("stat", |b| stat::parse(b).is_ok(), stat::tests::SAMPLE),
        ("status", |b| status::parse(b).is_ok(), status::tests::SAMPLE),
        ("maps", |b| maps::parse(b).is_ok(), maps::tests::SAMPLE),
        ("smaps", |b| smaps::parse_flags(b).is_ok(), smaps::tests::SAMPLE),
        ("smaps", |b| smaps::parse_sizes(b).is_ok(), smaps::tests::SAMPLE),
        ("smaps_rollup", |b| smaps::parse_rollup(b).is_ok(), smaps::tests::SAMPLE),
        ("fdinfo", |b| fdinfo::parse(b).is_ok(), fdinfo::tests::EPOLL),
        ("fdinfo", |b| fdinfo::parse(b).is_ok(), fdinfo::tests::INOTIFY),
        ("fdinfo", |b| fdinfo::parse(b).is_ok(), fdinfo::tests::TIMER),
        ("fdinfo", |b| fdinfo::parse(b).is_ok(), fdinfo::tests::RING),
        ("limits", |b| limits::parse(b).is_ok(), limits::tests::SAMPLE),
        ("timers", |b| timers::parse(b).is_ok(), timers::tests::SAMPLE),
        ("cgroup", |b| cgroup::parse(b).is_ok(), cgroup::tests::SAMPLE),
        ("mountinfo", |b| mountinfo::parse(b).is_ok(), mountinfo::tests::SAMPLE),
        ("children", |b| task::parse_children(b).is_ok(), task::tests::SAMPLE),
        ("ns", |b| ns::parse_link(b).is_ok(), ns::tests::SAMPLE),
        ("uid_map", |b| user_ns::parse_map(b).is_ok(), user_ns::tests::SAMPLE),
        ("timens_offsets", |b| timens::parse(b).is_ok(), timens::tests::SAMPLE),
        ("autogroup", |b| value::parse_autogroup(b).is_ok(), value::tests::AUTOGROUP),
        ("meminfo", |b| sys::parse_meminfo(b).is_ok(), sys::tests::MEMINFO),
        ("cpuinfo", |b| sys::parse_cpu_features(b).len() < usize::MAX, sys::tests::MEMINFO),
        ("net/tcp", |b| net::inet::parse(b).is_ok(), net::inet::tests::SAMPLE),
        ("net/igmp", |b| net::igmp::parse(b).is_ok(), net::igmp::tests::SAMPLE),
        ("net/igmp6", |b| net::igmp::parse_six(b).is_ok(), net::igmp::tests::SAMPLE_SIX),
        ("net/unix", |b| net::unix::parse(b).is_ok(), net::unix::tests::SAMPLE),
        ("auxv", |b| auxv::pairs(b).count() < usize::MAX, b"0123456701234567"),
        ("cmdline", |b| cmdline::strings(b).len() < usize::MAX, b"a\0b\0"),
        ("pagemap", |b| pagemap::entries(b).all(|e| e.has_content() || !e.has_content()), b"01234567"),
        ("syscall", |b| syscall::parse(b).is_ok(), syscall::tests::SAMPLE),
        ("locks", |b| locks::parse(b).is_ok(), locks::tests::SAMPLE),
    ]
}

#[test]
fn every_sample_is_accepted() {
    for (name, parse, sample) in parsers() {
        assert!(parse(sample), "{name}");
    }
}

/// One change of a sample.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Cut(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    // Bytes that mean something to the parsers are more interesting than others.
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(b" \t\n:-\\()[]/,0179afxps".to_vec())];
    prop_oneof![
        (at(), byte()).prop_map(|(at, b)| Change::Set(at, b)),
        (at(), prop::collection::vec(byte(), 0..12)).prop_map(|(at, b)| Change::Insert(at, b)),
        (at(), 0usize..64).prop_map(|(at, n)| Change::Cut(at, n)),
        (at(), 1usize..64).prop_map(|(at, n)| Change::Repeat(at, n)),
    ]
}

fn apply(text: &mut Vec<u8>, change: Change) {
    let len = text.len() + 1;
    match change {
        Change::Set(at, byte) => {
            if let Some(slot) = text.get_mut(at.index(len)) {
                *slot = byte;
            }
        }
        Change::Insert(at, bytes) => drop(text.splice(at.index(len)..at.index(len), bytes)),
        Change::Cut(at, n) => {
            let at = at.index(len);
            drop(text.drain(at..(at + n).min(len - 1)));
        }
        Change::Repeat(at, n) => {
            let at = at.index(len);
            let piece = text[at..(at + n).min(len - 1)].to_vec();
            drop(text.splice(at..at, piece));
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, parse, _) in parsers() {
            parse(&bytes);
        }
    }

    #[test]
    fn changed_samples_never_panic(changes in prop::collection::vec(change(), 1..8)) {
        for (_, parse, sample) in parsers() {
            let mut text = sample.to_vec();
            for change in &changes {
                apply(&mut text, change.clone());
            }
            parse(&text);
        }
    }
}

#[test]
fn cost_is_linear() {
    // A quadratic parser would need minutes for this.
    for filler in [b"\n".as_slice(), b" ", b"\\012", b"a:", b"(", b")", b"1 ", b"tfd: 1 events: 1 data: 1\n"] {
        let text = filler.repeat(4 << 20 >> filler.len().ilog2());
        for (name, parse, _) in parsers() {
            let started = std::time::Instant::now();
            parse(&text);
            assert!(started.elapsed().as_secs() < 20, "{name} on {filler:?}");
        }
    }
}
