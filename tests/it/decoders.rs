//! What decodes bytes from outside, over real files and thousands of damaged ones: the functions of the fuzz targets
//! (tests/fuzz), so that they do not rot between two runs of a fuzzer.

#[path = "../fuzz/decoders/frame.rs"]
mod frame;
#[path = "../fuzz/decoders/index.rs"]
mod index;
#[path = "../fuzz/decoders/manifest.rs"]
mod manifest;
#[path = "../fuzz/decoders/messages.rs"]
mod messages;
#[path = "../fuzz/decoders/model.rs"]
mod model;
#[path = "../fuzz/decoders/pages.rs"]
mod pages;
#[path = "../fuzz/decoders/peers.rs"]
mod peers;
#[path = "../fuzz/decoders/stream.rs"]
mod stream;

use migrate_engine::memory::store::{ImageDir, send};
use migrate_engine::migration::cascade::{Fate, News, Onward};
use migrate_engine::migration::protocol::{AttemptId, FromDestination, FromSource, WireFailure};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Damaged inputs made of each seed.
const DAMAGED: u64 = 1500;

/// Numbers that are not chance: what fails, fails again.
struct Numbers(u64);

impl Numbers {
    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A few changes of the kinds that fuzzers make.
fn damage(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len());
        match numbers.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes.truncate(at),
            2 => {
                let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                let width = 1 << numbers.below(4);
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            3 => {
                let end = bytes.len().min(at + 1 + numbers.below(64));
                let piece = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => drop(bytes.drain(at..bytes.len().min(at + 1 + numbers.below(16)))),
        }
    }
    bytes
}

fn holds(name: &str, check: fn(&[u8]), seeds: &[Vec<u8>]) {
    if let Some(corpus) = std::env::var_os("FUZZ_CORPUS") {
        let dir = std::path::PathBuf::from(corpus).join(name);
        fs::create_dir_all(&dir).expect("whoever runs a fuzzer may write there");
        for (n, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{n}")), seed).expect("and has room");
        }
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for (n, seed) in seeds.iter().enumerate() {
        check(seed);
        for _ in 0..DAMAGED {
            let input = damage(seed, &mut numbers);
            if let Err(panic) = std::panic::catch_unwind(|| check(&input)) {
                let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{n}"));
                fs::write(&kept, &input).expect("the directory is cargo's");
                eprintln!("the input is in {}", kept.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// An image of a process that sleeps: its model, manifest, index, and all of it as a stream.
fn image() -> [Vec<u8>; 4] {
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let image = dir.path().join("image");
    let mut sleeper = Command::new("bash");
    let quiet = format!("{} exec sleep 60", crate::manual::CLOSE);
    sleeper.args(["-c", &quiet]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = sleeper.spawn().expect("coreutils are there");
    let name = format!("/proc/{}/comm", child.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&name).expect("it is our child") != "sleep\n" {
        assert!(Instant::now() < deadline, "it does not come to sleep");
        std::thread::sleep(Duration::from_millis(1));
    }
    let said = crate::cli::migrate(&["dump", &child.id().to_string(), "--leave-running", "-D"]).arg(&image).output();
    let _ = child.kill();
    let _ = child.wait();
    let said = said.expect("it was built");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let read = |name: &str| fs::read(image.join(name)).expect("it is in every image");
    let streamed =
        send(&ImageDir::open(&image).expect("it is whole"), Vec::new(), Some(1)).expect("memory takes it all");
    [read("model.bin"), read("manifest.json"), read("index.bin"), streamed]
}

#[test]
fn whatever_a_file_of_an_image_holds_is_decoded_or_refused() {
    let [model_bin, manifest_json, index_bin, streamed] = image();
    holds("model", model::check, &[model::seed(&model_bin), model_bin]);
    holds("manifest", manifest::check, &[manifest::seed(&manifest_json), manifest_json]);
    holds("index", index::check, &[index::seed(&index_bin), index_bin]);
    holds("stream", stream::check, &[stream::seed(&streamed), streamed]);
}

/// Stages to come, of several destinations each.
fn onward() -> Onward {
    let stages = vec![vec!["tcp://c:7413".to_owned(), "d".to_owned()], vec!["e".to_owned()]];
    Onward { number: 2, stages, choices: serde_json::json!({ "quorum": { "Number": 1 } }), keep_warm: false }
}

/// The end of a cascade.
fn news() -> News {
    let fate = Fate::HeldAt { dest: "c".into(), pid: Some(7) };
    let (what, causes) = ("x".to_owned(), vec!["y".to_owned()]);
    News::Ended { fate, failure: Some(WireFailure { what, causes, hint: None, blockers: Vec::new() }) }
}

#[test]
fn whatever_comes_from_a_peer_is_decoded_or_refused() {
    let attempt = AttemptId([7; 16]);
    let sent = [
        serde_json::to_vec(&FromSource::Commit { attempt }).expect("plain"),
        serde_json::to_vec(&FromSource::Abort { attempt, reason: "no".into(), keep: false }).expect("plain"),
        serde_json::to_vec(&FromSource::Prepare { attempt, spaces: Vec::new(), model_bytes: 5, late_bytes: 0 })
            .expect("plain"),
        serde_json::to_vec(&FromSource::Keep { attempt, age_us: 7, spaces: Vec::new(), model_bytes: 5 })
            .expect("plain"),
        serde_json::to_vec(&FromDestination::Kept { attempt, trouble: None }).expect("plain"),
        serde_json::to_vec(&FromDestination::Verdict {
            attempt,
            blockers: Vec::new(),
            room_bytes: 1 << 40,
            order: Default::default(),
            shelf_pages: 7,
            earlier_bytes: 0,
            warnings: vec!["x".into()],
            names_late: true,
            is_clone: false,
            passes_on: true,
            images: true,
            stands_by: true,
            shared: None,
        })
        .expect("plain"),
        serde_json::to_vec(&FromSource::Reach { attempt, onward: Box::new(onward()) }).expect("plain"),
        serde_json::to_vec(&FromDestination::Stage { attempt, news: Box::new(news()) }).expect("plain"),
    ];
    holds("messages", messages::check, &sent);
    holds("frame", frame::check, &[frame::seed(&sent[0]), frame::seed(b"")]);
    holds("pages", pages::check, &[pages::seed(b"content", None), pages::seed(b"content", Some(1)), Vec::new()]);
}

#[test]
fn whatever_stands_in_the_file_of_peers_is_read_or_refused() {
    let key = "SHA256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0";
    let text = format!("# hosts\n{key} alpha user=web max-memory=4GiB only=send then=refuse\n");
    holds("peers", peers::check, &[text.into_bytes(), b"\xff\n".to_vec()]);
}
