//! `--recoverable`, at the source: the newest complete state of a target that has moved, and whose host is dead, becomes a running
//! tree here ([`crate::migration::points`]).
//!
//! What can fail comes first: the state becomes an image, with the pages that only the frozen original has, and is looked at
//! as any image before it is restored. Then the original ends, and the image is restored; if that does not work out after
//! all, it stays where it is.

use super::options::{ExternalUnix, Files, ImagePlace, Pids, RestoreOptions, StateOptions, Stdio, Supervisor, Tcp};
use super::{Quiet, choices, restore as images};
use crate::companion::held::Held;
use crate::companion::lock_guard::will;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::fault::{self, Point};
use crate::image::MmId;
use crate::image::mm::PAGE;
use crate::memory::pipeline::ReadPages;
use crate::memory::store::{Compression, Draft, ImageWriter, Mark, PageOptions, PageWriter};
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::journal::Line;
use crate::migration::pages::{Run, What};
use crate::migration::points::Place;
use crate::migration::points::series::{self, Newest};
use crate::restore::{self, preflight};
use crate::trace::pages::TargetPages;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Pages of the original that are read at a time.
const PIECE_PAGES: u64 = 256;
/// How long an original that was killed may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// A state that can be resumed.
#[derive(Debug)]
pub(super) struct Recovery {
    dir: PathBuf,
    /// When it was asked for.
    taken: SystemTime,
}

impl Recovery {
    /// Of this attempt; `None`: no state of it is complete.
    ///
    /// # Errors
    /// It is damaged; memory that only the original had is gone; something is in the way of restoring it here. Nothing has
    /// changed.
    pub fn prepare(journals: &Path, line: &Line) -> Result<Option<Self>> {
        let dir = series::directory(journals, line.attempt);
        let failed = |e: &(dyn std::error::Error + 'static)| {
            Failure::of("the newest state of the target cannot be resumed", e)
                .hint(format!("without {} the original goes on as it was when it moved", dir.display()))
                .kind(FailureKind::NeedsPerson)
                .target(TargetState::Held)
        };
        let Some(newest) = Newest::open(&dir).map_err(|e| failed(&e))? else { return Ok(None) };
        if !line.is_of_this_boot() || !newest.is_original_there() {
            let gone =
                io::Error::new(io::ErrorKind::NotFound, "the original has ended, and memory that only it had with it");
            return Err(failed(&gone));
        }
        let mut model = newest.model.clone();
        let (_, mut blockers) = choices::apply(&mut model, &state());
        let options = restore::Options { pids: Pids::Auto, files: Files::Skip, ..Default::default() };
        let scope = preflight::Scope { original_runs: true, original_has_ports: true, ..Default::default() };
        blockers.extend(preflight::look(&model, &options, &scope));
        if !blockers.is_empty() {
            let what = "the newest state of the target cannot be resumed here";
            return Err(Failure::blocked(what, blockers).target(TargetState::Held));
        }
        write_image(&newest, &series::image(&dir)).map_err(|e| failed(&e))?;
        Ok(Some(Self { dir, taken: newest.taken }))
    }

    /// What a person is told before it is resumed.
    pub fn warning(&self) -> String {
        loss(self.taken)
    }

