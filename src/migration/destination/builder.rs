//! What makes trees of what comes, and what it is told.

use crate::blocker::{Blocker, codes};
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::image::{Bytes, Model};
use crate::memory::store::ImageDir;
use crate::memory::{RangeSet, Space};
use crate::migration::cascade::{Onward, Passed};
use crate::migration::common_pages::shelf::CommonShelf;
use crate::migration::inventory::Inventory;
use crate::migration::landing::Memory;
use crate::migration::parked;
use crate::migration::points;
use crate::migration::postcopy::Later;
use crate::migration::protocol::AttemptId;
use crate::restore::fd::bequest::Bequest;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The rebuilding side of the engine. Called from one thread.
pub trait Builder {
    /// Who comes; before everything else.
    fn introduce(&mut self, who: &Introduction<'_>) {
        let _ = who;
    }

    /// What stands in the way of running a target like this here; `state` are the choices of the source's user.
    /// Of files those that are `judged` need no look.
    fn preflight(
        &mut self,
        model: &Model,
        state: &serde_json::Value,
        judged: &HashSet<Bytes>,
    ) -> Result<Vec<Blocker>, Failure>;

    /// Whether a target that is here could go on like this: what stands in the way, and what a person should know.
    fn look_onward(&mut self, onward: &Onward) -> (Vec<Blocker>, Vec<String>) {
        let _ = onward;
        (vec![Blocker::new(codes::PEER_REFUSES, "--then").because("nobody moves targets on here")], Vec::new())
    }

    /// The target is to go on. The last call of all.
    fn pass_on(&mut self, passed: Passed) {
        let _ = passed;
    }

    /// What trees share here stays after this session, for others of them.
    fn look_after(&mut self, common: CommonShelf) {
        drop(common);
    }

    /// A model as it is to be made here: this kernel may differ from the source's.
    fn adapted(&self, model: Model) -> Result<Model, Failure> {
        Ok(model)
    }

    /// Makes the tree of a model ahead of time, with the pages of an image if there is one. `read_at`: when the clocks of the
    /// model were read. `None`: such a tree has to wait for its contents.
    fn build_ahead(
        &mut self,
        model: Model,
        read_at: Instant,
        stored: Option<&ImageDir>,
    ) -> Result<Option<Standing>, Failure>;

    /// Whether the tree that was made ahead of time can become that of the final model. `homes`: spaces of its own model that
    /// pages were sent for, and what the final one calls them.
    fn fits(&mut self, model: &Model, homes: &HashMap<Space, Option<Space>>) -> bool;

    /// Pages of a space of the tree that stay where they are when it becomes that of the model it fits.
    fn kept(&self, model: &Model, space: Space) -> RangeSet;

    /// Makes that tree out of it: without the pages that are `stale`, with those of the image. Its memory, by the names of the
    /// final model.
    fn adopt(
        &mut self,
        model: Model,
        stale: &[(Space, RangeSet)],
        stored: Option<&ImageDir>,
    ) -> Result<Box<dyn Memory>, Failure>;

    /// The target may be prepared without some of its pages: what that takes can be made ready.
    fn may_lack_pages(&mut self) {}

    /// These pages are not there when the target is prepared: it gets them while it runs ([`super::postcopy`]).
    ///
    /// # Errors
    /// Memory cannot come later here.
    fn expect(&mut self, later: Expected<'_>) -> Result<(), Failure> {
        let _ = later;
        Err(Failure::new("memory cannot come later here"))
    }

    /// Stops the target of an attempt, which runs here already, and reads what it is and what has changed ([`points`]);
    /// `None`: it has all of its memory by now.
    ///
    /// # Errors
    /// It cannot be read as it is. It runs on.
    fn point(&mut self, run: &Path, attempt: AttemptId, whole: bool) -> Result<Option<points::Taken>, Failure> {
        let _ = (run, attempt, whole);
        Err(Failure::new("points cannot be taken here"))
    }

