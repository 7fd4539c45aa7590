//! The send queue of queue pairs that never send.

use mlx4_pci::DmaBuffer;
use mlx4_wire::ctx::qp::WqSize;

use crate::claim::RingMemoryPages;
use crate::error::Result;
use crate::shared::Shared;

/// log2 of its bytes: a page.
const LOG2_BYTES: u8 = 12;
/// log2 of its stride in bytes, the smallest that send queues have.
const LOG2_STRIDE: u8 = 6;
/// No request here is the device's.
const FILL: u8 = 0xff;

/// A send queue in which nothing is ever posted; any number of queue pairs can have it at once.
#[derive(Debug)]
pub(crate) struct EmptyQueue {
    memory: DmaBuffer,
    page: [u64; 1],
}

impl EmptyQueue {
    pub(crate) fn new(shared: &Shared) -> Result<Self> {
        let memory = shared.device.dma().allocate(1 << LOG2_BYTES, 1 << LOG2_BYTES)?;
        memory.write(0, &[FILL; 1 << LOG2_BYTES])?;
        let page = [memory.iova()];
        Ok(Self { memory, page })
    }

    pub(crate) fn size() -> WqSize {
        WqSize::new().with_log2_entries(LOG2_BYTES - LOG2_STRIDE).with_log2_stride_less_4(LOG2_STRIDE - 4)
    }

    pub(crate) fn pages(&self) -> RingMemoryPages<'_> {
        RingMemoryPages { pages: &self.page, log2_page: LOG2_BYTES }
    }

    /// Frees the memory, which the device has let go of.
    pub(crate) fn release(self) -> Result<()> {
        Ok(self.memory.release()?)
    }
}