    /// Ends the original, and lets the state run; its process id. Called once it is decided that the target is this host's.
    ///
    /// # Errors
    /// It cannot be restored after all: the failure says where the image is.
    pub fn resume(&self, held: Option<&Held>, run: &Path) -> Result<i32> {
        // Under another name nobody resumes it a second time.
        let taken_up = series::taken_up(&self.dir);
        let image = series::image(&taken_up);
        fs::rename(&self.dir, &taken_up).map_err(|e| {
            Failure::of("the newest state of the target cannot be resumed", &e).target(TargetState::Held)
        })?;
        if let Some(held) = held {
            held.kill();
            will::forget(run, held);
            let until = Instant::now() + ENDING;
            while held.is_there() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        fault::strike(Point::Recovering);
        let options =
            RestoreOptions { detach: true, state: state(), ..RestoreOptions::new(ImagePlace::Dir(image.clone())) };
        let running = images::run(&options, &Quiet).map_err(|failure| {
            let state = format!("its image is complete: migrate restore -D {}", image.display());
            failure.kind(FailureKind::NeedsPerson).target(TargetState::Ended(state))
        })?;
        if let Err(error) = fs::remove_dir_all(&taken_up) {
            tracing::warn!(%error, dir = %taken_up.display(), "the state that was resumed was left behind");
        }
        running.outcome.pid.ok_or_else(|| Failure::new("nobody says who the target is"))
    }
}

/// What becomes of a target whose state of then goes on.
pub(super) fn loss(taken: SystemTime) -> String {
    format!(
        "it goes on here as it was {:.1} s ago: replies and changes of files since then are lost, and TCP connections are reset",
        taken.elapsed().unwrap_or_default().as_secs_f64()
    )
}

/// How a state is restored.
fn state() -> StateOptions {
    StateOptions {
        pids: Some(Pids::Auto),
        // What the program has written over there is not here.
        files: Some(Files::Skip),
        tcp: Tcp::Close,
        external_unix: Some(ExternalUnix::Reconnect),
        stdio: Stdio::Null,
        // Its unit is held since it moved.
        supervisor: Supervisor::Ignore,
        ..StateOptions::default()
    }
}

/// Makes an image of it.
fn write_image(newest: &Newest, dir: &Path) -> io::Result<()> {
    let other = |e: crate::memory::store::StoreError| io::Error::other(Failure::of("the image cannot be written", &e));
    let mut image = ImageWriter::create(dir, true).map_err(other)?;
    let pages = image.pages(PageOptions { compression: Compression::Off, parent: None });
    from_original(newest, &pages)?;
    from_points(newest, &pages)?;
    let stored = pages.finish().map_err(other)?;
    image.write_model(&newest.model).map_err(other)?;
    image.commit(Draft::of(&newest.model, &stored), stored).map_err(other)?;
    Ok(())
}

/// Pages that had not come, or that nobody has written to there.
fn from_original(newest: &Newest, pages: &PageWriter) -> io::Result<()> {
    let original =
        TargetPages::new(newest.original.owners.iter().map(|(pid, _)| crate::image::Pid(*pid)).collect(), Vec::new());
    let mut buffer = Vec::new();
    for row in &newest.index {
        let Place::Original(mm, from) = row.place else { continue };
        for piece in row.range.pieces(PIECE_PAGES) {
            let there = PageRange::new(from + (piece.first - row.range.first), piece.count);
            buffer.resize(piece.bytes() as usize, 0);
            original.read(Space::Mm(MmId(mm.0)), &[there], &mut buffer).map_err(io::Error::other)?;
            pages.write_run(row.space, piece.first, &buffer).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// The others: of each the newest.
fn from_points(newest: &Newest, pages: &PageWriter) -> io::Result<()> {
    // By the names of points: what they are called in the model, and what has not been found yet.
    let mut wanted: BTreeMap<Space, (Space, RangeSet)> = BTreeMap::new();
    for row in &newest.index {
        let Place::Points(name) = row.place else { continue };
        let (space, wanted) = wanted.entry(name).or_insert_with(|| (row.space, RangeSet::new()));
        if *space != row.space {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "one name in its points is of two spaces"));
        }
        wanted.insert(row.range);
    }
    newest.contents(&mut |run: Run, content: &[u8]| {
        let Some((space, wanted)) = wanted.get_mut(&run.space) else { return Ok(()) };
        let found = wanted.within(run.range);
        for range in found.iter() {
            match run.what {
                What::Data => {
                    let at = ((range.first - run.range.first) * PAGE) as usize;
                    let content = &content[at..at + range.bytes() as usize];
                    pages.write_run(*space, range.first, content).map_err(io::Error::other)?;
                }
                _ => pages.mark(*space, range, Mark::Zero),
            }
            wanted.remove(range);
        }
        Ok(())
    })?;
    match wanted.values().find(|(_, left)| !left.is_empty()) {
        Some((space, _)) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("pages of {space} are in no point")))
        }
        None => Ok(()),
    }
}
