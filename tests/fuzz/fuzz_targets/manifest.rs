//! `manifest.json`: decoding is total, also behind a right digest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrate_engine::image::manifest::{Manifest, digest};

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::decode(bytes);
    let mut sealed = bytes.to_vec();
    sealed.extend_from_slice(format!(",\n  \"digest\": \"{}\"\n}}\n", digest(bytes)).as_bytes());
    if let Ok((manifest, _)) = Manifest::decode(&sealed) {
        let (again, id) = manifest.encode().expect("what was decoded can be encoded");
        assert_eq!(Manifest::decode(&again).expect("and decoded again"), (manifest, id));
    }
});
