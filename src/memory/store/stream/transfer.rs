//! Images from directories into streams and back.

use super::{Head, Item, StreamError, StreamReader, StreamWriter};
use crate::image::manifest::Kind;
use crate::memory::PageBuffer;
use crate::memory::store::{
    Draft, ImageDir, ImageWriter, Mark, PageOptions, PageReader, PageSink, Scratch, Source, SpaceInfo, StoreError,
};
use std::io::{Read, Write};

/// Sends an image that lies in a directory. Parents are resolved: the stream stands for itself.
///
/// # Errors
/// An image that is damaged, a stream that breaks.
pub fn send<W: Write + Send>(image: &ImageDir, out: W, level: Option<i32>) -> Result<W, StoreError> {
    let manifest = image.manifest();
    let head = Head {
        kind: manifest.kind,
        host: manifest.host.clone(),
        tree: manifest.tree.clone(),
        restore: manifest.restore.clone(),
    };
    let stream = StreamWriter::new(out, level, &head)?;
    if manifest.kind == Kind::Full {
        stream.model(&image.model()?)?;
    }
    let reader = PageReader::of(image)?;
    let mut scratch = Scratch::default();
    let mut buf = PageBuffer::default();
    let mut lane = stream.lane()?;
    for entry in &reader.index().spaces {
        let info = SpaceInfo { identity: entry.identity, parent: None, cow_parent: entry.cow_parent };
        stream.space(entry.space, info)?;
        for piece in reader.runs(entry.space)?.iter().flat_map(|run| run.by_frame(&reader)) {
            match piece.source {
                Source::Zero => lane.mark(entry.space, piece.range, Mark::Zero)?,
                Source::Inherit => lane.mark(entry.space, piece.range, Mark::Inherit)?,
                Source::Data { .. } => {
                    buf.resize(piece.range.bytes() as usize);
                    reader.read_into(&piece, &mut buf, &mut scratch)?;
                    lane.write_run(entry.space, piece.range.first, &buf)?;
                }
            }
        }
    }
    lane.flush()?;
    drop(lane);
    Ok(stream.finish()?)
}

/// Receives a stream into a directory: the image appears there when all of it has arrived and was found good.
///
/// # Errors
/// A stream that breaks, is damaged or cut short; a disk that is full. Then there is no image.
pub fn receive(input: impl Read, mut image: ImageWriter, options: PageOptions) -> Result<ImageDir, StoreError> {
    let mut stream = StreamReader::new(input)?;
    let pages = image.pages(options);
    let mut head = None;
    let mut model = None;
    {
        let mut lane = pages.lane()?;
        loop {
            match stream.next_item()? {
                Item::Head(found) => head = Some(found),
                Item::Space(space, info) => pages.space(space, info),
                Item::Data(space, ranges, mut data) => {
                    for range in ranges {
                        let (now, later) = data.split_at(range.bytes() as usize);
                        lane.write_run(space, range.first, now)?;
                        data = later;
                    }
                }
                Item::Mark(space, ranges, mark) => ranges.iter().for_each(|range| lane.mark(space, *range, mark)),
                Item::Rename(from, to) => pages.rename(from, to),
                Item::Model(found) => model = Some(found),
                Item::End => break,
            }
        }
    }
    let head = head.ok_or(StreamError::Damaged("it has no head"))?;
    let stored = pages.finish()?;
    let draft = match (&model, head.kind) {
        (Some(model), Kind::Full) => {
            image.write_model(model)?;
            Draft { host: head.host, restore: head.restore, ..Draft::of(model, &stored) }
        }
        (None, Kind::Memory) => Draft { kind: Kind::Memory, host: head.host, tree: head.tree, restore: head.restore },
        _ => return Err(StreamError::Damaged("its model is missing, or one too many").into()),
    };
    image.commit(draft, stored)
}
