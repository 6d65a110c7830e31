//! Descriptors.
pub mod socket;
pub mod tcp;
