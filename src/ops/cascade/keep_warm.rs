//! `--keep-warm`: the destinations that have not got the target stay up to date, from the one that has. Whoever brings it there starts
//! the session of a warm-up beside it, as `migrate warm` does, and the source hears its id.

use super::{Charge, Seen, next};
use crate::blocker::Blocker;
use crate::failure::{Failure, Result};
use crate::migration::MoveError;
use crate::migration::cascade::{Fate, News, Observer};
use crate::migration::leftover;
use crate::ops::options::{CPU_SHARE, Compress, Mode, ModeOptions, MoveOptions, WarmOptions};
use crate::ops::outcome::{KeptWarm, Outcome, Where};
use crate::ops::{Event, Events, many, warm};
use crate::transport::Abort;

/// What keeps a host from doing that is no reason not to have the target.
pub(super) fn warnings((blockers, warnings): (Vec<Blocker>, Vec<String>)) -> (Vec<Blocker>, Vec<String>) {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let warned = blockers.into_iter().map(|blocker| {
        format!("{host} would not keep all of the others warm: {} {}: {}", blocker.code, blocker.object, blocker.reason)
    });
    (Vec::new(), warned.chain(warnings).collect())
}

/// Starts the session, where the target is; what is said of that.
pub(super) fn start(charge: &Charge, say: &dyn Fn(News)) -> Result<()> {
    let (moves, _) = next(&charge.onward, charge.pid)?;
    let mode = match moves.mode.mode {
        Mode::PreCopy => Mode::PreCopy,
        _ => Mode::Auto,
    };
    let mode = ModeOptions { mode, recoverable: None, ..moves.mode };
    // Those that stood ready have kept what they had.
    let base = (moves.memory.compress != Compress::Off).then(|| leftover::name(charge.attempt).into());
    let moves = MoveOptions { mode, base, ..moves };
    let (session, dests) = (moves.session, moves.dests.iter().map(ToString::to_string).collect());
    let options = WarmOptions { moves, cpu_share: CPU_SHARE, disjoint: None, standby: None };
    let mut said = Vec::new();
    let exit = warm::start(&options, String::new(), &mut |out, text| said.extend((!out).then(|| text.to_owned())))?;
    if exit != 0 {
        let mut failure = Failure::new(format!("session {session} has ended at once"));
        failure.causes = said.iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
        return Err(failure);
    }
    say(News::Warm { session: session.to_string(), dests });
    Ok(())
}

/// How that ends for whoever has brought the target.
pub(super) fn ended(started: Result<()>) -> News {
    let failure = started.err().map(|failure| MoveError::Target(failure).to_wire());
    News::Ended { fate: Fate::RunsHere, failure }
}

/// Of several destinations, those that one of them is to keep warm; nothing where there is one.
pub(super) fn others(options: &MoveOptions) -> Option<Vec<Vec<String>>> {
    let names = options.dests.iter().map(ToString::to_string).collect();
    (options.dests.len() > 1).then(|| vec![names])
}

/// Hears from where the target is now whether the others are kept warm. The move is done, whatever is heard: a warning tells what is not.
pub(super) fn follow(
    options: &MoveOptions,
    observer: Option<Observer>,
    mut outcome: Outcome,
    events: &dyn Events,
    abort: &Abort,
) -> Outcome {
    let Where::Dest(at) = outcome.place.clone() else { return outcome };
    if options.dests.len() < 2 {
        outcome.notes.push("nobody is kept warm: there was one destination".to_owned());
        return outcome;
    }
    let warn = |why: String| events.event(Event::Warning(format!("nobody is kept warm by {at}: {why}")));
    let Some(observer) = observer else {
        warn("the link was lost in the moment of handing over".to_owned());
        return outcome;
    };
    let mut kept = None;
    let mut begun = |news| {
        if let News::Warm { session, dests } = news {
            kept = Some(KeptWarm { session, host: at.clone(), dests });
        }
    };
    match Seen::of(&outcome).follow(observer, &mut begun, events, abort) {
        Ok((_, None)) if kept.is_some() => {}
        Ok((_, failure)) => {
            let said = failure.into_iter().flat_map(|said| std::iter::once(said.what).chain(said.causes));
            warn(said.collect::<Vec<_>>().join(": "));
        }
        Err(error) => {
            let others = many::names(&options.dests);
            let causes = Failure::of("", &error).causes.join(": ");
            warn(format!("{causes}; migrate status there says whether a session keeps some of {others} up to date"));
        }
    }
    outcome.kept_warm = kept;
    outcome
}
