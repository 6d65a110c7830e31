use super::*;
use crate::files::{Use, named};
use crate::image::NsId;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file as a source with the same content would name it, on another kernel.
fn there(path: &Path, usage: Use) -> Wanted {
    let (mode, size) = fs::metadata(path).map_or((libc::S_IFREG | 0o644, 7), |meta| (meta.mode(), meta.len()));
    let path = Bytes(path.as_os_str().as_bytes().to_vec());
    let file = PathRef { path, mnt: NsId(0), mode, device: 1, inode: 1, size, mtime_ns: 5 };
    Wanted { file, usage, appends: false, mapped: usage == Use::Code }
}

fn wish(mode: Files) -> Wish {
    Wish { mode, ..Wish::default() }
}

/// Judges with a source whose files have these contents (`None` = as here).
fn judge(wanted: Vec<Wanted>, wish: Wish, theirs: &dyn Fn(&Wanted) -> Option<Vec<u8>>) -> Judged {
    let wanted = named(wanted, &wish);
    let mut judge = Judge::begin(wanted.clone(), wish, false).unwrap();
    while let Some(question) = judge.question() {
        let digest = |(n, len): &(u32, u64)| {
            let content = theirs(&wanted[*n as usize])?;
            Some(blake3::hash(content.get(..*len as usize)?).to_hex().to_string())
        };
        let digests = question.digests.iter().map(digest).collect();
        judge.answered(&question, &Answer { digests, nonces: vec![None; question.nonces.len()] }).unwrap();
    }
    judge.judged().unwrap()
}

fn code_of(judged: &Judged) -> Vec<crate::blocker::Code> {
    judged.blockers.iter().map(|blocker| blocker.code).collect()
}

#[test]
fn each_mode_does_what_it_says() {
    use Files::{Auto, Check, Copy, Skip};
    let dir = tempfile::tempdir().unwrap();
    let (here, missing) = (dir.path().join("here"), dir.path().join("missing"));
    fs::write(&here, "content").unwrap();
    let rows = [
        // mode, use, there are such contents here, sent, in the way
        (Auto, Use::Read, Some("content"), false, None),
        (Auto, Use::Read, Some("Content"), false, Some(codes::FILE_CHANGED)),
        (Auto, Use::Code, Some("Content"), false, Some(codes::CODE_DIFFERS)),
        (Auto, Use::Read, None, false, Some(codes::FILE_MISSING)),
        (Auto, Use::Write, Some("Content"), true, None),
        (Auto, Use::Write, None, true, None),
        (Check, Use::Write, Some("content"), false, None),
        (Check, Use::Write, Some("Content"), false, Some(codes::FILE_CHANGED)),
        (Check, Use::Write, None, false, Some(codes::FILE_MISSING)),
        (Copy, Use::Read, Some("content"), false, None),
        (Copy, Use::Read, Some("Content"), true, None),
        (Copy, Use::Read, None, true, None),
        (Copy, Use::Code, Some("Content"), false, Some(codes::CODE_DIFFERS)),
        (Copy, Use::Code, None, true, None),
        (Skip, Use::Code, Some("Content"), false, None),
    ];
    for (mode, usage, theirs, sent, blocker) in rows {
        let path = if theirs.is_some() { &here } else { &missing };
        let judged = judge(vec![there(path, usage)], wish(mode), &|_| theirs.map(|text| text.as_bytes().to_vec()));
        assert_eq!(judged.order.send == [0], sent, "{mode:?} {usage:?} {theirs:?}");
        assert_eq!(code_of(&judged), Vec::from_iter(blocker), "{mode:?} {usage:?} {theirs:?}");
    }
}

#[test]
fn all_differences_are_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<Wanted> = (0..20)
        .map(|n| {
            let path = dir.path().join(format!("f{n}"));
            fs::write(&path, "content").unwrap();
            there(&path, Use::Read)
        })
        .collect();
    let judged = judge(files, wish(Files::Check), &|_| Some(b"Content".to_vec()));
    assert_eq!(judged.blockers.len(), 20);
}

