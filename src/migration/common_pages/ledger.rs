//! What a common shelf has, and what is on its way there: pure, without a clock or a socket.

use crate::migration::earlier::Hint;
use crate::migration::shelf::{Say, Turn};
use std::collections::HashMap;

/// One of the movers that share a shelf.
pub(super) type Mover = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its mover has said that it sends it.
    Claimed,
    /// In a frame that was sent completely.
    Sent,
    /// The destination has said that all until then has come.
    There,
    /// Its mover is gone, and whether it has come is not known. It takes room, as it may lie there; whoever has it next sends it.
    InDoubt,
}

/// What lies on one shelf, or will.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Contents that are taken, at most.
    room: usize,
    entries: HashMap<Hint, (Mover, State)>,
}

impl Ledger {
    /// Of a shelf with nothing on it that takes `room` pages.
    pub(super) fn new(room: usize) -> Self {
        Self { room, entries: HashMap::new() }
    }

    /// It takes no more than this, either.
    pub(super) fn narrow(&mut self, room: usize) {
        self.room = self.room.min(room);
    }

    /// What is there for sure.
    pub(super) fn there(&self) -> Vec<Hint> {
        self.entries.iter().filter(|(_, (_, state))| *state == State::There).map(|(hint, _)| *hint).collect()
    }

    /// What a mover says of these contents. It claims none in later rounds, and counts on frames of others only where pages can come
    /// again.
    pub(super) fn ask(&mut self, who: Mover, hints: &[Hint], turn: Turn) -> Vec<Say> {
        let counts_on_others = matches!(turn, Turn::First | Turn::Patient);
        let mut say = |hint: &Hint| match self.entries.get(hint).copied() {
            Some((_, State::There)) => Say::Name,
            Some((by, State::Sent)) if counts_on_others || by == who => Say::Name,
            Some((_, State::Claimed)) if turn == Turn::Patient => Say::Wait,
            entry if turn != Turn::Later && self.may_be_claimed(entry) => {
                self.entries.insert(*hint, (who, State::Claimed));
                Say::Shelve
            }
            _ => Say::Send,
        };
        hints.iter().map(&mut say).collect()
    }

    /// Nobody brings it, and there is room.
    fn may_be_claimed(&self, entry: Option<(Mover, State)>) -> bool {
        match entry {
            None => self.entries.len() < self.room,
            Some((_, state)) => state == State::InDoubt,
        }
    }

    /// A frame with these contents was sent completely.
    pub(super) fn sent(&mut self, who: Mover, hints: &[Hint]) {
        for hint in hints {
            if let Some((by, state @ State::Claimed)) = self.entries.get_mut(hint)
                && *by == who
            {
                *state = State::Sent;
            }
        }
    }

    /// All that a mover has sent has come.
    pub(super) fn stored(&mut self, who: Mover) {
        let of_mover = self.entries.values_mut().filter(|(by, state)| *by == who && *state == State::Sent);
        of_mover.for_each(|(_, state)| *state = State::There);
    }

