//! `manifest.json`: decoding is total, also behind a right digest.

use migrate_engine::image::manifest::{Manifest, digest};

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let _ = Manifest::decode(bytes);
    let mut sealed = bytes.to_vec();
    sealed.extend_from_slice(format!(",\n  \"digest\": \"{}\"\n}}\n", digest(bytes)).as_bytes());
    if let Ok((manifest, _)) = Manifest::decode(&sealed) {
        let (again, id) = manifest.encode().expect("what was decoded can be encoded");
        assert_eq!(Manifest::decode(&again).expect("and decoded again"), (manifest, id));
    }
}

/// What of a file the digest is of.
pub fn seed(file: &[u8]) -> Vec<u8> {
    let end = file.windows(13).rposition(|w| w == b",\n  \"digest\":").expect("a manifest has a digest");
    file[..end].to_vec()
}
