//! What a person does whom the programs have left something to decide: they go by what `migrate status` says on each host.

use crate::host::Host;
use crate::stage::{Stage, program};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

fn word<'v>(entry: &'v Value, key: &str) -> &'v str {
    entry[key].as_str().unwrap_or_default()
}

/// What a command says about itself with `--json`.
fn said(host: &Host, words: &[&str]) -> Value {
    let output = host.command(program()).args(words).arg("--json").stdout(Stdio::piped()).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    serde_json::from_slice(text.rsplit(|b| *b == b'\n').find(|line| !line.is_empty()).unwrap_or(b"null"))
        .unwrap_or_default()
}

/// The one session of a host.
pub fn entry(host: &Host) -> Value {
    said(host, &["status", "--all"])["sessions"][0].clone()
}

impl Stage {
    /// Decides, until there is nothing left to decide; what was decided.
    pub fn person(&self) -> Option<String> {
        let mut decided = Vec::new();
        for _ in 0..4 + 2 * self.there.len() {
            let Some((host, session, choice)) = self.decision() else { break };
            said(host, &["resolve", &session, choice, "--yes"]);
            decided.push(format!("{} {choice}", host.name()));
            std::thread::sleep(Duration::from_millis(50));
        }
        (!decided.is_empty()).then(|| decided.join(", "))
    }

    /// What is to be done next, by what all hosts say; `None` where there is nothing to decide.
    fn decision(&self) -> Option<(&Host, String, &'static str)> {
        let here = entry(&self.a);
        let there: Vec<Value> = self.there.iter().map(|there| entry(&there.host)).collect();
        // The one that was told to run it comes first, of those that wait.
        let chosen = self.there.iter().position(|there| there.address == word(&here, "peer")).unwrap_or(0);
        let order = (chosen..there.len()).chain(0..chosen);
        let waits = order.clone().find(|n| word(&there[*n], "phase").starts_with("prepared"));
        let runs = order.clone().any(|n| matches!(word(&there[n], "phase"), "owner" | "moved"));
        let at_a = |choice| Some((&self.a, word(&here, "session").to_owned(), choice));
        let at_b = |choice| waits.map(|n| (&self.there[n].host, word(&there[n], "session").to_owned(), choice));
        let (owner, phase) = (word(&here, "owner"), word(&here, "phase"));
        if phase == "stayed" || phase == "moved" || (runs && waits.is_some()) {
            return at_b("--discard");
        }
        match owner {
            // The original has ended with its host.
            "nobody" if runs => None,
            "nobody" => at_b("--run"),
            "in-doubt" | "there" if runs => at_a("--discard"),
            "in-doubt" | "there" if self.a.was_down() => at_b("--run").or_else(|| at_a("--discard")),
            "there" => at_a("--discard"),
            "in-doubt" if word(&here, "words").contains("ended with that host") => at_a("--discard"),
            "here" if waits.is_some() => at_b("--discard"),
            "here" | "in-doubt" => at_a("--run"),
            _ => None,
        }
    }
}
