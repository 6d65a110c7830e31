//! The first exchange on a control channel: versions, what the hosts are, limits, what the session is for.
//!
//! JSON, so that an older program reads what it knows of a newer one's and ignores the rest.

use super::error::{Result, TransportError};
use super::preamble::SessionNumber;
use procfs::Current;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// Protocol versions this program speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };

/// Most bulk channels a session may have.
pub const STREAMS_MAX: u16 = 64;

/// Versions from `min` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl ProtocolRange {
    /// The highest version both know.
    pub fn common(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min && highest >= other.min).then_some(highest)
    }
}

impl Display for ProtocolRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The client sends a target to the server.
    Send,
    /// The client asks for a target of the server's.
    Receive,
    /// The client only looks (`check --to`, `list --to`).
    Look,
    /// The client has the server pass things on to others ([`super::proxy`]).
    Relay,
}

/// What a peer should know of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -r`.
    pub kernel: String,
    /// As Rust names it: `x86_64`.
    pub arch: String,
    /// `/proc/sys/kernel/random/boot_id`: two ends with equal ones are one host.
    pub boot_id: String,
    /// Features of the CPU, as in /proc/cpuinfo.
    pub cpu_features: Vec<String>,
    /// Memory that could be used without swapping, bytes; 0 = unknown.
    pub memory_available_bytes: u64,
    /// The user `migrate` runs as.
    pub uid: u32,
}

impl HostFacts {
    /// Of this host. What cannot be read stays empty.
    pub fn here() -> Self {
        let cpu = procfs::CpuInfo::current().ok();
        let features = cpu.as_ref().and_then(|cpu| cpu.flags(0)).unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            hostname: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            kernel: kernel.trim().to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            boot_id: procfs::sys::kernel::random::boot_id().map(|id| id.trim().to_owned()).unwrap_or_default(),
            cpu_features: features.into_iter().map(str::to_owned).collect(),
            memory_available_bytes: procfs::Meminfo::current()
                .ok()
                .and_then(|memory| memory.mem_available)
                .unwrap_or(0),
            uid: nix::unistd::geteuid().as_raw(),
        }
    }
}

/// The client's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// What it speaks.
    pub protocol: ProtocolRange,
    /// Version of the program.
    pub program: String,
    /// What it is.
    pub host: HostFacts,
    /// What it wants.
    pub purpose: Purpose,
    /// Bulk channels it would like.
    pub streams: u16,
}

/// The server's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHello {
    /// What it speaks.
    pub protocol: ProtocolRange,
    /// The highest version both know; `None` = there is none, and the server closes.
    pub chosen: Option<u16>,
    /// Version of the program.
    pub program: String,
    /// What it is.
    pub host: HostFacts,
    /// Bulk channels it expects now, not more than asked for.
    pub streams: u16,
    /// Number of this session.
    pub session: [u8; 16],
    /// The right to join it.
    pub token: [u8; 16],
    /// The most memory a target may have here, bytes; `None` = what is free.
    #[serde(default)]
    pub max_memory_bytes: Option<u64>,
}

impl ServerHello {
    /// The number of the session.
    pub fn session(&self) -> SessionNumber {
        SessionNumber(self.session)
    }
}

/// Bytes of a hello.
pub fn encode<T: Serialize>(hello: &T) -> Vec<u8> {
    serde_json::to_vec(hello).expect("a hello has string keys only")
}

/// A hello from bytes.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], peer: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| TransportError::Malformed {
        peer: peer.into(),
        what: "first message",
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn highest_common_version() {
        let range = |min, max| ProtocolRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).common(range(1, 1)), Some(1));
        assert_eq!(range(1, 2).common(range(3, 4)), None);
        assert_eq!(range(3, 4).common(range(1, 2)), None);
    }

    #[test]
    fn a_newer_programs_hello_is_read() {
        let hello = ClientHello {
            protocol: ProtocolRange { min: 1, max: 9 },
            program: "9.0.0".into(),
            host: HostFacts::here(),
            purpose: Purpose::Send,
            streams: 2,
        };
        let mut json: serde_json::Value = serde_json::from_slice(&encode(&hello)).unwrap();
        json["new_field"] = serde_json::json!({"a": [1, 2]});
        json["host"]["new_fact"] = serde_json::json!(1);
        assert_eq!(decode::<ClientHello>(&serde_json::to_vec(&json).unwrap(), "x").unwrap(), hello);
    }

    #[test]
    fn this_host_is_known() {
        let here = HostFacts::here();
        assert_eq!(here.boot_id.len(), 36);
        assert!(!here.kernel.is_empty() && !here.hostname.is_empty() && here.memory_available_bytes > 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<ClientHello>(&bytes, "x");
            let _ = decode::<ServerHello>(&bytes, "x");
        }
    }
}
