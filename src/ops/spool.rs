//! An image that comes as a stream, put where it can be read at random until the restore is over.

use super::options::ImagePlace;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::memory::store::{ImageWriter, PageOptions, StoreError, receive};
use std::{
    fs::{self, DirBuilder},
    io::Read,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The directory of an image; one that was received is removed with this value.
#[derive(Debug)]
pub struct Spooled {
    dir: PathBuf,
    spool: Option<PathBuf>,
}

impl Spooled {
    /// The directory named, or a temporary one with what `input` gives.
    ///
    /// # Errors
    /// A stream that is damaged or cut short (exit code 7), no room for it.
    pub fn of(place: &ImagePlace, input: impl Read) -> Result<Self> {
        match place {
            ImagePlace::Dir(dir) => Ok(Self { dir: dir.clone(), spool: None }),
            ImagePlace::Stream => Self::receive(&spool_place(), input),
        }
    }

    fn receive(place: &Path, input: impl Read) -> Result<Self> {
        let spool = place.join(format!("migrate-stream-{}", std::process::id()));
        let failed = |e: StoreError| failure(place, &e);
        DirBuilder::new().mode(0o700).create(&spool).map_err(|source| {
            failed(StoreError::Io { operation: "make the directory", path: spool.clone(), source })
        })?;
        // From here on dropping it removes whatever has arrived.
        let spooled = Self { dir: spool.join("image"), spool: Some(spool) };
        let image = ImageWriter::create(&spooled.dir, false).map_err(failed)?;
        receive(input, image, PageOptions::default()).map_err(failed)?;
        Ok(spooled)
    }

    /// Where the image is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Some(spool) = &self.spool {
            // It is in a place for temporary files: what cannot be removed now is removed there one day.
            let _ = fs::remove_dir_all(spool);
        }
    }
}

/// What the user names, else memory, else the place for temporary files.
fn spool_place() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(dir) => dir.into(),
        None if Path::new("/dev/shm").is_dir() => "/dev/shm".into(),
        None => std::env::temp_dir(),
    }
}

fn failure(place: &Path, error: &StoreError) -> Failure {
    let failure =
        Failure::of("the image stream cannot be used", error).code(error.code()).target(TargetState::NotStarted);
    match error {
        StoreError::Full { .. } => failure.hint(format!(
            "the stream is kept in {} while it is restored: name a directory with more room in TMPDIR",
            place.display()
        )),
        StoreError::Io { .. } => failure,
        _ => failure.kind(FailureKind::Image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{MmId, manifest::HostSummary, manifest::Kind, tests::sample};
    use crate::memory::{
        Space,
        store::{Head, ImageDir, PageSink, StreamWriter},
    };

    fn stream() -> Vec<u8> {
        let model = sample();
        let head = Head { kind: Kind::Full, host: HostSummary::of(&model), tree: vec![], restore: Default::default() };
        let stream = StreamWriter::new(Vec::new(), None, &head).unwrap();
        let mut lane = stream.lane().unwrap();
        lane.write_run(Space::Mm(MmId(0)), 8, &[5; 4096]).unwrap();
        lane.flush().unwrap();
        drop(lane);
        stream.model(&model).unwrap();
        stream.finish().unwrap()
    }

    #[test]
    fn a_stream_becomes_an_image_for_a_while() {
        let at = tempfile::tempdir().unwrap();
        let bytes = stream();
        let spooled = Spooled::receive(at.path(), &bytes[..]).unwrap();
        assert_eq!(ImageDir::open(spooled.dir()).unwrap().model().unwrap(), sample());
        drop(spooled);
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0);

        let cut = Spooled::receive(at.path(), &bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!((cut.exit_code(), cut.target), (7, TargetState::NotStarted));
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0);
    }
}
