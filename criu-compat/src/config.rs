//! Configuration files: an option without its dashes on each line, with its value behind it; `#` begins a comment, words may stand in double
//! quotes. Read in this order, later ones win over earlier ones and the command line over all: `/etc/criu/default.conf`,
//! `~/.criu/default.conf`, the file in `CRIU_CONFIG_FILE`, that of `--config`.

use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file that is read, bytes.
const LARGEST: u64 = 1 << 20;

/// Where files lie that nobody has named on the command line.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Read if they are there.
    pub defaults: Vec<PathBuf>,
    /// Has to be there.
    pub environment: Option<PathBuf>,
}

impl Places {
    /// The usual ones.
    pub fn of_this_process() -> Self {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".criu/default.conf"));
        let defaults = [PathBuf::from("/etc/criu/default.conf")].into_iter().chain(home).collect();
        Self { defaults, environment: std::env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from) }
    }

    /// The words of all files, as they would stand on a command line.
    ///
    /// # Errors
    /// A file that was named cannot be read, or one is not understood.
    pub fn words(&self, with_defaults: bool, named: Option<&Path>) -> Result<Vec<String>, String> {
        let defaults = self.defaults.iter().filter(|file| with_defaults && file.exists()).map(PathBuf::as_path);
        let mut all = Vec::new();
        for file in defaults.chain(self.environment.as_deref()).chain(named) {
            let at = |what: String| format!("configuration file {}: {what}", file.display());
            let mut text = String::new();
            let opened = std::fs::File::open(file).map_err(|e| at(e.to_string()))?;
            opened.take(LARGEST).read_to_string(&mut text).map_err(|e| at(e.to_string()))?;
            for (number, line) in text.lines().enumerate() {
                all.extend(word(line).map_err(|what| at(format!("line {}: {what}", number + 1)))?);
            }
        }
        Ok(all)
    }
}

/// The one word that a line is on the command line.
fn word(line: &str) -> Result<Option<String>, String> {
    let words = split(line)?;
    match words.as_slice() {
        [] => Ok(None),
        [option] => Ok(Some(format!("--{option}"))),
        [option, value] => Ok(Some(format!("--{option}={value}"))),
        [_, _, more, ..] => Err(format!("'{more}' is too much: an option and its value")),
    }
}

fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let mut word = String::new();
        let end = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                word.push_str(&rest[..end]);
                end
            }
            Some(quoted) => 1 + unquote(quoted, &mut word)?,
        };
        words.push(word);
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

/// Reads up to the closing quote; the bytes read, that one with them.
fn unquote(quoted: &str, word: &mut String) -> Result<usize, String> {
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok(at + 1),
            '\\' => word.extend(letters.next().map(|(_, letter)| letter)),
            letter => word.push(letter),
        }
    }
    Err("a quote is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_options() {
        let word = |line: &str| word(line).unwrap();
        assert_eq!(word("tcp-established"), Some("--tcp-established".to_owned()));
        assert_eq!(word("  log-file \t restore.log # where"), Some("--log-file=restore.log".to_owned()));
        assert_eq!(word(r#"work-dir "/a \"b\" c""#), Some(r#"--work-dir=/a "b" c"#.to_owned()));
        assert_eq!(word("# nothing"), None);
        assert_eq!(word(""), None);
        assert!(super::word("work-dir \"/a").unwrap_err().contains("quote"));
        assert!(super::word("a b c").unwrap_err().contains("'c'"));
    }
}
