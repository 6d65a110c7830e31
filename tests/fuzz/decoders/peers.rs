//! The file of peers: reading is total, and names a line that is there.

use migrate_engine::transport::peers::Peers;

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err((line, reason)) = Peers::parse(text) {
        assert!((1..=text.lines().count()).contains(&line), "{line}: {reason}");
        assert!(!reason.is_empty());
    }
}