    /// A mover is gone.
    pub(super) fn leave(&mut self, who: Mover) {
        let of_mover = self.entries.values_mut().filter(|(by, state)| *by == who && *state != State::There);
        of_mover.for_each(|(_, state)| *state = State::InDoubt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn hint(n: u8) -> Hint {
        [n; 16]
    }

    #[test]
    fn each_content_is_sent_by_one_and_named_by_the_others() {
        let mut ledger = Ledger::new(10);
        let all = [hint(1), hint(2), hint(1)];
        assert_eq!(ledger.ask(1, &all, Turn::Patient), [Say::Shelve, Say::Shelve, Say::Wait]);
        assert_eq!(ledger.ask(2, &[hint(1), hint(3)], Turn::Patient), [Say::Wait, Say::Shelve]);
        ledger.sent(2, &[hint(1)]);
        assert_eq!(ledger.ask(2, &[hint(1)], Turn::Patient), [Say::Wait], "it was another's claim");
        ledger.sent(1, &[hint(1), hint(2)]);
        assert_eq!(ledger.ask(2, &all, Turn::Patient), [Say::Name; 3]);
        assert_eq!(ledger.ask(2, &all, Turn::First), [Say::Name; 3]);
        assert_eq!(ledger.ask(2, &all, Turn::Pause), [Say::Send; 3], "it may be lost yet");
        assert_eq!(ledger.ask(2, &all, Turn::Later), [Say::Send; 3], "it may be lost yet");
        assert_eq!(ledger.ask(1, &all, Turn::Later), [Say::Name; 3], "who has sent it knows the order");
        assert_eq!(ledger.there(), [] as [Hint; 0]);
        ledger.stored(1);
        assert_eq!(ledger.ask(2, &all, Turn::Later), [Say::Name; 3]);
        assert_eq!(ledger.there().len(), 2);
    }

    #[test]
    fn what_a_mover_has_not_brought_goes_with_it() {
        let mut ledger = Ledger::new(10);
        ledger.ask(1, &[hint(1)], Turn::Patient);
        ledger.sent(1, &[hint(1)]);
        ledger.stored(1);
        ledger.ask(1, &[hint(2), hint(3)], Turn::Patient);
        ledger.sent(1, &[hint(2)]);
        ledger.leave(1);
        assert_eq!(ledger.ask(2, &[hint(1), hint(2), hint(3)], Turn::Patient), [Say::Name, Say::Shelve, Say::Shelve]);
    }

    #[test]
    fn what_may_lie_there_takes_room() {
        let mut ledger = Ledger::new(2);
        ledger.ask(1, &[hint(1), hint(2)], Turn::Patient);
        ledger.leave(1);
        assert_eq!(ledger.ask(2, &[hint(3), hint(2)], Turn::Patient), [Say::Send, Say::Shelve]);
    }

    #[test]
    fn no_more_is_claimed_than_there_is_room_for() {
        let mut ledger = Ledger::new(3);
        ledger.narrow(2);
        assert_eq!(ledger.ask(1, &[hint(1), hint(2), hint(3)], Turn::Patient), [Say::Shelve, Say::Shelve, Say::Send]);
        assert_eq!(ledger.ask(1, &[hint(4)], Turn::Later), [Say::Send], "nothing is claimed in later rounds");
    }

    proptest! {
        /// Whatever movers do in whatever order: only what one of them has sent is named, and only what has come in later rounds.
        #[test]
        fn what_is_named_was_sent(
            steps in proptest::collection::vec((0u64..3, 0u8..4, 0u8..6, 0usize..4), 0..60),
            room in 0usize..6,
        ) {
            let (mut ledger, mut sent, mut there) = (Ledger::new(room), Vec::new(), Vec::new());
            let mut claims: Vec<(u64, u8)> = Vec::new();
            // Of whatever was claimed the destination may have it, also where its mover is gone.
            let mut shelf = HashSet::new();
            for (who, step, content, turn) in steps {
                let turn = [Turn::First, Turn::Patient, Turn::Pause, Turn::Later][turn];
                let running = matches!(turn, Turn::First | Turn::Patient);
                match step {
                    0 => match ledger.ask(who, &[hint(content)], turn)[0] {
                        Say::Shelve => {
                            prop_assert!(turn != Turn::Later && !claims.iter().any(|(_, claimed)| *claimed == content));
                            claims.push((who, content));
                            shelf.insert(content);
                        }
                        Say::Name => prop_assert!(
                            there.contains(&content) || sent.contains(&(who, content))
                                || (running && sent.iter().any(|(_, was)| *was == content))
                        ),
                        Say::Wait => prop_assert!(turn == Turn::Patient && claims.iter().any(|(_, claimed)| *claimed == content)),
                        Say::Send => {}
                    },
                    1 => {
                        let own: Vec<u8> = claims.iter().filter(|(by, _)| *by == who).map(|(_, c)| *c).collect();
                        ledger.sent(who, &own.iter().map(|c| hint(*c)).collect::<Vec<_>>());
                        sent.extend(own.iter().map(|c| (who, *c)));
                    }
                    2 => {
                        ledger.stored(who);
                        there.extend(sent.iter().filter(|(by, _)| *by == who).map(|(_, c)| *c));
                    }
                    _ => {
                        ledger.leave(who);
                        claims.retain(|(by, c)| *by != who || there.contains(c));
                        sent.retain(|(by, c)| *by != who || there.contains(c));
                    }
                }
                prop_assert!(shelf.len() <= room);
            }
        }
    }
}
