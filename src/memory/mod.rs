//! Memory of the target: ranges of pages, the page store, the pipeline between the two.
//!
//! What a target has: [`scan`], [`shared`] (objects), [`cow`] (pages that relatives share), [`zero`]. What it writes: [`track`], and
//! [`rounds`] over it. Out of it and into a [`store`]: [`pipeline`], held back by [`throttle`]; of one instant: [`snapshot`]. Back, when
//! somebody touches it: [`lazy`]; [`unprotect`] is the end of both.

pub mod cow;
pub mod lazy;
pub mod pipeline;
pub mod ranges;
pub mod rounds;
pub mod scan;
pub mod shared;
pub mod snapshot;
pub mod store;
pub mod throttle;
pub mod track;
pub mod unprotect;
pub mod zero;

pub use crate::sys::page_buffer::PageBuffer;
pub use ranges::{PageRange, RangeSet, Space};
