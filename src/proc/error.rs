//! What can go wrong when `/proc` is read.

use crate::image::Pid;

/// Shorthand for the results of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A file of `/proc` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process or thread has ended (ESRCH, or ENOENT for its directory).
    #[error("process {pid} has ended (at {file})")]
    Gone {
        /// The process or thread.
        pid: Pid,
        /// What was being read, from the root.
        file: String,
    },
    /// The kernel refused.
    #[error("cannot {operation} {file}")]
    Io {
        /// `read`, `open`, ...
        operation: &'static str,
        /// The file, from the root.
        file: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The contents are not what this program knows.
    #[error("cannot understand {file}: {syntax}")]
    Syntax {
        /// The file, from the root.
        file: String,
        /// Where and why.
        syntax: Syntax,
    },
    /// The file is longer than any that is believed to be right.
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// The file, from the root.
        file: String,
        /// The limit that was hit, bytes.
        limit: u64,
    },
}

impl Error {
    /// The operating system's error number, where it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Gone { .. } => Some(libc::ESRCH),
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Syntax { .. } | Self::TooLong { .. } => None,
        }
    }

    /// The process or thread has ended: not a failure for whoever lists processes.
    pub fn is_gone(&self) -> bool {
        // A process that has just ended still has its directory, but no memory to open (ESRCH), and no mount namespace whose
        // mounts could be told (EINVAL of `mounts_open_common`, fs/proc_namespace.c).
        let no_mounts = matches!(self, Self::Io { operation: "open", file, .. } if file.ends_with("/mountinfo"));
        matches!(self, Self::Gone { .. })
            || self.errno() == Some(libc::ESRCH)
            || no_mounts && self.errno() == Some(libc::EINVAL)
    }

    /// The file does not exist: an older kernel, or one built without the option.
    pub fn is_absent(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }
}

/// A line that does not have the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}: \"{text}\"")]
pub struct Syntax {
    /// 1 for the first line; 0 where the whole file is meant.
    pub line: usize,
    /// What was expected.
    pub what: &'static str,
    /// The start of the line, escaped, at most [`Syntax::TEXT_MAX`] bytes of it.
    pub text: String,
}

impl Syntax {
    /// Bytes of the offending line that a message quotes.
    pub const TEXT_MAX: usize = 80;

    /// `line` is the offending line's number, `text` its bytes.
    pub fn new(line: usize, what: &'static str, text: &[u8]) -> Self {
        let text = &text[..text.len().min(Self::TEXT_MAX)];
        Self { line, what, text: text.escape_ascii().to_string() }
    }
}
