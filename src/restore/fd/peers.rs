//! Made inside the target's task: the calls by which a UNIX socket comes to remember a process. What `SO_PEERCRED` shows is noted
//! by the kernel of whoever calls (`init_peercred` in its net/unix/af_unix.c): socketpair(2) of both ends, listen(2) of the one
//! that clients see, connect(2) of the one that accept(2) gives. So the process that the credentials name makes the call again, as
//! the user that they name. A process that has ended, is outside of the tree, or has entered a user namespace cannot: then
//! this program makes the call as that user, and user and group are right, but the process is not.

use super::unix::Reach;
use crate::image::fd::unix::Creds;
use crate::image::{Model, NsId, NsPid, TaskId};
use crate::restore::material::Material;
use crate::restore::skeleton::Skeletons;
use crate::sys::Errno;
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::trace::remote::{Remote, Scratch};
use crate::trace::{Arg, Batch, Ref, Results};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A call that a socket remembers.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// socketpair(2) of this type.
    Pair(i32),
    /// listen(2) with this backlog.
    Listen(BorrowedFd<'a>, u32),
    /// connect(2).
    Connect(BorrowedFd<'a>, &'a Reach<'a>),
}

/// Two ends, of a pair.
pub type Ends = Option<(OwnedFd, OwnedFd)>;

const PR_SET_SECUREBITS: i32 = 28;
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// Leaves an id as it is, for setresuid(2) and its like.
const AS_IT_IS: i32 = -1;

/// The process that would be remembered, for as long as it makes a call.
struct Caller<'s> {
    remote: &'s mut Remote,
    scratch: Scratch,
    /// Its user and group for the call, where they are not ours.
    ids: Option<(u32, u32)>,
}

/// Has the task that these credentials name make a call. `None`: there is none that could, nothing was done.
pub(super) fn by_process(
    model: &Model,
    skeletons: &mut Skeletons,
    material: &Material,
    creds: &Creds,
    net: NsId,
    call: &Call<'_>,
) -> Option<Result<Ends, Errno>> {
    let id = named(model, creds.pid, net)?;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let ids = Some((creds.uid, creds.gid)).filter(|ids| *ids != own);
    let (remote, scratch) = skeletons.leader(id);
    let mut caller = Caller { remote, scratch, ids };
    let made = caller.make(material, call);
    if let Err(errno) = &made {
        tracing::debug!(pid = creds.pid.0, %errno, "a process does not make its socket itself");
    }
    match caller.back(own, made.as_ref().map_or(&[], |made| &made.open)) {
        Ok(()) => made.ok().map(|made| Ok(made.ends)),
        Err(errno) => Some(Err(errno)),
    }
}

/// The task that sees itself by this id, if it is alive and as free as we are.
fn named(model: &Model, pid: NsPid, net: NsId) -> Option<TaskId> {
    let fits =
        |task: &crate::image::task::Task| task.pid == pid && !task.threads.is_empty() && task.namespaces.net == net;
    let at = model.tasks.iter().position(fits)?;
    crate::restore::ns::ids::namespace(model, &model.tasks[at]).is_none().then(|| TaskId::from(at))
}

/// What a call has left.
struct Made {
    ends: Ends,
    /// Descriptors in the task, to be closed.
    open: Vec<u64>,
}

impl Caller<'_> {
    fn run(&mut self, batch: &Batch, last: Ref) -> Result<Results, Errno> {
        let results = self.remote.run(&self.scratch, batch).map_err(|_| Errno::ESRCH)?;
        results.get(last)?;
        Ok(results)
    }

    fn make(&mut self, material: &Material, call: &Call<'_>) -> Result<Made, Errno> {
        match call {
            Call::Pair(kind) => self.pair(*kind),
            Call::Listen(fd, backlog) => {
                let mut batch = Batch::new();
                let socket = material.fetch(&mut batch, fd.as_raw_fd());
                self.become_peer(&mut batch);
                let called = batch.must(libc::SYS_listen, &[socket.into(), (*backlog).into()]);
                let results = self.run(&batch, called)?;
                Ok(Made { ends: None, open: vec![results.get(socket)?] })
            }
            Call::Connect(fd, to) => self.connect(material, *fd, to),
        }
    }

    fn pair(&mut self, kind: i32) -> Result<Made, Errno> {
        let mut batch = Batch::new();
        self.become_peer(&mut batch);
        let numbers = batch.out(8);
        let kind = kind | libc::SOCK_CLOEXEC;
        let called =
            batch.must(libc::SYS_socketpair, &[libc::AF_UNIX.into(), kind.into(), 0u64.into(), numbers.into()]);
        let results = self.run(&batch, called)?;
        let [one, two] = results.value::<[u32; 2]>(numbers);
        let process = pidfd_open(self.remote.pid())?;
        let take = |fd| pidfd_getfd(process.as_fd(), fd);
        Ok(Made { ends: Some((take(one)?, take(two)?)), open: vec![one.into(), two.into()] })
    }

    fn connect(&mut self, material: &Material, fd: BorrowedFd<'_>, to: &Reach<'_>) -> Result<Made, Errno> {
        let mut open = Vec::new();
        let mut address = to.address.clone();
        if let Some(node) = to.node {
            // Under a number of its own the node is reached from there as from here.
            let mut batch = Batch::new();
            let fetched = material.fetch(&mut batch, node.as_raw_fd());
            let number = self.run(&batch, fetched)?.get(fetched)?;
            open.push(number);
            address = super::unix::address_of(number);
        }
        let mut batch = Batch::new();
        let socket = material.fetch(&mut batch, fd.as_raw_fd());
        self.become_peer(&mut batch);
        let at = batch.bytes(&address);
        let called = batch.must(libc::SYS_connect, &[socket.into(), at, address.len().into()]);
        let results = self.run(&batch, called)?;
        open.push(results.get(socket)?);
        Ok(Made { ends: None, open })
    }

    /// Takes the ids, without losing capabilities by it.
    fn become_peer(&self, batch: &mut Batch) {
        let Some((uid, gid)) = self.ids else { return };
        batch.must(libc::SYS_prctl, &[PR_SET_SECUREBITS.into(), NO_SETUID_FIXUP.into()]);
        batch.must(libc::SYS_setresgid, &[AS_IT_IS.into(), gid.into(), AS_IT_IS.into()]);
        batch.must(libc::SYS_setresuid, &[AS_IT_IS.into(), uid.into(), AS_IT_IS.into()]);
    }

    /// Itself again, whatever has failed. (Its dumpable flag, which a change of ids clears, is set with its credentials.)
    fn back(&mut self, own: (u32, u32), open: &[u64]) -> Result<(), Errno> {
        let mut batch = Batch::new();
        let mut last = None;
        if self.ids.is_some() {
            batch.must(libc::SYS_setresuid, &[AS_IT_IS.into(), own.0.into(), AS_IT_IS.into()]);
            batch.must(libc::SYS_setresgid, &[AS_IT_IS.into(), own.1.into(), AS_IT_IS.into()]);
            last = Some(batch.must(libc::SYS_prctl, &[PR_SET_SECUREBITS.into(), 0u64.into()]));
        }
        for fd in open {
            last = Some(batch.must(libc::SYS_close, &[Arg::Value(*fd)]));
        }
        last.map_or(Ok(()), |last| self.run(&batch, last).map(drop))
    }
}
