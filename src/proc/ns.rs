//! `/proc/PID/ns/` (namespaces(7)).

use super::{Error, ProcDir, Result, Syntax, scan};

/// Names below `ns/`, in the order of [`NsLinks`].
pub const NAMES: [&str; 10] =
    ["mnt", "net", "pid", "pid_for_children", "user", "uts", "ipc", "cgroup", "time", "time_for_children"];

/// Inode numbers of a task's namespaces: an identity within one boot. 0 = the kernel has no such namespaces, or the task
/// has none (a PID namespace for children that has not got its first process; a zombie).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NsLinks {
    /// Mounts.
    pub mnt: u64,
    /// Network.
    pub net: u64,
    /// Process ids.
    pub pid: u64,
    /// Process ids of children yet to be made.
    pub pid_for_children: u64,
    /// Users.
    pub user: u64,
    /// Host name.
    pub uts: u64,
    /// System V and POSIX IPC.
    pub ipc: u64,
    /// cgroup roots.
    pub cgroup: u64,
    /// Clocks.
    pub time: u64,
    /// Clocks of children yet to be made.
    pub time_for_children: u64,
}

/// Reads the text of a link: `mnt:[4026531841]`, as also `/proc/PID/fd` shows a namespace's descriptor.
///
/// # Errors
/// Another form.
pub fn parse_link(text: &[u8]) -> std::result::Result<(String, u64), Syntax> {
    let parsed = || {
        let (kind, rest) = scan::cut(text, b':')?;
        let inode = scan::dec(rest.strip_prefix(b"[")?.strip_suffix(b"]")?)?;
        let known = kind.iter().all(|b| b.is_ascii_lowercase() || *b == b'_');
        (known && !kind.is_empty()).then(|| (String::from_utf8_lossy(kind).into_owned(), inode))
    };
    parsed().ok_or_else(|| Syntax::new(1, "expected KIND:[INODE]", text))
}

impl ProcDir {
    /// Inode of one namespace (a name of [`NAMES`]); 0 if it does not exist.
    ///
    /// # Errors
    /// See [`ProcDir::readlink`]; EACCES without the right to ptrace.
    pub fn ns(&self, name: &str) -> Result<u64> {
        let name = format!("ns/{name}");
        match self.readlink(&name) {
            Ok(text) => match parse_link(&text.0) {
                Ok((_, inode)) => Ok(inode),
                Err(syntax) => Err(Error::Syntax { file: self.file(&name), syntax }),
            },
            Err(e) if e.is_absent() => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// All namespaces of the task.
    ///
    /// # Errors
    /// As [`Self::ns`].
    pub fn ns_links(&self) -> Result<NsLinks> {
        Ok(NsLinks {
            mnt: self.ns("mnt")?,
            net: self.ns("net")?,
            pid: self.ns("pid")?,
            pid_for_children: self.ns("pid_for_children")?,
            user: self.ns("user")?,
            uts: self.ns("uts")?,
            ipc: self.ns("ipc")?,
            cgroup: self.ns("cgroup")?,
            time: self.ns("time")?,
            time_for_children: self.ns("time_for_children")?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    pub(in crate::proc) const SAMPLE: &[u8] = b"mnt:[4026531841]";

    #[test]
    fn links_of_this_process() {
        let links = ProcDir::of_self().unwrap().ns_links().unwrap();
        for (name, inode) in [("mnt", links.mnt), ("user", links.user), ("pid", links.pid)] {
            assert_eq!(std::fs::metadata(format!("/proc/self/ns/{name}")).unwrap().ino(), inode);
        }
        assert_eq!(parse_link(SAMPLE).unwrap(), ("mnt".into(), 4_026_531_841));
        assert!(parse_link(b"socket:[x]").is_err());
        assert!(parse_link(b":[1]").is_err());
    }
}
