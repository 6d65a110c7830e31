//! `manifest.json`: what a person (or a program that is not ours) wants to know about an image without decoding it,
//! and what ties its files together.
//!
//! Written last, so an image without one is none. Its last member, `digest`, is the BLAKE3 of every byte before the
//! line it stands on: it finds damage to the manifest itself, names the image (`id`), and through the digests of the
//! other files covers the model and the page index, whose checksums cover every page.

use super::{Model, limits, task::TaskState};
use serde::{Deserialize, Serialize};

/// Name of the manifest in an image directory.
pub const FILE: &str = "manifest.json";
/// Name of the model.
pub const MODEL_FILE: &str = "model.bin";
/// Name of the page index.
pub const INDEX_FILE: &str = "index.bin";
/// Version of the image format as a whole.
pub const VERSION: u32 = 1;
/// Value of [`Manifest::format`].
pub const FORMAT: &str = "migrate-image";

/// Name of the page file number `n`.
pub fn pages_file(n: usize) -> String {
    format!("pages-{n}.bin")
}

/// What the dump was told about a restore, by the long options' names. [`crate::ops`] reads it.
pub type Wishes = serde_json::Map<String, serde_json::Value>;

/// What an image is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Model and memory: can be restored.
    Full,
    /// Memory alone (`pre-dump`): only good as a parent.
    Memory,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// What it is good for.
    pub kind: Kind,
    /// When it was complete, RFC 3339, UTC.
    pub created: String,
    /// Where it was made.
    pub host: HostSummary,
    /// The processes, the root first.
    pub tree: Vec<TreeEntry>,
    /// What a restore does that is not told otherwise.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub restore: Wishes,
    /// The image this one refers to for pages that did not change.
    pub parent: Option<ParentLink>,
    /// What the page store holds.
    pub pages: PagesSummary,
    /// Every other file of the image.
    pub files: Vec<FileEntry>,
}

/// The host an image was made on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSummary {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// CPU features the image relies on.
    pub cpu_features: Vec<String>,
    /// XSTATE components enabled, a bit mask.
    pub xfeatures: u64,
}

/// One process in the summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeEntry {
    /// Process id as the target sees it.
    pub pid: i32,
    /// Parent's process id; `None` for the root.
    pub parent: Option<i32>,
    /// Name of the leading thread.
    pub comm: String,
    /// `running`, `stopped`, `zombie`.
    pub state: String,
    /// Threads.
    pub threads: u32,
    /// Pages of its address space that this image or one of its parents holds, in bytes; shared memory is not in it.
    pub memory_bytes: u64,
}

/// Where the parent image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParentLink {
    /// Path, relative to this image's directory (or absolute).
    pub path: String,
    /// The parent's `digest`.
    pub id: String,
}

/// Contents of a page store, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesSummary {
    /// Pages with content in this image.
    pub data: u64,
    /// Pages known to be zero.
    pub zero: u64,
    /// Pages that are as in the parent image.
    pub parent: u64,
    /// Pages shared copy-on-write with the address space they were forked from.
    pub inherit: u64,
    /// Bytes of all page files.
    pub stored_bytes: u64,
}

/// One file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the directory.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the content, 64 hex digits. Absent for page files, whose frames have checksums in the page index.
    pub blake3: Option<String>,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not one of ours, or cut short.
    #[error("this is not the manifest of an image: it has no digest at its end")]
    NoDigest,
    /// Changed after it was written.
    #[error("the manifest is damaged: its digest does not match")]
    Digest,
    /// Cannot be understood.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// Of a version this program does not know.
    #[error(
        "the image has format {format:?}, version {version}; this program reads {FORMAT:?} up to version {VERSION}"
    )]
    Version {
        /// What it says.
        format: String,
        /// What it says.
        version: u32,
    },
    /// Larger than any manifest can be.
    #[error("the manifest has {0} bytes; the limit is {limit}", limit = limits::MANIFEST_BYTES)]
    Size(u64),
    /// Names files in a way no image does.
    #[error("the manifest names the file {0:?}, which no image has")]
    FileName(String),
}

const DIGEST_KEY: &str = ",\n  \"digest\": \"";
const DIGEST_END: &str = "\"\n}\n";
const HEX: usize = 64;

