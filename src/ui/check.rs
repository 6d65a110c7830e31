//! What `check` has found.

use super::json::{self, Object};
use super::style::{Style, clean, paint};
use super::units::{bytes, count};
use super::{Settings, Stream, failure, report, result_with, table};
use crate::failure::FailureKind;
use crate::kernel::{Answer, Need};
use crate::ops::check::peers::{PeerReport, There};
use crate::ops::check::{ProbeLine, Report, TargetReport};
use crate::ops::words::Target;

/// Shows the report; returns the exit code.
pub fn report(report: &Report, settings: &Settings) -> u8 {
    let exit = if report.is_ok() { 0 } else { FailureKind::Blocked as u8 };
    result_with(settings, "check", exit, fields(report), &text(report, settings));
    exit
}

fn fields(report: &Report) -> Object {
    let facts = report.facts;
    let host = Object::default()
        .with("hostname", facts.hostname.as_str())
        .with("kernel", facts.release.as_str())
        .with("machine", facts.machine.as_str())
        .with("cpus", facts.cpus)
        .with("cpu_features", facts.cpu_features.clone())
        .with("memory_bytes", facts.memory.total)
        .with("memory_available_bytes", facts.memory.available)
        .with("uid", facts.euid);
    Object::default()
        .object("here", host)
        .list("probes", report.probes.iter().map(probe).collect())
        .list("targets", report.targets.iter().map(target).collect())
        .list("peers", report.peers.iter().map(peer).collect())
        .list("blockers", report.all_blockers().iter().map(json::blocker).collect())
}

fn probe(line: &ProbeLine) -> Object {
    let why = match &line.answer {
        Answer::No(why) => Some(why.as_str()),
        Answer::Yes | Answer::Masked => None,
    };
    Object::default()
        .with("name", line.probe.name())
        .with("answer", answer(&line.answer))
        .known("why", why)
        .with("need", need(line.probe.need()))
        .with("purpose", line.probe.purpose())
        .with("without", line.probe.without())
}

fn target(target: &TargetReport) -> Object {
    Object::default()
        .with("target", target.target.to_string())
        .with("pids", target.roots.iter().map(|pid| pid.0).collect::<Vec<_>>())
        .with("comm", target.comm.as_str())
        .with("processes", target.processes)
        .with("threads", target.threads)
        .with("memory_bytes", target.memory_bytes)
        .list("blockers", target.blockers.iter().map(json::blocker).collect())
}

/// A destination and what is in the way there.
pub(super) fn peer(peer: &PeerReport) -> Object {
    let known = peer.program.is_some();
    let text = |text: &str| known.then(|| text.to_owned());
    Object::default()
        .with("dest", peer.dest.to_string())
        .known("program", peer.program.as_deref())
        .known("hostname", text(&peer.host.hostname))
        .known("kernel", text(&peer.host.kernel))
        .known("machine", text(&peer.host.arch))
        .known("memory_available_bytes", Some(peer.host.memory_available_bytes).filter(|n| *n > 0))
        .list("targets", peer.targets.iter().map(there).collect())
        .list("blockers", peer.all_blockers().map(json::blocker).collect())
}

fn there((target, there): &(Target, There)) -> Object {
    let object = Object::default().with("target", target.to_string()).with("blockers", there.blockers.len() as u64);
    match &there.forecast {
        Some(forecast) => object.object("forecast", json::forecast(forecast)),
        None => object,
    }
}

fn answer(answer: &Answer) -> &'static str {
    match answer {
        Answer::Yes => "yes",
        Answer::No(_) => "no",
        Answer::Masked => "masked",
    }
}

fn need(need: Need) -> &'static str {
    match need {
        Need::Required => "required",
        Need::Wanted => "wanted",
        Need::Useful => "useful",
    }
}

fn text(report: &Report, settings: &Settings) -> String {
    let coloured = settings.coloured(Stream::Out);
    let facts = report.facts;
    let mut text = format!(
        "{}: Linux {}, {}, {}, {} of {} free, user {}\n",
        clean(&facts.hostname),
        clean(&facts.release),
        facts.machine,
        count(facts.cpus.into(), "CPU"),
        bytes(facts.memory.available),
        bytes(facts.memory.total),
        facts.euid,
    );
    // With targets, of the host only what is missing is of interest.
    if report.targets.is_empty() {
        text += "\n";
        text += &probes(report, coloured);
        text += "\n";
        text += match report.blockers.is_empty() {
            true => "everything that is needed is there\n",
            false => "nothing works here without these:\n",
        };
    }
    if !report.blockers.is_empty() {
        text += &failure::blockers(&report.blockers, coloured);
    }
    for target in &report.targets {
        text += &target_text(target, coloured);
    }
    for peer in &report.peers {
        text += &peer_text(peer, coloured);
    }
    text
}

fn peer_text(peer: &PeerReport, coloured: bool) -> String {
    let mut text = format!("\n{}", paint(&peer.dest.to_string(), Style::Strong, coloured));
    match &peer.program {
        Some(program) => {
            let free = bytes(peer.host.memory_available_bytes);
            let (name, kernel, arch) = (clean(&peer.host.hostname), clean(&peer.host.kernel), clean(&peer.host.arch));
            text += &format!(": {name}, Linux {kernel}, {arch}, {free} free, migrate {}\n", clean(program));
        }
        None => text += "\n",
    }
    let blockers: Vec<_> = peer.all_blockers().cloned().collect();
    match (blockers.is_empty(), peer.targets.is_empty()) {
        (false, _) => text += &failure::blockers(&blockers, coloured),
        (true, true) => text += "nothing seen in the way there\n",
        (true, false) => {
            let names: Vec<_> = peer.targets.iter().map(|(target, _)| target.to_string()).collect();
            text += &format!("could go there: {}\n", names.join(", "));
            let known = peer.targets.iter().filter_map(|(target, there)| Some((target, there.forecast.as_ref()?)));
            known.for_each(|(target, cost)| text += &format!("  {target}: {}\n", report::forecast(cost)));
        }
    }
    text
}

fn probes(report: &Report, coloured: bool) -> String {
    let rows: Vec<[String; 3]> = report
        .probes
        .iter()
        .map(|line| {
            let meaning = match &line.answer {
                Answer::Yes => line.probe.purpose().to_owned(),
                Answer::No(why) => format!("{}; {why}", line.probe.without()),
                Answer::Masked => format!("{}; masked", line.probe.without()),
            };
            [line.probe.name().to_owned(), answer(&line.answer).to_owned(), meaning]
        })
        .collect();
    table::lay_out(["PROBE", "HERE", "MEANING"], &rows, coloured)
}

fn target_text(target: &TargetReport, coloured: bool) -> String {
    let size = [
        count(target.processes.into(), "process"),
        count(target.threads.into(), "thread"),
        format!("{} resident", bytes(target.memory_bytes)),
    ];
    let name = paint(&target.target.to_string(), Style::Strong, coloured);
    let mut text = format!("\n{name} ({}): {}\n", clean(&target.comm), size.join(", "));
    if target.blockers.is_empty() {
        text += "nothing seen in the way; `migrate dump --dry-run` looks at every descriptor and mapping\n";
    } else {
        text += &failure::blockers(&target.blockers, coloured);
    }
    text
}
