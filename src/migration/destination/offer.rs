//! An offer, and what an attempt begins with.

use super::{Builder, LEASE, Surroundings, answer, handover_of};
use crate::image::Bytes;
use crate::migration::MoveError;
use crate::migration::common_pages::CommonId;
use crate::migration::common_pages::shelf::{self, CommonShelf};
use crate::migration::journal::{Journal, Role};
use crate::migration::keeper::Keeper;
use crate::migration::leftover::{self, Used};
use crate::migration::points;
use crate::migration::postcopy::relay;
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource};
use crate::migration::store::Store;
use crate::transport::{Channel, TransportError};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// The shortest and the longest lease that is taken.
const LEASES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// How long the source may be silent. Before PREPARED nobody counts on what is here: it goes with the source.
pub(super) fn leased<'c>(lease_ms: Option<u64>, channels: impl Iterator<Item = &'c mut Channel>) -> Duration {
    let lease = lease_ms.map_or(LEASE, Duration::from_millis).clamp(LEASES.0, LEASES.1);
    channels.for_each(|channel| channel.silence(lease));
    lease
}

/// The first message of a link, which has been answered unless it is an offer.
pub(super) fn offered(
    mut control: Channel,
    builder: &mut dyn Builder,
    around: &Surroundings<'_>,
) -> Result<Option<(Channel, FromSource)>, MoveError> {
    control.during("waiting for an offer");
    let message: FromSource = match protocol::receive(&mut control) {
        // Whoever wanted to know whether this host can be reached.
        Err(TransportError::Closed { .. }) => return Ok(None),
        message => message?,
    };
    if let Some((attempt, request)) = handover_of(&message) {
        return answer(&mut control, builder, around, attempt, request).map(|()| None);
    }
    let answered = match message {
        FromSource::Pages { attempt, urgent } => relay::run(control, around.run, attempt, urgent),
        FromSource::Points { attempt, level } => points::giving::run(&mut control, builder, around, attempt, level),
        FromSource::Forget { attempt, common } => {
            shelf::forget(around.journals, around.principal, common);
            protocol::send(&mut control, &FromDestination::Forgotten { attempt }).map_err(MoveError::from)
        }
        FromSource::Reach { attempt, onward } => super::onward::reaches(&mut control, builder, attempt, &onward),
        offer => return Ok(Some((control, offer))),
    };
    answered.map(|()| None)
}

/// What an attempt needs from its beginning on.
pub(super) fn begin(
    around: &Surroundings<'_>,
    id: AttemptId,
    (session, lease, is_clone): (&str, Duration, bool),
    control: &Channel,
    memory_bytes: u64,
) -> Result<(Store, Keeper), MoveError> {
    if let Some(promoted) = super::standby::promoted(around.journals, session) {
        return Err(promoted);
    }
    super::luggage::sweep(around.journals);
    let store = Store::begin(around.stores, id, memory_bytes, around.max_memory_bytes)?;
    // Begun long before the pause: making a file costs a wait for the disk.
    let mut journal = Journal::begin(around.journals, Role::Destination, id, control.peer(), session)
        .map_err(|source| MoveError::Journal { source })?;
    if is_clone {
        journal.set_clone();
    }
    Ok((store, Keeper::new(journal, lease)))
}

/// The image that an offer names. Pages that were kept here are found by their attempt, and where they are gone there is none.
pub(super) fn base(base: Option<Bytes>, journals: &Path) -> (Option<Bytes>, Option<Used>) {
    leftover::sweep(journals);
    let Some(dir) = base.as_ref().and_then(|base| leftover::directory_of(journals, &base.0)) else {
        return (base, None);
    };
    let used = Used::begin(&dir);
    let image = used.as_ref().map(|used| Bytes(used.image().into_os_string().into_encoded_bytes()));
    (image, used)
}

/// Where pages are that can be named when the target runs.
pub(super) fn base_dir<'a>(base: Option<&'a Bytes>, common: Option<&'a CommonShelf>) -> Option<&'a Path> {
    base.map(|base| Path::new(OsStr::from_bytes(&base.0))).or(common.map(CommonShelf::dir))
}

/// The shelf that trees of this evacuation share here. Without it all of the pages come.
pub(super) fn common(id: Option<CommonId>, around: &Surroundings<'_>) -> Option<CommonShelf> {
    let begun = CommonShelf::begin(around.journals, (around.principal, id?), around.max_memory_bytes);
    begun.unwrap_or_else(|error| {
        tracing::warn!(%error, "no pages are shared with other trees");
        None
    })
}

/// There is no room for it here.
pub(super) fn refused(
    control: &mut Channel,
    id: AttemptId,
    model_bytes: u64,
    error: MoveError,
) -> Result<(), MoveError> {
    protocol::receive_model(control, model_bytes)?;
    protocol::send(control, &FromDestination::Failed { attempt: id, failure: error.to_wire() })?;
    Err(error)
}
