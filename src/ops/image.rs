//! What operations on images have in common: errors of the page store as failures.

use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, FailureKind};
use crate::image::manifest::ManifestError;
use crate::memory::store::StoreError;
use std::{error::Error, path::Path};

/// The failure that an error with an existing image is: exit code 7 where the image is at fault, 1 where the operating
/// system refused.
pub fn image_failure(dir: &Path, error: &(dyn Error + 'static)) -> Failure {
    let failure = Failure::of(format!("the image {} cannot be used", dir.display()), error).kind(FailureKind::Image);
    let Some(error) = error.downcast_ref::<StoreError>() else { return failure.code(codes::IMAGE_DAMAGED) };
    let failure = failure.code(error.code());
    match error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            failure.kind(FailureKind::Failed).hint("run it as the user that made the image, or as root")
        }
        StoreError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound => {
            failure.kind(FailureKind::Failed)
        }
        StoreError::NoImage { .. } => {
            failure.hint("a dump that did not end leaves no image; is this the directory given with -D?")
        }
        StoreError::NoParent { .. } | StoreError::WrongParent { .. } => {
            failure.hint("put the parent image back where it was when this one was made")
        }
        StoreError::Manifest { source: ManifestError::Version { .. }, .. } | StoreError::IndexVersion { .. } => {
            failure.hint("use the version of migrate that made it, or a newer one")
        }
        _ => failure,
    }
}

/// Parts of an image that others than its owner may write to, or whose owner is somebody else than root and us: who writes an image
/// decides what runs here, and as whom.
pub fn not_to_be_trusted(dir: &Path) -> Vec<Blocker> {
    use std::os::unix::fs::MetadataExt;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let judge = |path: std::path::PathBuf| {
        let found = std::fs::metadata(&path).ok()?;
        let reason = if found.uid() != 0 && found.uid() != own.0 {
            format!("it belongs to user {}", found.uid())
        } else if found.mode() & 0o002 != 0 {
            "everybody may write to it".to_owned()
        } else if found.mode() & 0o020 != 0 && found.gid() != 0 && found.gid() != own.1 {
            format!("group {} may write to it", found.gid())
        } else {
            return None;
        };
        Some(Blocker::new(codes::IMAGE_TRUST, path.display().to_string()).because(reason))
    };
    std::iter::once(dir.to_owned()).chain(files).filter_map(judge).collect()
}

/// An error with its causes in one line.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
