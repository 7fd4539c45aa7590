//! The virtio-rdma device: a core that knows no transport, and vhost-user around it.
//!
//! - [`RdmaHost`]: the devices of one HCA, and the thread that reads all their doorbell areas; it drives the
//!   HCA's [`Engine`] too, if it has one. While it sleeps the thread that a guest's kick wakes does so in its place
//! - [`GuestSocket`]: one guest's device on a vhost-user socket
//! - `BareDevice`, with the feature `bare`: one guest's device without a transport, for fuzz targets
//! - `device`: the virtqueues of one device: control, events, completion vectors, kicks
//! - `relay`: doorbell areas, and who reads them
//! - `memory`, `mapping`: guest memory as the transport mapped it; `mapping` has the crate's unsafe code
//! - `vhost_user`: sockets, connections, rings
//!
//! Everything from a guest is hostile: it costs that guest its own device at most. Does not: decide what a request
//! may do (`paraverbs-tenant` does), post or poll.

#[cfg(feature = "bare")]
mod bare;
mod device;
mod host;
mod mapping;
mod memory;
mod relay;
mod vhost_user;

#[cfg(feature = "bare")]
pub use bare::BareDevice;
pub use host::RdmaHost;
pub use relay::{Engine, Progress, RelayConfig};
pub use vhost_user::{Doorbells, GuestSocket, GuestSocketConfig, GuestStatus, ListenError};
