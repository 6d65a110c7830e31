use super::*;
use crate::transport::wait::Abort;
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;

fn patience(ms: u64) -> Patience {
    Patience { abort: Abort::new().unwrap(), silence: Duration::from_millis(ms), deadline: None }
}

fn channel(stream: UnixStream, ms: u64) -> Channel {
    Channel::new(Stream::unix(stream).unwrap(), "the peer", patience(ms))
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (channel(a, 5000), channel(b, 5000))
}

/// A channel and the bare other end of it.
fn half(ms: u64) -> (UnixStream, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (a, channel(b, ms))
}

fn wire(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    [Header::of(kind, &[body]).unwrap().as_bytes(), body].concat()
}

#[test]
fn frames_arrive_whole_and_in_order() {
    let (mut a, mut b) = pair();
    let big: Vec<u8> = (0..4 << 20).map(|n: u32| ((n * 7) >> 3) as u8).collect();
    let sent = big.clone();
    let sender = thread::spawn(move || {
        a.send(FrameKind::MESSAGE, b"first").unwrap();
        // In parts, far more than a socket buffer holds: partial writes.
        a.send_parts(FrameKind::PAGES, &[&sent[..10], &[], &sent[10..1 << 20], &sent[1 << 20..]]).unwrap();
        a.send(FrameKind::MARK, b"").unwrap();
        a.bytes_sent()
    });
    assert_eq!(b.expect(FrameKind::MESSAGE, "x").unwrap(), b"first");
    assert!(b.expect(FrameKind::PAGES, "x").unwrap() == big);
    assert_eq!(b.expect(FrameKind::MARK, "x").unwrap(), b"");
    assert_eq!(sender.join().unwrap(), b.bytes_received());
    assert_eq!(b.bytes_received(), 5 + (4 << 20) + 3 * HEADER_BYTES as u64);
}

#[test]
fn who_has_another_channel_does_not_wait_behind_a_sign_of_life() {
    let (mut a, mut b) = pair();
    a.send(FrameKind::ALIVE, b"").unwrap();
    assert!(b.receive_one().unwrap().is_none(), "the next frame would be waited for");
    assert!(!b.is_readable().unwrap());
    a.send(FrameKind::MESSAGE, b"then").unwrap();
    assert_eq!(b.receive_one().unwrap().unwrap().body, b"then");
}

