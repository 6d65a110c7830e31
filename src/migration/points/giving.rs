//! The destination's end: takes points of a target that runs here and lacks memory, as often as the source asks.

use super::{Taken, encode};
use crate::failure::Failure;
use crate::image::mm::PAGE;
use crate::memory::PageRange;
use crate::migration::MoveError;
use crate::migration::destination::{Builder, Surroundings, out_of_turn};
use crate::migration::pages::Packer;
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource};
use crate::transport::{Channel, FrameKind, TransportError};

/// Pages that are packed at a time.
const PIECE_PAGES: u64 = 64;

/// Answers until the source closes the link.
///
/// # Errors
/// The link is lost: what has been sent over it is of no use to the next one, which begins anew.
pub fn run(
    control: &mut Channel,
    builder: &mut dyn Builder,
    around: &Surroundings<'_>,
    attempt: AttemptId,
    level: Option<i32>,
) -> Result<(), MoveError> {
    loop {
        control.during("waiting to be asked for a point");
        let whole = match protocol::receive(control) {
            Ok(FromSource::Point { attempt: about, whole }) if about == attempt => whole,
            Ok(other) => return Err(out_of_turn(control, &other, "a point")),
            Err(TransportError::Closed { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match builder.point(around.run, attempt, whole) {
            Ok(Some(taken)) => send(control, attempt, &taken, level)?,
            Ok(None) => {
                let nothing = FromDestination::Says { attempt, reply: None, pid: None, lacks_pages: false };
                protocol::send(control, &nothing)?;
            }
            Err(failure) => none(control, attempt, failure)?,
        }
    }
}

/// There is none this time.
fn none(control: &mut Channel, attempt: AttemptId, failure: Failure) -> Result<(), MoveError> {
    let failure = MoveError::Target(failure).to_wire();
    Ok(protocol::send(control, &FromDestination::Failed { attempt, failure })?)
}

fn send(control: &mut Channel, attempt: AttemptId, taken: &Taken, level: Option<i32>) -> Result<(), MoveError> {
    let mut packer = Packer::new(level);
    let mut content = taken.content.as_slice();
    for (space, range) in taken.changed.iter().flat_map(|(space, r)| r.pieces(PIECE_PAGES).map(|r| (*space, r))) {
        let PageRange { first, count } = range;
        let (piece, rest) = content.split_at((count * PAGE) as usize);
        content = rest;
        if packer.is_full(piece.len()) {
            control.send(FrameKind::PAGES, packer.take())?;
        }
        packer.add(space, first, piece);
    }
    if !packer.is_empty() {
        control.send(FrameKind::PAGES, packer.take())?;
    }
    let index = encode(&taken.index);
    let point = FromDestination::Point {
        attempt,
        whole: taken.whole,
        pause_us: u64::try_from(taken.pause.as_micros()).unwrap_or(u64::MAX),
        pages_read: taken.pages_read,
        model_bytes: taken.model.len() as u64,
        index_bytes: index.len() as u64,
    };
    protocol::send(control, &point)?;
    protocol::send_model(control, &taken.model)?;
    Ok(protocol::send_model(control, &index)?)
}
