//! A shared receive queue that this process posts to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::SrqGeometry;
use mlx4_queue::request::Sge;
use mlx4_queue::{Place, PostedReceive, SharedReceiveQueue as Ring};

use super::cq::{CompletionQueue, Poller};
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::object::Pd;
use crate::shared::Shared;
use crate::srq::{Srq, SrqConfig};
use crate::xrc::Xrcd;

/// The ring of an SRQ; its queue pairs know it too.
pub(crate) struct SharedRing(Mutex<Ring<Arc<Memory>>>);

impl SharedRing {
    fn lock(&self) -> MutexGuard<'_, Ring<Arc<Memory>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn completed(&self, index: u16) -> Option<PostedReceive> {
        self.lock().complete(index)
    }
}

/// A shared receive queue in memory of the driver.
///
/// Its queue pairs must be destroyed before it.
pub struct SharedReceiveQueue {
    srq: Srq,
    memory: Arc<Memory>,
    ring: Arc<SharedRing>,
    shared: Arc<Shared>,
    /// Of one for extended connections: where requests complete.
    poller: Option<Arc<Poller>>,
}

impl SharedReceiveQueue {
    /// For so many requests of so many pieces; with an XRC domain, what comes completes in the queue beside it.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        pd: &Pd,
        (requests, sges): (u32, u32),
        xrc: Option<(&Xrcd, &CompletionQueue)>,
    ) -> Result<Self> {
        let geometry = SrqGeometry::new(requests, sges, &shared.caps.queues)?;
        let number = shared.numbers.srqs.take()?;
        let memory = Memory::new(shared.device.dma(), geometry.bytes() as usize)?;
        let place = |offset| Place { memory: Arc::clone(&memory), offset };
        let mut ring = Ring::new(place(0), place(memory.record_offset()), geometry)?;
        ring.reset();
        let pages = memory.pages();
        let record = memory.record();
        let config = SrqConfig {
            log2_entries: geometry.log2_entries(),
            log2_stride: geometry.log2_stride(),
            pd,
            ring: Memory::ring(&pages),
            record,
            xrc: xrc.map(|(xrcd, cq)| (xrcd, cq.object())),
        };
        let srq = memory.unless_kept(Srq::new(shared, number, &config))?;
        let ring = Arc::new(SharedRing(Mutex::new(ring)));
        let poller = xrc.map(|(_, cq)| Arc::clone(cq.poller()));
        if poller.is_some() {
            shared.shared_rings.insert(srq.number(), Arc::clone(&ring));
        }
        Ok(Self { srq, memory, ring, shared: Arc::clone(shared), poller })
    }

    /// The queue as the device has it.
    pub fn object(&self) -> &Srq {
        &self.srq
    }

    pub(super) fn ring(&self) -> &Arc<SharedRing> {
        &self.ring
    }

    /// Posts a receive request.
    ///
    /// # Errors
    /// The queue is full, or the list isn't one for it.
    pub fn post(&self, wr_id: u64, pieces: &[Sge]) -> Result<()> {
        let mut ring = self.ring.lock();
        ring.post(wr_id, pieces)?;
        ring.commit();
        Ok(())
    }

    /// Takes the queue back and frees its memory.
    ///
    /// # Errors
    /// The device doesn't give it back, or queue pairs still use it: the memory stays mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_unused()?.map_or(Ok(()), |_lost| Err(Error::Used("shared receive queue")))
    }

    /// As [`SharedReceiveQueue::destroy`]; but if queue pairs still use it, it stays as it is, and is returned.
    ///
    /// # Errors
    /// The device doesn't give it back, and the memory stays mapped until the next reset.
    pub fn destroy_unused(self) -> Result<Option<Self>> {
        // Of one for extended connections only its completion queue knows, which finds it by its number.
        if self.poller.is_none() && Arc::strong_count(&self.ring) > 1 {
            return Ok(Some(self));
        }
        let srqn = self.srq.number();
        if self.poller.is_some() {
            self.shared.shared_rings.remove(srqn);
        }
        self.srq.destroy_and(|| self.poller.iter().for_each(|poller| poller.clean_shared(srqn)))?;
        drop(self.ring);
        Memory::release(self.memory);
        Ok(None)
    }
}

impl fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue").field("srq", &self.srq).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::testing::Bench;

    /// Else what belongs to the next one with that number would be taken out.
    #[test]
    fn number_is_free_only_when_what_is_left_of_its_queue_was_cleaned_up() {
        let bench = Bench::new(&Config { ports: false, completion_eqs: 1, ..Config::default() });
        let pd = bench.hca.pd().unwrap();
        let queue = bench.hca.shared_receive_queue(&pd, 16, 1).unwrap();
        let srqs = &bench.hca.shared.numbers.srqs;
        let others: Vec<_> = std::iter::from_fn(|| srqs.take().ok()).collect();
        queue.srq.destroy_and(|| assert!(srqs.take().is_err())).unwrap();
        assert!(srqs.take().is_ok());
        Memory::release(queue.memory);
        drop((others, queue.ring, queue.shared));
        bench.hca.close().unwrap();
    }
}
