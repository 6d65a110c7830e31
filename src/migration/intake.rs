//! How the pages of a round come in: each bulk channel up to its mark, the control channel up to the end of the round.

use super::bases::Bases;
use super::destination::out_of_turn;
use super::landing::Landing;
use super::protocol::{self, AttemptId, FromSource};
use super::shelf::{Fetching, Shelf};
use super::standby::keeping::Keeping;
use super::store::Store;
use super::{MoveError, send_pages};
use crate::transport::{Channel, FrameKind, TransportError};
use crossbeam_channel::{Receiver, RecvTimeoutError};

/// Where pages of a round go.
#[derive(Clone, Copy)]
pub(super) struct Intake<'a> {
    /// Those that have no place yet.
    pub store: &'a Store,
    /// The others.
    pub landing: Option<&'a Landing>,
    /// What deltas are of.
    pub bases: &'a Bases,
    /// What can be named by digest.
    pub shelf: &'a Shelf,
    /// Also there, for the death of the source.
    pub standby: Option<&'a Keeping>,
    /// There alone.
    pub of_state: bool,
}

impl Intake<'_> {
    /// Takes what comes on a bulk channel, until the mark of the round.
    pub fn bulk(self, channel: &mut Channel, number: u32) -> Result<(), MoveError> {
        channel.during("receiving pages");
        let (peer, mut fetching) = (channel.peer().to_owned(), Fetching::of(channel.patience()));
        let mut taker = self.store.taker();
        loop {
            let frame = channel.receive()?;
            match frame.kind {
                FrameKind::PAGES => taker.take(frame.body, self, &mut fetching)?,
                FrameKind::MARK => match send_pages::read_mark(frame.body) {
                    Some((mark, _)) if mark == number => return Ok(()),
                    Some((mark, _)) => {
                        let got = format!("the end of round {mark}");
                        return Err(MoveError::OutOfTurn { peer, expected: "the end of this round", got });
                    }
                    None => {
                        let reason = "wrong length".into();
                        return Err(TransportError::Malformed { peer, what: "mark", reason }.into());
                    }
                },
                got => return Err(TransportError::UnexpectedKind { peer, expected: "pages", got }.into()),
            }
        }
    }

    /// Takes what comes on the control channel, until the end of the round.
    pub fn control(self, control: &mut Channel, id: AttemptId, number: u32) -> Result<(), MoveError> {
        control.during("receiving pages");
        let (peer, mut fetching) = (control.peer().to_owned(), Fetching::of(control.patience()));
        let mut taker = self.store.taker();
        loop {
            let frame = control.receive()?;
            let message: FromSource = match frame.kind {
                FrameKind::PAGES => {
                    taker.take(frame.body, self, &mut fetching)?;
                    continue;
                }
                FrameKind::MESSAGE => protocol::decode(frame.body, &peer)?,
                got => return Err(TransportError::UnexpectedKind { peer, expected: "pages or a message", got }.into()),
            };
            return match message {
                FromSource::RoundEnd { attempt, number: ended } if attempt == id && ended == number => Ok(()),
                other => Err(out_of_turn(control, &other, "the end of the round")),
            };
        }
    }
}

/// Until every bulk channel has seen the end of the round.
pub(super) fn wait_for_marks(
    control: &mut Channel,
    streams: usize,
    marks: &Receiver<Result<(), MoveError>>,
) -> Result<(), MoveError> {
    let mut seen = 0;
    while seen < streams {
        match marks.recv_timeout(send_pages::ALIVE_EVERY) {
            Ok(taken) => taken.map(|()| seen += 1)?,
            // Data still comes on other channels; this one is alive.
            Err(RecvTimeoutError::Timeout) => control.send(FrameKind::ALIVE, &[])?,
            Err(RecvTimeoutError::Disconnected) => return Err(MoveError::Worker),
        }
    }
    Ok(())
}
