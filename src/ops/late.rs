//! Targets whose memory is still coming in: whoever wants to read it waits until it is there.

use super::places::Places;
use super::{Event, Events, interrupt};
use crate::companion::pager::{self, News, Watch};
use crate::failure::{Failure, Result, TargetState};
use crate::image::Pid;
use crate::proc::ProcDir;
use crate::proc::smaps::VmFlags;

/// Sees to it that nothing of these processes is missing. Reading a missing page would wait for it, and in the pause of a
/// dump nobody should.
///
/// # Errors
/// Pages are lost, or whoever brings them does not answer.
pub fn complete(processes: &[Pid], events: &dyn Events) -> Result<()> {
    let sockets = pager::sockets(&Places::here().run);
    // Most of the time there are none, and nobody's flags need to be read.
    if sockets.is_empty() || !waits(processes) {
        return Ok(());
    }
    let mut total = 0;
    for watch in sockets.iter().filter_map(|socket| Watch::begin(socket)) {
        finish(watch, &mut total, events)?;
    }
    // What is still served by somebody else is in the way, and named by the preflight.
    Ok(())
}

/// Whether memory of any of them is served page by page.
fn waits(processes: &[Pid]) -> bool {
    let mut buf = Vec::new();
    processes.iter().any(|pid| {
        let flags = ProcDir::open(*pid).and_then(|dir| dir.smaps_flags(&mut buf));
        flags.is_ok_and(|all| all.iter().any(|f| f.flags.contains(VmFlags::UFFD_MISSING)))
    })
}

fn finish(mut watch: Watch, total: &mut u64, events: &dyn Events) -> Result<()> {
    loop {
        interrupt::check().map_err(|failure| failure.target(TargetState::Untouched))?;
        match watch.news() {
            Ok(News::Complete) => return Ok(()),
            Ok(News::Missing(pages)) => {
                let left = pages * crate::image::mm::PAGE;
                *total = left.max(*total);
                events.event(Event::Progress { phase: "missing pages", done: *total - left, total: *total });
            }
            Ok(News::Lost(message)) => {
                let mut lines = message.lines();
                let mut failure = Failure::new(lines.next().unwrap_or_default());
                failure.causes = lines.filter(|line| line.starts_with("missing")).map(str::to_owned).collect();
                return Err(failure.target(TargetState::Stopped));
            }
            Err(error) => {
                let what = "the process that brings the target's memory in does not answer";
                return Err(Failure::of(what, &error).target(TargetState::Untouched));
            }
        }
    }
}
