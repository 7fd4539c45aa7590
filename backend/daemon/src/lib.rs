//! The host's daemon: one HCA, and a virtio-rdma device on a vhost-user socket for each guest.
//!
//! - [`config`]: what is to be served, from a file or built by a program
//! - [`Daemon`]: serves it from [`Daemon::start`] to [`Daemon::stop`]
//! - [`Status`]: how it is now
//!
//! If the HCA fails it is reset and brought up again; guests are told, by an event and the generation number,
//! and make their objects anew. What goes on in memory is the crates' below: `paraverbs-hca` drives the HCA,
//! `paraverbs-tenant` decides what guests may do, `paraverbs-rdma` is their device.
//!
//! Does not: run in the background, change its user, or serve a control socket.
#![forbid(unsafe_code)]

pub mod config;

mod daemon;
mod device;
mod error;
mod ports;
mod recovery;
mod status;

pub use daemon::Daemon;
pub use error::StartError;
pub use status::{HcaState, PortStatus, Status};
