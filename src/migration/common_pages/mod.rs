//! Pages common to trees: those of one evacuation that go to one host, one after the other or side by side, share what that host has
//! had of any of them. Each content goes there once.
//!
//! ```text
//! source                                              destination
//! evacuation: a Ledger for each host, at a Desk       MOVES/NAME.common: a CommonShelf
//!   | Account: may I name this?                         | contents, by digest
//! mover of a tree ------- Offer {common} ----------->  session of that tree
//!                  <----- Verdict {shared} ----------
//! another mover   ----------------------------------->  another session
//! ```
//! A mover asks of each content that it is about to send. Nobody has claimed it: it is the mover's, who sends it marked for the shelf.
//! Its frame was sent completely: it is named. Its frame is on its way to be: the page is set aside until it is, and other pages go
//! meanwhile, so that movers of twins that go side by side each send a part. No mover waits with claims that it has not sent: of those
//! that wait for each other one always goes on.
//!
//! A frame that was sent may yet be lost with its link. Only rounds while the target runs count on frames of other movers: a page that
//! was named in vain is asked for anew at the end of the round, and is as good as written since. In the pause only what is
//! there for sure is named: the answer to a round says so of all that its mover has sent.
//!
//! The shelf is limited as that of a session is ([`super::shelf`]). Who names what lies there has to know its id, 128 random bits, and
//! to be who has begun it: by its digest a page of somebody else could be found out. What is placed is digested once more.

mod claims;
pub mod desk;
mod ledger;
pub mod shelf;

pub use claims::Claims;

use serde::{Deserialize, Serialize};
use std::fmt;

/// All that trees of one evacuation share, wherever they go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommonId([u8; 16]);

impl CommonId {
    /// A new one.
    ///
    /// # Errors
    /// The kernel gives no random bits.
    pub fn random() -> crate::transport::Result<Self> {
        crate::transport::link::random_bits().map(Self)
    }
}

impl fmt::Display for CommonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CommonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who knows it could name what lies there.
        f.write_str("CommonId(..)")
    }
}

/// What a destination says of its shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// One that was removed and made anew has another one: nothing lies there then.
    pub instance: [u8; 16],
    /// Pages it takes in all.
    pub room_pages: u32,
}
