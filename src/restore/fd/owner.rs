//! Made inside the target, whose user is remembered: receivers of the signals of a description.

use super::finish::Inside;
use crate::image::fd::FileOwner;
use crate::sys::fcntl::{F_SETOWN_EX, F_SETSIG};

/// Sets signal and receiver.
pub(crate) fn set(inside: &mut Inside, fd: u32, owner: &FileOwner) {
    if owner.signal != 0 {
        inside.must("F_SETSIG", libc::SYS_fcntl, &[fd.into(), F_SETSIG.into(), owner.signal.into()]);
    }
    if owner.id.0 == 0 {
        return;
    }
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&owner.kind.to_ne_bytes());
    bytes[4..].copy_from_slice(&owner.id.0.to_ne_bytes());
    let bytes = inside.batch.bytes(&bytes);
    let [real, effective] = owner.uids;
    // The kernel keeps the users of whoever sets it, for the right to send. Saved user 0 brings root back.
    let other_user = owner.uids != [0, 0];
    if other_user {
        inside.must("user of an owner", libc::SYS_setresuid, &[real.into(), effective.into(), 0u32.into()]);
    }
    inside.must("F_SETOWN", libc::SYS_fcntl, &[fd.into(), F_SETOWN_EX.into(), bytes]);
    if other_user {
        inside.must("user of an owner", libc::SYS_setresuid, &[0u32.into(), 0u32.into(), 0u32.into()]);
    }
}

/// Sets `O_ASYNC`, with the number that the signals will carry.
pub(crate) fn asynchronous(inside: &mut Inside, fd: u32, flags: u32) {
    inside.must("O_ASYNC", libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), flags.into()]);
}
