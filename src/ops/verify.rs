//! `migrate verify`: every check of an image and its parents, nothing restored.

use super::{
    Event, Events,
    image::{image_failure, with_causes},
};
use crate::failure::Result;
use crate::image::{limits, manifest::Kind, verify};
use crate::memory::{
    pipeline::{default_workers, verify_pages},
    store::{ImageDir, PageReader, StoreError},
};
use crate::ops::options::ImageOptions;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was checked and found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Id of the image.
    pub id: String,
    /// What it is good for.
    pub kind: Kind,
    /// Images: this one and its parents.
    pub images: usize,
    /// Processes in it.
    pub processes: usize,
    /// Pages whose content was read and checked, in this image.
    pub pages: u64,
    /// Bytes of page files that were read, parents' included.
    pub bytes: u64,
}

/// Checks everything: digests, versions, that the model makes sense, that every page can be found, and every checksum of
/// contents, of this image and of those it refers to.
///
/// # Errors
/// Everything that is wrong, as causes of one failure (exit code 7).
pub fn run(options: &ImageOptions, events: &dyn Events) -> Result<Verified> {
    let failed = |e: StoreError| image_failure(&options.dir, &e);
    let image = ImageDir::open(&options.dir).map_err(failed)?;
    let mut wrong: Vec<String> = Vec::new();
    let model = check_models(&image, &mut wrong).map_err(failed)?;
    let reader = PageReader::of(&image).map_err(failed)?;
    if let Some(model) = &model {
        note(&mut wrong, reader.fits(model));
    }
    for space in reader.spaces() {
        let all = crate::memory::PageRange::new(0, limits::PAGE_NUMBERS);
        note(&mut wrong, reader.contents_in(space, all).map(drop));
    }
    let (done, total) = (AtomicU64::new(0), reader.stored_bytes());
    let progress = |bytes: u64| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        events.event(Event::Progress { phase: "verify", done, total });
    };
    wrong.extend(verify_pages(&reader, default_workers(), &progress).iter().map(|e| with_causes(e)));
    if !wrong.is_empty() {
        let mut failure = image_failure(&options.dir, &Damage);
        failure.causes = wrong;
        return Err(failure);
    }
    Ok(Verified {
        id: image.id().to_owned(),
        kind: image.manifest().kind,
        images: reader.chain(),
        processes: image.manifest().tree.len(),
        pages: image.manifest().pages.data,
        bytes: done.into_inner(),
    })
}

/// Decodes and checks the models of the whole chain; gives that of the youngest image, if it has one.
fn check_models(
    image: &ImageDir,
    wrong: &mut Vec<String>,
) -> std::result::Result<Option<crate::image::Model>, StoreError> {
    let mut youngest = None;
    let mut next = Some(image.clone());
    for depth in 0..limits::CHAIN {
        let Some(image) = next else { break };
        if image.manifest().kind == Kind::Full {
            match image.model() {
                Err(error) => wrong.push(with_causes(&error)),
                Ok(model) => {
                    if let Err(unsound) = verify::model(&model) {
                        wrong.extend(unsound.flaws.iter().map(|f| format!("{}: {f}", image.path().display())));
                    }
                    if depth == 0 {
                        youngest = Some(model);
                    }
                }
            }
        }
        next = image.open_parent()?;
    }
    Ok(youngest)
}

fn note(wrong: &mut Vec<String>, result: std::result::Result<(), StoreError>) {
    if let Err(error) = result {
        wrong.push(with_causes(&error));
    }
}

