//! The model of a tree in a form in which two of the same tree are equal.

use migrate_engine::image::Bytes;
use migrate_engine::image::Model;
use migrate_engine::image::fd::FileKind;
use migrate_engine::image::fd::tcp::{Connection, TcpState};
use migrate_engine::image::ns::NsKind;
use migrate_engine::image::ns::mnt::MntNs;

/// The model in a form that chance has no part in: threads in the order of their ids as they see them (the kernel lists them by
/// those that the host sees), mounts by their place among the others, and what is under way between two ends in the tree has
/// arrived.
pub fn canonical(mut model: Model) -> Model {
    clocks_of_their_own(&mut model);
    mounts(&mut model);
    for task in &mut model.tasks {
        task.threads.sort_by_key(|thread| thread.tid.0);
    }
    for receiver in 0..model.files.len() {
        for sender in 0..model.files.len() {
            if let Ok([receiver, sender]) = model.files.get_disjoint_mut([receiver, sender]) {
                arrived(&mut receiver.kind, &mut sender.kind);
            }
        }
    }
    model
}

/// A restored tree may have a time namespace, which lets the clocks go on where they stopped; it is the last that is made. The
/// clocks themselves are compared by the tests of them.
fn clocks_of_their_own(model: &mut Model) {
    while model.namespaces.last().is_some_and(|ns| !ns.of_host && matches!(ns.kind, NsKind::Time { .. })) {
        model.namespaces.pop();
    }
}

/// What the kernel numbers as it goes - mounts, peer groups, devices of file systems without one - is numbered by where it is
/// first met.
fn mounts(model: &mut Model) {
    let (mut devices, mut groups) = (Vec::new(), vec![0]);
    let number = |known: &mut Vec<u64>, is: u64| {
        known.iter().position(|k| *k == is).unwrap_or_else(|| {
            known.push(is);
            known.len() - 1
        })
    };
    for ns in &mut model.namespaces {
        let NsKind::Mnt(MntNs { mounts }) = &mut ns.kind else { continue };
        mounts.sort_by_cached_key(|mount| mount.mount_point.0.clone());
        let ids: Vec<u32> = mounts.iter().map(|mount| mount.id).collect();
        for (at, mount) in mounts.iter_mut().enumerate() {
            mount.parent_id = ids.iter().position(|id| *id == mount.parent_id).map_or(u32::MAX, |at| at as u32);
            mount.id = at as u32;
            mount.device = number(&mut devices, mount.device) as u64;
            mount.shared = number(&mut groups, mount.shared.into()) as u32;
            mount.master = number(&mut groups, mount.master.into()) as u32;
            // readlink(2) has no flag that lets the time be.
            let links =
                mount.content.iter_mut().flat_map(|content| &mut content.entries).filter(|e| !e.target.0.is_empty());
            links.for_each(|link| link.atime_ns = 0);
        }
    }
}

/// The kernel carries data from one end to the other whenever its timers say so, whoever stands still: where in the stream the
/// border between the two queues is depends on when one looks.
fn arrived(receiver: &mut FileKind, sender: &mut FileKind) {
    let (FileKind::Tcp(receiver), FileKind::Tcp(sender)) = (receiver, sender) else { return };
    if receiver.local != sender.peer || receiver.peer != sender.local || receiver.net != sender.net {
        return;
    }
    if let (TcpState::Connected(to), TcpState::Connected(from)) = (&mut receiver.state, &mut sender.state) {
        deliver(to, from);
    }
}

fn deliver(to: &mut Connection, from: &mut Connection) {
    let missing = from.send_seq.wrapping_sub(to.recv_seq) as usize;
    // The border is in what the sender still has; else they are compared as they are.
    if let Some(known) = from.send_queue.0.len().checked_sub(missing) {
        to.recv_queue.0.extend_from_slice(&from.send_queue.0[known..]);
        to.recv_seq = from.send_seq;
        from.send_queue.0.clear();
        // What is left to compare: how much is on its way, neither unsent nor received.
        from.unsent = (missing as u32).wrapping_sub(from.unsent);
    }
}

#[test]
fn what_is_under_way_between_two_ends_has_arrived() {
    let all = b"a stream of bytes";
    let idle = Connection {
        state: 1,
        recv_seq: 7,
        send_seq: 7,
        recv_queue: Bytes::default(),
        send_queue: Bytes::default(),
        unsent: 0,
        mss: 1400,
        window_scale: None,
        sack: false,
        timestamp: None,
        window: Bytes::default(),
    };
    let delivered = |border: usize, known: usize| {
        let seq = 7 + all.len() as u32;
        let mut to =
            Connection { recv_seq: 7 + border as u32, recv_queue: Bytes(all[..border].to_vec()), ..idle.clone() };
        let unsent = (all.len() - border) as u32;
        let mut from = Connection { send_seq: seq, send_queue: Bytes(all[known..].to_vec()), unsent, ..idle.clone() };
        deliver(&mut to, &mut from);
        (to, from)
    };
    let ended = delivered(all.len(), all.len());
    assert_eq!(ended.0.recv_queue.0, all);
    // Acknowledgements may lag.
    for (border, known) in [(0, 0), (5, 5), (5, 3), (17, 11)] {
        assert_eq!(delivered(border, known), ended);
    }
    // What nobody has any more is a loss, and remains one.
    assert_ne!(delivered(5, 6), ended);
}
