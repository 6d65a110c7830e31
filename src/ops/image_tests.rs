//! Images that somebody has damaged or made up: every way of reading one says what is wrong, and none of them panics, hangs or
//! asks for memory that the file does not have.

use super::{image_failure, with_causes};
use crate::image::codec;
use crate::image::manifest::{FILE, INDEX_FILE, MODEL_FILE, Manifest, digest, pages_file};
use crate::image::tests::sample;
use crate::image::{MmId, Model};
use crate::memory::Space;
use crate::memory::store::{self, Compression, Draft, ImageDir, ImageWriter, PageOptions, PageReader};
use crate::ops::options::ImageOptions;
use crate::ops::{Quiet, show, verify};
use std::collections::BTreeMap;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Names and contents.
type Files = BTreeMap<String, Vec<u8>>;

/// Numbers that look random and are the same each time (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

fn written(dir: &Path, model: &Model) -> Files {
    let mut image = ImageWriter::create(dir, true).unwrap();
    let pages = image.pages(PageOptions { compression: Compression::Zstd(1), ..PageOptions::default() });
    let text: Vec<u8> = (0..4 * 4096u32).map(|n| (n / 7 % 251) as u8).collect();
    pages.write_run(Space::Mm(MmId(0)), 2, &text).unwrap();
    pages.write_run(Space::Mm(MmId(1)), 9, &[0; 4096]).unwrap();
    image.write_model(model).unwrap();
    let pages = pages.finish().unwrap();
    image.commit(Draft::of(model, &pages), pages).unwrap();
    files_of(dir)
}

fn files_of(dir: &Path) -> Files {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(read).collect()
}

fn put(dir: &Path, files: &Files) {
    for (name, content) in files {
        std::fs::write(dir.join(name), content).unwrap();
    }
}

/// What reading it says: `Err` has the causes. Neither may come without words.
fn read(dir: &Path) -> Result<(), String> {
    let options = ImageOptions { dir: dir.to_owned() };
    let verified = verify::run(&options, &Quiet);
    let shown = show::run(&options);
    if let Err(failure) = &shown {
        assert!(verified.is_err(), "what cannot be shown is not sound: {failure:?}");
        assert!(!failure.causes.is_empty(), "{failure:?}");
    }
    // What a restore does with it before the first process.
    if let Ok(image) = ImageDir::open(dir)
        && let Ok(model) = image.model()
        && crate::image::verify::model(&model).is_ok()
        && let Ok(pages) = PageReader::of(&image)
        && pages.fits(&model).is_ok()
    {
        let _ = crate::restore::plan::plan(&model);
    }
    match verified {
        Ok(_) => Ok(()),
        Err(failure) => {
            assert!(matches!(failure.exit_code(), 1 | 7), "{failure:?}");
            assert!(!failure.causes.is_empty(), "{failure:?}");
            Err(failure.causes.join("; "))
        }
    }
}

/// Spoils some bytes; nothing else of the image knows of it.
fn spoil(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    match dice.below(7) {
        0 => bytes.truncate(dice.below(len)),
        1 => bytes.extend((0..1 + dice.below(64)).map(|n| n as u8)),
        2 => {
            let from = dice.below(len);
            let to = len.min(from + 1 + dice.below(16));
            bytes[from..to].fill(if dice.below(2) == 0 { 0 } else { 0xff });
        }
        3 if len > 8 => {
            // A length, if it hits one.
            let at = dice.below(len - 8);
            let huge = [u64::MAX, 1 << 63, 1 << 40, u64::from(u32::MAX), 1 << 31][dice.below(5)];
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
        }
        4 if len > 1 => {
            let (a, b) = (dice.below(len), dice.below(len));
            bytes.swap(a, b);
        }
        5 => {
            let from = dice.below(len);
            let piece = bytes[from..len.min(from + 32)].to_vec();
            bytes.splice(from..from, piece);
        }
        _ if len > 0 => bytes[dice.below(len)] ^= 1 << dice.below(8),
        _ => bytes.push(0),
    }
}

/// The manifest says what the other files are now.
fn sealed(files: &mut Files) {
    let (mut manifest, _) = Manifest::decode(&files[FILE]).unwrap();
    for entry in &mut manifest.files {
        let content = &files[&entry.name];
        entry.bytes = content.len() as u64;
        entry.blake3 = entry.blake3.as_ref().map(|_| digest(content));
    }
    files.insert(FILE.to_owned(), manifest.encode().unwrap().0);
}

#[test]
fn no_damage_goes_unseen() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = at.path().join("image");
    let good = written(&dir, &sample());
    assert_eq!(read(&dir), Ok(()));
    let names: Vec<&String> = good.keys().collect();
    assert_eq!(names, [INDEX_FILE, FILE, MODEL_FILE, &pages_file(0)]);
    let mut dice = Dice(0x6d69_6772_6174_6531);
    for n in 0..2000 {
        let name = names[dice.below(names.len())];
        let mut bad = good.clone();
        let content = bad.get_mut(name).unwrap();
        spoil(&mut dice, content);
        if *content == good[name] {
            continue;
        }
        std::fs::write(dir.join(name), &*content).unwrap();
        assert!(read(&dir).is_err(), "damage {n} of {name} is not seen");
        std::fs::write(dir.join(name), &good[name]).unwrap();
    }
    assert_eq!(read(&dir), Ok(()), "it is whole again");
}

