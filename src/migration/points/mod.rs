//! `--recoverable`: until the destination has all of the target's memory, it sends consistent states of the target back.
//!
//! ```text
//! source                                          destination
//! the target runs there; pages go over links of their own ([`super::postcopy`])
//! new link, Points --------------------------->   a session of its own
//! Point {whole} ------------------------------>   stops the target, reads what it is and what has changed, lets it go on
//!                <------------------------------  PAGE ..., Point, its model, its index
//! written, checked, and given its name: the newest point from here on; TIME later the next one
//! ```
//! A point is the model of the target as it stood, and for each page that it had where the content is: in this point or one
//! before it, or, for pages that had not come or have not been written to since, in the frozen original. The first point over a
//! link is whole: it has all that the original does not have, and those before it are not needed any more. Of the others
//! each needs all since the last whole one, so a link on which one is lost is not used again.
//!
//! Who resumes a point ends the original, and whatever the target has done since is lost: only a person does that, or a
//! command that has switched the other host off.

pub mod giving;
pub mod series;
pub mod taking;

use crate::image::{MmId, ShmemId, limits};
use crate::memory::{PageRange, Space};
use std::time::Duration;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Content that a point has of its own, at most, bytes: both sides hold it.
pub const CHANGED_MAX: u64 = 1 << 30;
/// Rows of an index, at most.
const ROWS_MAX: usize = 4 << 20;

/// A point as it is taken, at the destination.
#[derive(Debug, Default)]
pub struct Taken {
    /// Encoded model.
    pub model: Vec<u8>,
    /// Where the content of each page is.
    pub index: Vec<Row>,
    /// Pages that are in this point, by the names of points: spaces have them for as long as points are not whole.
    pub changed: Vec<(Space, PageRange)>,
    /// Their content, one behind the other.
    pub content: Vec<u8>,
    /// It has everything that the original does not have.
    pub whole: bool,
    /// How long the target stood still for it.
    pub pause: Duration,
    /// Pages that were read meanwhile, to see whether they are those of the point before.
    pub pages_read: u64,
}

/// Where pages of a space of the model have their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The space, as the model of the point calls it.
    pub space: Space,
    /// Its pages.
    pub range: PageRange,
    /// Where their content is.
    pub place: Place,
}

/// Where the content of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In points, under the same numbers: the newest.
    Points(Space),
    /// In the frozen original: its address space, and the first page there.
    Original(MmId, u64),
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireRow {
    first: U64,
    pages: U64,
    from: U64,
    space: U32,
    id: U32,
    /// 0: an address space, 1: a shared memory object.
    kind: u8,
    /// 0 and 1: in points, under the name of such a space; 2: in the original.
    place: u8,
    spare: [u8; 6],
}

fn parts(space: Space) -> (u8, u32) {
    match space {
        Space::Mm(MmId(id)) => (0, id),
        Space::Shmem(ShmemId(id)) => (1, id),
    }
}

fn space(kind: u8, id: u32) -> Option<Space> {
    match kind {
        0 => Some(Space::Mm(MmId(id))),
        1 => Some(Space::Shmem(ShmemId(id))),
        _ => None,
    }
}

/// An index as it travels.
pub fn encode(index: &[Row]) -> Vec<u8> {
    let row = |row: &Row| {
        let (kind, space) = parts(row.space);
        let (place, id, from) = match row.place {
            Place::Points(space) => (parts(space).0, parts(space).1, row.range.first),
            Place::Original(mm, from) => (2, mm.0, from),
        };
        let (first, pages) = (row.range.first.into(), row.range.count.into());
        WireRow { first, pages, from: from.into(), space: space.into(), id: id.into(), kind, place, spare: [0; 6] }
    };
    index.iter().flat_map(|r| row(r).as_bytes().to_vec()).collect()
}

/// The other way; `None`: these bytes are no index.
pub fn decode(bytes: &[u8]) -> Option<Vec<Row>> {
    let rows = <[WireRow]>::ref_from_bytes(bytes).ok()?;
    if rows.len() > ROWS_MAX {
        return None;
    }
    rows.iter().map(read).collect()
}

fn read(row: &WireRow) -> Option<Row> {
    let range = PageRange::new(row.first.get(), row.pages.get());
    let fits = |first: u64| first < limits::PAGE_NUMBERS && range.count <= limits::PAGE_NUMBERS - first;
    let place = match row.place {
        2 if row.kind == 0 => Place::Original(MmId(row.id.get()), row.from.get()),
        kind if row.from == row.first => Place::Points(space(kind, row.id.get())?),
        _ => return None,
    };
    let sound = !range.is_empty() && fits(range.first) && fits(row.from.get()) && row.spare == [0; 6];
    sound.then_some(Row { space: space(row.kind, row.space.get())?, range, place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(space: Space, place: Place) -> Row {
        Row { space, range: PageRange::new(7, 3), place }
    }

    #[test]
    fn an_index_arrives_as_it_was() {
        let (mm, shared) = (Space::Mm(MmId(4)), Space::Shmem(ShmemId(2)));
        let all = [
            row(mm, Place::Points(Space::Mm(MmId(9)))),
            row(mm, Place::Original(MmId(1), 700)),
            row(shared, Place::Points(Space::Shmem(ShmemId(5)))),
        ];
        assert_eq!(decode(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn rows_that_cannot_be_are_refused() {
        let mm = Space::Mm(MmId(0));
        let edge = limits::PAGE_NUMBERS - 2;
        for bad in [
            Row { range: PageRange::new(edge, 3), ..row(mm, Place::Points(mm)) },
            Row { range: PageRange::new(1, 0), ..row(mm, Place::Points(mm)) },
            row(mm, Place::Original(MmId(0), edge)),
            row(Space::Shmem(ShmemId(0)), Place::Original(MmId(0), 0)),
        ] {
            assert_eq!(decode(&encode(&[bad])), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(index) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&index)), Some(index));
            }
        }
    }
}
