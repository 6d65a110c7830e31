//! `net/unix`. For exact names and peers use `sock_diag(7)`: a newline in a name makes this file ambiguous.

use crate::{
    image::Bytes,
    proc::{ProcDir, Result, Syntax, scan},
};

/// One UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unix {
    /// `listen(2)` was called (`__SO_ACCEPTCON`).
    pub listening: bool,
    /// `SOCK_STREAM` = 1, `SOCK_DGRAM` = 2, `SOCK_SEQPACKET` = 5.
    pub socket_type: i32,
    /// `SS_UNCONNECTED` = 1, `SS_CONNECTING` = 2, `SS_CONNECTED` = 3.
    pub state: u8,
    /// Inode: `socket:[INODE]`.
    pub inode: u64,
    /// Name as shown: a path, or `@` and an abstract name in which NULs stand as `@`; empty without one.
    pub name: Bytes,
}

fn line(text: &[u8]) -> Option<Unix> {
    // Blanks separate singly but for padding before the inode; the name is the rest of the line.
    let mut rest = text;
    let mut word = || {
        let start = rest.iter().position(|&b| b != b' ')?;
        let tail = &rest[start..];
        let (word, after) = scan::cut(tail, b' ').unwrap_or((tail, b""));
        rest = after;
        Some(word)
    };
    scan::hex(word()?.strip_suffix(b":")?)?;
    let _references = scan::hex(word()?)?;
    let _protocol = scan::hex(word()?)?;
    let flags = scan::hex(word()?)?;
    let socket_type = i32::try_from(scan::hex(word()?)?).ok()?;
    let state = u8::try_from(scan::hex(word()?)?).ok()?;
    let inode = scan::dec(word()?)?;
    Some(Unix { listening: flags & 0x1_0000 != 0, socket_type, state, inode, name: rest.into() })
}

/// Reads the sockets; the first line is a heading. A line that is not a socket is the rest of a name with a newline.
///
/// # Errors
/// Such a line where no socket came before.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Unix>, Syntax> {
    let mut sockets: Vec<Unix> = Vec::new();
    for (number, text) in scan::lines(text).skip(1) {
        match (line(text), sockets.last_mut()) {
            (Some(socket), _) => sockets.push(socket),
            (None, Some(last)) => {
                last.name.0.push(b'\n');
                last.name.0.extend_from_slice(text);
            }
            (None, None) => return Err(Syntax::new(number, "expected a UNIX socket", text)),
        }
    }
    Ok(sockets)
}

impl ProcDir {
    /// Reads `net/unix` of the process's network namespace; empty where the kernel has none.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn net_unix(&self, buf: &mut Vec<u8>) -> Result<Vec<Unix>> {
        match self.parsed("net/unix", buf, parse) {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            other => other,
        }
    }
}

#[cfg(test)]
pub(in crate::proc) mod tests {
    use super::*;
    use std::os::{fd::AsRawFd, unix::net::UnixListener};

    pub(in crate::proc) const SAMPLE: &[u8] = b"Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01    77 /run/a  b
0000000000000000: 00000003 00000000 00000000 0005 03 12345
0000000000000000: 00000003 00000000 00000000 0002 01 12346 @x@y\nsecond line\n";

    #[test]
    fn names_with_blanks_and_newlines() {
        let sockets = parse(SAMPLE).unwrap();
        assert_eq!((sockets[0].listening, sockets[0].socket_type, sockets[0].inode), (true, 1, 77));
        assert_eq!(sockets[0].name.0, b"/run/a  b");
        assert_eq!((sockets[1].socket_type, sockets[1].state, sockets[1].name.0.len()), (5, 3, 0));
        assert_eq!(sockets[2].name.0, b"@x@y\nsecond line");
        assert!(parse(b"head\nx\n").is_err());
    }

    #[test]
    fn a_listener_of_ours_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let own = ProcDir::of_self().unwrap();
        let link = own.readlink(&format!("fd/{}", listener.as_raw_fd())).unwrap();
        let sockets = own.net_unix(&mut Vec::new()).unwrap();
        let found = sockets.iter().find(|s| s.name.as_path() == path).unwrap();
        assert_eq!(link.to_string(), format!("socket:[{}]", found.inode));
        assert!(found.listening);
    }
}
