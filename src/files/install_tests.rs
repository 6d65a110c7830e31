//! Both ends of passes, with the destination's paths in another directory of this host.

use super::*;
use crate::files::send::{Sender, Sent};
use crate::image::NsId;
use crate::image::fd::PathRef;
use crate::ops::options::Files;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

/// A directory of the source, one of the destination, and what goes from one to the other.
struct Pair {
    top: tempfile::TempDir,
    sender: Sender,
    installer: Option<Installer>,
}

impl Pair {
    /// With the tree `tree` and the file `file`.
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        for side in ["from", "to"] {
            fs::create_dir(top.path().join(side)).unwrap();
        }
        fs::create_dir(top.path().join("from/tree")).unwrap();
        let sender =
            Sender::new(vec![bytes(&top.path().join("from/file"))], vec![bytes(&top.path().join("from/tree"))]);
        let tree = PathRef {
            path: bytes(&top.path().join("to/tree")),
            mnt: NsId(0),
            mode: libc::S_IFDIR,
            device: 0,
            inode: 0,
            size: 0,
            mtime_ns: 0,
        };
        let wish = Wish { mode: Files::Auto, with: vec![tree], with_bytes: 0 };
        let installer = Some(Installer::begin(&top.path().join("journals"), "a1b2", &[], wish).unwrap());
        Self { top, sender, installer }
    }

    fn from(&self, path: &str) -> PathBuf {
        self.top.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.top.path().join("to").join(path)
    }

    /// Paths of the source become those of the destination.
    fn renamed(&self, path: &Bytes) -> Bytes {
        let from = bytes(&self.from(""));
        match path.0.strip_prefix(&from.0[..from.0.len() - 1]) {
            Some(rest) => Bytes([&bytes(&self.to("")).0[..from.0.len() - 3], rest].concat()),
            None => path.clone(),
        }
    }

    fn pass(&mut self, last: bool) -> Result<Sent> {
        let mut installer = self.installer.take().unwrap();
        let mut sender = std::mem::take(&mut self.sender);
        installer.begin_pass(last);
        let sent = sender.pass(&HashSet::new(), &mut |op: Option<&Op>, content: &[u8]| {
            let Some(op) = op else { return Ok(()) };
            let mut op = Op::decode(&op.encode()).unwrap().0;
            if let Op::Dir { path, .. }
            | Op::File { path }
            | Op::Link { path, .. }
            | Op::Symlink { path, .. }
            | Op::Fifo { path, .. }
            | Op::Remove { path } = &mut op
            {
                *path = self.renamed(path);
            }
            if let Op::Link { to, .. } = &mut op {
                *to = self.renamed(to);
            }
            installer.take(op, content)
        });
        let sent = sent.and_then(|sent| installer.end_pass().map(|()| sent));
        (self.sender, self.installer) = (sender, Some(installer));
        sent
    }

    /// Everything below the destination: name, type and mode, owner, content, time.
    fn listing(&self, side: &str) -> Vec<String> {
        let top = self.top.path().join(side);
        let mut found = Vec::new();
        let mut rest = vec![top.clone()];
        while let Some(dir) = rest.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let what = match meta.file_type() {
                    kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                    kind if kind.is_file() => blake3::hash(&fs::read(&path).unwrap()).to_string(),
                    _ => String::new(),
                };
                let name = path.strip_prefix(&top).unwrap().display().to_string();
                let (uid, gid, links) = (meta.uid(), meta.gid(), meta.nlink());
                let times = (meta.mtime(), meta.mtime_nsec());
                found.push(format!("{name} {:o} {uid}:{gid} {links} {what} {times:?}", meta.mode()));
                if meta.is_dir() {
                    rest.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

fn bytes(path: &Path) -> Bytes {
    Bytes(path.as_os_str().as_bytes().to_vec())
}

/// A tree with one of everything.
fn fill(pair: &Pair) {
    fs::write(pair.from("file"), "single").unwrap();
    fs::create_dir_all(pair.from("tree/deep/er")).unwrap();
    fs::write(pair.from("tree/deep/er/text"), "hello").unwrap();
    let sparse = fs::File::create(pair.from("tree/sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 33 << 20).unwrap();
    symlink("/etc/passwd", pair.from("tree/link")).unwrap();
    fs::hard_link(pair.from("tree/deep/er/text"), pair.from("tree/another-name")).unwrap();
    nix::unistd::mkfifo(&pair.from("tree/fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    fs::set_permissions(pair.from("tree/deep"), fs::Permissions::from_mode(0o2751)).unwrap();
    fs::set_permissions(pair.from("tree/deep/er/text"), fs::Permissions::from_mode(0o4711)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::lchown(pair.from("tree/link"), Some(12), Some(34)).unwrap();
        std::os::unix::fs::chown(pair.from("tree/deep/er"), Some(56), Some(78)).unwrap();
        std::os::unix::fs::chown(pair.from("file"), Some(56), Some(78)).unwrap();
    }
    // What the test compares, an open FIFO would block on; its time is not set.
    let time = |path: &str| {
        let at = TimeSpec::new(1_000_000_000, 5);
        utimensat(nix::fcntl::AT_FDCWD, &pair.from(path), &at, &at, UtimensatFlags::NoFollowSymlink).unwrap();
    };
    ["tree/link", "tree/deep/er/text", "tree/deep/er", "tree/deep", "tree"].into_iter().for_each(time);
}

/// Without the times of FIFOs, and of the top, where names come and go.
fn compare(pair: &Pair) {
    let plain = |list: Vec<String>| -> Vec<String> {
        let cut = |line: String| {
            if line.starts_with("tree/fifo") { line.split('(').next().unwrap().to_owned() } else { line }
        };
        list.into_iter().map(cut).collect()
    };
    assert_eq!(plain(pair.listing("to")), plain(pair.listing("from")));
}

#[test]
fn a_tree_and_a_file_arrive_as_they_are() {
    let mut pair = Pair::new();
    fill(&pair);
    let has_xattrs =
        xattr::set(fs::File::open(pair.from("tree/sparse")).unwrap(), b"user.colour", b"red\0green").is_ok();
    pair.pass(false).unwrap();
    compare(&pair);
    let (there, here) =
        (fs::metadata(pair.to("tree/sparse")).unwrap(), fs::metadata(pair.from("tree/sparse")).unwrap());
    assert!(there.blocks() <= here.blocks(), "its holes are holes");
    if has_xattrs {
        let found = xattr::all(fs::File::open(pair.to("tree/sparse")).unwrap()).unwrap();
        assert!(found.contains(&(b"user.colour".to_vec(), b"red\0green".to_vec())), "{found:?}");
    }
}

#[test]
fn later_passes_send_what_has_changed_to_the_same_files() {
    let mut pair = Pair::new();
    fill(&pair);
    pair.pass(false).unwrap();
    let open = fs::File::open(pair.to("tree/sparse")).unwrap();
    assert_eq!(pair.pass(false).unwrap().bytes, 0, "nothing has changed");
    let file = fs::OpenOptions::new().write(true).open(pair.from("tree/sparse")).unwrap();
    file.write_all_at(b"changed", 40 << 20).unwrap();
    fs::write(pair.from("file"), "single, longer").unwrap();
    fs::remove_file(pair.from("tree/link")).unwrap();
    fs::create_dir(pair.from("tree/link")).unwrap();
    fs::write(pair.from("tree/link/new"), "new").unwrap();
    fs::remove_file(pair.from("tree/another-name")).unwrap();
    fs::remove_file(pair.from("tree/deep/er/text")).unwrap();
    let sent = pair.pass(false).unwrap();
    assert!(sent.files >= 3 && sent.bytes < 300 << 10, "{sent:?}");
    compare(&pair);
    let mut seen = [0; 7];
    open.read_exact_at(&mut seen, 40 << 20).unwrap();
    assert_eq!(&seen, b"changed", "whoever has it open sees it");
    file.set_len(10).unwrap();
    fs::remove_dir_all(pair.from("tree/deep")).unwrap();
    pair.pass(true).unwrap();
    compare(&pair);
}

#[test]
fn a_name_that_becomes_a_file_of_its_own_is_none_of_the_other_any_more() {
    let mut pair = Pair::new();
    fs::write(pair.from("file"), "").unwrap();
    fs::write(pair.from("tree/a"), "one").unwrap();
    fs::hard_link(pair.from("tree/a"), pair.from("tree/b")).unwrap();
    pair.pass(false).unwrap();
    compare(&pair);
    fs::remove_file(pair.from("tree/b")).unwrap();
    fs::write(pair.from("tree/b"), "two").unwrap();
    pair.pass(false).unwrap();
    compare(&pair);
    fs::remove_file(pair.from("tree/a")).unwrap();
    fs::hard_link(pair.from("tree/b"), pair.from("tree/a")).unwrap();
    pair.pass(false).unwrap();
    compare(&pair);
}

#[test]
fn what_was_there_comes_back_or_is_gone_in_the_end() {
    for fate in [Fate::Undo, Fate::Keep] {
        let mut pair = Pair::new();
        fill(&pair);
        fs::create_dir(pair.to("tree")).unwrap();
        fs::write(pair.to("tree/old"), "old").unwrap();
        fs::write(pair.to("file"), "old").unwrap();
        let before = pair.listing("to");
        pair.pass(false).unwrap();
        assert!(!pair.to("tree/old").exists());
        assert_eq!(fs::read(pair.to("file")).unwrap(), b"single");
        let mut installer = pair.installer.take().unwrap();
        installer.decide(fate);
        drop(installer);
        match fate {
            Fate::Keep => compare(&pair),
            _ => assert_eq!(pair.listing("to"), before),
        }
        assert_eq!(fs::read_dir(pair.top.path().join("journals")).unwrap().count(), 0);
    }
}

#[test]
fn what_is_not_complete_is_never_in_its_place() {
    let mut pair = Pair::new();
    let installer = pair.installer.as_mut().unwrap();
    let path = bytes(&pair.top.path().join("to/file"));
    installer.take(Op::File { path: path.clone() }, &[]).unwrap();
    installer.take(Op::Data { offset: 0 }, b"half").unwrap();
    assert!(installer.end_pass().is_err(), "it has no end");
    assert!(!pair.to("file").exists());
    pair.installer = None;
    assert_eq!(pair.listing("to"), Vec::<String>::new(), "nothing of it is left");
}

#[test]
fn paths_of_a_hostile_source_lead_nowhere() {
    let pair = Pair::new();
    symlink(pair.top.path(), pair.to("way")).unwrap();
    let meta = Meta { size: 0, mode: 0o777, uid: 0, gid: 0, atime_ns: 0, mtime_ns: 0, xattrs: Vec::new() };
    let mut installer = pair.installer.unwrap();
    let to = pair.top.path().join("to");
    for path in ["way/file", "../file", "tree/../../file", "./file", "tree//x", "way/../way/x", "nowhere/x"] {
        let path = Bytes(format!("{}/{path}", to.display()).into_bytes());
        let mut ops = vec![
            Op::File { path: path.clone() },
            Op::Fifo { path: path.clone(), meta: meta.clone() },
            Op::Symlink { path: path.clone(), target: Bytes(b"/".to_vec()), meta: meta.clone() },
            Op::Link { path: path.clone(), to: Bytes(b"/etc/shadow".to_vec()) },
            Op::Remove { path: path.clone() },
            Op::Dir { path: path.clone(), meta: meta.clone(), found: false },
        ];
        for op in ops.drain(..) {
            assert!(installer.take(op.clone(), &[]).is_err(), "{op:?}");
        }
    }
    for path in [&b"relative"[..], b"", b"/", b"/a\0b"] {
        assert!(installer.take(Op::File { path: Bytes(path.to_vec()) }, &[]).is_err(), "{path:?}");
    }
    assert!(installer.take(Op::Data { offset: 0 }, b"x").is_err(), "content of no file");
    assert!(installer.take(Op::Remove { path: bytes(&to) }, &[]).is_err(), "what nobody wants here stays");
    assert!(to.exists() && fs::read_dir(&to).unwrap().count() == 1);
}
