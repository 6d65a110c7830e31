//! Identities used across the model: newtypes wherever two integers could be swapped.

use serde::{Deserialize, Serialize};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);
        impl $name {
            /// The index as a position in the model's vector of this kind.
            pub fn at(self) -> usize { self.0 as usize }
        }
        impl From<usize> for $name {
            fn from(n: usize) -> Self { Self(u32::try_from(n).expect("the model holds fewer than 2^32 objects of a kind")) }
        }
    };
}

index!(
    /// Position in [`super::Model::tasks`]: one process (thread group).
    TaskId
);
index!(
    /// Position in [`super::Model::mms`]: one address space.
    MmId
);
index!(
    /// Position in [`super::Model::fd_tables`]: one descriptor table.
    FdTableId
);
index!(
    /// Position in [`super::Model::fs`]: one umask, working directory and root.
    FsId
);
index!(
    /// Position in [`super::Model::sighands`]: one table of signal actions.
    SighandId
);
index!(
    /// Position in [`super::Model::files`]: one open file description.
    FileId
);
index!(
    /// Position in [`super::Model::pipes`].
    PipeId
);
index!(
    /// Position in [`super::Model::shmems`]: one shared memory object.
    ShmemId
);
index!(
    /// Position in [`super::Model::ghosts`]: one deleted file whose content travels.
    GhostId
);
index!(
    /// Position in [`super::Model::ptys`].
    PtyId
);
index!(
    /// Position in [`super::Model::unix_sockets`].
    UnixId
);
index!(
    /// Position in [`super::Model::namespaces`].
    NsId
);
index!(
    /// Position in [`super::Model::cgroups`]: one set of cgroup memberships.
    CgroupSetId
);
index!(
    /// Position in [`super::Model::seccomp_filters`].
    SeccompFilterId
);

/// A process or thread id as the target sees itself: in the PID namespace of the tree's root task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NsPid(pub i32);

/// A process or thread id as this program sees it, in its own PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub i32);

impl std::fmt::Display for NsPid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes the kernel gave: a name or path (not necessarily UTF-8), or a structure or content kept raw.
///
/// Binary codecs get them in one piece (a `Vec<u8>` would go byte by byte); readable ones get a string with everything
/// but printable ASCII escaped as in a Rust byte string.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&self.0.escape_ascii())
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                unescape(text).map(Bytes).ok_or_else(|| E::custom("a malformed escape in a byte string"))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Visitor)
        } else {
            deserializer.deserialize_byte_buf(Visitor)
        }
    }
}

/// The inverse of `<[u8]>::escape_ascii`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next()? {
            b't' => b'\t',
            b'r' => b'\r',
            b'n' => b'\n',
            b'x' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).map(|d| d as u8);
                digit()? << 4 | digit()?
            }
            quoted @ (b'\\' | b'\'' | b'"') => quoted,
            _ => return None,
        });
    }
    Some(out)
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Long ones (register areas, queues) would drown whatever is being shown.
        let shown = &self.0[..self.0.len().min(80)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() { write!(f, "...[{}]", self.0.len()) } else { Ok(()) }
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl Bytes {
    /// The bytes as a path of this host.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Self {
        Self(b.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(b: Vec<u8>) -> Self {
        Self(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_a_readable_codec() {
        let all = Bytes((0..=255).collect());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap(), all);
        assert!(text.contains("ABC") && text.contains("\\\\xff"));
        for bad in [r#""\\""#, r#""\\x4""#, r#""\\xzz""#, r#""\\q""#, "[1,2]"] {
            assert!(serde_json::from_str::<Bytes>(bad).is_err(), "{bad}");
        }
    }
}
