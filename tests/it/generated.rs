//! What is made from the definitions is checked in and up to date; what is written by hand fits the definitions.
//!
//! `UPDATE_GENERATED=1 cargo test generated` writes the files.

use migrate_engine::cli::generate::{Generated, completions, examples::EXAMPLES, pages};
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GENERATED").is_some_and(|value| value == "1")
}

/// Compares files with what the definitions say, or writes them.
fn compare(files: &[Generated]) {
    let mut stale = Vec::new();
    for file in files {
        let path = top().join(&file.path);
        if updating() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // Other tests read the files at the same time.
            let new = path.with_extension("new");
            std::fs::write(&new, &file.text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(&file.text) {
            stale.push(file.path.as_str());
        }
    }
    assert!(stale.is_empty(), "not what the definitions say: {stale:?}; run UPDATE_GENERATED=1 cargo test generated");
}

#[test]
fn man_pages_of_verbs_are_up_to_date() {
    let pages = pages();
    assert!(!pages.is_empty());
    compare(&pages);
    // A page of a verb that is gone would tell a lie.
    for path in files_in("man", "1") {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let known = name == "migrate.1" || pages.iter().any(|page| page.path.ends_with(&name));
        assert!(known, "{name} is the page of no verb");
    }
}

#[test]
fn completions_are_up_to_date() {
    compare(&completions());
}

fn files_in(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(top().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

/// Whether a program is there; a missing one is said.
fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        crate::skip!("{program} is not installed");
    }
    found
}

#[test]
fn completion_scripts_are_valid() {
    for (shell, file) in [("bash", "migrate.bash"), ("zsh", "_migrate"), ("fish", "migrate.fish")] {
        if have(shell) {
            let output = Command::new(shell).arg("-n").arg(top().join("completions").join(file)).output().unwrap();
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// What bash would offer at the end of `line`.
fn bash_offers(line: &str, home: &Path) -> Vec<String> {
    let script = format!(
        "source {}/completions/migrate.bash\ncompopt() {{ :; }}\nread -r -a COMP_WORDS <<<'{line}'\n[[ '{line}' == *' ' ]] && COMP_WORDS+=('')\n\
         COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_TYPE=9\n\
         _migrate_dynamic migrate \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        top().display()
    );
    let output = Command::new("bash").env("HOME", home).args(["--norc", "-c", &script]).output().unwrap();
    assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_offers_verbs_options_pids_hosts_and_codes() {
    if !have("bash") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".ssh")).unwrap();
    std::fs::write(home.path().join(".ssh/config"), "Host alpha beta *.example\n  HostName 192.0.2.1\n").unwrap();
    std::fs::write(home.path().join(".ssh/known_hosts"), "gamma,192.0.2.3 ssh-ed25519 AAAA\n|1|x|y ssh-rsa BBBB\n")
        .unwrap();
    let offers = |line: &str| bash_offers(line, home.path());
    let verbs: Vec<_> = pages().iter().map(|p| p.path["man/migrate-".len()..p.path.len() - 2].to_owned()).collect();
    let offered = offers("migrate ");
    assert!(verbs.iter().all(|verb| offered.contains(verb)), "{offered:?}");
    assert_eq!(offers("migrate explain M03").first().map(String::as_str), Some("M0301"));
    assert_eq!(offers("migrate explain --a"), ["--all"]);
    let me = std::process::id().to_string();
    for verb in ["dump", "pre-dump", "move", "check"] {
        if verbs.iter().any(|known| known == verb) {
            let offered = offers(&format!("migrate {verb} {me}"));
            assert!(offered.contains(&me), "{verb}: {offered:?}");
            assert!(!offers(&format!("migrate {verb} --log ")).contains(&me));
        }
    }
    if verbs.iter().any(|verb| verb == "move") {
        let offered = offers("migrate move 1 ");
        for host in ["alpha", "beta", "gamma", "192.0.2.3", "local"] {
            assert!(offered.iter().any(|offer| offer == host), "{host}: {offered:?}");
        }
        assert!(!offered.iter().any(|offer| offer.contains('*') || offer.contains('|')), "{offered:?}");
    }
}

#[test]
fn man_pages_have_no_errors() {
    if !have("mandoc") {
        return;
    }
    for section in ["1", "5", "7"] {
        for page in files_in("man", section) {
            let output = Command::new("mandoc").args(["-Tlint", "-Werror"]).arg(&page).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{}: {said}", page.display());
        }
    }
}

/// All pages there are.
pub fn pages_by_hand_and_made() -> Vec<PathBuf> {
    ["1", "5", "7"].iter().flat_map(|section| files_in("man", section)).collect()
}

/// The command lines of a page: those that begin with a prompt.
pub fn command_lines(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    // What stands between `.ig` and `..` is not shown: text about things that do not work yet.
    let mut hidden = false;
    let shown = text.lines().filter(|line| {
        hidden = if hidden { *line != ".." } else { *line == ".ig" };
        !hidden
    });
    let lines = shown.filter_map(|line| line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")));
    lines.map(|line| line.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'")).collect()
}

/// The words of each `migrate` in a shell line.
pub fn calls(line: &str) -> Vec<Vec<String>> {
    line.split(['|', ';', '&'])
        .filter_map(|part| {
            let mut words = shell_words(part.split('>').next().unwrap_or_default());
            let at = words.iter().position(|word| word == "migrate")?;
            // `ssh b migrate ...`, `sudo migrate ...`: what is before belongs to the other program.
            Some(words.split_off(at))
        })
        .collect()
}

fn shell_words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_line_in_the_manual_is_understood() {
    let mut seen = 0;
    for section in ["1", "5", "7"] {
        for page in files_in("man", section) {
            for line in command_lines(&page) {
                for words in calls(&line) {
                    seen += 1;
                    let understood = migrate_engine::cli::understands(&words);
                    assert!(understood.is_ok(), "{}: {line}: {}", page.display(), understood.unwrap_err());
                }
            }
        }
    }
    assert!(seen >= EXAMPLES.iter().filter(|(verb, _)| *verb == "explain").count(), "{seen}");
}

#[test]
fn every_verb_has_an_example() {
    for verb in migrate_engine::cli::command().get_subcommands() {
        let found = EXAMPLES.iter().any(|(name, list)| *name == verb.get_name() && !list.is_empty());
        assert!(found, "{}", verb.get_name());
    }
}

#[test]
fn the_manual_lists_every_verb_and_no_other() {
    let text = std::fs::read_to_string(top().join("man/migrate.1")).unwrap();
    let mut hidden = false;
    let shown = text.lines().filter(|line| {
        hidden = if hidden { *line != ".." } else { *line == ".ig" };
        !hidden
    });
    let mut listed: Vec<_> =
        shown.filter_map(|line| line.strip_prefix(".It Xr migrate-")?.strip_suffix(" 1")).collect();
    listed.sort_unstable();
    let command = migrate_engine::cli::command();
    let mut verbs: Vec<_> = command.get_subcommands().map(|verb| verb.get_name()).collect();
    verbs.sort_unstable();
    assert_eq!(listed, verbs);
}
