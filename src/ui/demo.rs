//! What the demo shows a person.

use super::Settings;
use super::units;
use crate::ops::demo::Scene;
use crate::ops::demo::parts::Verdict;
use std::io::Write;
use std::time::Duration;

/// Prints one scene. A closed standard output ends nothing.
pub fn show(scene: &Scene, settings: &Settings) {
    if settings.quiet && !matches!(scene, Scene::Verdict(_)) {
        return;
    }
    let text = match scene {
        Scene::Sight(s) => format!(
            "{:6.1} s  {:8}  counter {:6}  round trip {:>9}  longest {:>9}",
            s.at_ms as f64 / 1e3,
            s.host,
            s.counter,
            units::time(Duration::from_micros(s.round_trip_us)),
            units::time(Duration::from_micros(s.longest_us))
        ),
        Scene::Word(word) => format!("          $ {word}"),
        Scene::Moved { pause } => match pause {
            Some(pause) => format!("          moved, pause {}", units::time(*pause)),
            None => "          moved".to_owned(),
        },
        Scene::Verdict(verdict) => self::verdict(verdict),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn verdict(v: &Verdict) -> String {
    let good = if v.is_good() { "nothing was lost" } else { "SOMETHING WAS LOST" };
    let back = if v.counter_went_back { "\n  the counter went BACK" } else { "" };
    format!(
        "{good}\n  questions asked  {}\n  bytes lost       {}\n  resets           {}\n  longest gap      {}\n  answered by      {}{back}",
        v.questions,
        v.bytes_lost,
        v.resets,
        units::time(Duration::from_micros(v.longest_gap_us)),
        v.hosts.join(", then ")
    )
}
