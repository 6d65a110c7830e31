//! What a prepared copy is and where its memory is, for whoever attends it after the death of its maker: by this it can still be
//! parked. A file beside the journal, `ATTEMPT.destination.inventory`:
//!
//! ```text
//! {"terms":{...},"model_bytes":...}     a line of JSON
//! ...                                   the model that the copy was made of ([`codec`])
//! ```
//! Written as soon as the order to run does not come at once, and off the pause therefore. It need only survive the death of the
//! program: with the host the copy ends, too. Where it is cut off, or missing, the copy waits in memory.

use super::parked::Terms;
use crate::image::{Model, codec};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest line of JSON that is read, bytes.
const LINE_MAX: u64 = 1 << 20;

/// Where a shared memory object can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A process has it mapped there.
    Mapped {
        /// The process.
        pid: i32,
        /// Address.
        at: u64,
    },
    /// A process has it open.
    Open {
        /// The process.
        pid: i32,
        /// The descriptor.
        fd: u32,
    },
}

/// Everything but the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// What a tree of its image is made with.
    pub terms: Terms,
    /// Its sockets are the original's, which lives.
    pub same_network: bool,
    /// So long the source may be silent, milliseconds.
    pub lease_ms: u64,
    /// For each address space of the model a process that has it.
    pub mms: Vec<i32>,
    /// For each shared memory object of the model how it is reached; `None`: it is in a queue, say.
    pub shmems: Vec<Option<Way>>,
    /// Length of what follows.
    pub model_bytes: u64,
}

/// Writes it. Half of it, if we die, is none.
///
/// # Errors
/// A full disk; a model that is too large.
pub fn write(path: &Path, inventory: Inventory, model: &Model) -> io::Result<()> {
    let model = codec::encode(model).map_err(io::Error::other)?;
    let inventory = Inventory { model_bytes: model.len() as u64, ..inventory };
    let mut bytes = serde_json::to_vec(&inventory).map_err(io::Error::other)?;
    bytes.push(b'\n');
    bytes.extend(model);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&bytes)
}

/// Reads it, without the model.
///
/// # Errors
/// There is none, or it was cut off.
pub fn read(path: &Path) -> io::Result<Inventory> {
    head(path).map(|(inventory, _)| inventory)
}

/// Reads all of it.
///
/// # Errors
/// There is none, or it was cut off.
pub fn read_whole(path: &Path) -> io::Result<(Inventory, Model)> {
    let (inventory, rest) = head(path)?;
    if inventory.model_bytes > super::protocol::MODEL_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut model = Vec::new();
    rest.take(inventory.model_bytes).read_to_end(&mut model)?;
    Ok((inventory, codec::decode(&model).map_err(io::Error::other)?))
}

fn head(path: &Path) -> io::Result<(Inventory, BufReader<File>)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    (&mut file).take(LINE_MAX).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line).map_err(io::Error::other)?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_whole_is_read_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inventory");
        let written = Inventory {
            terms: Terms { state: serde_json::json!({ "pids": "auto" }), held_off: None },
            same_network: true,
            lease_ms: 60_000,
            mms: vec![42, 43],
            shmems: vec![None, Some(Way::Mapped { pid: 42, at: 0x7000 }), Some(Way::Open { pid: 43, fd: 9 })],
            model_bytes: 0,
        };
        let model = crate::image::tests::sample();
        write(&path, written.clone(), &model).unwrap();
        let (found, again) = read_whole(&path).unwrap();
        assert_eq!(found, Inventory { model_bytes: found.model_bytes, ..written });
        assert_eq!(again, model);
        assert_eq!(read(&path).unwrap(), found);
        let whole = std::fs::read(&path).unwrap();
        for cut in (1..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert!(read_whole(&path).is_err(), "{cut} bytes missing");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
