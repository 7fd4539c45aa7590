//! Tests of the whole crate on a recording fake of the HCA.

pub(crate) mod memory;
