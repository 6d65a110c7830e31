//! The order in which pages were touched first, kept beside an image: what the next restore of it sends first.

use crate::image::{MmId, ShmemId};
use crate::memory::{PageRange, Space};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// Most ranges that are kept.
const RANGES_MAX: usize = 1 << 13;
/// Most pages of one of them.
const PAGES_MAX: u64 = 1 << 16;
/// Largest file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

/// Pages in the order of their first touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touches {
    ranges: Vec<(Space, PageRange)>,
    seen: HashSet<(Space, u64)>,
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    /// The image's id: of another image this says nothing.
    image: String,
    /// Kind of the space (`m` or `s`), its number, first page, pages.
    touches: Vec<(char, u32, u64, u64)>,
}

/// Beside the image, as it is no part of it.
pub fn path(image: &Path) -> Option<PathBuf> {
    let mut name = image.file_name()?.to_owned();
    name.push(".touches");
    Some(image.with_file_name(name))
}

impl Touches {
    /// A page was touched.
    pub fn note(&mut self, space: Space, page: u64) {
        if self.ranges.len() >= RANGES_MAX || !self.seen.insert((space, page)) {
            return;
        }
        match self.ranges.last_mut() {
            Some((last, range)) if *last == space && range.end() == page => range.count += 1,
            _ => self.ranges.push((space, PageRange::new(page, 1))),
        }
    }

    /// All of them, the earliest first.
    pub fn iter(&self) -> impl Iterator<Item = (Space, PageRange)> + '_ {
        self.ranges.iter().copied()
    }

    /// What was noted for this image, if anything usable was.
    pub fn read(path: &Path, image: &str) -> Self {
        let read = || -> Option<Self> {
            let meta = std::fs::symlink_metadata(path).ok()?;
            if !meta.is_file() || meta.len() > FILE_MAX {
                return None;
            }
            let file: File = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            let mut touches = Self::default();
            for (kind, id, first, count) in file.touches.into_iter().filter(|_| file.image == image) {
                let space = if kind == 's' { Space::Shmem(ShmemId(id)) } else { Space::Mm(MmId(id)) };
                let sound = count <= PAGES_MAX && first.checked_add(count).is_some();
                (first..if sound { first + count } else { first }).for_each(|page| touches.note(space, page));
            }
            Some(touches)
        };
        read().unwrap_or_default()
    }

    /// Notes them for an image, in one step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, image: &str) -> io::Result<()> {
        let row = |(space, range): (Space, PageRange)| match space {
            Space::Mm(id) => ('m', id.0, range.first, range.count),
            Space::Shmem(id) => ('s', id.0, range.first, range.count),
        };
        let file = File { image: image.to_owned(), touches: self.iter().map(row).collect() };
        let mut text = serde_json::to_vec(&file).map_err(io::Error::other)?;
        text.push(b'\n');
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let partial = path.with_file_name(name);
        std::fs::write(&partial, text)?;
        std::fs::rename(&partial, path).inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept_for_the_image_it_was_noted_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir.path().join("image")).unwrap();
        let mut touches = Touches::default();
        let own = Space::Mm(MmId(3));
        for page in [9, 10, 4, 9, 5] {
            touches.note(own, page);
        }
        touches.note(Space::Shmem(ShmemId(1)), 5);
        let ranges: Vec<_> = touches.iter().collect();
        let range = PageRange::new;
        assert_eq!(ranges, [(own, range(9, 2)), (own, range(4, 2)), (Space::Shmem(ShmemId(1)), range(5, 1))]);
        touches.write(&path, "id").unwrap();
        assert_eq!(Touches::read(&path, "id"), touches);
        assert_eq!(Touches::read(&path, "another"), Touches::default());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Touches::read(&path, "id"), Touches::default());
    }
}
