//! MEMORY: how pages are found and carried.

use super::{Words, one_of};
use crate::ops::options::{Compress, MemoryOptions, Track};
use crate::ops::words::Rate;

const TRACK: Words<Track> = &[
    ("auto", Track::Auto, "the best this kernel has"),
    ("wp", Track::WriteProtect, "userfaultfd write-protection and PAGEMAP_SCAN, Linux 6.7 and later"),
    (
        "soft-dirty",
        Track::SoftDirty,
        "soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), by PAGEMAP_SCAN where the kernel has it",
    ),
    (
        "soft-dirty-pagemap",
        Track::SoftDirtyPagemap,
        "the same, read page by page from the pagemap: any kernel since 3.11",
    ),
    ("hash", Track::Hash, "compare each page with the copy taken before"),
];

/// The MEMORY group.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// How pages that were written to between two rounds are found
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = one_of(TRACK))]
    track: Track,
    /// Compress pages: auto, off, or a level of zstd from 1 to 19
    ///
    /// auto compresses as much as is faster than sending the pages as they are.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = compress)]
    compress: Compress,
    /// Write or send at most this much a second, as in 100MB/s or 1Gbit/s
    ///
    /// It holds while the target runs: a target that is stopped is not kept waiting for it, but by dump --stop-first.
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// Number of streams pages are carried in [default: as many as pay]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,
}

impl MemoryArgs {
    /// The choices as the engine takes them.
    pub fn options(&self) -> MemoryOptions {
        MemoryOptions {
            track: self.track,
            compress: self.compress,
            bandwidth: self.bandwidth.map(|rate| rate.0),
            streams: self.streams,
        }
    }
}

fn compress(word: &str) -> Result<Compress, String> {
    match word {
        "auto" => Ok(Compress::Auto),
        "off" => Ok(Compress::Off),
        _ => word
            .parse()
            .ok()
            .filter(|level| (1..=19).contains(level))
            .map(Compress::Level)
            .ok_or_else(|| "write auto, off, or a level from 1 to 19".to_owned()),
    }
}
