//! Where pages go when they leave a target: a page store, or a stream.

use super::{Lane, Mark, PageWriter, SpaceInfo, StoreError};
use crate::memory::{PageRange, Space};

/// Takes pages from several threads at once; each has a lane of its own.
///
/// Where the same page is given more than once, the later call wins, provided the earlier one had ended.
pub trait PageSink: Sync {
    /// Declares a space; one that is only written to needs no declaration.
    fn space(&self, space: Space, info: SpaceInfo) -> Result<(), StoreError>;

    /// Says something about pages without giving their content.
    fn mark(&self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError>;

    /// Everything said about `from`, before and after, is about `to`; `None`: about nothing. Once for each `from`.
    fn rename(&self, from: Space, to: Option<Space>) -> Result<(), StoreError>;

    /// A lane for the calling thread.
    fn lane(&self) -> Result<Box<dyn PageLane + '_>, StoreError>;
}

/// One thread's way into a [`PageSink`].
pub trait PageLane {
    /// Gives the content of consecutive pages: a whole number of them.
    fn write_run(&mut self, space: Space, first_page: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Says something about pages without giving their content.
    fn mark(&mut self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError>;

    /// Passes on what is held back. To be called before the lane is dropped.
    fn flush(&mut self) -> Result<(), StoreError>;
}

impl PageSink for PageWriter {
    fn space(&self, space: Space, info: SpaceInfo) -> Result<(), StoreError> {
        PageWriter::space(self, space, info);
        Ok(())
    }

    fn mark(&self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        PageWriter::mark(self, space, range, mark);
        Ok(())
    }

    fn rename(&self, from: Space, to: Option<Space>) -> Result<(), StoreError> {
        PageWriter::rename(self, from, to);
        Ok(())
    }

    fn lane(&self) -> Result<Box<dyn PageLane + '_>, StoreError> {
        Ok(Box::new(PageWriter::lane(self)?))
    }
}

impl PageLane for Lane<'_> {
    fn write_run(&mut self, space: Space, first_page: u64, data: &[u8]) -> Result<(), StoreError> {
        Lane::write_run(self, space, first_page, data)
    }

    fn mark(&mut self, space: Space, range: PageRange, mark: Mark) -> Result<(), StoreError> {
        Lane::mark(self, space, range, mark);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        // Neighbours of the next call may still join; `PageWriter::finish` writes the rest.
        Ok(())
    }
}