impl Manifest {
    /// The file's content and the image's id.
    pub fn encode(&self) -> Result<(Vec<u8>, String), ManifestError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| ManifestError::Json(e.to_string()))?;
        text.truncate(text.strip_suffix("\n}").map_or(text.len(), str::len));
        let id = digest(text.as_bytes());
        text.push_str(DIGEST_KEY);
        text.push_str(&id);
        text.push_str(DIGEST_END);
        Ok((text.into_bytes(), id))
    }

    /// Reads the file's content; gives the manifest and the image's id.
    pub fn decode(bytes: &[u8]) -> Result<(Self, String), ManifestError> {
        if bytes.len() as u64 > limits::MANIFEST_BYTES {
            return Err(ManifestError::Size(bytes.len() as u64));
        }
        let tail = DIGEST_KEY.len() + HEX + DIGEST_END.len();
        let body = bytes.len().checked_sub(tail).ok_or(ManifestError::NoDigest)?;
        let (body, tail) = bytes.split_at(body);
        let id = tail
            .strip_prefix(DIGEST_KEY.as_bytes())
            .and_then(|rest| rest.strip_suffix(DIGEST_END.as_bytes()))
            .ok_or(ManifestError::NoDigest)?;
        if digest(body).as_bytes() != id {
            return Err(ManifestError::Digest);
        }
        let mut text = body.to_vec();
        text.extend_from_slice(b"\n}");
        // The version first: a newer manifest may have members that the strict reading below refuses.
        let head: Head = serde_json::from_slice(&text).map_err(|e| ManifestError::Json(e.to_string()))?;
        if head.format != FORMAT || head.version != VERSION {
            return Err(ManifestError::Version { format: head.format, version: head.version });
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| ManifestError::Json(e.to_string()))?;
        manifest.check_files()?;
        Ok((manifest, String::from_utf8_lossy(id).into_owned()))
    }

    /// The entry of a file.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|f| f.name == name)
    }

    /// Page files, by number.
    pub fn page_files(&self) -> impl Iterator<Item = &FileEntry> {
        (0..limits::PAGE_FILES).map_while(|n| self.file(&pages_file(n)))
    }

    /// Only names that the format has, each once: a manifest cannot make us open other files.
    fn check_files(&self) -> Result<(), ManifestError> {
        if self.files.len() > limits::PAGE_FILES + 2 {
            return Err(ManifestError::FileName(format!("{} files", self.files.len())));
        }
        let pages = self.page_files().count();
        let wanted = |name: &str| name == MODEL_FILE || name == INDEX_FILE || (0..pages).any(|n| name == pages_file(n));
        for (n, file) in self.files.iter().enumerate() {
            if !wanted(&file.name) || self.files[..n].iter().any(|f| f.name == file.name) {
                return Err(ManifestError::FileName(file.name.clone()));
            }
        }
        Ok(())
    }
}

/// The members that every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// BLAKE3 as 64 hex digits.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

impl HostSummary {
    /// What the model knows about its host.
    pub fn of(model: &Model) -> Self {
        Self {
            hostname: model.host.hostname.clone(),
            kernel: model.host.kernel.clone(),
            machine: std::env::consts::ARCH.into(),
            boot_id: model.host.boot_id.clone(),
            cpu_features: model.host.cpu_features.clone(),
            xfeatures: model.host.xfeatures,
        }
    }
}

/// The processes of a model; `memory` gives the bytes of an address space.
pub fn tree_of(model: &Model, memory: impl Fn(super::MmId) -> u64) -> Vec<TreeEntry> {
    let parent_pid = |task: &super::task::Task| task.parent.and_then(|p| model.tasks.get(p.at())).map(|p| p.pid.0);
    let entry = |task: &super::task::Task| TreeEntry {
        pid: task.pid.0,
        parent: parent_pid(task),
        comm: task.threads.first().map(|t| t.comm.clone()).unwrap_or_default().to_string(),
        state: match task.state {
            TaskState::Running => "running",
            TaskState::Stopped(_) => "stopped",
            TaskState::Zombie(_) => "zombie",
        }
        .into(),
        threads: u32::try_from(task.threads.len()).unwrap_or(u32::MAX),
        memory_bytes: task.mm.map_or(0, &memory),
    };
    model.tasks.iter().map(entry).collect()
}

/// Seconds since the epoch as `2026-11-21T21:37:00Z` (proleptic Gregorian calendar, no leap seconds).
pub fn rfc3339(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years; Howard Hinnant's `civil_from_days`.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let entry = |name: &str| FileEntry { name: name.into(), bytes: 7, blake3: None };
        Manifest {
            format: FORMAT.into(),
            version: VERSION,
            program: "0.1.0".into(),
            kind: Kind::Full,
            created: rfc3339(1_795_297_020),
            host: HostSummary::default(),
            tree: vec![],
            restore: Wishes::from_iter([("pids".into(), "new".into())]),
            parent: Some(ParentLink { path: "../first".into(), id: "ab".into() }),
            pages: PagesSummary::default(),
            files: vec![entry(MODEL_FILE), entry("pages-0.bin"), entry("pages-1.bin")],
        }
    }

    #[test]
    fn comes_back_as_it_went() {
        let (bytes, id) = sample().encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), (sample(), id.clone()));
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("plain JSON, digest included");
        assert_eq!(value["digest"], id);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let (bytes, _) = sample().encode().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn foreign_file_names_and_versions_are_refused() {
        for name in ["../x", "/etc/passwd", "pages-3.bin", "pages-00.bin", MODEL_FILE] {
            let mut manifest = sample();
            manifest.files.push(FileEntry { name: name.into(), bytes: 0, blake3: None });
            assert!(
                matches!(Manifest::decode(&manifest.encode().unwrap().0), Err(ManifestError::FileName(_))),
                "{name}"
            );
        }
        let newer = Manifest { version: 2, ..sample() };
        assert!(matches!(Manifest::decode(&newer.encode().unwrap().0), Err(ManifestError::Version { version: 2, .. })));
    }

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_795_297_020), "2026-11-21T21:37:00Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
    }
}
