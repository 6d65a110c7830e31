//! This program beside CRIU: `CRIU=PATH cargo bench --bench peers -- [--runs N] [CASE...]`, as root.
//!
//! Both save and restore the same kinds of process, in turn, with images on tmpfs; printed are the median, the least and
//! the most of all runs, the ratio of the medians, and throughput as a share of the speed of a memory copy measured in the
//! same run. Without CRIU (tests/bench/get-criu brings one) ours alone is printed. CASE: a part of the name of a case.
//! With PEERS_DETAILS set the parts of each pause of ours go to standard error.

mod stats;
mod target;
mod tool;

use stats::{Spread, gib_per_second};
use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use target::{Shape, Target};
use tool::{After, Tool};

/// Why something could not be measured.
#[derive(Debug)]
pub struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for Failed {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// Names what failed.
pub fn at<E: fmt::Display>(what: &str) -> impl Fn(E) -> Failed + use<'_, E> {
    move |e| Failed(format!("{what}: {e}"))
}

/// One kind of process.
struct Case {
    name: String,
    shape: Shape,
    runs: usize,
    /// Of one that runs on only the dump is measured.
    after: After,
    /// What its cost should be linear in: how many there are.
    items: Option<(&'static str, u64)>,
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape, runs| Case { name: name.to_owned(), shape, runs, after: After::Ends, items: None };
    let mib = |mib| Shape { mib, ..Shape::default() };
    let mut all = vec![
        case("1 MiB", mib(1), 15),
        case("64 MiB", mib(64), 9),
        case("1 GiB", mib(1024), 7),
        case("4 GiB", mib(4096), 3),
        case("500 threads", Shape { threads: 500, ..mib(1) }, 5),
        case("100 processes", Shape { processes: 100, ..mib(1) }, 5),
        Case { after: After::RunsOn, ..case("1 GiB, 2000 pages/s written", Shape { rate: 2000, ..mib(1024) }, 7) },
        Case { after: After::Snapshot, ..case("1 GiB, 20000/s, --snapshot", Shape { rate: 20_000, ..mib(1024) }, 7) },
    ];
    type Set = fn(&mut Shape, u64);
    let rows: [(&str, [u64; 3], Set); 4] = [
        ("mappings", [100, 1000, 10_000], |shape, n| shape.mappings = n),
        ("descriptors", [10, 100, 1000], |shape, n| shape.descriptors = n),
        ("threads", [10, 100, 1000], |shape, n| shape.threads = n),
        ("processes", [10, 50, 250], |shape, n| shape.processes = n),
    ];
    for (what, counts, set) in rows {
        for count in counts {
            let mut shape = mib(1);
            set(&mut shape, count);
            all.push(Case { items: Some((what, count)), ..case(&format!("linear: {count} {what}"), shape, 5) });
        }
    }
    all
}

/// What one tool needed for one case.
#[derive(Debug, Clone, Default)]
struct Measured {
    dump: Spread,
    pause: Spread,
    restore: Spread,
}

/// One point of a line: how many items there were, and what each tool needed.
type Point = (u64, Vec<Option<Measured>>);

struct Bench {
    tools: Vec<Tool>,
    fixture: PathBuf,
    images: tempfile::TempDir,
    /// Bytes per second of a copy in memory.
    copy: f64,
}

impl Bench {
    fn once(&self, tool: &Tool, case: &Case, measured: &mut Measured) -> Result<(), Failed> {
        let target = Target::start(&self.fixture, case.shape)?;
        // What has just been set up settles: two thirds of a second of writes, for one that writes.
        std::thread::sleep(Duration::from_millis(if case.after != After::Ends { 700 } else { 20 }));
        let dir = self.images.path().join("image");
        let result = self.saved_and_restored(tool, case, &target, &dir, measured);
        drop(target);
        std::fs::remove_dir_all(&dir)
            .or_else(|e| if result.is_err() { Ok(()) } else { Err(e) })
            .map_err(at("clean up"))?;
        result
    }

    fn saved_and_restored(
        &self,
        tool: &Tool,
        case: &Case,
        target: &Target,
        dir: &Path,
        measured: &mut Measured,
    ) -> Result<(), Failed> {
        let dumped = tool.dump(target, dir, case.after)?;
        measured.dump.add(dumped.total);
        measured.pause.add(dumped.pause);
        if case.after != After::Ends {
            return Ok(());
        }
        Target::reap()?;
        measured.restore.add(tool.restore(dir)?);
        target.complete(case.shape)
    }

    /// All tools in turn; a tool that fails is left out of this case.
    fn case(&self, case: &Case, runs: Option<usize>) -> Vec<Option<Measured>> {
        let mut all: Vec<_> = self.tools.iter().map(|_| Some(Measured::default())).collect();
        for run in 0..runs.unwrap_or(case.runs) {
            // Who is first changes.
            for n in 0..self.tools.len() {
                let n = (n + run) % self.tools.len();
                let Some(measured) = &mut all[n] else { continue };
                if let Err(failed) = self.once(&self.tools[n], case, measured) {
                    println!("{}: {}: {failed}", case.name, self.tools[n].name());
                    all[n] = None;
                }
            }
        }
        all
    }

