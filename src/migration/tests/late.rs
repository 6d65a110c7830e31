//! Memory that follows in a play: which pages can, and a pager at the destination that takes them.

use super::*;
use crate::migration::pages::unpack;
use crate::migration::postcopy::{self, Later, send_missing};
use crate::transport::FrameKind;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;

/// Of these pages, those that can follow.
pub fn can_follow(space: Space, pages: &RangeSet) -> RangeSet {
    let all = pages.iter().flat_map(|range| range.pieces(1)).filter(|page| page.first % 4 != 0);
    if space == CHILD { RangeSet::new() } else { all.collect() }
}

/// Leaves what can follow for later.
pub fn put_off(plan: &mut Plan) -> Later {
    let mut later: BTreeMap<Space, RangeSet> = BTreeMap::new();
    for (space, range) in std::mem::take(&mut plan.pages) {
        let all: RangeSet = [range].into_iter().collect();
        let follows = can_follow(space, &all);
        plan.pages.extend(all.difference(&follows).iter().map(|range| (space, range)));
        plan.notes.extend(follows.iter().map(|range| Run::new(space, range, What::Hole)));
        follows.iter().for_each(|range| later.entry(space).or_default().insert(range));
    }
    later.into_iter().collect()
}

/// What threads of a pager share.
#[derive(Default)]
struct Shared {
    missing: Mutex<BTreeMap<Space, RangeSet>>,
    came: Mutex<Memory>,
    over: AtomicBool,
}

/// Takes pages until it has them all.
pub struct Pager {
    /// What it lacked in the beginning.
    pub lacked: Later,
    shared: Arc<Shared>,
}

impl Pager {
    pub fn begin(later: &Expected<'_>) -> Self {
        let path = postcopy::socket_path(later.run, &postcopy::name(later.attempt));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared::default());
        shared.missing.lock().unwrap().extend(later.pages.iter().cloned());
        let ours = shared.clone();
        std::thread::spawn(move || {
            while !ours.over.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        let ours = ours.clone();
                        std::thread::spawn(move || ours.attend(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            let _ = std::fs::remove_file(path);
        });
        Self { lacked: later.pages.clone(), shared }
    }

    /// Nobody needs them any more.
    pub fn end(&self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }

    /// What has come.
    pub fn came(&self) -> Memory {
        self.shared.came.lock().unwrap().clone()
    }
}

impl Shared {
    /// One link, until it is over.
    fn attend(&self, mut stream: UnixStream) -> Option<()> {
        let mut kind = [0];
        stream.read_exact(&mut kind).ok()?;
        let mut channel = Channel::new(Stream::unix(stream).ok()?, "source", patience());
        if kind == [b'B'] { self.bulk(&mut channel) } else { self.urgent(&mut channel) }
    }

    fn lacks(&self) -> bool {
        self.missing.lock().unwrap().values().any(|pages| !pages.is_empty())
    }

    fn urgent(&self, channel: &mut Channel) -> Option<()> {
        let missing = self.missing.lock().unwrap().clone();
        send_missing(channel, &missing).ok()?;
        while self.lacks() {
            if self.over.load(Ordering::SeqCst) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        channel.send(FrameKind::MARK, &[]).ok()?;
        channel.expect(FrameKind::MARK, "the last word").ok()?;
        self.over.store(true, Ordering::SeqCst);
        Some(())
    }

    fn bulk(&self, channel: &mut Channel) -> Option<()> {
        let mut buffer = Vec::new();
        loop {
            let frame = channel.receive().ok()?;
            unpack(frame.body, &mut buffer, &mut |run, content| {
                let zeros = vec![0; run.range.bytes() as usize];
                let content = if content.is_empty() { &zeros[..] } else { content };
                let pages = (run.range.first..run.range.end()).map(|page| (run.space, page));
                let contents = content.chunks(PAGE as usize).map(<[u8]>::to_vec);
                self.came.lock().unwrap().extend(pages.zip(contents));
                self.missing.lock().unwrap().entry(run.space).or_default().remove(run.range);
            })
            .ok()?;
        }
    }
}
