//! Made by the engine; members are added inside the target, as they are keyed by file and descriptor number: epoll(7).

use super::install::Table;
use crate::image::fd::FileKind;
use crate::image::fd::epoll::Member;
use crate::image::{FileId, Model};
use crate::restore::{Error, Result};
use crate::sys::epoll;
use crate::trace::batch::Ref;
use crate::trace::{Arg, Batch, Results};
use std::os::fd::OwnedFd;

/// `EPOLLEXCLUSIVE`, `EPOLLWAKEUP`, `EPOLLONESHOT`, `EPOLLET`: what is left of the events of a one-shot that has fired.
const PRIVATE: u32 = 0xf << 28;
/// `EPOLLIN`, `EPOLLPRI`, `EPOLLOUT`, `EPOLLRDHUP`: one of them holds of nearly every file.
const ANY: u32 = 0x2007;
const ADD: i32 = libc::EPOLL_CTL_ADD;
const MOD: i32 = libc::EPOLL_CTL_MOD;

/// An instance without members.
pub(crate) fn make() -> Result<OwnedFd> {
    epoll::create().map_err(|errno| Error::System {
        operation: "epoll_create1",
        object: "an epoll instance".to_owned(),
        errno,
    })
}

/// A member of an instance that a table is the first to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Membership {
    /// Number of the instance.
    pub(crate) epoll: u32,
    /// The registration.
    pub(crate) member: Member,
}

impl Membership {
    /// A one-shot that has fired and was not armed again.
    fn disarmed(&self) -> bool {
        self.member.events & !PRIVATE == 0
    }
}

/// Memberships to be made with a table. Those that have fired come first: whether they fire is seen by the instance's
/// being ready.
pub(crate) fn memberships(model: &Model, instances: impl Iterator<Item = (u32, FileId)>) -> Vec<Membership> {
    let mut all = Vec::new();
    for (epoll, file) in instances {
        let FileKind::Epoll(instance) = &model.files[file.at()].kind else { continue };
        all.extend(instance.members.iter().map(|member| Membership { epoll, member: *member }));
    }
    all.sort_by_key(|m| !m.disarmed());
    all
}

/// Calls whose answers are needed for a second step.
#[derive(Debug, Default)]
pub(crate) struct Added {
    waits: Vec<(Ref, Membership)>,
}

/// Adds the members. `source` is a number under which the member's file can be found if the number it was registered with
/// is closed or another file's by now.
pub(crate) fn add(batch: &mut Batch, table: &Table<'_>, all: &[Membership]) -> Added {
    let mut added = Added::default();
    let buffer = batch.out(12);
    for membership in all {
        let Membership { epoll, member } = *membership;
        let in_place = table.file_at(member.fd) == Some(member.file);
        let armed = if membership.disarmed() && in_place { member.events | ANY } else { member.events };
        let event = event(batch, armed, member.data);
        let ctl = [epoll.into(), ADD.into(), member.fd.into(), event];
        if in_place {
            batch.must(libc::SYS_epoll_ctl, &ctl);
            if membership.disarmed() {
                let args = [epoll.into(), buffer.into(), 1u32.into(), 0u32.into()];
                added.waits.push((batch.must(libc::SYS_epoll_wait, &args), *membership));
            }
            continue;
        }
        let source = table.source(member.file);
        if source == member.fd {
            batch.must(libc::SYS_epoll_ctl, &ctl);
        } else if table.is_open(member.fd) {
            let saved = batch.must(libc::SYS_dup, &[member.fd.into()]);
            batch.dup3(source, member.fd, false);
            // The number may have become the instance's own.
            let instance = if member.fd == epoll { saved.into() } else { epoll.into() };
            batch.must(libc::SYS_epoll_ctl, &[instance, ADD.into(), member.fd.into(), event]);
            batch.dup3(saved, member.fd, table.is_cloexec(member.fd));
            batch.close(saved);
        } else {
            batch.dup3(source, member.fd, false);
            batch.must(libc::SYS_epoll_ctl, &ctl);
            batch.close(member.fd);
        }
    }
    added
}

/// Takes the additional events off those one-shots that did not fire: they stay armed for errors and hang-ups, which a
/// program that uses one-shots has to expect at any time; those that fired are exactly as they were.
pub(crate) fn settle(batch: &mut Batch, results: &Results, added: &Added) {
    for (wait, membership) in &added.waits {
        if results.get(*wait) == Ok(0) {
            let Membership { epoll, member } = *membership;
            let event = event(batch, member.events, member.data);
            batch.must(libc::SYS_epoll_ctl, &[epoll.into(), MOD.into(), member.fd.into(), event]);
        }
    }
}

/// `struct epoll_event`, packed on x86-64.
fn event(batch: &mut Batch, events: u32, data: u64) -> Arg {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&events.to_ne_bytes());
    bytes[4..].copy_from_slice(&data.to_ne_bytes());
    batch.bytes(&bytes)
}
