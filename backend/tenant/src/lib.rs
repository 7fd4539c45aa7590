//! What one guest owns of an HCA: handles, address windows, partitions, limits. Decides what a request may do.
//!
//! - [`Tenant`]: one guest; takes requests in the device's ABI and carries them out, or refuses them
//! - [`Host`]: what the guests of one HCA share
//! - [`hca`]: the HCA as tenants see it, a trait that others implement
//! - [`GuestRegion`], [`GuestMemory`]: a guest's memory, as the transport has it
//! - [`LogLimit`]: how many lines of the log guests can bring about
//! - [`Events`], [`SlotTable`]: what passes a tenant without waiting for requests: events and doorbells
//!
//! Everything from a guest is hostile. Does not: know a transport, virtqueues, the format of rings, or how an
//! HCA is driven; touch guest memory itself; post or poll.
#![forbid(unsafe_code)]

pub mod hca;

mod config;
mod destroy;
mod doorbell;
mod events;
mod host;
mod limits;
mod links;
mod log_limit;
mod memory;
mod objects;
mod relay;
mod request;
mod service;
mod slab;
mod state;
mod stats;
mod teardown;
mod tenant;

#[cfg(test)]
mod tests;

pub use config::GuestConfig;
pub use doorbell::SlotTable;
pub use events::{Events, Notify};
pub use host::Host;
pub use limits::Limits;
pub use log_limit::LogLimit;
pub use memory::{ChunkSize, FileId, GuestFault, GuestMemory, GuestPiece, GuestRegion, MemoryError};
pub use relay::{DirectArea, Relay, RelayArea};
pub use stats::Counters;
pub use teardown::TeardownReport;
pub use tenant::{Surroundings, Tenant};