    /// Completes the target. Everything that can fail is done when this returns; it does not run.
    fn prepare(&mut self, contents: Contents<'_>) -> Result<(), Failure>;

    /// What whoever lets it run after our death needs for its sockets, once it is armed.
    fn bequest(&self) -> Option<&Bequest> {
        None
    }

    /// Lets go of it so that it stands still whoever of us dies, and one write makes it run. `note` is told who it is before.
    fn arm(&mut self, note: &mut dyn FnMut(&Held)) -> Result<(), Failure>;

    /// Addresses of this host that came with it.
    fn addresses(&self) -> Vec<(IpAddr, u8, String)> {
        Vec::new()
    }

    /// Runs it; the process id of its root as this host sees it. After [`Builder::arm`] there is nothing in it that fails.
    fn run(&mut self) -> Result<i32, Failure>;

    /// Tells the network that the target is here, although nobody answers yet. Called when the source knows that it is
    /// prepared, and has not called it off.
    fn announce(&mut self) {}

    /// Packets of the network, packed, that came to the source for the target: given to it now if it runs, else when it does.
    fn deliver(&mut self, packets: &[u8]) -> Result<(), Failure>;

    /// Removes what [`Builder::prepare`] made, if anything.
    fn discard(&mut self);

    /// Leaves what is armed as it is, to whoever finds it in the journal.
    fn leave(&mut self);

    /// Writes the pages of what is armed as an image into this directory, and keeps that after the end of the attempt, see
    /// [`super::super::leftover`]. It stands as before.
    ///
    /// # Errors
    /// A full disk: nothing is left then.
    fn keep(&mut self, dir: &Path, lease: Duration) -> Result<(), Failure> {
        let _ = (dir, lease);
        Err(Failure::new("nothing can be kept here"))
    }

    /// Writes what is armed as an image into this directory, see [`parked`]: complete, synced and renamed. It stands as before.
    ///
    /// # Errors
    /// A full disk; memory of it is still to come. What was written is for the caller to remove.
    fn park(&mut self, dir: &Path) -> Result<(), Failure> {
        let _ = dir;
        Err(Failure::new("nothing can be parked here"))
    }

    /// Writes into this file what is armed, and its lease: whoever attends it after our death can park it by that ([`crate::migration::inventory`]).
    ///
    /// # Errors
    /// A full disk.
    fn describe(&self, path: &Path, lease: Duration) -> Result<(), Failure> {
        let _ = (path, lease);
        Err(Failure::new("nothing can be parked here"))
    }

    /// As [`Builder::park`], of a copy that another process has made and armed, and of which this is known.
    ///
    /// # Errors
    /// Those of [`Builder::park`]; memory of it cannot be reached from outside.
    fn park_left(&mut self, left: &Inventory, model: &Model, dir: &Path) -> Result<(), Failure> {
        let _ = (left, model, dir);
        Err(Failure::new("nothing can be parked here"))
    }

    /// Ends what is armed, or half made, silently: its peers must not learn of it. Memory and process ids are free when this
    /// returns.
    fn free(&mut self) {}

    /// Prepares what was parked, as [`Builder::prepare`] has prepared it once.
    ///
    /// # Errors
    /// It cannot be made here now.
    fn revive(&mut self, image: &ImageDir, terms: &parked::Terms) -> Result<(), Failure> {
        let _ = (image, terms);
        Err(Failure::new("nothing can be parked here"))
    }
}

/// Who comes.
#[derive(Debug)]
pub struct Introduction<'a> {
    /// The attempt.
    pub attempt: AttemptId,
    /// The session, as the source's user knows it.
    pub session: &'a str,
    /// From where.
    pub peer: &'a str,
    /// Process id of the root at the source.
    pub target_pid: i32,
    /// Nothing will come: this is only a look.
    pub dry_run: bool,
    /// Directory of an image here whose pages need not travel, or of what trees share here.
    pub base: Option<&'a Path>,
    /// Others have been offered the target, too.
    pub to_several: bool,
}

/// Pages that come later.
#[derive(Debug)]
pub struct Expected<'a> {
    /// Names the attempt in paths.
    pub attempt: AttemptId,
    /// Directory of sockets.
    pub run: &'a Path,
    /// Who brings them.
    pub peer: &'a str,
    /// Which, by the names of the final model.
    pub pages: Later,
    /// It is to be known which of them were written to since they came, where that can be told.
    pub watched: bool,
}

/// A tree that was made ahead of time.
pub struct Standing {
    /// Its memory.
    pub memory: Box<dyn Memory>,
    /// Pages that can land in it, and pages that are there, of each space.
    pub spaces: HashMap<Space, (RangeSet, RangeSet)>,
}

/// Where the contents of the target are in the end.
#[derive(Debug)]
pub enum Contents<'a> {
    /// In the tree that was made ahead of time, but for these pages, which the target no longer has.
    Landed(Vec<(Space, RangeSet)>),
    /// In a complete image; what was made ahead of time did not fit.
    Stored(&'a ImageDir),
}