#[test]
fn a_file_that_only_grew_by_appends_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "one\ntwo\n").unwrap();
    let log = |size, appends| {
        let mut wanted = there(&path, Use::Write);
        (wanted.file.size, wanted.appends) = (size, appends);
        wanted
    };
    let found = |wanted, text: &'static str| {
        code_of(&judge(vec![wanted], wish(Files::Check), &|_| Some(text.as_bytes().to_vec())))
    };
    assert_eq!(found(log(14, true), "one\ntwo\nthree\n"), [], "it grew there");
    assert_eq!(found(log(4, true), "one\n"), [], "it grew here");
    assert_eq!(found(log(14, true), "One\ntwo\nthree\n"), [codes::FILE_CHANGED]);
    assert_eq!(found(log(14, false), "one\ntwo\nthree\n"), [codes::FILE_CHANGED], "nobody appends");
}

#[test]
fn long_files_are_compared_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long");
    let content = vec![7; SMALL as usize + 1];
    fs::write(&path, &content).unwrap();
    let judged = judge(vec![there(&path, Use::Read)], wish(Files::Auto), &|_| panic!("not before the freeze"));
    let len = content.len() as u64;
    assert_eq!(judged.order.later, [(0, len)]);
    let digest = blake3::hash(&content).to_hex().to_string();
    assert_eq!(judged.later(0, len, Some(&digest)).unwrap(), None);
    assert_eq!(judged.later(0, len, Some("00")).unwrap().unwrap().code, codes::FILE_CHANGED);
    assert_eq!(judged.later(0, len, None).unwrap().unwrap().code, codes::FILE_CHANGED);
    assert!(judged.later(1, len, None).is_err(), "nobody has asked for that one");
}

#[test]
fn the_same_file_is_not_read_and_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "content").unwrap();
    let meta = fs::metadata(&path).unwrap();
    let mut wanted = there(&path, Use::Write);
    (wanted.file.device, wanted.file.inode) = (meta.dev(), meta.ino());
    // On one kernel.
    let mut judge = Judge::begin(vec![wanted.clone()], wish(Files::Auto), true).unwrap();
    assert_eq!(judge.question(), None);
    let judged = judge.judged().unwrap();
    assert_eq!((judged.order.send.len(), &judged.order.shared[..]), (0, &[meta.dev()][..]));
    // On two, with a nonce file that can be seen here, and with one that cannot.
    for (content, sent) in [("right", 0), ("wrong", 1)] {
        let nonce = dir.path().join("nonce");
        fs::write(&nonce, "right").unwrap();
        let mut judge = Judge::begin(vec![wanted.clone()], wish(Files::Auto), false).unwrap();
        let question = judge.question().unwrap();
        assert_eq!((&question.nonces[..], question.digests.len()), (&[0][..], 0));
        let nonces = vec![Some((Bytes(nonce.as_os_str().as_bytes().to_vec()), content.to_owned()))];
        judge.answered(&question, &Answer { digests: Vec::new(), nonces }).unwrap();
        assert_eq!(judge.question(), None);
        assert_eq!(judge.judged().unwrap().order.send.len(), sent, "{content}");
    }
}

#[test]
fn what_was_compared_is_trusted_until_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "content").unwrap();
    let here = fs::metadata(&path).unwrap();
    let judged = judge(vec![there(&path, Use::Read)], wish(Files::Auto), &|_| Some(b"content".to_vec()));
    let mut model = crate::image::tests::sample();
    let exe = |model: &Model| (model.mms[0].exe.size, model.mms[0].exe.mtime_ns);
    model.mms[0].exe = there(&path, Use::Read).file;
    judged.adapt(&mut model, &|_| false);
    assert_eq!(exe(&model), (7, here.mtime() * 1_000_000_000 + here.mtime_nsec()), "as it is here");
    model.mms[0].exe = PathRef { mtime_ns: 6, ..there(&path, Use::Read).file };
    judged.adapt(&mut model, &|_| false);
    assert_eq!(exe(&model), (7, 6), "it was written to at the source since");
}

#[test]
fn places_that_nothing_can_come_to_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("way")).unwrap();
    let judged = judge(vec![there(&dir.path().join("way/new/x"), Use::Write)], wish(Files::Auto), &|_| None);
    assert_eq!(code_of(&judged), [codes::FILE_PLACE]);
    let mut huge = there(&dir.path().join("huge"), Use::Write);
    huge.file.size = 1 << 60;
    assert_eq!(code_of(&judge(vec![huge], wish(Files::Auto), &|_| None)), [codes::FILE_SPACE]);
}
