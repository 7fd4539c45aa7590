//! Tests of the whole crate on a recording fake of the HCA.

pub(crate) mod fake;
mod hostile;
mod life;
mod links;
pub(crate) mod memory;
mod random;
mod scene;
