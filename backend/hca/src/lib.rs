//! The HCA that guests share, on the mlx4 driver: [`Mlx4Hca`] is [`paraverbs_tenant::hca::Hca`] on a
//! ConnectX card, or on the model of one.
//!
//! - [`Mlx4Hca::open`] brings a card up, [`Mlx4Hca::restart`] does so again after a fatal error,
//!   [`Mlx4Hca::close`] ends it
//! - guests' ids are translated to the driver's objects; events, by number, to the guests that they are for
//! - contexts of guests are built by the driver from checked fields; no request is copied into one
//!
//! Ringing a doorbell takes no lock and, but for a thread's first, allocates nothing: the tables of objects are
//! read as they are.
//!
//! Does not: decide what a guest may do (`paraverbs-tenant` does), touch guest memory, post or poll.
#![deny(unsafe_code)]

mod completion;
mod control;
mod datagram;
mod device;
mod error;
mod events;
mod geometry;
mod groups;
mod hca;
mod host_memory;
mod mappings;
mod objects;
mod pages;
mod queue_pair;
mod region;
mod share;
mod table;
mod transition;
mod xrc;

pub use hca::{Mlx4Config, Mlx4Hca};
