//! The fabric: one switch, the packets that cross it, and its built-in subnet manager.

pub mod packet;

use std::sync::Arc;

use crate::hca::Hca;
use packet::Packet;

/// What hangs at the far end of a cable: an HCA's port, or a node without an HCA.
pub trait Endpoint: Send + Sync {
    /// A packet arrives. Runs on the sender's thread; must not block, and must not hold a lock of its own
    /// while it sends.
    fn receive(&self, packet: &Packet<'_>);

    /// The state of the cable changed: whether the far port has a link now.
    fn link_changed(&self, up: bool);

    /// The HCA and its port number (from 1), for transports that reach the far queue pair directly.
    fn hca_port(&self) -> Option<(Arc<Hca>, u8)> {
        None
    }
}
#[derive(Debug)]
pub struct Fabric;
#[derive(Debug)]
pub struct Plug;
#[derive(Debug, thiserror::Error)]
#[error("full")]
pub struct FabricError;
impl Fabric {
    pub fn plug(&self, _e: Arc<dyn Endpoint>) -> Result<Plug, FabricError> {
        Err(FabricError)
    }
}
impl Plug {
    pub fn set_link(&self, _u: bool) {}
}
