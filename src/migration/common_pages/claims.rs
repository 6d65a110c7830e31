//! What one mover may say of contents, where trees share a shelf.

use super::desk::Account;
use crate::migration::earlier::{Hint, hint};
use crate::migration::pages::DIGEST_BYTES;
use crate::migration::shelf::{Say, Turn};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The mover's claims, by the channels that they go over.
#[derive(Debug)]
pub struct Claims {
    account: Arc<Account>,
    /// In the frame of each channel that is being filled.
    frames: Vec<Mutex<HashSet<Hint>>>,
    /// In frames that were sent completely.
    sent: Mutex<Vec<Hint>>,
    /// Of these the destination has said that they have come.
    brought: Mutex<HashSet<Hint>>,
}

impl Claims {
    /// None yet, over so many channels.
    pub fn new(account: Arc<Account>, channels: usize) -> Self {
        let frames = (0..channels).map(|_| Mutex::default()).collect();
        Self { account, frames, sent: Mutex::default(), brought: Mutex::default() }
    }

    /// What is said of these contents in the frame of this channel, but for those that are `known` to be there. Only the first round
    /// asks the desk: an answer takes as long as that has to do, and later ones may be in the pause.
    pub(in crate::migration) fn say(
        &self,
        channel: usize,
        digests: &[[u8; DIGEST_BYTES]],
        known: &HashSet<Hint>,
        turn: Turn,
    ) -> Vec<Say> {
        let hints: Vec<Hint> = digests.iter().map(hint).collect();
        if matches!(turn, Turn::Later | Turn::Pause) {
            let brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
            let is_there = |hint: &Hint| known.contains(hint) || brought.contains(hint);
            return hints.iter().map(|hint| if is_there(hint) { Say::Name } else { Say::Send }).collect();
        }
        let mut frame = self.frames[channel].lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |hint: &&Hint| !known.contains(*hint) && !frame.contains(*hint);
        let open: Vec<Hint> = hints.iter().filter(is_open).copied().collect();
        let mut answers = match open.is_empty() {
            true => Vec::new(),
            false => self.account.ask(open, turn),
        }
        .into_iter();
        // A content that occurs twice here was asked about twice.
        let asked: Vec<bool> = hints.iter().map(|hint| is_open(&hint)).collect();
        let mut say = |(hint, asked): (&Hint, bool)| {
            let answer = if asked { answers.next().unwrap_or(Say::Send) } else { Say::Name };
            match answer {
                _ if frame.contains(hint) => Say::Name,
                Say::Shelve => {
                    frame.insert(*hint);
                    Say::Shelve
                }
                answer => answer,
            }
        };
        hints.iter().zip(asked).map(&mut say).collect()
    }

    /// The frame of this channel was sent completely.
    pub fn frame_sent(&self, channel: usize) {
        let mut frame = self.frames[channel].lock().unwrap_or_else(PoisonError::into_inner);
        if !frame.is_empty() {
            let hints: Vec<Hint> = frame.drain().collect();
            self.sent.lock().unwrap_or_else(PoisonError::into_inner).extend(&hints);
            self.account.sent(hints);
        }
    }

    /// All that was sent has come.
    pub fn stored(&self) {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).extend(sent);
        self.account.stored();
    }
}
