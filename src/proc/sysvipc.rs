//! `/proc/sysvipc/sem`, `/proc/sysvipc/msg` (proc(5)): the System V objects of the reader's IPC namespace.

use super::{Error, Result, Syntax, scan};

/// A set of semaphores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Semaphores {
    /// `key_t`.
    pub key: i64,
    /// Its id.
    pub id: i32,
    /// How many there are in it.
    pub count: u32,
}

/// A message queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// `key_t`.
    pub key: i64,
    /// Its id.
    pub id: i32,
    /// Process of the last msgsnd(2), 0 = none.
    pub last_sender: i32,
    /// Process of the last msgrcv(2), 0 = none.
    pub last_receiver: i32,
}

/// The numbers of a line; keys can be negative.
fn numbers(line: &[u8]) -> Option<Vec<i64>> {
    let number = |word: &[u8]| match word.strip_prefix(b"-") {
        Some(rest) => Some(-i64::try_from(scan::dec(rest)?).ok()?),
        None => i64::try_from(scan::dec(word)?).ok(),
    };
    scan::words(line).map(number).collect()
}

fn rows<T>(text: &[u8], row: impl Fn(&[i64]) -> Option<T>) -> std::result::Result<Vec<T>, Syntax> {
    let lines = text.split(|b| *b == b'\n').enumerate().skip(1).filter(|(_, line)| !line.is_empty());
    let parsed = |(n, line): (usize, &[u8])| {
        let found = numbers(line).and_then(|numbers| row(&numbers));
        found.ok_or_else(|| Syntax::new(n + 1, "expected a System V object", line))
    };
    lines.map(parsed).collect()
}

/// Reads `sem`.
///
/// # Errors
/// A line that is none.
pub fn parse_semaphores(text: &[u8]) -> std::result::Result<Vec<Semaphores>, Syntax> {
    rows(text, |row| match *row {
        [key, id, _, count, ..] => {
            Some(Semaphores { key, id: i32::try_from(id).ok()?, count: u32::try_from(count).ok()? })
        }
        _ => None,
    })
}

/// Reads `msg`.
///
/// # Errors
/// A line that is none.
pub fn parse_queues(text: &[u8]) -> std::result::Result<Vec<Queue>, Syntax> {
    rows(text, |row| match *row {
        [key, id, _, _, _, sender, receiver, ..] => Some(Queue {
            key,
            id: i32::try_from(id).ok()?,
            last_sender: i32::try_from(sender).ok()?,
            last_receiver: i32::try_from(receiver).ok()?,
        }),
        _ => None,
    })
}

/// The semaphores of this IPC namespace; none where the kernel has no System V IPC.
///
/// # Errors
/// The file cannot be read.
pub fn semaphores() -> Result<Vec<Semaphores>> {
    read("/proc/sysvipc/sem", parse_semaphores)
}

/// The message queues of this IPC namespace; none where the kernel has no System V IPC.
///
/// # Errors
/// The file cannot be read.
pub fn queues() -> Result<Vec<Queue>> {
    read("/proc/sysvipc/msg", parse_queues)
}

fn read<T>(file: &str, parse: impl Fn(&[u8]) -> std::result::Result<Vec<T>, Syntax>) -> Result<Vec<T>> {
    match std::fs::read(file) {
        Ok(text) => parse(&text).map_err(|syntax| Error::Syntax { file: file.into(), syntax }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Io { operation: "read", file: file.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let sem = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n        -7          2   600          3     0     0     0     0          0 1795304911\n";
        assert_eq!(parse_semaphores(sem).unwrap(), [Semaphores { key: -7, id: 2, count: 3 }]);
        let msg = b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n         5          1   644          10          1    77     0     0     0     0     0          1          0 1795304911\n";
        assert_eq!(parse_queues(msg).unwrap(), [Queue { key: 5, id: 1, last_sender: 77, last_receiver: 0 }]);
        assert!(parse_queues(b"head\n1 2\n").is_err());
        assert_eq!(parse_semaphores(b"").unwrap(), []);
        assert!(semaphores().is_ok() && queues().is_ok());
    }
}
