//! Fuzz targets: each takes any bytes for what somebody hostile does, and panics if that harms others.
//!
//! - `control`: a guest's virtqueue and requests
//! - `rings`: a guest's rings, records and doorbells, under the model's engine
//! - `mads`: datagrams of management, at the model's agents, the switch, the subnet manager and our driver
//! - `vfio_user`: a client of the model's vfio-user server
//! - `card`: what a card tells our driver
//!
//! `cargo xtask fuzz` runs them under libFuzzer; what was found is in `regressions`, and a test runs it.
#![forbid(unsafe_code)]

mod card;
mod control;
mod input;
mod mads;
mod rings;
mod vfio_user;
mod world;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of the folder with what it has found.
    pub name: &'static str,
    /// Runs it on an input.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 5] = [
    Target { name: "control", run: control::run },
    Target { name: "rings", run: rings::run },
    Target { name: "mads", run: mads::run },
    Target { name: "vfio_user", run: vfio_user::run },
    Target { name: "card", run: card::run },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    static ALL: [Target; 5] = TARGETS;
    ALL.iter().find(|target| target.name == name)
}
