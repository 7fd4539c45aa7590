//! Guests on vhost-user sockets: `vhost`'s front end against the device, with an HCA that only counts.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking; sizes are small"
)]

mod control;
mod direct;
mod doorbells;
mod events;
mod fake;
mod guest;
mod hostile;
mod life;
mod memory;
mod objects;
mod role;
mod scene;
mod socket;
