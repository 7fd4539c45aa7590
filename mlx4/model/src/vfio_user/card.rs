//! A card that exists to be served.

use std::path::Path;
use std::sync::Arc;

use super::{EventFdInterrupts, ServeError, VfioUserServer};
use crate::device::PciFunction;
use crate::fabric::Fabric;
use crate::hca::{EngineThread, Hca, HcaConfig};
use crate::mem::DmaSpace;
use crate::pci::ConfigParams;

/// A card of a fabric with an engine thread of its own, on a Unix socket. Dropping it stops the server and
/// then the card.
#[derive(Debug)]
pub struct ServedCard {
    // In the order in which they end.
    server: VfioUserServer,
    _engine: EngineThread,
    hca: Arc<Hca>,
    dma: Arc<DmaSpace>,
}

impl ServedCard {
    /// Plugs a card into a fabric and serves it on `path`, as [`VfioUserServer::start`] does.
    ///
    /// # Errors
    /// The card can't be made, its threads can't be started, or there is no socket at the path.
    pub fn start(path: &Path, config: HcaConfig, fabric: &Arc<Fabric>) -> Result<Self, ServeError> {
        let dma = Arc::new(DmaSpace::new());
        let vectors = ConfigParams::new(config.node_guid, config.ports).msix_vectors;
        let irqs = Arc::new(EventFdInterrupts::new(vectors));
        let interrupts = Arc::clone(&irqs);
        let hca = Hca::new(config, Arc::clone(&dma), interrupts, fabric)
            .map_err(|source| ServeError::Card { path: path.into(), source })?;
        let engine = hca.start_engine().map_err(ServeError::Thread)?;
        let function: Arc<dyn PciFunction> = Arc::<Hca>::clone(&hca);
        let server = VfioUserServer::start(path, function, Arc::clone(&dma), irqs)?;
        Ok(Self { server, _engine: engine, hca, dma })
    }

    /// The card.
    pub fn hca(&self) -> &Arc<Hca> {
        &self.hca
    }

    /// Accesses to memory that the card tried and was refused since it was made, for whatever cause.
    pub fn refused(&self) -> u64 {
        self.dma.refused() + self.dma.held_back()
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        self.server.path()
    }

    /// Disconnects the client if there is one, resets the card, and removes the socket.
    pub fn stop(self) {
        self.server.stop();
    }
}
