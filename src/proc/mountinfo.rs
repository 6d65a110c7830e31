//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use super::{ProcDir, Result, Syntax, scan};
use crate::image::{Bytes, ns::mnt::Mount};

/// One field up to the next blank, and the rest. Fields may be empty (a mount whose source is ""), so blanks count singly.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let (word, tail) = scan::cut(rest, b' ').unwrap_or((rest, b""));
    *rest = tail;
    Some(word)
}

/// `shared:N master:N propagate_from:N unbindable`, in any number, up to the lone `-`.
fn optional(mount: &mut Mount, rest: &mut &[u8]) -> Option<()> {
    loop {
        let word = field(rest)?;
        if word == b"-" {
            return Some(());
        }
        match scan::cut(word, b':') {
            Some((b"shared", id)) => mount.shared = scan::dec32(id)?,
            Some((b"master", id)) => mount.master = scan::dec32(id)?,
            _ if word == b"unbindable" => mount.unbindable = true,
            // propagate_from and whatever comes: says nothing that a restore could set.
            _ => {}
        }
    }
}

fn line(mut rest: &[u8]) -> Option<Mount> {
    let rest = &mut rest;
    let mut mount = Mount {
        id: scan::dec32(field(rest)?)?,
        parent_id: scan::dec32(field(rest)?)?,
        device: scan::device(field(rest)?, 10)?,
        root: scan::unescape_octal(field(rest)?),
        mount_point: scan::unescape_octal(field(rest)?),
        options: field(rest)?.into(),
        shared: 0,
        master: 0,
        unbindable: false,
        fs_type: Bytes::default(),
        source: Bytes::default(),
        super_options: Bytes::default(),
        host_path: None,
        covers: 0,
        content: None,
    };
    optional(&mut mount, rest)?;
    mount.fs_type = scan::unescape_octal(field(rest)?);
    mount.source = scan::unescape_octal(field(rest)?);
    // Kept as written: a comma inside a value is escaped, and only the file system knows how to read it.
    mount.super_options = (*rest).into();
    Some(mount)
}

/// Reads the mounts, in the order of the file (a parent may come after its child once mounts were moved).
///
/// # Errors
/// A line without the fields before and after ` - `.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Mount>, Syntax> {
    scan::lines(text)
        .map(|(number, text)| line(text).ok_or_else(|| Syntax::new(number, "expected a line of mountinfo", text)))
        .collect()
}

impl ProcDir {
    /// Reads `mountinfo`: what is mounted below the process's root directory.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; EINVAL for a zombie.
    pub fn mountinfo(&self, buf: &mut Vec<u8>) -> Result<Vec<Mount>> {
        self.parsed("mountinfo", buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"\
36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue
37 36 0:30 / /a\\134b ro propagate_from:2 unbindable - tmpfs  rw,size=1k
38 36 0:31 / /c rw - fuse.sshfs user@host:/x rw\n";

    #[test]
    fn optional_fields_blanks_and_empty_sources() {
        let mounts = parse(SAMPLE).unwrap();
        assert_eq!(mounts[0].mount_point.0, b"/mnt 2");
        assert_eq!((mounts[0].shared, mounts[0].master, mounts[0].unbindable), (7, 1, false));
        assert_eq!(
            (mounts[0].root.0.as_slice(), mounts[0].super_options.0.as_slice()),
            (b"/mnt1".as_slice(), b"rw,errors=continue".as_slice())
        );
        assert_eq!(mounts[1].mount_point.0, b"/a\\b");
        assert!(mounts[1].unbindable && mounts[1].source.0.is_empty() && mounts[1].super_options.0 == b"rw,size=1k");
        assert_eq!(mounts[2].fs_type.0, b"fuse.sshfs");
        assert!(parse(b"1 2 0:1 / /\n").is_err());
    }

    #[test]
    fn the_root_is_mounted() {
        let mounts = ProcDir::of_self().unwrap().mountinfo(&mut Vec::new()).unwrap();
        assert!(mounts.iter().any(|m| m.mount_point.0 == b"/proc" && m.fs_type.0 == b"proc"), "{mounts:?}");
    }
}
