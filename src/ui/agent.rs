//! What `agent`, `keygen` and `cancel` say.

use super::json::{Object, Stamp};
use super::{Settings, Stream, put};
use crate::ops::keygen::Made;
use crate::ops::words::SessionId;

/// The agent takes connections at these addresses.
pub fn ready(addresses: &[String], settings: &Settings) {
    if !settings.quiet {
        put(Stream::Err, &format!("listening on {}\n", addresses.join(", ")));
    }
}

/// A key was made: the line for the other host, and where it belongs.
pub fn key(made: &Made, settings: &Settings) {
    if settings.json {
        let fields = Object::default().with("ok", true).with("exit", 0).with("verb", "keygen");
        let fields = fields.with("line", made.line.as_str()).with("dir", made.dir.display().to_string());
        put(Stream::Out, &Stamp::begin(SessionId::random()).line("result", fields));
        return;
    }
    put(Stream::Out, &format!("{}\n", made.line));
    if !settings.quiet {
        let peers = made.peers.display();
        put(Stream::Err, &format!("add this line to {peers} of the other host, and its line to {peers} here\n"));
    }
}

/// A session was ended: its id.
pub fn cancelled(id: &str, settings: &Settings) {
    if settings.json {
        let fields = Object::default().with("ok", true).with("exit", 0).with("verb", "cancel");
        put(Stream::Out, &Stamp::begin(SessionId::random()).line("result", fields.with("cancelled", id)));
    } else {
        put(Stream::Out, &format!("{id}\n"));
    }
}
