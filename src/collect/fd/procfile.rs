//! Read from the link: files of `/proc`.

use super::State;
use super::set::Description;
use super::views::mnt_of;
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::{FileKind, regular::ProcFile};
use crate::image::{Bytes, FileId, NsPid, Pid};

/// Which task's file it is, and its path below that.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId) -> Result<Option<FileKind>> {
    let State { set, views, .. } = state;
    let d = &set[id];
    let own = mnt_of(cx, d.at);
    let hidden = Blocker::new(codes::FILE_HIDDEN, d.object());
    let Some(view) = views.of_mount(cx, own, d.info.mnt_id)? else {
        cx.blockers.push(hidden);
        return Ok(None);
    };
    let mnt = view.ns;
    let mount = view.mount(d.info.mnt_id).expect("of_mount gives a view that has it");
    // A /proc of which only a part is mounted (a container's /proc/sys) is a file like any other, but its path stays valid.
    let mount_point = if mount.root.0 == b"/" { mount.mount_point.clone() } else { Bytes::default() };
    let Some(rest) = below(&d.link.0, &mount_point.0) else {
        cx.blockers.push(hidden);
        return Ok(None);
    };
    let (first, tail) =
        rest.iter().position(|b| *b == b'/').map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 1..]));
    let number = std::str::from_utf8(first).ok().and_then(|text| text.parse::<i32>().ok());
    let Some(number) = number.filter(|_| !mount_point.0.is_empty()) else {
        let file = ProcFile { pid: None, rest: Bytes(rest.to_vec()), mnt, mount_point };
        return Ok(Some(FileKind::ProcFile(file)));
    };
    match task(cx, mnt, number) {
        Some(pid) => {
            let file = ProcFile { pid: Some(pid), rest: Bytes(tail.to_vec()), mnt, mount_point };
            Ok(Some(FileKind::ProcFile(file)))
        }
        None => {
            cx.blockers.push(outside(d, number));
            Ok(None)
        }
    }
}

fn below<'a>(link: &'a [u8], mount_point: &[u8]) -> Option<&'a [u8]> {
    let rest = link.strip_prefix(mount_point)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

/// The task of the tree that this number means: in our own mount namespace `/proc` numbers tasks as we do, elsewhere as the
/// tree does.
fn task(cx: &Cx<'_>, mnt: crate::image::NsId, number: i32) -> Option<NsPid> {
    if cx.model.namespaces[mnt.at()].of_host {
        return cx.ids.get(&Pid(number)).copied();
    }
    cx.ids.values().any(|id| id.0 == number).then_some(NsPid(number))
}

fn outside(d: &Description, number: i32) -> Blocker {
    Blocker::new(codes::PROC_OUTSIDE, d.object()).because(format!("process {number} is not in the tree"))
}
