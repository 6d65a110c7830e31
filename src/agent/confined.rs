//! Sessions of peers whose line in the peers file says `user=`.
//!
//! ```text
//! peer ──TLS── session process: key, certificate, peers file ──socket pair── session process of the user: the target
//! ```
//! The second one is started anew and becomes the user before it reads anything, so that no key is ever in the memory of a
//! process that the user could look at. From then on the kernel sees to it that nothing the peer sends is done with other
//! rights than the user's. Of all capabilities it keeps CAP_CHECKPOINT_RESTORE, by which a process gets the id it had; the
//! target does not get it. It speaks as over ssh: one stream.

use super::session::{Carrier, SessionSpec};
use crate::companion::OWN_PROGRAM;
use crate::sys::user;
use crate::transport::preamble::Preamble;
use crate::transport::pump::pump;
use crate::transport::stream::Stream;
use crate::transport::{Channel, Result, TransportError};
use nix::unistd::{Gid, Uid, User as Account, getgrouplist};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Whom a session process becomes, and what its peer may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// The peer may send targets.
    pub may_send: bool,
    /// The peer may receive targets.
    pub may_receive: bool,
}

impl User {
    /// The account of this name, or with this number.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str, may_send: bool, may_receive: bool) -> Result<Self> {
        let failed =
            |source: io::Error| TransportError::Io { operation: "find the user of", peer: name.into(), source };
        let number = name.parse().ok().map(Uid::from_raw);
        let account = match number {
            Some(uid) => Account::from_uid(uid),
            None => Account::from_name(name),
        };
        let account = account.map_err(|errno| failed(errno.into()))?;
        let account =
            account.ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "there is no such user")))?;
        let groups = CString::new(account.name.as_bytes()).map_err(|e| failed(e.into()))?;
        let groups = getgrouplist(&groups, account.gid).map_err(|errno| failed(errno.into()))?;
        let groups = groups.into_iter().map(Gid::as_raw).collect();
        Ok(Self { uid: account.uid.as_raw(), gid: account.gid.as_raw(), groups, may_send, may_receive })
    }

    /// This process becomes the user, for good.
    ///
    /// # Errors
    /// It cannot; then it must end.
    pub fn become_it(&self) -> io::Result<()> {
        let own = nix::unistd::geteuid();
        if !own.is_root() && own.as_raw() == self.uid {
            return Ok(());
        }
        Ok(user::become_for_good(self.uid, self.gid, &self.groups, user::CHECKPOINT_RESTORE)?)
    }

    /// A directory below `state` that is the user's alone. What is beside it can be passed through, but not be listed.
    fn own_dir(&self, state: &Path) -> io::Result<PathBuf> {
        let users = state.join("users");
        for dir in [state, &users] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            std::fs::set_permissions(dir, Permissions::from_mode(0o711))?;
        }
        let own = users.join(self.uid.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&own)?;
        chown(&own, Some(self.uid), Some(self.gid))?;
        Ok(own)
    }
}

/// Runs the session in a process of the user; carries what is said until it has ended.
///
/// # Errors
/// The process cannot be started; the link breaks.
pub fn run(control: Channel, spec: &SessionSpec, user: User, max_memory_bytes: Option<u64>) -> Result<()> {
    let peer = control.peer().to_owned();
    let failed =
        |source| TransportError::Io { operation: "start a process of the user for", peer: peer.clone(), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let dir = user.own_dir(&spec.state).map_err(failed)?;
    let inner = SessionSpec {
        carrier: Carrier::Stdio,
        peer: peer.clone(),
        state: dir.join("state"),
        run: dir.join("run"),
        max_memory_bytes,
        user: Some(user),
        ..spec.clone()
    };
    let output = OwnedFd::from(theirs.try_clone().map_err(failed)?);
    let mut child = super::command(&inner, Path::new(OWN_PROGRAM))
        .env("MIGRATE_PLACES", &dir)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::from(output))
        .spawn()
        .map_err(failed)?;
    // The one of the connection was read by the agent.
    (&ours).write_all(zerocopy::IntoBytes::as_bytes(&Preamble::control())).map_err(failed)?;
    let mut inside = Stream::unix(ours).map_err(failed)?;
    let mut outside = control.into_stream();
    let carried = pump(&mut outside, &mut inside, &peer);
    // It sees its link end, decides by itself what becomes of the target, and ends.
    drop((outside, inside));
    let status = child.wait().map_err(failed)?;
    tracing::info!(peer, %status, "the user's session ended");
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_by_number() {
        let root = User::named("root", true, false).unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.may_send && !root.may_receive);
        assert_eq!(User::named("0", true, false).unwrap(), root);
        let error = User::named("no-such-user-7413", true, true).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("no such user"));
    }

    #[test]
    fn the_directory_of_a_user_is_theirs_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let (uid, gid) = if uid == 0 { (54321, 54322) } else { (uid, gid) };
        let user = User { uid, gid, groups: vec![], may_send: true, may_receive: true };
        let own = user.own_dir(&state).unwrap();
        assert_eq!(user.own_dir(&state).unwrap(), own, "again, for the next session");
        let meta = std::fs::metadata(&own).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (uid, gid, 0o700));
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o711);
    }
}
