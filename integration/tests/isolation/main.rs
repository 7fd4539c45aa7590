//! What keeps guests apart, one check at a time: a guest written by hand tries what it must not be able to do, and
//! the HCA refuses for its own reason; then the same attack is made with the protecting bit changed on the way from
//! the daemon to the HCA, and succeeds, so that the HCA is known to look at that bit.
//!
//! `docs/isolation.md` lists the guarantees and names these tests.
//!
//! - [`hook`]: changes contexts on their way to the HCA, and shows them
//! - [`rig`]: the daemon on the model, the attacker and the victim
//! - [`datagram`]: queue pairs of datagrams, made by hand
//! - the rest: the attacks

mod builder;
mod connections;
mod contexts;
mod datagram;
mod datagrams;
mod document;
mod doorbells;
mod hook;
mod invalidate;
mod keys;
mod records;
mod regions;
mod rig;
mod rings;
mod shared_ring;
mod teardown;
mod xrc;

/// The guest written by hand is the one of `hostile_guest`; each binary uses a part of it.
#[path = "../hostile_guest/guest.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod guest;
#[path = "../hostile_guest/memory.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod memory;
#[path = "../hostile_guest/objects.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod objects;
#[path = "../hostile_guest/queue.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod queue;
