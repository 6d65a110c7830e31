//! Contents of an image, given to whoever reads those of a live tree.

use super::{PageReader, Scratch};
use crate::memory::pipeline::{PageError, ReadPages};
use crate::memory::{PageRange, Space};
use std::io;
use std::sync::{Mutex, PoisonError};

/// Pages of an image and its parents. What is given was checked; any number of threads may read.
#[derive(Debug)]
pub struct Contents {
    reader: PageReader,
    /// Buffers that no thread has in use: one for each that has read at the same time.
    idle: Mutex<Vec<Scratch>>,
}

impl Contents {
    /// What this one reads.
    pub fn of(reader: PageReader) -> Self {
        Self { reader, idle: Mutex::default() }
    }

    fn read_range(&self, space: Space, range: PageRange, buf: &mut [u8], scratch: &mut Scratch) -> io::Result<()> {
        let mut rest = (range.first, buf);
        for run in self.reader.contents_in(space, range).map_err(io::Error::other)? {
            if run.range.first != rest.0 {
                break;
            }
            let (part, later) = std::mem::take(&mut rest.1).split_at_mut(run.range.bytes() as usize);
            self.reader.read_into(&run, part, scratch).map_err(io::Error::other)?;
            rest = (run.range.end(), later);
        }
        if rest.0 == range.end() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl ReadPages for Contents {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = idle().pop().unwrap_or_default();
        let mut rest = buf;
        for range in ranges {
            let (part, later) = rest.split_at_mut(range.bytes() as usize);
            rest = later;
            let failed = |source| PageError { page: range.first, source };
            self.read_range(space, *range, part, &mut scratch).map_err(failed)?;
        }
        // Those of a thread that has failed are of no use: it reads no more.
        idle().push(scratch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::memory::store::{Draft, ImageWriter, PageOptions};

    #[test]
    fn pages_are_read_as_they_are_and_a_hole_is_none() {
        let at = tempfile::tempdir().unwrap();
        let dir = at.path().join("image");
        let model = crate::image::tests::sample();
        let mut image = ImageWriter::create(&dir, true).unwrap();
        let (space, pages) = (Space::Mm(MmId(0)), image.pages(PageOptions::default()));
        let content: Vec<u8> = (1..=3).flat_map(|n| vec![n; 4096]).collect();
        pages.write_run(space, 8, &content).unwrap();
        image.write_model(&model).unwrap();
        let pages = pages.finish().unwrap();
        image.commit(Draft::of(&model, &pages), pages).unwrap();
        let contents = Contents::of(PageReader::open(&dir).unwrap());
        let mut buf = vec![0; 2 * 4096];
        contents.read(space, &[PageRange::new(10, 1), PageRange::new(8, 1)], &mut buf).unwrap();
        assert_eq!((&buf[..4096], &buf[4096..]), (&[3; 4096][..], &[1; 4096][..]));
        for hole in [PageRange::new(7, 2), PageRange::new(10, 2)] {
            let error = contents.read(space, &[hole], &mut buf).unwrap_err();
            assert_eq!((error.page, error.source.kind()), (hole.first, io::ErrorKind::NotFound));
        }
    }
}
