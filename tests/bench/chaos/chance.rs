//! How often a move fails whose destinations die with a given chance, each on its own account: `--chance PERCENT`.

use crate::accident::{Mode, Random};
use crate::seeds::Seeds;
use crate::stage::{End, Setting, Stage};
use migrate_engine::fault::Point;
use std::io;

/// Destinations of a move.
const DESTINATIONS: [u8; 3] = [1, 2, 4];

/// Where a session dies: the source has been told nothing of it by then.
const DIES_AT: [Point; 2] = [Point::DestinationArmed, Point::DestinationRecorded];

/// Moves to one, two and four destinations, so many of each; whether the target was never lost nor doubled.
pub fn measure(setting: &Setting<'_>, seeds: Seeds, percent: u64) -> bool {
    let mut good = true;
    for destinations in DESTINATIONS {
        let setting = Setting { destinations, ..*setting };
        let not_run = |seed: u64, error: &io::Error| println!("to {destinations}, seed {seed}: NOT RUN: {error}");
        let ends = seeds.each(|seed| run(&setting, seed, percent).inspect_err(|error| not_run(seed, error)).ok());
        let count = |end: End| ends.iter().filter(|one| **one == end).count();
        let (moved, stayed, all) = (count(End::Moved), count(End::Stayed), ends.len());
        let share = |n: usize| 100.0 * n as f64 / all.max(1) as f64;
        println!(
            "to {destinations}, each dies with {percent} %: {stayed} of {all} moves failed, {:.1} % (by chance {:.1} %), the target \
             went on here; {moved} moved; {} neither",
            share(stayed),
            100.0 * (percent as f64 / 100.0).powi(i32::from(destinations)),
            all - moved - stayed,
        );
        good &= moved + stayed == all && all as u64 == seeds.runs;
    }
    good
}

fn run(setting: &Setting<'_>, seed: u64, percent: u64) -> io::Result<End> {
    let mut random = Random::new(seed ^ u64::from(setting.destinations) << 56);
    let dooms: Vec<Option<Point>> = (0..setting.destinations)
        .map(|_| (random.below(100) < percent).then(|| DIES_AT[random.below(2) as usize]))
        .collect();
    let stage = Stage::set(setting, Mode::Auto, Vec::new(), &dooms)?;
    stage.plays_out(seed)
}
