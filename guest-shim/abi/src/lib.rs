//! The ABI of the virtio-rdma device: what a guest and the daemon say to each other.
//!
//! `docs/virtio-rdma.md` is the specification; this crate is its layouts and codes, and the arithmetic that
//! both sides must agree on. A test holds the one against the other.
//!
//! - [`config`]: the configuration space, by which a driver knows the device
//! - [`queue`]: which virtqueue is for what
//! - [`request`]: the control queue's requests and replies, and [`Request::parse`]
//! - [`memory`]: how requests describe guest memory
//! - [`event`], [`mad`]: what the other queues carry
//! - [`doorbell`]: the doorbell area, its writer and its reader
//! - [`status`]: how a request ends, in verbs' error numbers
//!
//! Does not: know a transport, keep any state, decide what a guest may do, or know what the HCA finds in a
//! ring. Nothing here allocates, and nothing panics on bytes from the other side.
//!
//! Conventions: all integers are little endian; GUIDs, GIDs and MADs are bytes in the order of the wire; codes
//! and bits that verbs has too have verbs' values (rdma-core `libibverbs/verbs.h`).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[macro_use]
mod macros;

pub mod config;
pub mod doorbell;
pub mod event;
pub mod layout;
pub mod mad;
pub mod memory;
pub mod queue;
pub mod request;
pub mod status;

pub use layout::{Field, Layout, Reserved};
pub use request::{Body, Opcode, Request, Verb};
pub use status::{Reason, Status};
/// Little-endian integers as they lie in structures.
pub use zerocopy::little_endian::{U16, U32, U64};
