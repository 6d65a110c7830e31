//! The model as bytes (`model.bin`) and back.
//!
//! ```text
//! magic "MIGRMODL" | version u16 | sections u16 | reserved u32
//! section: kind u16 | version u16 | packing u16 | reserved u16 | raw bytes u64 | stored bytes u64 | check u64 | payload
//! ```
//! All integers little-endian. A payload is one vector of the model in the byte format of bincode 1 (fixed-size
//! integers), packed as one zstd frame unless it is tiny. The check covers the section's header and payload. A decode
//! has to consume every byte. A field that changes its shape raises the version of its section, and no other version is
//! read: fields follow one another without names. A vector that an older program did not know decodes as empty.
//!
//! This is the only file that uses bincode.

use super::{Model, host::Host, limits};
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// First bytes of `model.bin`.
pub const MAGIC: [u8; 8] = *b"MIGRMODL";
/// Version of the framing.
pub const VERSION: u16 = 1;

const FILE_HEADER: usize = 16;
const SECTION_HEADER: usize = 32;
/// Payloads below this are stored as they are: a zstd frame would not be smaller.
const PACK_FROM: usize = 128;
const ZSTD_LEVEL: i32 = 1;
const STORED: u16 = 0;
const ZSTD: u16 = 1;

/// Why bytes are no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The file starts with something else.
    #[error("this is not a model: the file does not start with {:?}", MAGIC.escape_ascii().to_string())]
    Magic,
    /// Another version of the program wrote it.
    #[error("{what} has version {found}; this program reads {known}")]
    Version {
        /// The file or one of its sections.
        what: &'static str,
        /// What it says.
        found: u16,
        /// The one that this program reads.
        known: u16,
    },
    /// A section this program does not know.
    #[error("section {kind} is unknown to this program")]
    UnknownSection {
        /// Its number.
        kind: u16,
    },
    /// Ends too early.
    #[error("the model is cut short in {what}")]
    Truncated {
        /// Where.
        what: &'static str,
    },
    /// The checksum is not the section's.
    #[error("section {section} is damaged: its checksum does not match")]
    Check {
        /// Its name.
        section: &'static str,
    },
    /// Larger than any model can be.
    #[error("section {section} announces {bytes} bytes; the limit is {limit}")]
    Limit {
        /// Its name.
        section: &'static str,
        /// What it says.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// Unpacks or decodes to something else than it should.
    #[error("section {section} cannot be decoded: {why}")]
    Malformed {
        /// Its name.
        section: &'static str,
        /// What the decoder said.
        why: String,
    },
    /// There is something after the end, a section is missing, or one comes twice.
    #[error("the model is malformed: {0}")]
    Structure(&'static str),
}

/// Appends sections to a growing file.
struct Writer {
    out: Vec<u8>,
    packer: zstd::bulk::Compressor<'static>,
    sections: u16,
}

impl Writer {
    fn section<T: Serialize>(
        &mut self,
        kind: u16,
        version: u16,
        name: &'static str,
        value: &T,
    ) -> Result<(), CodecError> {
        let malformed = |why: String| CodecError::Malformed { section: name, why };
        let raw =
            bincode::serde::encode_to_vec(value, bincode::config::legacy()).map_err(|e| malformed(e.to_string()))?;
        self.raw(kind, version, name, &raw)
    }

    fn raw(&mut self, kind: u16, version: u16, name: &'static str, raw: &[u8]) -> Result<(), CodecError> {
        let malformed = |why: String| CodecError::Malformed { section: name, why };
        let limit = limit_of(kind);
        if raw.len() > limit {
            return Err(CodecError::Limit { section: name, bytes: raw.len() as u64, limit: limit as u64 });
        }
        let packed = if raw.len() < PACK_FROM {
            None
        } else {
            let packed = self.packer.compress(raw).map_err(|e| malformed(e.to_string()))?;
            (packed.len() < raw.len()).then_some(packed)
        };
        let (packing, payload) = packed.as_deref().map_or((STORED, raw), |p| (ZSTD, p));
        let mut header = [0u8; SECTION_HEADER - 8];
        header[0..2].copy_from_slice(&kind.to_le_bytes());
        header[2..4].copy_from_slice(&version.to_le_bytes());
        header[4..6].copy_from_slice(&packing.to_le_bytes());
        header[8..16].copy_from_slice(&(raw.len() as u64).to_le_bytes());
        header[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        self.out.extend_from_slice(&header);
        self.out.extend_from_slice(&xxh3_64_with_seed(payload, xxh3_64(&header)).to_le_bytes());
        self.out.extend_from_slice(payload);
        self.sections += 1;
        Ok(())
    }
}

/// One section as it lies in the file.
struct Section<'a> {
    kind: u16,
    version: u16,
    packing: u16,
    raw_len: u64,
    payload: &'a [u8],
    intact: bool,
}

/// Takes `N` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], n: u64, what: &'static str) -> Result<&'a [u8], CodecError> {
    let n = usize::try_from(n).map_err(|_| CodecError::Truncated { what })?;
    let (head, rest) = bytes.split_at_checked(n).ok_or(CodecError::Truncated { what })?;
    *bytes = rest;
    Ok(head)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl<'a> Section<'a> {
    fn take(bytes: &mut &'a [u8]) -> Result<Self, CodecError> {
        let header = take(bytes, SECTION_HEADER as u64, "a section's header")?;
        let (fields, check) = header.split_at(SECTION_HEADER - 8);
        let payload = take(bytes, u64_at(fields, 16), "a section")?;
        let intact = xxh3_64_with_seed(payload, xxh3_64(fields)) == u64_at(check, 0);
        Ok(Self {
            kind: u16_at(fields, 0),
            version: u16_at(fields, 2),
            packing: u16_at(fields, 4),
            raw_len: u64_at(fields, 8),
            payload,
            intact,
        })
    }

    fn decode<T: DeserializeOwned, const LIMIT: usize>(&self, name: &'static str, known: u16) -> Result<T, CodecError> {
        if !self.intact {
            return Err(CodecError::Check { section: name });
        }
        if self.version != known {
            return Err(CodecError::Version { what: name, found: self.version, known });
        }
        if self.raw_len > LIMIT as u64 {
            return Err(CodecError::Limit { section: name, bytes: self.raw_len, limit: LIMIT as u64 });
        }
        let malformed = |why: String| CodecError::Malformed { section: name, why };
        let unpacked;
        let raw = match self.packing {
            STORED => self.payload,
            ZSTD => {
                // The frame must say its size, and the same as the header: nothing is asked for on one's word alone.
                let announced = zstd::zstd_safe::get_frame_content_size(self.payload).ok().flatten();
                if announced != Some(self.raw_len) {
                    return Err(malformed("the frame's size is not the section's".into()));
                }
                unpacked = zstd::bulk::decompress(self.payload, self.raw_len as usize)
                    .map_err(|e| malformed(e.to_string()))?;
                unpacked.as_slice()
            }
            other => return Err(malformed(format!("packing {other} is unknown"))),
        };
        if raw.len() as u64 != self.raw_len {
            return Err(malformed(format!("{} bytes instead of {}", raw.len(), self.raw_len)));
        }
        let (value, used) = bincode::serde::decode_from_slice(raw, bincode::config::legacy().with_limit::<LIMIT>())
            .map_err(|e| malformed(e.to_string()))?;
        if used != raw.len() {
            return Err(malformed(format!("{} bytes are left over", raw.len() - used)));
        }
        Ok(value)
    }
}

macro_rules! sections {
    ($($field:ident = $kind:literal, version $version:literal, limit $limit:expr;)*) => {
        fn limit_of(kind: u16) -> usize {
            match kind { $($kind => $limit,)* _ => limits::SECTION_BYTES }
        }

        fn write_sections(writer: &mut Writer, model: &Model) -> Result<(), CodecError> {
            // No `..`: a new field of the model does not compile until it has a section.
            let Model { host, $($field,)* } = model;
            writer.section(HOST, HOST_VERSION, "host", host)?;
            $(if !$field.is_empty() { writer.section($kind, $version, stringify!($field), $field)?; })*
            Ok(())
        }

        fn read_sections(sections: &[Section<'_>]) -> Result<Model, CodecError> {
            let mut host: Option<Host> = None;
            $(let mut $field = Vec::new();)*
            for section in sections {
                match section.kind {
                    HOST => host = Some(section.decode::<_, { limits::SECTION_BYTES }>("host", HOST_VERSION)?),
                    $($kind => $field = section.decode::<_, { $limit }>(stringify!($field), $version)?,)*
                    kind => return Err(CodecError::UnknownSection { kind }),
                }
            }
            let host = host.ok_or(CodecError::Structure("the section about the host is missing"))?;
            Ok(Model { host, $($field,)* })
        }
    };
}

const HOST: u16 = 1;
const HOST_VERSION: u16 = 1;

sections! {
    tasks = 2, version 2, limit limits::SECTION_BYTES;
    mms = 3, version 3, limit limits::SECTION_BYTES;
    shmems = 4, version 1, limit limits::SECTION_BYTES;
    fd_tables = 5, version 1, limit limits::SECTION_BYTES;
    files = 6, version 3, limit limits::SECTION_BYTES;
    pipes = 7, version 1, limit limits::SECTION_BYTES;
    ptys = 8, version 1, limit limits::SECTION_BYTES;
    unix_sockets = 9, version 2, limit limits::SECTION_BYTES;
    ghosts = 10, version 1, limit limits::GHOST_BYTES;
    locks = 11, version 1, limit limits::SECTION_BYTES;
    fs = 12, version 2, limit limits::SECTION_BYTES;
    sighands = 13, version 1, limit limits::SECTION_BYTES;
    seccomp_filters = 14, version 1, limit limits::SECTION_BYTES;
    namespaces = 15, version 2, limit limits::SECTION_BYTES;
    cgroups = 16, version 1, limit limits::SECTION_BYTES;
    frozen = 17, version 1, limit limits::SECTION_BYTES;
    multicast = 18, version 1, limit limits::SECTION_BYTES;
}

/// The model as the content of `model.bin`.
///
/// # Errors
/// A section over its limit (a deleted file of more than 4 GiB, say).
pub fn encode(model: &Model) -> Result<Vec<u8>, CodecError> {
    let packer = zstd::bulk::Compressor::new(ZSTD_LEVEL)
        .map_err(|e| CodecError::Malformed { section: "host", why: e.to_string() })?;
    let mut writer = Writer { out: vec![0; FILE_HEADER], packer, sections: 0 };
    write_sections(&mut writer, model)?;
    let mut out = writer.out;
    out[0..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10..12].copy_from_slice(&writer.sections.to_le_bytes());
    Ok(out)
}

/// What somebody makes of a file who knows its checksums: one section (counted round) with other content.
#[cfg(test)]
pub(crate) fn forged(bytes: &[u8], section: usize, forge: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut rest = &bytes[FILE_HEADER..];
    let mut writer = Writer {
        out: bytes[..FILE_HEADER].to_vec(),
        packer: zstd::bulk::Compressor::new(ZSTD_LEVEL).unwrap(),
        sections: 0,
    };
    let (mut at, mut forge) = (section % usize::from(u16_at(bytes, 10)), Some(forge));
    while !rest.is_empty() {
        let Section { kind, version, packing, raw_len, payload, .. } = Section::take(&mut rest).unwrap();
        let mut raw = match packing {
            STORED => payload.to_vec(),
            _ => zstd::bulk::decompress(payload, raw_len as usize).unwrap(),
        };
        if at == 0
            && let Some(forge) = forge.take()
        {
            forge(&mut raw);
        }
        at = at.wrapping_sub(1);
        writer.raw(kind, version, "forged", &raw).unwrap();
    }
    writer.out
}

/// The content of `model.bin` as a model. Total on any input; [`super::verify::model`] then says whether it makes sense.
///
/// # Errors
/// Anything that is not what [`encode`] writes.
pub fn decode(bytes: &[u8]) -> Result<Model, CodecError> {
    let mut rest = bytes;
    let header = take(&mut rest, FILE_HEADER as u64, "the file's header")
        .map_err(|e| if bytes.starts_with(&MAGIC) { e } else { CodecError::Magic })?;
    if header[..8] != MAGIC {
        return Err(CodecError::Magic);
    }
    let version = u16_at(header, 8);
    if version != VERSION {
        return Err(CodecError::Version { what: "the model", found: version, known: VERSION });
    }
    let count = usize::from(u16_at(header, 10));
    if count > limits::SECTIONS {
        return Err(CodecError::Structure("too many sections"));
    }
    if header[12..16] != [0; 4] {
        return Err(CodecError::Structure("reserved bytes are not zero"));
    }
    let mut sections: Vec<Section<'_>> = Vec::with_capacity(count);
    for _ in 0..count {
        let section = Section::take(&mut rest)?;
        if sections.iter().any(|s| s.kind == section.kind) {
            return Err(CodecError::Structure("a section comes twice"));
        }
        sections.push(section);
    }
    if !rest.is_empty() {
        return Err(CodecError::Structure("there is something after the last section"));
    }
    read_sections(&sections)
}
