//! Pages that several trees have go to a host once ([`crate::migration::common_pages`]): the desk that movers ask, and what hosts are told when
//! all of it is over.

use crate::migration::common_pages::CommonId;
use crate::migration::common_pages::desk::Desk;
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource};
use crate::ops::options::{Compress, EvacuateOptions, PeerOptions};
use crate::ops::places::Places;
use crate::ops::reach;
use crate::ops::words::Dest;
use crate::transport::Result;

/// What trees of one evacuation share.
#[derive(Debug)]
pub(super) struct Common(Desk);

impl Common {
    /// Begins; `None`: each tree sends all of its pages, because that is wanted (`--compress off`) or there is no socket to be had.
    pub(super) fn begin(options: &EvacuateOptions) -> Option<Self> {
        if options.memory.compress == Compress::Off {
            return None;
        }
        let run = Places::here().run;
        let desk = CommonId::random().map_err(std::io::Error::other).and_then(|id| Desk::open(&run, id));
        desk.inspect_err(|error| tracing::warn!(%error, "trees share nothing")).ok().map(Self)
    }

    /// What movers are told, to find the desk.
    pub(super) fn id(&self) -> CommonId {
        self.0.id()
    }

    /// Tells those of these hosts that have something, all at once, that nothing else comes. One that does not hear it removes what it
    /// has by itself, some time after nobody has used it.
    pub(super) fn end<'d>(self, dests: impl Iterator<Item = &'d Dest>, peer: &PeerOptions) {
        let (hosts, id) = (self.0.hosts(), self.id());
        std::thread::scope(|scope| {
            for dest in dests.filter(|dest| hosts.contains(&dest.to_string())) {
                scope.spawn(move || {
                    if let Err(error) = forget(dest, peer, id) {
                        tracing::info!(%error, %dest, "it keeps for a while what trees have shared");
                    }
                });
            }
        });
    }
}

/// No tree that shares these pages comes any more.
fn forget(dest: &Dest, peer: &PeerOptions, common: CommonId) -> Result<()> {
    let mut link = reach::to_ask(dest, peer)?;
    let attempt = AttemptId::random()?;
    protocol::send(&mut link.control, &FromSource::Forget { attempt, common })?;
    protocol::receive::<FromDestination>(&mut link.control).map(drop)
}
