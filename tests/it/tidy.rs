//! What the architecture promises, held against the code: who imports whom, how large things are, who may do what.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file, at most.
const FILE_LINES: usize = 800;
/// Lines of a function, at most.
const FUNCTION_LINES: usize = 70;

/// Rooms that everybody may use, and that use nobody but each other.
const LEAVES: [&str; 3] = ["blocker", "failure", "fault"];

/// Imports to the left that are there for a reason.
const UPWARD: &[(&str, &str, &str)] = &[
    ("collect", "ops::options", "choices of the command line, plain data"),
    ("restore", "ops::options", "choices of the command line, plain data"),
    ("trace", "memory::PageRange", "what pages are called"),
    ("trace", "memory::Space", "what memory is called"),
    ("trace", "memory::pipeline", "the traits by which memory/ asks for pages"),
    ("files", "ops::options", "choices of the command line, plain data"),
    ("migration", "ops::options", "choices of the command line, plain data"),
    ("migration", "ops::Event", "what is told while it goes on, plain data"),
    ("migration", "ops::Events", "what is told while it goes on, plain data"),
    ("migration", "ops::outcome", "what is told in the end, plain data"),
];

/// A source file, without its tests.
struct Source {
    /// From the top of the repository.
    path: String,
    /// The first folder (or file) below `src`.
    room: String,
    text: String,
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(below: &str) -> Vec<PathBuf> {
    let (mut found, mut rest) = (Vec::new(), vec![top().join(below)]);
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(&dir).expect("it is in the repository") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                rest.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(top()).expect("it lies below").display().to_string()
}

/// Files of the library that are no tests, without comments and test modules.
fn sources() -> Vec<Source> {
    let all: Vec<(String, String)> =
        rust_files("src").iter().map(|path| (relative(path), fs::read_to_string(path).expect("it is text"))).collect();
    // Modules that are there for tests alone, by the end of their path.
    let marked = |text: &str| -> Vec<String> {
        let rest = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| rest.split(';').next());
        rest.filter_map(|line| Some(format!("/{}.rs", line.rsplit_once("mod ")?.1))).collect()
    };
    let of_tests: Vec<String> = all.iter().flat_map(|(_, text)| marked(text)).collect();
    all.into_iter()
        .filter(|(path, _)| !path.ends_with("tests.rs") && !of_tests.iter().any(|end| path.ends_with(end)))
        .map(|(path, text)| {
            let room = path.split('/').nth(1).expect("it is below src").trim_end_matches(".rs").to_owned();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            Source { path, room, text: code.collect::<Vec<_>>().join("\n") }
        })
        .collect()
}

/// The rooms in the order of the picture in lib.rs.
fn floors() -> Vec<String> {
    let text = fs::read_to_string(top().join("src/lib.rs")).expect("it is there");
    let picture = text.split("```text").nth(1).and_then(|rest| rest.split("```").next()).expect("lib.rs has a picture");
    let words = picture.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Paths that begin with `crate::`, one for each leaf of a list in braces.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("crate::").skip(1) {
        leaves(rest, "", &mut found);
    }
    found
}

/// Adds what a tree such as `a::{b, c::{d, e}}` names, each behind `before`; the rest of the text.
fn leaves<'t>(text: &'t str, before: &str, found: &mut Vec<String>) -> &'t str {
    let text = text.trim_start();
    let len = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len());
    let path = format!("{before}{}", &text[..len]);
    let Some(mut rest) = text[len..].strip_prefix('{').filter(|_| path.is_empty() || path.ends_with("::")) else {
        found.push(path);
        return &text[len..];
    };
    while !rest.trim_start().starts_with('}') && !rest.trim().is_empty() {
        rest = leaves(rest, &path, found);
        // `as name`, and what separates two leaves.
        let end = rest.find([',', '}']).unwrap_or(rest.len());
        rest = rest[end..].strip_prefix(',').unwrap_or(&rest[end..]);
    }
    rest.trim_start().strip_prefix('}').unwrap_or(rest)
}

#[test]
fn trees_of_imports_are_read() {
    let found = imports(
        "use crate::{\n    image::Pid,\n    proc::{Result, sysvipc as ipc},\n};\nlet x = crate::sys::check(1);",
    );
    assert_eq!(found, ["image::Pid", "proc::Result", "proc::sysvipc", "sys::check"]);
}