/// The image is damaged; the causes say where.
#[derive(Debug, thiserror::Error)]
#[error("it is damaged")]
struct Damage;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::codes;
    use crate::image::{MmId, Model, tests::sample};
    use crate::memory::{
        Space,
        store::{Draft, ImageWriter, PageOptions},
    };
    use crate::ops::{Quiet, show};
    use std::path::Path;

    fn written(dir: &Path, model: &Model, page: u64) {
        let mut image = ImageWriter::create(dir, true).unwrap();
        let pages = image.pages(PageOptions::default());
        pages.write_run(Space::Mm(MmId(0)), page, &[7; 8192]).unwrap();
        image.write_model(model).unwrap();
        let pages = pages.finish().unwrap();
        image.commit(Draft::of(model, &pages), pages).unwrap();
    }

    #[test]
    fn a_good_image_is_good_and_is_shown() {
        let at = tempfile::tempdir().unwrap();
        let options = ImageOptions { dir: at.path().join("image") };
        written(&options.dir, &sample(), 8);
        let verified = run(&options, &Quiet).unwrap();
        assert_eq!((verified.images, verified.processes, verified.pages, verified.bytes), (1, 3, 2, 8192));

        let shown = show::run(&options).unwrap();
        let lines: Vec<_> = shown.processes.iter().map(|p| (p.pid, p.depth, p.threads, p.descriptors)).collect();
        assert_eq!(lines, [(100, 0, 2, Some(4)), (110, 1, 1, Some(4)), (111, 1, 0, Some(0))]);
        assert_eq!(shown.processes[0].memory_bytes, 8192);
        assert_eq!(shown.processes[0].exe.as_deref(), Some("/usr/bin/x"));
        assert!(shown.objects.contains(&("pipes", 1)) && shown.parents.is_empty());
    }

    #[test]
    fn what_an_image_lacks_has_a_code() {
        let at = tempfile::tempdir().unwrap();
        let dir = |name: &str| at.path().join(name);
        let code = |name: &str| run(&ImageOptions { dir: dir(name) }, &Quiet).unwrap_err().explained();
        std::fs::create_dir(dir("empty")).unwrap();
        assert_eq!(code("empty"), Some(codes::IMAGE_INCOMPLETE));
        written(&dir("parent"), &sample(), 8);
        let mut child = ImageWriter::create(&dir("child"), false).unwrap();
        child.set_parent(&ImageDir::open(&dir("parent")).unwrap()).unwrap();
        let pages = child.pages(PageOptions::default());
        child.write_model(&sample()).unwrap();
        let pages = pages.finish().unwrap();
        child.commit(Draft::of(&sample(), &pages), pages).unwrap();
        assert!(run(&ImageOptions { dir: dir("child") }, &Quiet).is_ok());
        std::fs::rename(dir("parent"), dir("gone")).unwrap();
        assert_eq!(code("child"), Some(codes::PARENT_MISSING));
        written(&dir("parent"), &sample(), 9);
        assert_eq!(code("child"), Some(codes::PARENT_MISSING), "another image in its place");

        let exists = ImageWriter::create(&dir("gone"), false).unwrap_err();
        assert_eq!(exists.code(), Some(codes::IMAGE_EXISTS));
        std::fs::write(dir("empty").join("letter"), "x").unwrap();
        assert_eq!(ImageWriter::create(&dir("empty"), true).unwrap_err().code(), Some(codes::DIRECTORY_USED));
        let full = StoreError::Full { path: dir("x"), source: std::io::ErrorKind::StorageFull.into() };
        assert_eq!(full.code(), Some(codes::DISK_SPACE));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let at = tempfile::tempdir().unwrap();
        let options = ImageOptions { dir: at.path().join("image") };
        let missing = run(&options, &Quiet).unwrap_err();
        assert_eq!((missing.exit_code(), missing.hint.is_some()), (7, true));
        assert_eq!(missing.explained(), Some(codes::IMAGE_INCOMPLETE));

        let mut model = sample();
        model.tasks[0].threads[0].tid.0 = 99;
        written(&options.dir, &model, 0x5000);
        let path = options.dir.join("pages-0.bin");
        std::fs::write(&path, [8; 8192]).unwrap();
        let failure = run(&options, &Quiet).unwrap_err();
        assert_eq!((failure.exit_code(), failure.explained()), (7, Some(codes::IMAGE_DAMAGED)));
        for (cause, part) in failure.causes.iter().zip(["threads[0].tid", "no memory for page 0x5000000", "checksum"]) {
            assert!(cause.contains(part), "{cause}");
        }
        assert_eq!(failure.causes.len(), 3, "{:?}", failure.causes);
    }
}