#[test]
fn a_dripping_peer_is_read() {
    let (mut raw, mut b) = half(2000);
    let bytes = [wire(FrameKind::ALIVE, b""), wire(FrameKind::MESSAGE, b"slowly")].concat();
    let writer = thread::spawn(move || {
        for byte in bytes {
            raw.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        raw
    });
    assert_eq!(b.expect(FrameKind::MESSAGE, "x").unwrap(), b"slowly");
    writer.join().unwrap();
}

#[test]
fn a_dripping_peer_meets_the_deadline() {
    // One byte every 5 ms never leaves the peer silent, yet the step ends.
    let (mut raw, mut b) = half(60_000);
    b.deadline(Some(Duration::from_millis(100)));
    let started = Instant::now();
    let writer = thread::spawn(move || {
        for byte in wire(FrameKind::MESSAGE, &[0; 4096]) {
            if raw.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(matches!(b.receive(), Err(TransportError::Deadline { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(b);
    writer.join().unwrap();
}

#[test]
fn silence_is_noticed_in_the_middle_of_a_frame() {
    let (mut raw, mut b) = half(50);
    b.during("receiving pages");
    raw.write_all(&wire(FrameKind::PAGES, &[1; 100])[..60]).unwrap();
    let error = b.receive().unwrap_err();
    assert!(matches!(error, TransportError::Silent { .. }) && error.is_link_lost());
    assert_eq!(error.to_string(), "the peer was silent for 50ms while receiving pages");
}

#[test]
fn a_peer_that_does_not_read_is_silent_too() {
    let (_raw, mut b) = half(50);
    let error = (0..100).find_map(|_| b.send(FrameKind::PAGES, &[0; 1 << 20]).err());
    assert!(matches!(error, Some(TransportError::Silent { .. })), "{error:?}");
}

#[test]
fn signs_of_life_reset_the_silence() {
    let (mut raw, mut b) = half(200);
    let writer = thread::spawn(move || {
        for _ in 0..8 {
            raw.write_all(&wire(FrameKind::ALIVE, b"")).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        raw.write_all(&wire(FrameKind::MESSAGE, b"done")).unwrap();
        raw
    });
    assert_eq!(b.expect(FrameKind::MESSAGE, "x").unwrap(), b"done");
    writer.join().unwrap();
}

#[test]
fn a_closed_connection_is_a_lost_link() {
    let (raw, mut b) = half(5000);
    drop(raw);
    let error = b.receive().unwrap_err();
    assert!(matches!(error, TransportError::Closed { .. }) && error.is_link_lost());
    assert!(matches!(b.send(FrameKind::MESSAGE, b"x"), Err(TransportError::Closed { .. })));
}

#[test]
fn an_abort_ends_a_wait() {
    let (_raw, mut b) = half(60_000);
    let abort = b.patience().abort.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        abort.trigger();
    });
    assert!(matches!(b.receive(), Err(TransportError::Aborted { .. })));
    thread.join().unwrap();
}

#[test]
fn wrong_frames_are_refused_by_name() {
    let mut unknown = wire(FrameKind::MESSAGE, b"x");
    unknown[4..8].copy_from_slice(b"WARP");
    let mut damaged = wire(FrameKind::MESSAGE, b"abc");
    damaged[HEADER_BYTES + 1] ^= 1;
    let mut huge = wire(FrameKind::PAGES, b"x");
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, part) in [
        (unknown, "a frame of kind WARP, which this version does not know"),
        (damaged, "The checksum of a frame MESG"),
        (huge, "4294967295 bytes, more than the 5242880 allowed"),
        (b"HTTP/1.1 400 Bad Request".to_vec(), "where a frame begins"),
    ] {
        let (mut raw, mut b) = half(1000);
        raw.write_all(&bytes).unwrap();
        let error = b.receive().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let (mut a, mut b) = pair();
    a.send(FrameKind::MARK, b"").unwrap();
    let error = b.expect(FrameKind::MESSAGE, "a message").unwrap_err().to_string();
    assert_eq!(error, "the peer sent a frame MARK where a message was due");
}

#[test]
fn too_long_a_frame_is_not_sent() {
    let (mut a, _b) = pair();
    assert!(matches!(a.send(FrameKind::JOIN, &[0; 65]), Err(TransportError::FrameTooLong { .. })));
    assert_eq!(a.bytes_sent(), 0);
}

#[test]
fn a_refusal_arrives_in_words_fit_for_a_terminal() {
    let (a, mut b) = pair();
    let refuser = thread::spawn(move || a.refuse("no room:\x1b[31m\n  16 sessions"));
    let error = b.receive().unwrap_err().to_string();
    assert_eq!(error, "the peer refused: no room: [31m 16 sessions");
    drop(b);
    refuser.join().unwrap();
}

#[test]
fn readable_without_waiting() {
    let (mut a, mut b) = pair();
    assert!(!b.is_readable().unwrap());
    a.send(FrameKind::MARK, b"").unwrap();
    assert!(b.is_readable().unwrap());
}

#[test]
fn banners_before_the_preamble_are_skipped() {
    // Beginnings of the magic inside the banner must not confuse the search.
    let banner = b"Welcome!\r\n\x01MIGR\x01MIGRAT\x01\x01 last login\n";
    let (mut raw, mut b) = half(1000);
    raw.write_all(banner).unwrap();
    raw.write_all(Preamble::control().as_bytes()).unwrap();
    raw.write_all(&wire(FrameKind::MESSAGE, b"after")).unwrap();
    let mut noise = Vec::new();
    assert!(b.receive_preamble(&mut noise).unwrap().check().is_ok());
    assert_eq!(noise, banner);
    assert_eq!(b.expect(FrameKind::MESSAGE, "x").unwrap(), b"after");
}

#[test]
fn endless_noise_is_given_up() {
    let (mut raw, mut b) = half(1000);
    let writer = thread::spawn(move || while raw.write_all(b"y\ny\ny\n").is_ok() {});
    let error = b.receive_preamble(&mut Vec::new()).unwrap_err();
    assert!(matches!(&error, TransportError::NotMigrate { noise, .. } if noise.starts_with("y y y")), "{error:?}");
    drop(b);
    writer.join().unwrap();
}

#[test]
fn noise_is_kept_when_the_stream_ends() {
    let (mut raw, mut b) = half(1000);
    raw.write_all(b"sh: 1: migrate: not found\n\x01MIG").unwrap();
    drop(raw);
    let mut noise = Vec::new();
    assert!(matches!(b.receive_preamble(&mut noise), Err(TransportError::Closed { .. })));
    assert_eq!(noise, b"sh: 1: migrate: not found\n\x01MIG");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hostile_bytes_end_in_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000), begin_well in any::<bool>()) {
        let (mut raw, mut b) = half(5000);
        if begin_well {
            raw.write_all(&wire(FrameKind::MESSAGE, b"fine")).unwrap();
        }
        raw.write_all(&bytes).unwrap();
        drop(raw);
        let mut received = 0;
        while b.receive().is_ok() {
            received += 1;
        }
        prop_assert_eq!(received, usize::from(begin_well));
    }

    #[test]
    fn bit_errors_never_pass(body in proptest::collection::vec(any::<u8>(), 0..500), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut raw, mut b) = half(5000);
        let mut bytes = wire(FrameKind::MODEL, &body);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        raw.write_all(&bytes).unwrap();
        drop(raw);
        prop_assert!(b.receive().is_err());
    }

    #[test]
    fn any_banner_is_skipped(banner in proptest::collection::vec(prop_oneof![Just(1u8), Just(b'M'), Just(b'I'), any::<u8>()], 0..300)) {
        prop_assume!(!banner.windows(8).any(|window| window == MAGIC));
        let (mut raw, mut b) = half(5000);
        raw.write_all(&banner).unwrap();
        raw.write_all(Preamble::control().as_bytes()).unwrap();
        let mut noise = Vec::new();
        prop_assert!(b.receive_preamble(&mut noise).unwrap().check().is_ok());
        prop_assert_eq!(noise, banner);
    }

    #[test]
    fn text_from_a_peer_is_printable(bytes in proptest::collection::vec(any::<u8>(), 0..200), limit in 0usize..100) {
        let text = printable(&bytes, limit);
        prop_assert!(!text.chars().any(char::is_control));
        prop_assert!(text.chars().count() <= limit + 3);
    }
}
