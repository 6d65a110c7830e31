//! The way CRIU reads its command line: as getopt_long(3) does, with options and the action in any order.

use std::collections::VecDeque;

/// How an option takes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None; `--no-NAME` takes it back.
    Switch,
    /// `--name VALUE`, `--name=VALUE`, `-n VALUE`, `-nVALUE`.
    Value,
    /// `--name[=VALUE]`, `-n[VALUE]`: the value only in the same word.
    Optional,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Option_ {
    /// Long name.
    pub name: &'static str,
    /// Letter, if it has one.
    pub letter: Option<char>,
    /// How it takes its value.
    pub kind: Kind,
}

/// What was found on the line, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An option with its value; for a switch `Some("no")` where it was taken back.
    Option(&'static str, Option<String>),
    /// A word that is no option: the action.
    Word(String),
}

/// Reads the arguments.
///
/// # Errors
/// One line that says which word is wrong, and how.
pub fn parse(table: &[Option_], arguments: impl IntoIterator<Item = String>) -> Result<Vec<Item>, String> {
    let mut rest: VecDeque<String> = arguments.into_iter().collect();
    let mut items = Vec::new();
    while let Some(word) = rest.pop_front() {
        if word == "--" {
            items.extend(rest.drain(..).map(Item::Word));
        } else if let Some(long) = word.strip_prefix("--") {
            items.push(long_option(table, long, &mut rest)?);
        } else if word.len() > 1 && word.starts_with('-') {
            letters(table, &word[1..], &mut rest, &mut items)?;
        } else {
            items.push(Item::Word(word));
        }
    }
    Ok(items)
}

fn long_option(table: &[Option_], word: &str, rest: &mut VecDeque<String>) -> Result<Item, String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    let (option, off) = find(table, name)?;
    match (option.kind, value) {
        (Kind::Switch, None) => Ok(Item::Option(option.name, off.then(|| "no".to_owned()))),
        (Kind::Switch, Some(_)) => Err(format!("option '--{name}' doesn't allow an argument")),
        (Kind::Optional, value) => Ok(Item::Option(option.name, value)),
        (Kind::Value, Some(value)) => Ok(Item::Option(option.name, Some(value))),
        (Kind::Value, None) => match rest.pop_front() {
            Some(value) => Ok(Item::Option(option.name, Some(value))),
            None => Err(format!("option '--{name}' requires an argument")),
        },
    }
}

/// The option of a name, a unique beginning of it, or `no-` before a switch.
fn find<'t>(table: &'t [Option_], name: &str) -> Result<(&'t Option_, bool), String> {
    if let Some(option) = table.iter().find(|o| o.name == name) {
        return Ok((option, false));
    }
    let switch = |n: &str| table.iter().find(|o| o.name == n).filter(|o| o.kind == Kind::Switch);
    if let Some(option) = name.strip_prefix("no-").and_then(switch) {
        return Ok((option, true));
    }
    let mut fitting = table.iter().filter(|o| o.name.starts_with(name));
    match (fitting.next(), fitting.next()) {
        (Some(option), None) => Ok((option, false)),
        (Some(_), Some(_)) => Err(format!("option '--{name}' is ambiguous")),
        (None, _) => Err(format!("unrecognized option '--{name}'")),
    }
}

fn letters(table: &[Option_], word: &str, rest: &mut VecDeque<String>, items: &mut Vec<Item>) -> Result<(), String> {
    let mut left = word;
    while let Some(letter) = left.chars().next() {
        left = &left[letter.len_utf8()..];
        let option =
            table.iter().find(|o| o.letter == Some(letter)).ok_or_else(|| format!("invalid option -- '{letter}'"))?;
        match option.kind {
            Kind::Switch => items.push(Item::Option(option.name, None)),
            Kind::Optional => {
                let value = (!left.is_empty()).then(|| left.to_owned());
                items.push(Item::Option(option.name, value));
                return Ok(());
            }
            Kind::Value => {
                let value = if left.is_empty() { rest.pop_front() } else { Some(left.to_owned()) };
                let value = value.ok_or_else(|| format!("option requires an argument -- '{letter}'"))?;
                items.push(Item::Option(option.name, Some(value)));
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Option_] = &[
        Option_ { name: "tree", letter: Some('t'), kind: Kind::Value },
        Option_ { name: "images-dir", letter: Some('D'), kind: Kind::Value },
        Option_ { name: "leave-running", letter: Some('R'), kind: Kind::Switch },
        Option_ { name: "leave-stopped", letter: Some('s'), kind: Kind::Switch },
        Option_ { name: "verbosity", letter: Some('v'), kind: Kind::Optional },
    ];

    fn parsed(line: &str) -> Result<Vec<Item>, String> {
        parse(TABLE, line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn action_and_options_in_any_order() {
        let tree = Item::Option("tree", Some("7".into()));
        let dump = Item::Word("dump".into());
        for line in ["dump -t 7", "-t7 dump", "--tree=7 dump", "dump --tree 7", "dump --tr 7"] {
            let items = parsed(line).unwrap();
            assert!(items.contains(&tree) && items.contains(&dump), "{line}: {items:?}");
        }
    }

    #[test]
    fn levels_of_verbosity() {
        assert_eq!(parsed("-v4"), Ok(vec![Item::Option("verbosity", Some("4".into()))]));
        assert_eq!(parsed("-vvvv"), Ok(vec![Item::Option("verbosity", Some("vvv".into()))]));
        let word = Item::Word("4".into());
        assert_eq!(parsed("-v 4"), Ok(vec![Item::Option("verbosity", None), word]));
        assert_eq!(parsed("-verbosity=0"), Ok(vec![Item::Option("verbosity", Some("erbosity=0".into()))]));
    }

    #[test]
    fn switches_and_their_twins() {
        assert_eq!(parsed("--leave-running"), Ok(vec![Item::Option("leave-running", None)]));
        assert_eq!(parsed("--no-leave-running"), Ok(vec![Item::Option("leave-running", Some("no".into()))]));
        assert!(parsed("--leave-running=1").is_err());
        assert!(parsed("--leave").unwrap_err().contains("ambiguous"));
        assert!(parsed("--nothing").is_err());
        assert!(parsed("-t").is_err());
    }
}