#[test]
fn imports_go_only_to_the_right() {
    let floors = floors();
    let place = |room: &str| floors.iter().position(|floor| floor == room);
    let mut wrong = BTreeSet::new();
    for source in sources().iter().filter(|s| !["lib", "main"].contains(&s.room.as_str())) {
        for path in imports(&source.text) {
            let mut names = path.split("::");
            let (to, name) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
            if to == source.room || LEAVES.contains(&to) {
                continue;
            }
            let right = place(to).zip(place(&source.room)).is_some_and(|(there, here)| here < there);
            let allowed = UPWARD.iter().any(|(from, what, _)| *from == source.room && *what == format!("{to}::{name}"));
            if !right && !allowed {
                wrong.insert(format!("{} imports {to}::{name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_that_are_excused_exist() {
    let sources = sources();
    for (room, what, _) in UPWARD {
        let used = |s: &Source| s.room == *room && imports(&s.text).iter().any(|path| path.starts_with(what));
        assert!(sources.iter().any(used), "{room} does not import {what} any more: the row can go");
    }
}

#[test]
fn the_picture_has_every_room() {
    let floors = floors();
    let rooms: BTreeSet<String> = sources().into_iter().map(|s| s.room).collect();
    let unseen: Vec<_> = rooms
        .iter()
        .filter(|room| !floors.contains(room) && !LEAVES.contains(&room.as_str()))
        .filter(|room| !["lib", "main"].contains(&room.as_str()))
        .collect();
    assert!(unseen.is_empty(), "{unseen:?} are not in the picture of src/lib.rs");
}

#[test]
fn nothing_outgrows_its_name() {
    let mut wrong = Vec::new();
    // Tables of samples are as long as they are.
    let is_test = |path: &str| path.ends_with("tests.rs");
    let all = ["src", "criu-compat/src", "tests/it", "tests/bench"].iter().flat_map(|below| rust_files(below));
    for path in all {
        let text = fs::read_to_string(&path).expect("it is text");
        let lines: Vec<&str> = text.lines().collect();
        let path = relative(&path);
        if lines.len() > FILE_LINES {
            wrong.push(format!("{path}: {} lines", lines.len()));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"].contains(&name) {
            wrong.push(format!("{path}: a name that says nothing"));
        }
        if is_test(&path) {
            continue;
        }
        wrong.extend(long_functions(&lines).into_iter().map(|(name, len)| format!("{path}: {name} has {len} lines")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Functions over the limit: from the line with `fn` to the closing brace of the same indentation (rustfmt's layout).
fn long_functions(lines: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (n, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        match &open {
            None => {
                let name = line.trim_start().split("fn ").nth(1).filter(|_| {
                    let before = line.trim_start().split("fn ").next().unwrap_or_default();
                    before.split(' ').all(|w| {
                        ["", "pub", "const", "unsafe", "extern", "\"C\"", "pub(super)", "pub(crate)"].contains(&w)
                    })
                });
                if let Some(name) = name.filter(|_| !line.trim_end().ends_with([';', '}'])) {
                    let name = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                    open = Some((indent, n, name));
                }
            }
            Some((at, from, name)) if indent == *at && (*line).trim() == "}" => {
                if n - from + 1 > FUNCTION_LINES {
                    found.push((name.clone(), n - from + 1));
                }
                open = None;
            }
            // A declaration without a body.
            Some((at, _, _)) if indent == *at && line.trim_end().ends_with(';') => open = None,
            Some(_) => {}
        }
    }
    found
}

#[test]
fn long_functions_are_found() {
    let long: String =
        std::iter::once("fn f() {\n").chain(std::iter::repeat_n("    x();\n", 70)).chain(["}\n"]).collect();
    assert_eq!(long_functions(&long.lines().collect::<Vec<_>>()), [("f".to_owned(), 72)]);
    assert!(long_functions(&["fn f() {", "}", "fn g();", "fn h() {}"]).is_empty());
}

/// Rooms that may do what is dangerous or easily done wrong, and how it shows.
const TAMED: &[(&str, &[&str], &str)] = &[
    // A probe tries it on a child of ours, and our own vDSO is read like any other.
    ("sys::mem::", &["sys", "trace", "kernel", "proc/host.rs"], "memory of a target is only touched in trace/"),
    ("println!", &["ui", "cli", "main"], "only ui/ and cli/ print"),
    ("eprint", &["ui", "cli", "main"], "only ui/ and cli/ print"),
    ("bincode::", &["image/codec.rs"], "one file knows the codec"),
    ("todo!", &[], "nothing is left open"),
    ("unimplemented!", &[], "nothing is left open"),
];

#[test]
fn what_is_dangerous_is_done_in_one_place() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (what, rooms, rule) in TAMED {
            let at_home = rooms.iter().any(|room| *room == source.room || source.path == format!("src/{room}"));
            if !at_home && source.text.contains(what) {
                wrong.push(format!("{}: {what} ({rule})", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_model_does_no_io() {
    let forbidden = ["std::fs", "File::", "std::net", " nix::", "libc::open", "Command::"];
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|s| s.room == "image")
        .flat_map(|s| forbidden.map(|f| s.text.contains(f).then(|| format!("{}: {f}", s.path))))
        .flatten()
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Files of the model that are no kind of resource.
const NO_RESOURCE: &[&str] = &[
    "arbitrary.rs",
    "codec.rs",
    "diff.rs",
    "forget.rs",
    "host.rs",
    "ids.rs",
    "limits.rs",
    "manifest.rs",
    "mod.rs",
    "tests.rs",
    // Named to be refused; it is restored with all namespaces.
    "ns/net.rs",
];

#[test]
fn a_kind_of_resource_has_the_same_name_in_every_room() {
    let mut missing = Vec::new();
    for path in rust_files("src/image") {
        let name = relative(&path).trim_start_matches("src/image/").to_owned();
        if NO_RESOURCE.contains(&name.as_str()) || name.starts_with("verify/") || name.ends_with("/mod.rs") {
            continue;
        }
        for room in ["collect", "restore"] {
            if !top().join("src").join(room).join(&name).exists() {
                missing.push(format!("src/{room}/{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// Codes that no blocker and no failure has yet: the state is found, if at all, by what the kernel refuses, and the message has no
/// code. A row goes when its code is used.
const WITHOUT_USE: &[(&str, &str)] = &[
    ("PIDNS_NESTED", "PID namespaces that begin inside the tree are saved and restored"),
    ("IPC_OBJECTS", "a warning: who saves and restores on one host loses nothing, but for undo values"),
    (
        "PARENT_OTHER",
        "nothing of another tree's image is found equal by mistake: pages are compared, or known by their process",
    ),
    ("LANDLOCK", "the kernel tells nobody which tasks have restricted themselves"),
    ("PEER_PRIVILEGE", "said for each process by CREDENTIALS and SET_TID, which name it"),
    ("SESSION_OUTSIDE", "a session that was begun outside is begun anew for the tree"),
];

#[test]
fn codes_are_used_but_for_those_that_are_listed() {
    let sources = sources();
    let catalogue = sources.iter().filter(|s| s.path.starts_with("src/blocker/catalogue"));
    let rows = catalogue.flat_map(|s| s.text.lines()).filter_map(|line| line.trim().split_once(" = "));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: Vec<&str> = rows.map(|(name, _)| name).filter(|name| name.chars().all(is_name)).collect();
    assert!(names.len() > 100, "{names:?}");
    let others: Vec<&Source> = sources.iter().filter(|s| !s.path.starts_with("src/blocker")).collect();
    let words: BTreeSet<&str> = others.iter().flat_map(|s| s.text.split(|c: char| !is_name(c))).collect();
    // Names of their own elsewhere count only with the module before them.
    let used = |name: &str| match ["LEASE", "PLAIN"].contains(&name) {
        true => others.iter().any(|s| s.text.contains(&format!("codes::{name}"))),
        false => words.contains(name),
    };
    let unused: Vec<&str> = names.into_iter().filter(|name| !used(name)).collect();
    let mut listed: Vec<&str> = WITHOUT_USE.iter().map(|(name, _)| *name).collect();
    listed.sort_by_key(|name| unused.iter().position(|unused| unused == name));
    assert_eq!(unused, listed);
    assert!(WITHOUT_USE.iter().all(|(_, reason)| !reason.is_empty()));
}
