//! The requests of a client without its messages, for fuzz targets.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ::vfio_user::ServerBackend;

use super::EventFdInterrupts;
use super::backend::Backend;
use crate::device::PciFunction;
use crate::mem::DmaSpace;

/// What the protocol's crate calls on behalf of a client.
pub fn backend(
    function: Arc<dyn PciFunction>,
    dma: Arc<DmaSpace>,
    irqs: Arc<EventFdInterrupts>,
) -> impl ServerBackend {
    Backend::new(function, dma, irqs, Arc::new(AtomicBool::new(false)))
}
