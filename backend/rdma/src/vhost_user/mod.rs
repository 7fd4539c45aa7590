//! vhost-user around the device: a listening socket for each guest, and one connection at a time.
//!
//! - `socket`: listens, serves one connection after the other
//! - `listen`: a socket's path, and what can be wrong with it
//! - `connection`: what `vhost-user-backend` calls
//! - `shared`: the device's shared-memory region, for doorbells
//! - `vring`: a ring whose event descriptors come from someone hostile
//! - `wake`: how the rest of the process wakes a connection's worker threads

mod connection;
mod listen;
mod shared;
mod socket;
mod vring;
mod wake;

pub use listen::ListenError;
pub use socket::{Doorbells, GuestSocket, GuestSocketConfig, GuestStatus};
