//! Descriptors.

pub mod regular;
pub mod socket;
pub mod tcp;
pub mod unix;

use super::{Options, Result, material::Material, skeleton::Skeletons};
use crate::image::Model;

/// One descriptor of ours for each open file description of the model.
#[derive(Debug, Default)]
pub struct Opened;

/// Makes every open file description.
pub fn make_all(_: &Model, _: &mut Skeletons, _: &Material, _: &Options, _: &mut Vec<String>) -> Result<Opened> {
    Ok(Opened)
}

/// Gives every task its descriptors.
pub fn install_all(_: &Model, _: &Opened, _: &mut Skeletons, _: &Material) -> Result<()> {
    Ok(())
}

/// What needs everything else to be there.
pub fn finish(_: &Model, _: &Opened, _: &mut Skeletons) -> Result<()> {
    Ok(())
}
