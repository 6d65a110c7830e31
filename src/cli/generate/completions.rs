//! Completions for bash, zsh and fish: what clap_complete makes, with our own candidates put in.

use super::{Generated, Kind, kind};
use crate::blocker::entries;
use clap_complete::Shell;

/// The completion files.
pub fn completions() -> Vec<Generated> {
    let file = |name: &str, text| Generated { path: format!("completions/{name}"), text };
    vec![file("migrate.bash", bash()), file("_migrate", zsh()), file("migrate.fish", fish())]
}

fn base(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::command(), "migrate", &mut text);
    // Trailing blanks are not ours to keep.
    let text = String::from_utf8(text).expect("the generators write UTF-8");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The definition with the options of every verb spread to the verbs.
fn built() -> clap::Command {
    let mut command = crate::cli::command();
    command.build();
    command
}

fn bash() -> String {
    let command = built();
    let mut options: Vec<String> = Vec::new();
    let mut positionals = Vec::new();
    for verb in command.get_subcommands() {
        for arg in verb.get_arguments().filter(|arg| !arg.is_positional() && arg.get_action().takes_values()) {
            options.extend(arg.get_long().map(|long| format!("--{long}")));
            options.extend(arg.get_short().map(|short| format!("-{short}")));
        }
        for (at, arg) in verb.get_positionals().enumerate() {
            let name = match kind(arg) {
                Some(Kind::Target) => "target",
                Some(Kind::Host) => "host",
                Some(Kind::Code) => "code",
                None => continue,
            };
            let many = arg.get_num_args().is_some_and(|range| range.max_values() > 1)
                || matches!(arg.get_action(), clap::ArgAction::Append);
            let at = if many { "*".to_owned() } else { at.to_string() };
            positionals.push(format!("{}:{at}) kind={name} ;;", verb.get_name()));
        }
    }
    options.sort();
    options.dedup();
    let codes: Vec<_> = entries().map(|entry| entry.code.to_string()).collect();
    let dynamic = include_str!("dynamic.bash")
        .replace("@VALUE_OPTIONS@", &options.join("|"))
        .replace("@POSITIONALS@", &positionals.join("\n                "))
        .replace("@CODES@", &codes.join("\n"));
    base(Shell::Bash) + &dynamic
}

fn zsh() -> String {
    let codes: Vec<_> = entries().map(|entry| format!("        '{}:{}'", entry.code, quoted(entry.title))).collect();
    let dynamic = include_str!("dynamic.zsh").replace("@CODES@", &codes.join("\n"));
    let mut text = String::new();
    for line in base(Shell::Zsh).lines() {
        text += &zsh_action(line);
        text += "\n";
    }
    // Our functions have to be there before the last lines call the completion.
    let (functions, call) = text.split_at(text.rfind("\nif [ \"$funcstack").unwrap_or(text.len()));
    format!("{}{dynamic}{}", functions.trim_end_matches('\n').to_owned() + "\n", call.trim_start_matches('\n'))
}

/// Puts our functions where clap_complete can only say "file" or "host".
fn zsh_action(line: &str) -> String {
    let trimmed = line.trim_start();
    for (id, action) in [("target", "_migrate_targets"), ("dests", "_migrate_dests"), ("codes", "_migrate_codes")] {
        let plural = if id == "target" { "targets" } else { id };
        let ours = [format!("':{id} -- "), format!("'*::{id} -- "), format!("'*::{plural} -- ")];
        if ours.iter().any(|start| trimmed.starts_with(start))
            && let Some(end) = line.rfind(':')
        {
            let rest = line[end..].find('\'').map_or("", |quote| &line[end + quote..]);
            return format!("{}:{action}{rest}", &line[..end]);
        }
    }
    match line.contains("'*--to=[") {
        true => line.replace(":_hosts'", ":_migrate_dests'"),
        false => line.to_owned(),
    }
}

fn fish() -> String {
    let command = built();
    let codes: Vec<_> = entries().map(|entry| format!("{} '{}'", entry.code, fish_quoted(entry.title))).collect();
    let mut text = base(Shell::Fish);
    text += &include_str!("dynamic.fish").replace("@CODES@", &codes.join(" \\\n        "));
    for verb in command.get_subcommands() {
        let mut add = |action: &str| {
            text += &format!(
                "complete -c migrate -n \"__fish_migrate_using_subcommand {}\" -f -a \"({action})\"\n",
                verb.get_name()
            );
        };
        for arg in verb.get_positionals() {
            match kind(arg) {
                Some(Kind::Target) => add("__fish_migrate_targets"),
                Some(Kind::Host) => add("__fish_migrate_dests"),
                Some(Kind::Code) => add("__fish_migrate_codes"),
                None => {}
            }
        }
    }
    text
}

fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''").replace(':', "\\:")
}

fn fish_quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}
