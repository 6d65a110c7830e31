//! PEER: how the other host is reached.

use crate::ops::options::PeerOptions;
use crate::ops::words::Time;
use std::ffi::OsString;

/// The PEER group.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Peer")]
pub struct PeerArgs {
    /// Program that reaches a host, with its arguments; your ssh_config counts
    #[arg(long, value_name = "COMMAND", default_value = "ssh -o BatchMode=yes", value_parser = command)]
    rsh: Command,
    /// How migrate is called over there, as in 'sudo -n migrate'
    #[arg(long, value_name = "COMMAND", default_value = "migrate")]
    remote: String,
    /// Send this program where there is none of this version
    #[arg(long)]
    bootstrap: bool,
    /// Give up when there is no connection after this time
    #[arg(long, value_name = "TIME", default_value = "10s")]
    connect_timeout: Time,
    /// Take the peer for lost after a silence of this length
    #[arg(long, value_name = "TIME", default_value = "30s")]
    peer_timeout: Time,
    /// Allow tcp+plain to hosts beyond loopback: nothing is encrypted, nobody is authenticated
    #[arg(long)]
    allow_plain: bool,
}

impl PeerArgs {
    /// The choices as the engine takes them.
    pub fn options(&self) -> PeerOptions {
        PeerOptions {
            rsh: self.rsh.0.clone(),
            remote: self.remote.clone(),
            bootstrap: self.bootstrap,
            connect_timeout: self.connect_timeout.0,
            peer_timeout: self.peer_timeout.0,
            allow_plain: self.allow_plain,
            routes: Vec::new(),
            via: Vec::new(),
            fanout_tree: None,
        }
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Command(Vec<OsString>);

/// Splits a command as a shell would: blanks separate, quotes and backslashes keep them; nothing else is special.
fn command(text: &str) -> Result<Command, String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("a backslash ends the command")?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    match words.first() {
        Some(program) if !program.is_empty() => Ok(Command(words.into_iter().map(OsString::from).collect())),
        _ => Err("the program is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let words = |text| command(text).map(|c| c.0.into_iter().map(|w| w.into_string().unwrap()).collect::<Vec<_>>());
        assert_eq!(words("ssh -o BatchMode=yes").unwrap(), ["ssh", "-o", "BatchMode=yes"]);
        assert_eq!(
            words("  ip netns  exec 'a b' \"c\\\"d\" e\\ f '' ").unwrap(),
            ["ip", "netns", "exec", "a b", "c\"d", "e f", ""]
        );
        for wrong in ["", "  ", "'a", "a\\", "''"] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
