//! vhost-user around the device: a listening socket for each guest, and one connection at a time.
//!
//! - `socket`: listens, serves one connection after the other
//! - `listen`: a socket's path, and what can be wrong with it
//! - `connection`: what `vhost-user-backend` calls
//! - `vring`: a ring whose event descriptors come from someone hostile
//! - `wake`: how the rest of the process wakes a connection's worker threads

mod connection;
mod listen;
mod socket;
mod vring;
mod wake;

pub use listen::ListenError;
pub use socket::{GuestSocket, GuestSocketConfig, GuestStatus};
