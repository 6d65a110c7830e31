//! Seen with the descriptor: who gets the signals of a description (`F_SETOWN`, `F_SETSIG`).

use super::set::Descriptions;
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::FileOwner;
use crate::image::{FileId, NsPid, Pid};
use crate::sys::{Errno, fcntl};

const F_OWNER_PGRP: i32 = 2;

/// The owner, if one was set and still exists.
pub fn collect(cx: &mut Cx<'_>, set: &mut Descriptions, id: FileId) -> Result<Option<FileOwner>> {
    let d = &set[id];
    if d.info.flags & libc::O_PATH as u32 != 0 {
        return Ok(None);
    }
    let (owner, signal) = d.owner;
    if owner.id == 0 {
        let nobody = FileOwner { kind: owner.kind, id: NsPid(0), signal, uids: [0, 0] };
        return Ok((signal != 0).then_some(nobody));
    }
    let Some(theirs) = id_of(cx, owner) else {
        let reason =
            format!("they go to {} {}", if owner.kind == F_OWNER_PGRP { "process group" } else { "process" }, owner.id);
        cx.blockers.push(Blocker::new(codes::OWNER_OUTSIDE, d.object()).because(reason));
        return Ok(None);
    };
    let fd = set.duplicate(id)?;
    let d = &set[id];
    let uids = match fcntl::owner_uids(&fd) {
        Ok(uids) => uids,
        // Without CONFIG_CHECKPOINT_RESTORE nobody can tell: the users of the task that has the descriptor are likely.
        Err(Errno::EINVAL) => {
            let uids = cx.frozen.processes[d.at].dir.status(&mut cx.buf)?.uids;
            [uids[0], uids[1]]
        }
        Err(errno) => return Err(d.failed("fcntl F_GETOWNER_UIDS")(errno)),
    };
    Ok(Some(FileOwner { kind: owner.kind, id: theirs, signal, uids }))
}

/// How the target calls the owner, if it is in the tree.
fn id_of(cx: &Cx<'_>, owner: fcntl::Owner) -> Option<NsPid> {
    if let Some(id) = cx.ids.get(&Pid(owner.id)) {
        return Some(*id);
    }
    // A group whose leader has ended lives on in its members. Where ids differ inside, its number is not known then.
    let in_tree = owner.kind == F_OWNER_PGRP && cx.model.tasks.iter().any(|t| t.pgid.0 == owner.id);
    let same_ids = cx.ids.iter().all(|(ours, theirs)| ours.0 == theirs.0);
    (in_tree && same_ids).then_some(NsPid(owner.id))
}
