//! What operations on images have in common: errors of the page store as failures.

use crate::blocker::codes;
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