    fn print(&self, case: &Case, all: &[Option<Measured>]) {
        type Row = (&'static str, fn(&Measured) -> &Spread);
        let rows: [Row; 3] = [("dump", |m| &m.dump), ("  pause", |m| &m.pause), ("restore", |m| &m.restore)];
        let ours = all.first().and_then(Option::as_ref);
        for (n, (what, of)) in rows.iter().enumerate().filter(|(n, _)| *n < 2 || case.after == After::Ends) {
            let mut line = format!("{:<28} {what:<8}", if n == 0 { &case.name } else { "" });
            for measured in all {
                line += &format!(" {:>28}", measured.as_ref().map_or_else(|| "failed".into(), |m| of(m).to_string()));
            }
            if let (Some(ours), Some(theirs)) = (ours, all.get(1).and_then(Option::as_ref)) {
                let ratio = of(ours).median().as_secs_f64() / of(theirs).median().as_secs_f64();
                line += &format!("  {ratio:5.2}");
            }
            let bytes = case.shape.mib << 20;
            if let Some(ours) = ours.filter(|_| case.shape.mib >= 64 && n != 1) {
                let speed = bytes as f64 / of(ours).median().as_secs_f64();
                line += &format!("  {} = {:.0} % of a copy", gib_per_second(speed), 100.0 * speed / self.copy);
            }
            println!("{line}");
        }
    }

    /// What one item more costs.
    fn print_linear(&self, kind: &str, points: &[Point]) {
        for (n, tool) in self.tools.iter().enumerate() {
            let of = |(count, all): &(u64, Vec<Option<Measured>>)| {
                all[n].as_ref().map(|m| (*count, m.dump.median(), m.restore.median()))
            };
            let known: Vec<_> = points.iter().filter_map(of).collect();
            let mut line = format!("{kind:<12} {:<5}", tool.name());
            for pair in known.windows(2) {
                let ((few, dump, restore), (many, more_dump, more_restore)) = (pair[0], pair[1]);
                let each = |a: Duration, b: Duration| (b.as_secs_f64() - a.as_secs_f64()) * 1e6 / (many - few) as f64;
                let (dump, restore) = (each(dump, more_dump), each(restore, more_restore));
                line += &format!("   {few} to {many}: dump {dump:.1} us, restore {restore:.1} us each");
            }
            println!("{line}");
        }
    }
}

/// Bytes per second of the fastest of some copies of 256 MiB.
fn copy_speed() -> f64 {
    let from = vec![0x5au8; 256 << 20];
    let mut to = vec![0u8; from.len()];
    let copy = |_| {
        let began = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        began.elapsed().as_secs_f64()
    };
    from.len() as f64 / (0..7).map(copy).fold(f64::MAX, f64::min)
}

fn machine(bench: &Bench) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    println!("Linux {}, {processors} processors, load {load}", read("/proc/sys/kernel/osrelease"));
    for tool in &bench.tools {
        println!("{}: {}", tool.name(), tool.version());
    }
    println!("a copy in memory: {}", gib_per_second(bench.copy));
    let names: Vec<String> = bench.tools.iter().map(|t| format!(" {:>28}", t.name())).collect();
    println!("{:<28} {:<8}{}  {}", "", "ms", names.concat(), if bench.tools.len() > 1 { "ratio" } else { "" });
}

fn run() -> Result<(), Failed> {
    let mut wanted = Vec::new();
    let mut runs = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--runs" => runs = Some(arguments.next().and_then(|n| n.parse().ok()).ok_or("--runs wants a number")?),
            _ => wanted.push(argument),
        }
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(at("adoption of orphans"))?;
    let images = tempfile::Builder::new().prefix("peers-").tempdir_in("/dev/shm").map_err(at("/dev/shm"))?;
    let fixture = images.path().join("peer");
    target::compile(&fixture)?;
    let mut tools = vec![Tool::Ours(env!("CARGO_BIN_EXE_migrate").into())];
    tools.extend(std::env::var_os("CRIU").map(|path| Tool::Criu(path.into())));
    let bench = Bench { tools, fixture, images, copy: copy_speed() };
    machine(&bench);
    let chosen = |case: &Case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part.as_str()));
    let mut linear: Vec<(&str, Vec<Point>)> = Vec::new();
    for case in cases().into_iter().filter(chosen) {
        let needed = 3 * (case.shape.mib << 20) + (1 << 30);
        if stats::available_memory() < needed {
            println!("{}: left out, it needs {} GiB of free memory", case.name, needed >> 30);
            continue;
        }
        let all = bench.case(&case, runs);
        bench.print(&case, &all);
        if let Some((kind, count)) = case.items {
            match linear.last_mut().filter(|(k, _)| *k == kind) {
                Some((_, points)) => points.push((count, all)),
                None => linear.push((kind, vec![(count, all)])),
            }
        }
    }
    for (kind, points) in linear.iter().filter(|(_, points)| points.len() > 1) {
        bench.print_linear(kind, points);
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}