#[test]
fn files_that_are_missing_swapped_or_something_else_are_named() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (dir, other) = (at.path().join("image"), at.path().join("other"));
    let good = written(&dir, &sample());
    let mut model = sample();
    model.fs[0].umask = 0o77;
    let theirs = written(&other, &model);
    for name in good.keys() {
        let path = dir.join(name);
        std::fs::remove_file(&path).unwrap();
        assert!(read(&dir).is_err(), "{name} is missing");
        // It is not waited for that somebody writes into it.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&dir).unwrap_err().contains("no regular file"), "{name} is a pipe");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(read(&dir).is_err(), "{name} is a directory");
        std::fs::remove_dir(&path).unwrap();
        for target in ["/dev/zero", "/dev/null", name.as_str(), "/proc/self/mem"] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            assert!(read(&dir).is_err(), "{name} is a link to {target}");
            std::fs::remove_file(&path).unwrap();
        }
        if theirs[name] != good[name] && name != FILE {
            std::fs::write(&path, &theirs[name]).unwrap();
            assert!(read(&dir).is_err(), "{name} is another image's");
        }
        for instead in good.keys().filter(|instead| *instead != name) {
            std::fs::write(&path, &good[instead]).unwrap();
            assert!(read(&dir).is_err(), "{name} is {instead}");
        }
        std::fs::write(&path, &good[name]).unwrap();
    }
    assert_eq!(read(&dir), Ok(()), "it is whole again");
}

/// Whoever makes an image up knows how its checksums are computed.
#[test]
fn images_that_are_made_up_are_read_without_harm() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = at.path().join("image");
    let good = written(&dir, &sample());
    let mut dice = Dice(0x6d69_6772_6174_6532);
    let (mut refused, mut taken) = (0, 0);
    for n in 0..2000 {
        let mut bad = good.clone();
        if n % 2 == 0 {
            let index = bad.get_mut(INDEX_FILE).unwrap();
            index.truncate(index.len() - 8);
            spoil(&mut dice, index);
            let check = xxh3_64(index);
            index.extend_from_slice(&check.to_le_bytes());
        } else {
            let section = dice.below(64);
            let forged = codec::forged(&bad[MODEL_FILE], section, |raw| spoil(&mut dice, raw));
            bad.insert(MODEL_FILE.to_owned(), forged);
        }
        sealed(&mut bad);
        put(&dir, &bad);
        match read(&dir) {
            Ok(()) => taken += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 700, "{refused} refused, {taken} taken");
    // Many things are a matter of taste: a name, a limit, a counter.
    assert!(taken > 70, "{refused} refused, {taken} taken: nothing was made up well");
}

/// What comes through a pipe, with and without compression.
#[test]
fn streams_that_are_damaged_leave_nothing() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = at.path().join("image");
    written(&dir, &sample());
    let image = ImageDir::open(&dir).unwrap();
    let mut dice = Dice(0x6d69_6772_6174_6533);
    for level in [None, Some(1)] {
        let good = store::send(&image, Vec::new(), level).unwrap();
        let receive = |bytes: &[u8]| {
            let place = at.path().join("spool");
            let writer = ImageWriter::create(&place, false).unwrap();
            let received = store::receive(bytes, writer, PageOptions::default()).map(drop).map_err(|e| with_causes(&e));
            if received.is_ok() {
                assert_eq!(read(&place), Ok(()), "what was received is whole");
                std::fs::remove_dir_all(&place).unwrap();
            }
            assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 1, "nothing but the image is left");
            received
        };
        assert_eq!(receive(&good), Ok(()));
        for n in 0..300 {
            let mut bad = good.clone();
            spoil(&mut dice, &mut bad);
            // A stream is read to its end and no further.
            if !bad.starts_with(&good) {
                assert!(receive(&bad).is_err_and(|words| !words.is_empty()), "damage {n}");
            }
        }
    }
}

#[test]
fn a_manifest_that_is_made_up_opens_no_other_file() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = at.path().join("image");
    let good = written(&dir, &sample());
    let (manifest, id) = Manifest::decode(&good[FILE]).unwrap();
    let forge = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        std::fs::write(dir.join(FILE), manifest.encode().unwrap().0).unwrap();
        read(&dir)
    };
    for name in ["../image/model.bin", "/etc/passwd", "pages-1.bin", "pages-18446744073709551615.bin", "", "."] {
        assert!(forge(&|m| m.files[0].name = name.into()).is_err(), "{name:?}");
    }
    assert!(forge(&|m| m.files.iter_mut().for_each(|f| f.bytes = u64::MAX)).is_err());
    assert!(forge(&|m| m.files.iter_mut().for_each(|f| f.blake3 = None)).is_err());
    assert!(forge(&|m| m.files.clear()).is_err());
    assert!(forge(&|m| m.version = 2).unwrap_err().contains("version 2"));
    assert!(forge(&|m| m.format = "other".into()).is_err());
    // A parent that is the image itself, or anything else that is no image.
    for path in [".", "../image", "/etc", "/dev/zero", "/proc/self/root/etc/passwd"] {
        let link = crate::image::manifest::ParentLink { path: path.into(), id: id.clone() };
        assert!(forge(&|m| m.parent = Some(link.clone())).is_err(), "{path}");
    }
    assert_eq!(forge(&|_| {}), Ok(()));
    let failure = image_failure(&dir, &std::io::Error::other("any"));
    assert_eq!(failure.exit_code(), 7);
}
