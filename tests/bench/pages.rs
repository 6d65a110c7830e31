//! How fast memory goes into a page store and back: `cargo bench --bench pages -- [MiB] [directory] [workers]`.
//!
//! Prints each figure next to the speed of a memory copy measured in the same run, since machines differ. Reads a child
//! process and writes another by the calls that the engine uses; nothing is frozen and no process tree is made.

use migrate_engine::image::{
    MmId,
    manifest::{HostSummary, Kind},
    mm::PAGE,
};
use migrate_engine::memory::{
    PageRange, Space,
    pipeline::{PageError, ReadPages, WritePages, default_workers, dump_pages, load_pages},
    store::{Compression, Draft, ImageWriter, PageOptions, PageReader},
};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, IoSlice, IoSliceMut},
    process::{Child, Command, Stdio},
    time::Instant,
};

const SPACE: Space = Space::Mm(MmId(0));

/// A child process with memory.
struct Target {
    child: Child,
    address: u64,
}

impl Target {
    /// `filled`: with content no page of which is zero; else fresh memory.
    fn start(mib: usize, filled: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["target", &mib.to_string(), if filled { "filled" } else { "fresh" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child process can be started");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it was piped");
        BufReader::new(stdout).read_line(&mut line).expect("the child says where its memory is");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn remote(&self, ranges: &[PageRange]) -> Vec<RemoteIoVec> {
        let vector = |r: &PageRange| RemoteIoVec { base: r.start_byte() as usize, len: r.bytes() as usize };
        ranges.iter().map(vector).collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn whole(done: nix::Result<usize>, wanted: usize, ranges: &[PageRange]) -> Result<(), PageError> {
    match done {
        Ok(n) if n == wanted => Ok(()),
        Ok(_) => Err(PageError { page: ranges[0].first, source: std::io::ErrorKind::UnexpectedEof.into() }),
        Err(e) => Err(PageError { page: ranges[0].first, source: e.into() }),
    }
}

impl ReadPages for Target {
    fn read(&self, _: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let wanted = buf.len();
        whole(process_vm_readv(self.pid(), &mut [IoSliceMut::new(buf)], &self.remote(ranges)), wanted, ranges)
    }
}

impl WritePages for Target {
    fn write(&self, _: Space, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
        whole(process_vm_writev(self.pid(), &[IoSlice::new(data)], &self.remote(ranges)), data.len(), ranges)
    }

    fn zero(&self, _: Space, _: PageRange) -> Result<(), PageError> {
        Ok(())
    }
}

/// The child: takes memory, says where it is, waits for its end.
fn target(mib: usize, filled: bool) {
    let mut memory = vec![0u8; (mib << 20) + PAGE as usize];
    let skip = memory.as_ptr().align_offset(PAGE as usize);
    let pages = &mut memory[skip..skip + (mib << 20)];
    if filled {
        for (n, word) in pages.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
    }
    println!("{}", pages.as_ptr() as usize);
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn memory_copy_gib_s() -> f64 {
    let from = vec![1u8; 256 << 20];
    let mut to = vec![2u8; 256 << 20];
    let start = Instant::now();
    for _ in 0..4 {
        to.copy_from_slice(std::hint::black_box(&from));
    }
    std::hint::black_box(&to);
    1.0 / start.elapsed().as_secs_f64()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().is_some_and(|a| a == "target") {
        return target(args[1].parse().expect("MiB"), args[2] == "filled");
    }
    let mib: usize = args.first().map_or(256, |a| a.parse().expect("MiB"));
    let at = args.get(1).map_or("/dev/shm", String::as_str);
    let workers = args.get(2).map_or_else(default_workers, |a| a.parse().expect("a number of workers"));
    let gib = mib as f64 / 1024.0;
    let copy = memory_copy_gib_s();
    println!("{mib} MiB, {workers} workers, {at}; memory copy {copy:.1} GiB/s");
    let source = Target::start(mib, true);
    let plan = [(SPACE, PageRange::of_bytes(source.address, source.address + ((mib as u64) << 20)))];
    for (name, compression) in [("raw", Compression::Off), ("raw", Compression::Off), ("zstd 1", Compression::Zstd(1))]
    {
        let dir = std::path::Path::new(at).join(format!("migrate-bench-{}", std::process::id()));
        let start = Instant::now();
        let image = ImageWriter::create(&dir, false).expect("a new image");
        let pages = image.pages(PageOptions { compression, parent: None });
        dump_pages(&source, &plan, &pages, workers, &|_| ()).expect("a dump");
        let read = start.elapsed().as_secs_f64();
        let stored = pages.finish().expect("an index");
        let draft =
            Draft { kind: Kind::Memory, host: HostSummary::default(), tree: vec![], restore: Default::default() };
        image.commit(draft, stored).expect("an image");
        let dump = start.elapsed().as_secs_f64();

        let fresh = Target::start(mib, false);
        let start = Instant::now();
        let reader = PageReader::open(&dir).expect("the image");
        let shift = fresh.address as i64 - source.address as i64;
        let mut runs = reader.runs(SPACE).expect("runs");
        for run in &mut runs {
            run.range.first = run.range.first.wrapping_add_signed(shift / PAGE as i64);
        }
        load_pages(&reader, &runs, &fresh, workers, &|_| ()).expect("a restore");
        let load = start.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&dir).expect("the image can be removed");
        println!(
            "{name:7} dump {dump:.3} s ({:.2} GiB/s, {:.0} % of a copy; commit {:.1} ms)  load {load:.3} s ({:.2} GiB/s, {:.0} %)",
            gib / dump,
            100.0 * gib / dump / copy,
            1000.0 * (dump - read),
            gib / load,
            100.0 * gib / load / copy,
        );
    }
}
