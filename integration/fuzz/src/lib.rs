//! Fuzz targets: bytes that somebody hostile chose, carried into the parts that must bear them.
//!
//! - [`control`]: a guest's requests, virtqueues and doorbells, in the daemon's device on the model
//! - [`rings`]: a guest's work requests, doorbell records and doorbells, in the model's engine
//! - [`mads`]: management datagrams, in the nodes, the subnet manager and administrator, and the driver
//! - [`vfio_user`]: a VMM's calls and its guest's commands, in the server that shows the model to VMMs
//! - [`card`]: what a card tells, in the driver
//!
//! A target takes any bytes, and panics if something is wrong: a panic below it, an access of the HCA that was
//! refused, memory of somebody else that has changed, something left behind. `cargo xtask fuzz` builds them with
//! coverage and lets LLVM's fuzzer choose the bytes; `cargo test` gives them what once broke something
//! (`regressions/`).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

pub mod card;
pub mod control;
mod input;
pub mod mads;
mod parts;
pub mod rings;
pub mod vfio_user;

/// What takes bytes.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 5] = [
    ("control", control::run),
    ("rings", rings::run),
    ("mads", mads::run),
    ("vfio_user", vfio_user::run),
    ("card", card::run),
];
