//! Frames on the wire: a header is refused or bounded, and a body that is taken is the one that was sent.

use migrate_engine::transport::frame::{FrameKind, HEADER_BYTES, Header, limit};
use zerocopy::{FromBytes, IntoBytes};

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let Ok((header, body)) = Header::read_from_prefix(bytes) else {
        return assert!(bytes.len() < HEADER_BYTES);
    };
    if let Ok((kind, length)) = header.check() {
        assert!(length <= limit(kind).expect("a kind that is taken is one of the table"));
        let announced = body.get(..length as usize).unwrap_or(body);
        if header.check_body(announced).is_ok() && announced.len() == length as usize {
            let again = Header::of(kind, &[announced]).expect("it was within the limit");
            assert_eq!(again.as_bytes(), header.as_bytes());
        }
    }
    // The same bytes as the body of a frame of ours.
    let header = Header::of(FrameKind::PAGES, &[bytes]).expect("inputs are smaller than the limit");
    assert_eq!(header.check(), Ok((FrameKind::PAGES, bytes.len() as u32)));
    assert_eq!(header.check_body(bytes), Ok(()));
}

/// A frame with such a body.
pub fn seed(body: &[u8]) -> Vec<u8> {
    let mut frame = Header::of(FrameKind::MESSAGE, &[body]).expect("it is small").as_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}
